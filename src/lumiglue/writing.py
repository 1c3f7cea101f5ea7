"""Files that are whole or not there, whatever happens meanwhile."""

import errno
from pathlib import Path

from lumiglue.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: str | Path, content: bytes) -> None:
    """Writes beside and renames. Raises InputError where the disk is full; a file that was there before then stays."""
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        if disk_is_full(error):
            raise InputError(f"the disk of {path} is full; make room and run the same command again") from None
        raise


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room. HDF5 says so in a RuntimeError where a file is closed."""
    return (isinstance(error, OSError) and error.errno in _FULL) or any(f"errno = {code}," in str(error) for code in _FULL)
