"""Files that are whole or not there, whatever happens meanwhile."""

import errno
import shutil
from pathlib import Path

from lumiglue.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What HDF5 may hold back until a file is closed, where a full disk is no error to it but the end of the process.
_HELD_BACK = 2**25


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


def has_room(path: Path, size: int) -> bool:
    """Whether so many bytes, and what HDF5 holds back, can be written to the disk of `path`, which need not exist yet.

    To be asked before HDF5 writes: once the disk is full, it crashes.
    """
    return shutil.disk_usage(path.absolute().parent).free >= size + _HELD_BACK


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room. HDF5 says so in a RuntimeError where a file is closed."""
    return (isinstance(error, OSError) and error.errno in _FULL) or any(f"errno = {code}," in str(error) for code in _FULL)
