"""Which files of a folder are photos, and in which order."""

import logging
import os
import re
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from lumiglue.errors import InputError

# By format: JPEG, PNG, TIFF, WebP, BMP, PNM, GIF, JPEG 2000, HEIF (`lumiglue[heic]`), AVIF.
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".gif",
    ".jp2", ".j2k", ".heic", ".heif", ".hif", ".avif",
})  # fmt: skip
# What file managers, NAS and macOS leave beside photos. Hidden files (.name) are left out as well.
_CLUTTER = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "Thumbs.db", "desktop.ini"})
_log = logging.getLogger(__name__)


def list_images(folder: str | Path) -> list[Path]:
    """Lists the photos in a folder and its subfolders, in natural order (frame2 before frame10).

    Links to folders are followed; each folder is searched once, so loops end. Hidden files and the clutter of file managers
    (`._a.jpg`, `__MACOSX`, `@eaDir`, `.thumbnails`) are left out. Other files that are no photos are counted in a note,
    which is logged.

    Raises:
        InputError: There are none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder of photos")
    photos, others = [], Counter[str]()
    for path in _files(folder):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            others[path.suffix.lower() or "without a suffix"] += 1
        elif not path.is_file():
            others["broken links"] += 1
        else:
            photos.append(path)
    passed_over = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
    if not photos:
        has = f"has no images (it has {passed_over})" if others else "has no images"
        raise InputError(f"{folder} {has}; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    if others:
        _log.warning("%s: ignored %s, which are not photos", folder, passed_over, extra={"label": "note"})
    return sorted(photos, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def image_names(folder: str | Path) -> list[str]:
    """Lists the photos below a folder by name.

    Args:
        folder: See `list_images`.

    Returns:
        Paths relative to the folder, with slashes, in natural order.

    Raises:
        InputError: The folder does not exist or has no image.
    """
    return [path.relative_to(folder).as_posix() for path in list_images(folder)]


def natural_key(name: str) -> tuple[object, ...]:
    """A key that sorts numbers in names by value, folder by folder: frame2 before frame10, cam2/b before cam10/a."""
    return tuple(tuple(map(_number_key, enumerate(re.split("([0-9]+)", part)))) for part in name.split("/")), name


def _number_key(numbered: tuple[int, str]) -> tuple[int, str]:
    """The key of a run of digits (odd places) or of other characters: digits by their count, then one by one."""
    place, text = numbered
    digits = text.lstrip("0")
    return (len(digits), digits) if place % 2 else (0, text)


def _files(folder: Path) -> Iterator[Path]:
    """All files that are not hidden, of each folder once: real folders first, then those behind links."""
    seen, queue = {_identity(parent) for parent in folder.resolve().parents}, deque([folder])
    while queue:
        for place, below, names in os.walk(queue.popleft(), onerror=_say_unread):
            path = Path(place)
            if _identity(path) in seen:
                below.clear()
                continue
            seen.add(_identity(path))
            below[:] = sorted(name for name in below if not _is_clutter(name))  # which of two links counts
            queue += (path / name for name in below if (path / name).is_symlink())
            yield from (path / name for name in names if not _is_clutter(name))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _say_unread(error: OSError) -> None:
    _log.warning("%s is not searched (%s)", error.filename, error.strerror, extra={"label": "note"})


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name in _CLUTTER
