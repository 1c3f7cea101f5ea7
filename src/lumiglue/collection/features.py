"""Features of a collection of photos, in one HDF5 file of hloc's layout. Extraction can be interrupted and resumed."""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lumiglue.collection.hloc import write_features
from lumiglue.collection.stamps import Stamp
from lumiglue.errors import InputError, LumiglueError
from lumiglue.extractors import Extractor, Sift
from lumiglue.extractors.regions import Tiled, extract_inside
from lumiglue.images import Stretch, exif_orientation, image_names, read_image, read_mask
from lumiglue.io.hdf5 import GrowingFile
from lumiglue.pipeline.prefetch import pool
from lumiglue.types import PIXELS, Features

IMAGES_IN_A_PART = 64
Failures = tuple[tuple[str, str], ...]
Extracted = tuple[Features, int, dict[str, int | str]]  # with the orientation and the attributes of the group
_log = logging.getLogger(__name__)
_NOT_UTF8 = "its name is not in UTF-8; rename the file"


def mask_file(masks: str | Path | None, name: str) -> Path | None:
    """Finds the mask of a photo: MASKS/name.jpg.png as for COLMAP, MASKS/name.png or MASKS/name.jpg.

    Args:
        masks: Folder of masks.
        name: Name of the photo.

    Returns:
        The file; None if there is none, and the whole photo is used.
    """
    if masks is None:
        return None
    whole = Path(masks) / name
    candidates = (whole.with_name(whole.name + ".png"), whole.with_suffix(".png"), whole)
    return next((path for path in candidates if path.is_file()), None)


@dataclass(frozen=True)
class Progress:
    """The state of a job.

    Attributes:
        stage: What is counted: "images", "pairs" or "images placed".
        done: How many are done, failures included.
        total: How many there are.
        failed: (name, reason) of those that failed since the last report.
    """

    stage: str
    done: int
    total: int
    failed: Failures = ()


def run_to_end(steps: Iterable[Progress], progress: Callable[[Progress], None] | None) -> Failures:
    """Runs the steps of a job, reports each, and returns all failures."""
    failed: list[tuple[str, str]] = []
    for step in steps:
        failed += step.failed
        if progress is not None:
            progress(step)
    return tuple(failed)


def extract_features(
    photos: str | Path,
    out: str | Path,
    extractor: Extractor | None = None,
    *,
    masks: str | Path | None = None,
    stretch: Stretch = "auto",
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Failures:
    """Extracts the features of all photos of a folder. Call it again if it was interrupted, or if photos changed.

    Args:
        photos: Folder, searched with all its subfolders.
        out: HDF5 file to write, in hloc's layout.
        extractor: The features; None is SIFT.
        masks: Folder of masks, see `mask_file`; None uses the photos whole.
        stretch: Which photos are stretched, see `images.read_image`.
        workers: Threads; None takes as many as PyTorch uses.
        progress: Called after each part.

    Returns:
        (name, reason) of each photo that could not be used. The next call tries them again.

    Raises:
        InputError: the folder has no usable photo or mask, or `out` has other features.
    """
    steps = extract_in_parts(
        photos, image_names(photos), extractor or Sift(), out, masks=masks, stretch=stretch, workers=workers
    )
    return run_to_end(steps, progress)


def extract_in_parts(
    folder: str | Path,
    names: Sequence[str],
    extractor: Extractor,
    out: str | Path,
    *,
    note: str | None = None,
    masks: str | Path | None = None,
    stretch: Stretch = "auto",
    workers: int | None = None,
) -> Iterator[Progress]:
    """Does the work of `extract_features` for given photos, and yields after each part.

    Args:
        folder: Folder that the names are relative to.
        names: The photos.
        extractor: The features.
        out: HDF5 file to write, in hloc's layout.
        note: What the features depend on beside `extractor.config()`; None takes the extractor's limits.
        masks: Folder of masks, see `mask_file`.
        stretch: Which photos are stretched, see `images.read_image`.
        workers: Threads; None takes as many as PyTorch uses.

    Returns:
        An iterator over the progress.

    Raises:
        InputError: no photo could be read, none has a mask, or `out` has other features.
    """
    folder = Path(folder)
    if masks is not None and not any(mask_file(masks, name) for name in names):
        raise InputError(f"{masks} has no mask for any photo; that of {names[0]} is {Path(masks, names[0] + '.png')}")

    def extract(name: str) -> Extracted:
        stamp = Stamp.of(folder / name)  # before the photo is read: if it is replaced meanwhile, the next run sees it
        image, mask = read_image(folder / name, stretch=stretch), mask_file(masks, name)
        attributes = {} if stamp is None else stamp.attributes()
        orientation = exif_orientation(folder / name)
        if mask is None:
            return extractor(image), orientation, attributes
        return extract_inside(extractor, image, read_mask(mask)), orientation, {**attributes, "mask": _digest(mask)}

    workers = torch.get_num_threads() if workers is None else workers
    with (
        GrowingFile(out, record_of(extractor, note, stretch=stretch, masked=masks is not None)) as growing,
        pool(workers, one_thread_each=workers > 1) as threads,
    ):
        unusable = tuple(
            (name.encode("utf-8", "backslashreplace").decode(), _NOT_UTF8) for name in names if not _is_text(name)
        )
        names = [name for name in names if _is_text(name)]
        present = growing.attributes(set(names) - set(growing.missing(names)))
        if masks is not None:
            _same_masks(out, masks, present)
        _discard_changed(growing, folder, present)
        todo = growing.missing(names)
        count = len(names) + len(unusable)
        done = count - len(todo)
        yield Progress("images", done, count, unusable)
        extracted = _ahead(threads, extract, todo, 2 * workers)
        failures: list[tuple[str, str]] = []
        for start in range(0, len(todo), IMAGES_IN_A_PART):
            failed, interrupt = [], None
            with growing.part() as group:
                for name in todo[start : start + IMAGES_IN_A_PART]:
                    try:
                        features, orientation, attributes = next(extracted).result()
                    except (LumiglueError, OSError) as error:
                        failed.append((name, str(error)))
                        continue
                    except KeyboardInterrupt as error:
                        interrupt = error
                        break
                    image_group = group(name)
                    write_features(image_group, features, orientation)
                    image_group.attrs.update(attributes)
            if interrupt is not None:
                raise interrupt  # what was extracted is in a part
            failures += failed
            done += min(IMAGES_IN_A_PART, len(todo) - start)
            yield Progress("images", done, count, tuple(failed))
        if count and len(failures) + len(unusable) == count:
            raise InputError(
                f"none of the {count} images in {folder} could be used; {_causes(folder, failures or unusable)}"
            )
        growing.finish()


def record_of(extractor: Extractor, note: str | None = None, *, stretch: Stretch = "auto", masked: bool = False) -> str:
    """What features depend on, as text: two files with the same record have the same features of the same photos.

    Args:
        extractor: The features.
        note: What they depend on beside `extractor.config()`; None takes the extractor's limits.
        stretch: Which photos are stretched, see `images.read_image`.
        masked: Whether parts of photos are left out.
    """
    note = _limits(extractor) if note is None else note
    note += "" if stretch == "auto" else f", stretch {stretch}"
    pixels = f"{PIXELS}, as stored (before the EXIF orientation)"
    made_by = {"extractor": {**extractor.config(), "name": extractor.name}, "note": note, "pixels": pixels}
    return json.dumps(made_by | ({"masked": True} if masked else {}), sort_keys=True)


def _causes(folder: Path, failures: Sequence[tuple[str, str]]) -> str:
    """The first reason, and how many have it; reasons that differ in the photo's path only are the same."""
    causes = [reason.replace(str(folder / name), "") for name, reason in failures]
    return f"first reason ({causes.count(causes[0])} of {len(causes)}): {failures[0][1]}"


def _discard_changed(growing: GrowingFile, folder: Path, present: Mapping[str, Mapping[str, Any]]) -> None:
    """Removes the features of photos that were replaced since."""
    changed = []
    for name in sorted(present):
        stamp = Stamp.from_attributes(present[name])
        if stamp is not None and not stamp.fits(folder / name):
            changed.append(name)
    if changed:
        names = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        _log.warning("changed since %s was written, so extracted again: %s", growing.path, names, extra={"label": "note"})
        growing.discard(changed)


def _limits(extractor: Extractor) -> str:
    """Limits that change the features but are no part of the extractor's config."""
    keypoints, resize, tile = (getattr(extractor, name, None) for name in ("max_keypoints", "resize", "tile"))
    limits = "" if keypoints is None else f"{keypoints} keypoints, long side {resize or 0}"
    limits += f", tiles of {tile}" if tile else ""
    inner = extractor.extractor if isinstance(extractor, Tiled) else extractor
    for name in ("contrast_threshold", "detection_threshold"):
        threshold = getattr(inner, name, None)
        if threshold != getattr(type(inner), name, None):
            limits += f", {name} {threshold}"
    return limits


def _digest(path: Path | None) -> str:
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _same_masks(out: str | Path, masks: str | Path, present: Mapping[str, Mapping[str, Any]]) -> None:
    for name in sorted(present):
        if str(present[name].get("mask", "")) != _digest(mask_file(masks, name)):
            raise InputError(f"{out} was made with another mask of {name}; delete it to begin again, or choose another name")


def _is_text(name: str) -> bool:
    """False for a file name that the system cannot show as text; HDF5 holds text."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _ahead(
    threads: Executor, extract: Callable[[str], Extracted], names: Sequence[str], ahead: int
) -> Iterator["Future[Extracted]"]:
    waiting: deque[Future[Extracted]] = deque()
    for name in names:
        waiting.append(threads.submit(extract, name))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
