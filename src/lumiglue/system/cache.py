"""The folder of files that can be made again: downloads and measurements."""

import os
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

from lumiglue.errors import InputError


def cache_folder() -> Path:
    """The cache folder: $LUMIGLUE_CACHE, or the system's place for caches, on Linux ~/.cache/lumiglue.

    Raises:
        InputError: The user has no home folder, and LUMIGLUE_CACHE is not set.
    """
    if given := os.environ.get("LUMIGLUE_CACHE"):
        return Path(given)
    with suppress(RuntimeError):  # without a home folder platformdirs raises; older versions return "~/.cache"
        if (folder := user_cache_path("lumiglue", appauthor=False)).is_absolute():
            return folder
    raise InputError("there is no home folder; set LUMIGLUE_CACHE to a folder for downloads")
