"""Atomic writes: a file is complete or absent, whatever interrupts the write."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lumiglue.errors import InputError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What HDF5 may buffer until a file is closed. A disk that is full by then ends the process without an error.
_HDF5_BUFFER = 2**25  # bytes


@contextmanager
def replacing(path: str | Path, *, shared: bool = False, durable: bool = False) -> Iterator[Path]:
    """Yields a path beside `path` to write to, and renames it to `path` unless the block raises.

    Args:
        path: The file to create or replace. Its folder must exist.
        shared: Whether several processes may write it at once.
        durable: Whether to flush the content to the disk before renaming, so that it survives a power failure.

    Yields:
        The file to write in the block. It is deleted if the block raises.
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished" if shared else f"{path.name}.unfinished")
    try:
        yield unfinished
        if durable:
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: str | Path, content: bytes | memoryview) -> None:
    """Creates or replaces a file atomically.

    Args:
        path: The file. Its folder must exist.
        content: The whole content.

    Raises:
        InputError: The disk is full. An earlier version of the file is intact.
    """
    try:
        with replacing(path) as unfinished:
            unfinished.write_bytes(content)
    except OSError as error:
        if disk_is_full(error):
            raise InputError(f"the disk of {path} is full; make room and run the same command again") from None
        raise


def has_room(path: Path, size: int) -> bool:
    """Whether the disk has room for a file and for HDF5's buffer.

    Check this before HDF5 writes: it crashes when the disk is full.

    Args:
        path: The file to write; it need not exist.
        size: Its size in bytes.
    """
    return shutil.disk_usage(path.absolute().parent).free >= size + _HDF5_BUFFER


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed because the disk is full; when a file is closed, HDF5 reports that by a RuntimeError."""
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return True
    return any(f"errno = {code}," in str(error) for code in _DISK_FULL)
