"""Where Lumiglue keeps what it may lose: downloads, measurements, the compiled kernel."""

import os
from pathlib import Path

from lumiglue.errors import InputError


def cache_folder() -> Path:
    """Where downloads are kept: $LUMIGLUE_CACHE, else ~/.cache/lumiglue. Raises InputError where there is neither."""
    if given := os.environ.get("LUMIGLUE_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "lumiglue"
    except RuntimeError:
        raise InputError("there is no home folder; set LUMIGLUE_CACHE to a folder for downloads") from None
