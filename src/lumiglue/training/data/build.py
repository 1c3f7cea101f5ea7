"""Build a feature dataset from any source of views, in parts of a few items, so that a killed build can resume."""

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import torch
from filelock import FileLock, Timeout

from lumiglue.errors import DatasetError, ImageError, InputError
from lumiglue.extractors import Extractor
from lumiglue.geometry.projective import transfer, transform
from lumiglue.io.atomic import disk_is_full, has_room, replacing, write_whole
from lumiglue.io.text import differences
from lumiglue.system.device import usable_cores
from lumiglue.training.data.dataset import (
    FORMAT,
    ROWS,
    VERSION,
    VIEWS,
    FeatureDataset,
    Kind,
    LabelledPair,
    LabelledSource,
    View,
    ViewSource,
    parts_folder,
    read_array,
)
from lumiglue.training.data.taught import join_taught, write_taught
from lumiglue.types import Features


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """Settings of a build.

    Attributes:
        max_keypoints: Largest number of keypoints per view; the strongest are kept.
        items_per_part: Photos, synthetic scenes or frames between two checkpoints.
    """

    max_keypoints: int = 512
    items_per_part: int = 16

    def __post_init__(self) -> None:
        if self.max_keypoints < 8 or self.items_per_part < 1:
            raise InputError("a dataset needs max_keypoints of at least 8 and items_per_part of at least 1")


@dataclass(frozen=True)
class DatasetProgress:
    """Progress of a build, after each part.

    Attributes:
        items_done: Items processed so far.
        items: All items.
        skipped: Names of the items that could not be read.
    """

    items_done: int
    items: int
    skipped: tuple[str, ...]


def build_dataset(
    source: ViewSource, out: str | Path, extractor: Extractor, settings: DatasetSettings, *, workers: int = 0
) -> Iterator[DatasetProgress]:
    """Builds a dataset. Call again with the same arguments to resume after an interruption.

    Views depend on the source and the item only, so neither the number of workers nor a restart changes them.

    Args:
        source: Where the views come from.
        out: The .h5 file to write.
        extractor: Extracts the features.
        settings: Settings of the build.
        workers: Number of processes; 0 uses one per core.

    Yields:
        The progress after each part.

    Raises:
        DatasetError: If `out` or an unfinished build has other settings, another process is building it, no item can be
            read, no two views can be paired, or the disk is full.
    """
    out = Path(out)
    plan = {
        "extractor": {**extractor.config(), "name": extractor.name, "descriptor_dim": extractor.descriptor_dim},
        "settings": asdict(settings) | source.plan(),
        "items": list(source.items),
    }
    if out.exists():
        _check_plan(FeatureDataset(out).plan, plan, f"{out} is a dataset")
        yield DatasetProgress(len(plan["items"]), len(plan["items"]), ())
        return
    try:
        yield from _build(source, out, extractor, settings, plan, workers)
    except OSError as error:
        if disk_is_full(error):
            raise DatasetError(f"the disk of {out} is full; make room and run the same command again to resume") from None
        raise


def strongest(features: Features, usable: np.ndarray, max_keypoints: int) -> np.ndarray:
    """Rows of the strongest usable keypoints, strongest first; `usable`: n booleans."""
    rows = np.flatnonzero(usable)
    scores = features.scores.numpy()[rows] if features.scores is not None else -rows
    return rows[np.argsort(-scores, kind="stable")[:max_keypoints]]


@dataclass(frozen=True)
class _Job:
    source: ViewSource
    items: Sequence[int]
    out: Path
    extractor: Extractor
    settings: DatasetSettings


def _build(
    source: ViewSource, out: Path, extractor: Extractor, settings: DatasetSettings, plan: dict[str, Any], workers: int
) -> Iterator[DatasetProgress]:
    """Builds the missing parts and joins all parts, in a folder that is locked meanwhile."""
    parts, count, step = _open_parts_folder(out, plan), len(source.items), settings.items_per_part
    jobs = [
        _Job(source, range(start, min(start + step, count)), parts / f"part-{start // step:06d}.h5", extractor, settings)
        for start in range(0, count, step)
    ]
    lock = FileLock(parts / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DatasetError(f"another process is building {out}; wait for it, or stop it and run this again") from None
    try:
        missing = [job for job in jobs if not job.out.exists()]
        done, skipped = count - sum(len(job.items) for job in missing), []
        yield DatasetProgress(done, count, ())
        for finished, unreadable in _built(missing, min(workers or usable_cores(), len(missing))):
            done, skipped = done + finished, skipped + unreadable
            yield DatasetProgress(done, count, tuple(skipped))
        _join_parts([job.out for job in jobs], out, source, plan)
    finally:
        lock.release()
    shutil.rmtree(parts)


def _built(jobs: Sequence[_Job], workers: int) -> Iterator[tuple[int, list[str]]]:
    """Builds the parts, in several processes if there are several workers; yields what `_build_part` returns."""
    if workers <= 1:
        yield from map(_build_part, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(_build_part, job) for job in jobs]
        try:
            yield from (future.result() for future in as_completed(running))
        except BrokenProcessPool:
            raise DatasetError(
                f"one of {workers} processes was killed, perhaps because memory ran out; run again with fewer --workers"
            ) from None
        finally:
            for future in running:
                future.cancel()


def _build_part(job: _Job) -> tuple[int, list[str]]:
    """Writes one part; returns the number of its items and the names of those that could not be read."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)  # each worker has a core
    skipped: list[str] = []
    views: list[tuple[int, View]] = []
    pairs: list[LabelledPair] | None = [] if isinstance(job.source, LabelledSource) else None
    for item in job.items:
        try:
            if isinstance(job.source, LabelledSource) and pairs is not None:
                views_of_item, labelled = job.source.labelled(item, job.extractor, job.settings.max_keypoints)
                pairs += [(a + len(views), b + len(views), overlap, labels) for a, b, overlap, labels in labelled]
            else:
                views_of_item = job.source.views(item, job.extractor, job.settings.max_keypoints)
            for view in views_of_item:
                view.scene.encode()
            views += [(item, view) for view in views_of_item]
        except (ImageError, UnicodeEncodeError):  # HDF5 stores names as UTF-8 only
            skipped.append(job.source.items[item].encode("utf-8", "backslashreplace").decode())
    _write_part(job, views, skipped, pairs)
    return len(job.items), skipped


def _write_part(
    job: _Job, views: Sequence[tuple[int, View]], skipped: Sequence[str], pairs: Sequence[LabelledPair] | None
) -> None:
    empty = {"keypoints": (0, 2), "descriptors": (0, job.extractor.descriptor_dim)}
    columns: dict[str, list[np.ndarray]] = {
        name: [np.zeros(empty.get(name, (0,)), np.int8 if name == "descriptors" else np.float32)] for name in ROWS
    }
    for _, view in views:
        for name, array in _columns_of(view).items():
            columns[name].append(array)
    oriented = all(v.features.scales is not None and v.features.orientations is not None for _, v in views)
    _need_room(job.out, sum(array.nbytes for arrays in columns.values() for array in arrays))
    with replacing(job.out) as unfinished, h5py.File(unfinished, "w") as file:
        for name, arrays in columns.items():
            file[name] = np.concatenate(arrays)
        file["counts"] = np.array([len(view.features) for _, view in views], dtype=np.int64)
        file["items"] = np.array([item for item, _ in views], dtype=np.int64)
        file["scenes"] = np.array([view.scene for _, view in views], dtype=h5py.string_dtype())
        file["view_sizes"] = np.array([view.features.image_size for _, view in views], dtype=np.int64).reshape(-1, 2)
        file["homographies"] = _matrices([view.view_from_scene for _, view in views], 3)
        file["intrinsics"] = _matrices([view.intrinsics for _, view in views], 3)
        file["cameras"] = _matrices([view.camera_from_world for _, view in views], 4)
        if pairs is not None:
            file["pairs"] = np.array([(a, b) for a, b, _, _ in pairs], dtype=np.int64).reshape(-1, 2)
            file["overlaps"] = np.array([overlap for _, _, overlap, _ in pairs], dtype=np.float32)
            write_taught(file, [labels for *_, labels in pairs])
        file.attrs.update(skipped=json.dumps(list(skipped)), has_orientation=oriented)


def _columns_of(view: View) -> dict[str, np.ndarray]:
    features = view.features
    descriptors = features.descriptors.numpy().astype(np.float32)
    steps = np.maximum(np.abs(descriptors).max(1, initial=0.0), 1e-12) / 127
    columns = {
        "keypoints": features.keypoints.numpy(),
        "descriptors": np.rint(descriptors / steps[:, None]).astype(np.int8),
        "descriptor_steps": steps,
        "depths": np.full(len(features), np.nan) if view.depths is None else view.depths,
    }
    for name in ("scales", "orientations", "scores"):
        value = getattr(features, name)
        columns[name] = np.zeros(len(features)) if value is None else value.numpy()
    return {name: array if name == "descriptors" else array.astype(np.float32) for name, array in columns.items()}


def _matrices(matrices: Sequence[np.ndarray | None], size: int) -> np.ndarray:
    complete = [np.eye(size) if matrix is None else matrix for matrix in matrices]
    return np.array(complete, dtype=np.float64).reshape(-1, size, size)


def _join_parts(parts: Sequence[Path], out: Path, source: ViewSource, plan: dict[str, Any]) -> None:
    """Joins the parts into one file of contiguous arrays, adds the pairs of views, and renames it into place."""
    counts, skipped, oriented = [np.zeros(0, np.int64)], [], True
    names: list[bytes] = []
    for part in parts:
        with h5py.File(part, "r") as file:
            counts.append(read_array(file, "counts"))
            names += read_array(file, "scenes").tolist()
            skipped += json.loads(str(file.attrs["skipped"]))
            oriented &= bool(file.attrs["has_orientation"])
    per_view = np.concatenate(counts)
    if not len(per_view):
        raise DatasetError(f"none of the {len(plan['items'])} photos can be read; the first is {plan['items'][0]}")
    scenes = {name: number for number, name in enumerate(dict.fromkeys(names))}
    offsets = np.concatenate([[0], np.cumsum(per_view)])
    _need_room(out, sum(part.stat().st_size for part in parts))
    with replacing(out) as unfinished, h5py.File(unfinished, "w") as dataset:
        for name in (*ROWS, *VIEWS, "items"):
            _join_array(parts, dataset, name, int(offsets[-1]) if name in ROWS else len(per_view))
        dataset["offsets"] = offsets
        dataset["view_scenes"] = np.array([scenes[name] for name in names], dtype=np.int64)
        dataset["scenes"] = np.array(list(scenes), dtype=h5py.string_dtype())
        dataset["skipped"] = np.array(skipped, dtype=h5py.string_dtype())
        if isinstance(source, LabelledSource):
            dataset["pairs"], dataset["overlaps"] = _join_pairs(parts, dataset)
        else:
            dataset["pairs"], dataset["overlaps"] = _pair_up(dataset, source)
        dataset.attrs.update(
            format=FORMAT, version=VERSION, kind=source.kind, has_orientation=oriented, plan=json.dumps(plan)
        )


def _need_room(file: Path, size: int) -> None:
    """Raises OSError in time: HDF5 crashes on a full disk."""
    if not has_room(file, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


def _join_array(parts: Sequence[Path], dataset: h5py.File, name: str, rows: int) -> None:
    target: Any = None
    start = 0
    for part in parts:
        with h5py.File(part, "r") as file:
            block = read_array(file, name)
        if target is None:
            target = dataset.create_dataset(name, shape=(rows, *block.shape[1:]), dtype=block.dtype)
        target[start : start + len(block)] = block
        start += len(block)


def _join_pairs(parts: Sequence[Path], dataset: h5py.File) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of views (Q x 2) and their overlaps, of parts with labels, which are joined into the dataset."""
    pairs, overlaps, start = [], [], 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(h5py.File(part, "r")) for part in parts]
        for file in files:
            pairs.append(read_array(file, "pairs") + start)
            overlaps.append(read_array(file, "overlaps"))
            start += len(read_array(file, "counts"))
        join_taught(files, dataset)
    return np.concatenate(pairs), np.concatenate(overlaps)


def _pair_up(dataset: h5py.File, source: ViewSource) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of views (Q x 2) and their overlaps."""
    item_pairs = source.pairs()
    if item_pairs is not None:
        view_of = {item: view for view, item in enumerate(read_array(dataset, "items").tolist())}
        pairs = [(view_of[a], view_of[b], overlap) for a, b, overlap in item_pairs if a in view_of and b in view_of]
    else:
        scenes, offsets = read_array(dataset, "view_scenes"), read_array(dataset, "offsets")
        arrays = {name: read_array(dataset, name) for name in (*VIEWS, "keypoints", "depths")}
        starts = np.flatnonzero(np.diff(scenes, prepend=-1))  # the views of a scene are contiguous
        groups = np.split(np.arange(len(scenes)), starts[1:])
        pairs = [
            (a, b, min(_fraction_seen(arrays, offsets, source.kind, *way) for way in ((a, b), (b, a))))
            for group in groups
            for a, b in combinations(group.tolist(), 2)
        ]
    if not pairs and (limits := source.plan().get("pairing")):
        raise DatasetError(
            f"no two of {len(source.items)} frames overlap by {limits['min_overlap']:g} to {limits['max_overlap']:g}; "
            "give a wider range of --min-overlap and --max-overlap, or more frames"
        )
    if not pairs:
        raise DatasetError(f"no two views of {len(source.items)} items show the same scene; give more views or more frames")
    return np.array([pair[:2] for pair in pairs], dtype=np.int64), np.array([pair[2] for pair in pairs], dtype=np.float32)


def _fraction_seen(arrays: dict[str, np.ndarray], offsets: np.ndarray, kind: Kind, a: int, b: int) -> float:
    """Of the keypoints of view a (with known depth), the fraction whose position is inside view b, occluded or not."""
    rows = slice(offsets[a], offsets[a + 1])
    points = torch.from_numpy(arrays["keypoints"][rows].astype(np.float64))
    if kind == "plane":
        b_from_a = arrays["homographies"][b] @ np.linalg.inv(arrays["homographies"][a])
        seen = transform(torch.from_numpy(b_from_a), points)
    else:
        depths = torch.from_numpy(arrays["depths"][rows].astype(np.float64))
        b_from_a = arrays["cameras"][b] @ np.linalg.inv(arrays["cameras"][a])
        matrices = (arrays["intrinsics"][a], arrays["intrinsics"][b], b_from_a)
        seen = transfer(points, depths, *(torch.from_numpy(matrix) for matrix in matrices))[0][torch.isfinite(depths)]
    limit = torch.from_numpy(arrays["view_sizes"][b] - 0.5)
    return float(((seen > -0.5) & (seen < limit)).all(1).double().mean()) if len(seen) else 0.0


def _check_plan(before: Any, plan: dict[str, Any], what: str) -> None:
    """Raises DatasetError if a dataset or an unfinished build has another plan."""
    now = json.loads(json.dumps(plan))
    if before != now:
        raise DatasetError(f"{what} of other photos or settings{differences(before, now)}; delete it or choose another -o")


def _open_parts_folder(out: Path, plan: dict[str, Any]) -> Path:
    """The folder of parts with its plan. Raises DatasetError if it has another plan."""
    parts = parts_folder(out)
    parts.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plan, sort_keys=True)
    record = parts / "plan.json"
    if not record.exists():
        write_whole(record, text.encode())
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    _check_plan(before, plan, f"{parts} is an unfinished build")
    return parts
