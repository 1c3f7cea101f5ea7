"""Features of a collection in one HDF5 file, in hloc's layout: a group for each image with keypoints, descriptors, scores
and image_size; beside them scales and oris where the features have them."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

import torch

from lumiglue.collection.hloc import write_features
from lumiglue.errors import InputError, LumiglueError
from lumiglue.extractors import Extractor
from lumiglue.extractors.regions import extract_inside
from lumiglue.images import read_image, read_mask
from lumiglue.io.hdf5 import GrowingFile
from lumiglue.pipeline.prefetch import pool
from lumiglue.types import PIXELS, Features

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
IMAGES_IN_A_PART = 64
_ODD_NAME = "its name is not in UTF-8; rename the file"


def list_images(folder: str | Path) -> list[str]:
    """Names of the images below a folder, relative to it, in order. Raises InputError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one that holds photos")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not names:
        raise InputError(f"{folder} holds no photo ({', '.join(SUFFIXES)})")
    return names


def mask_file(masks: str | Path | None, name: str) -> Path | None:
    """The mask of a photo: MASKS/name.jpg.png as for COLMAP, MASKS/name.png or MASKS/name.jpg. None where there is none, and
    the photo is used whole."""
    if masks is None:
        return None
    whole = Path(masks) / name
    candidates = (whole.with_name(whole.name + ".png"), whole.with_suffix(".png"), whole)
    return next((path for path in candidates if path.is_file()), None)


@dataclass(frozen=True)
class Progress:
    """How far a job is. failed: (name, reason) of what could not be used, new since the step before."""

    done: int
    total: int
    failed: tuple[tuple[str, str], ...] = ()


def describe_collection(
    folder: str | Path,
    names: Sequence[str],
    extractor: Extractor,
    out: str | Path,
    *,
    note: str = "",
    masks: str | Path | None = None,
    workers: int | None = None,
) -> Iterator[Progress]:
    """Writes the features of the images to `out`; yields after each part. Run again after a kill, or when there are more
    images: it does what is missing.

    An image that cannot be read stops nothing else; it is in `failed`, and tried again by the next run. note: what the
    features depend on beside the extractor's own record, such as how many are kept. masks: folder of masks, see `mask_file`.
    workers: threads. Raises InputError where `out` holds other features or those of other masks, no image could be read, or
    none has a mask.
    """
    folder = Path(folder)
    made_by = {"extractor": {**extractor.config(), "name": extractor.name}, "note": note, "pixels": PIXELS}
    if masks is not None:
        made_by["masked"] = True
        if not any(mask_file(masks, name) for name in names):
            raise InputError(f"{masks} holds no mask of any photo; that of {names[0]} is {Path(masks, names[0] + '.png')}")

    def describe(name: str) -> tuple[Features, str]:
        image, mask = read_image(folder / name), mask_file(masks, name)
        if mask is None:
            return extractor(image), ""
        return extract_inside(extractor, image, read_mask(mask)), _digest(mask)

    workers = torch.get_num_threads() if workers is None else workers
    with (
        GrowingFile(out, json.dumps(made_by, sort_keys=True)) as growing,
        pool(workers, one_thread_each=workers > 1) as threads,
    ):
        odd = tuple((name.encode("utf-8", "backslashreplace").decode(), _ODD_NAME) for name in names if not _is_text(name))
        names = [name for name in names if _is_text(name)]
        todo = growing.missing(names)
        if masks is not None:
            _same_masks(growing, masks, set(names) - set(todo))
        count = len(names) + len(odd)
        done = count - len(todo)
        yield Progress(done, count, odd)
        described = _ahead(threads, describe, todo, 2 * workers)
        read = 0
        for start in range(0, len(todo), IMAGES_IN_A_PART):
            failed = []
            with growing.part() as group:
                for name in todo[start : start + IMAGES_IN_A_PART]:
                    try:
                        features, mask = next(described).result()
                    except (LumiglueError, OSError) as error:
                        failed.append((name, str(error)))
                        continue
                    written = group(name)
                    write_features(written, features)
                    if mask:
                        written.attrs["mask"] = mask
                    read += 1
            done += min(IMAGES_IN_A_PART, len(todo) - start)
            yield Progress(done, count, tuple(failed))
        if len(todo) == len(names) and not read:
            raise InputError(f"none of the {len(names)} images in {folder} could be read")
        growing.finish()


def _digest(path: Path | None) -> str:
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _same_masks(growing: GrowingFile, masks: str | Path, names: Iterable[str]) -> None:
    noted = growing.notes("mask")
    for name in sorted(names):
        if noted[name] != _digest(mask_file(masks, name)):
            raise InputError(
                f"{growing.path} was made with another mask of {name}; delete it to begin again, or choose another name"
            )


def _is_text(name: str) -> bool:
    """False for a file name that the system cannot show as text; HDF5 holds text."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _ahead(
    threads: Executor, describe: Callable[[str], tuple[Features, str]], names: Sequence[str], ahead: int
) -> Iterator["Future[tuple[Features, str]]"]:
    waiting: deque[Future[tuple[Features, str]]] = deque()
    for name in names:
        waiting.append(threads.submit(describe, name))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
