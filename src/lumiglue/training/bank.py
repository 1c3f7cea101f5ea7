"""The feature bank: views of photos, extracted once, so that training never touches a pixel again.

One HDF5 file of flat arrays (V views, K keypoints in all, d descriptor channels):
    keypoints K x 2, scales K, orientations K (0 where the extractor has none), scores K,
    descriptors K x d int8 with descriptor_steps K (value = int8 * step),
    offsets V + 1 (view v owns rows offsets[v] : offsets[v + 1]), homographies V x 3 x 3 (view_from_photo),
    view_photos V, view_sizes V x 2, photos P (names), skipped (names of unreadable files).
It is built in parts of a few photos, each renamed into place when complete, so that a killed build goes on where it was.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import torch

from lumiglue.errors import BankError, ImageError, InputError
from lumiglue.extractors import Extractor
from lumiglue.images import list_images, read_image, resize_long_side
from lumiglue.training.homographies import ViewSettings, change_light, sample_view, warp
from lumiglue.types import Features

FORMAT = "lumiglue-bank"
VERSION = 1
_ROWS = ("keypoints", "scales", "orientations", "scores", "descriptors", "descriptor_steps")
_VIEWS = ("homographies", "view_photos", "view_sizes")


@dataclass(frozen=True, kw_only=True)
class BankSettings:
    """How a bank is made. Photos are shrunk to `long_side`; `edge` pixels inside the photo's border keep no keypoint."""

    views: int = 8
    max_keypoints: int = 512
    long_side: int = 640
    edge: float = 4.0
    seed: int = 0
    photos_per_part: int = 16
    view: ViewSettings = field(default_factory=ViewSettings)

    def __post_init__(self) -> None:
        if self.views < 2:
            raise InputError(f"views is {self.views}; give at least 2, a pair is two views of one photo")
        if self.max_keypoints < 8 or self.long_side < 64:
            raise InputError("a bank needs max_keypoints of at least 8 and long_side of at least 64")


@dataclass(frozen=True)
class BankProgress:
    """One finished part of a build."""

    photos_done: int
    photos: int
    skipped: tuple[str, ...]


def build_bank(
    photos: str | Path | Sequence[Path],
    out: str | Path,
    extractor: Extractor,
    settings: BankSettings,
    *,
    workers: int = 0,
) -> Iterator[BankProgress]:
    """Builds `out` from a folder (or list) of photos; yields after each part. Run again after a kill to go on.

    Views depend on the seed and the photo's name only, so neither the number of workers nor a restart changes them.
    workers: processes; 0 takes one per core. Raises BankError where `out` or an unfinished build has other settings, or no
    photo can be read, and InputError for an empty folder.
    """
    out = Path(out)
    root, paths = _resolve(photos)
    plan = {
        "extractor": {**extractor.config(), "descriptor_dim": extractor.descriptor_dim},
        "settings": asdict(settings),
        "photos": [path.relative_to(root).as_posix() for path in paths],
    }
    if out.exists():
        if Bank(out).plan != json.loads(json.dumps(plan)):
            raise BankError(f"{out} holds a bank of other photos or settings; delete it or choose another -o")
        yield BankProgress(len(paths), len(paths), ())
        return
    parts = _open_parts_folder(out, plan)
    step = settings.photos_per_part
    jobs = [
        _Job(root, paths[start : start + step], start, parts / f"part-{start // step:06d}.h5", extractor, settings)
        for start in range(0, len(paths), step)
    ]
    waiting = [job for job in jobs if not job.out.exists()]
    done = len(paths) - sum(len(job.paths) for job in waiting)
    skipped: list[str] = []
    yield BankProgress(done, len(paths), ())
    workers = workers or os.cpu_count() or 1
    if waiting and workers > 1:
        with multiprocessing.get_context("spawn").Pool(min(workers, len(waiting))) as pool:
            for count, bad in pool.imap_unordered(_build_part, waiting):
                done, skipped = done + count, skipped + bad
                yield BankProgress(done, len(paths), tuple(skipped))
    else:
        for job in waiting:
            count, bad = _build_part(job)
            done, skipped = done + count, skipped + bad
            yield BankProgress(done, len(paths), tuple(skipped))
    _join_parts([job.out for job in jobs], out, plan)
    shutil.rmtree(parts)


class Bank:
    """A finished bank, read through the page cache: memory does not grow with its size.

    Raises BankError where the file is missing, unfinished or not a bank.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            hint = " (its build is unfinished: run the same `lumiglue bank` again)" if _parts(self.path).exists() else ""
            raise BankError(f"{path} does not exist{hint}; build it with `lumiglue bank PHOTOS -o {path}`")
        try:
            with h5py.File(self.path, "r") as file:
                if file.attrs.get("format") != FORMAT or int(file.attrs.get("version", 0)) != VERSION:
                    raise BankError(f"{path} is not a feature bank of version {VERSION}; build it with `lumiglue bank`")
                self.plan: dict[str, Any] = json.loads(str(file.attrs["plan"]))
                self.offsets = _read(file, "offsets")
                self.homographies, self.view_photos, self.view_sizes = (_read(file, name) for name in _VIEWS)
                self._rows = {name: _memory_map(self.path, file[name]) for name in _ROWS}
        except OSError as error:
            raise BankError(f"{path} cannot be read as HDF5 ({error}); build it again") from None
        self.counts: np.ndarray = np.diff(self.offsets)

    def __len__(self) -> int:
        """Number of views."""
        return len(self.counts)

    @property
    def descriptor_dim(self) -> int:
        return self._rows["descriptors"].shape[1]

    @property
    def photos(self) -> list[str]:
        return self.plan["photos"]

    def rows(self, view: int, choice: np.ndarray | slice) -> dict[str, np.ndarray]:
        """Arrays of one view's keypoints, strongest first, at `choice`; descriptors are dequantised to float32."""
        start, end = self.offsets[view], self.offsets[view + 1]
        rows = {name: np.array(array[start:end][choice]) for name, array in self._rows.items()}
        rows["descriptors"] = rows["descriptors"].astype(np.float32) * rows.pop("descriptor_steps")[:, None]
        return rows


@dataclass(frozen=True)
class _Job:
    root: Path
    paths: Sequence[Path]
    first: int
    out: Path
    extractor: Extractor
    settings: BankSettings


def _build_part(job: _Job) -> tuple[int, list[str]]:
    """Writes one part; returns how many photos it was for and which could not be read."""
    cv2.setNumThreads(1)
    skipped: list[str] = []
    views: list[tuple[int, np.ndarray, Features]] = []
    for number, path in enumerate(job.paths, start=job.first):
        name = path.relative_to(job.root).as_posix()
        try:
            photo = resize_long_side(read_image(path), job.settings.long_side)
        except ImageError:
            skipped.append(name)
            continue
        seed = int.from_bytes(hashlib.sha256(f"{job.settings.seed}/{name}".encode()).digest()[:8], "little")
        rng = np.random.default_rng(seed)
        views += [(number, *make_view(photo, job.extractor, job.settings, rng)) for _ in range(job.settings.views)]
    _write_part(job, views, skipped)
    return len(job.paths), skipped


def make_view(
    photo: np.ndarray, extractor: Extractor, settings: BankSettings, rng: np.random.Generator
) -> tuple[np.ndarray, Features]:
    """One random view of a photo: its view_from_photo homography and its strongest keypoints that lie on the photo."""
    height, width = photo.shape[:2]
    view_from_photo = sample_view(rng, (width, height), settings.view)
    view = change_light(rng, warp(photo, view_from_photo), settings.view.photometric)
    features = extractor(view)
    on_photo = _project(features.keypoints.numpy().astype(np.float64), np.linalg.inv(view_from_photo))
    low, high = settings.edge, np.array([width - 1, height - 1]) - settings.edge
    inside = np.flatnonzero(np.all((on_photo >= low) & (on_photo <= high), axis=1))
    scores = features.scores.numpy()[inside] if features.scores is not None else -inside
    chosen = inside[np.argsort(-scores, kind="stable")[: settings.max_keypoints]]
    return view_from_photo, features[torch.from_numpy(chosen)]


def _project(points: np.ndarray, homography: np.ndarray) -> np.ndarray:
    mapped = np.column_stack([points, np.ones(len(points))]) @ homography.T
    return mapped[:, :2] / mapped[:, 2:]


def _write_part(job: _Job, views: Sequence[tuple[int, np.ndarray, Features]], skipped: Sequence[str]) -> None:
    columns: dict[str, list[np.ndarray]] = {name: [] for name in _ROWS}
    for _, _, features in views:
        n = len(features)
        descriptors = features.descriptors.numpy().astype(np.float32)
        steps = np.maximum(np.abs(descriptors).max(1, initial=0.0), 1e-12) / 127
        none = np.zeros(n, np.float32)
        columns["keypoints"].append(features.keypoints.numpy().astype(np.float32))
        columns["descriptors"].append(np.rint(descriptors / steps[:, None]).astype(np.int8))
        columns["descriptor_steps"].append(steps.astype(np.float32))
        for name in ("scales", "orientations", "scores"):
            value = getattr(features, name)
            columns[name].append(none if value is None else value.numpy().astype(np.float32))
    empty = {"keypoints": (0, 2), "descriptors": (0, job.extractor.descriptor_dim)}
    unfinished = job.out.with_suffix(".unfinished")
    with h5py.File(unfinished, "w") as file:
        for name, arrays in columns.items():
            dtype = np.int8 if name == "descriptors" else np.float32
            file[name] = np.concatenate([np.zeros(empty.get(name, (0,)), dtype), *arrays]).astype(dtype)
        file["counts"] = np.array([len(features) for _, _, features in views], dtype=np.int64)
        file["homographies"] = np.array([h for _, h, _ in views], dtype=np.float64).reshape(-1, 3, 3)
        file["view_photos"] = np.array([number for number, _, _ in views], dtype=np.int64)
        file["view_sizes"] = np.array([features.image_size for _, _, features in views], dtype=np.int64).reshape(-1, 2)
        file.attrs["skipped"] = json.dumps(list(skipped))
    unfinished.replace(job.out)


def _join_parts(parts: Sequence[Path], out: Path, plan: dict[str, Any]) -> None:
    """Copies the parts into one file of contiguous arrays, array by array, then renames it into place."""
    counts, skipped, rows = [np.zeros(0, np.int64)], [], 0
    for part in parts:
        with h5py.File(part, "r") as file:
            counts.append(_read(file, "counts"))
            skipped += json.loads(str(file.attrs["skipped"]))
            rows += len(_read(file, "keypoints"))
    per_view = np.concatenate(counts)
    if not len(per_view):
        raise BankError(f"none of the {len(plan['photos'])} photos can be read; the first is {plan['photos'][0]}")
    unfinished = out.with_name(out.name + ".unfinished")
    with h5py.File(unfinished, "w") as bank:
        for name in (*_ROWS, *_VIEWS):
            _join_array(parts, bank, name, rows if name in _ROWS else len(per_view))
        bank["offsets"] = np.concatenate([[0], np.cumsum(per_view)])
        bank["skipped"] = np.array(skipped, dtype=h5py.string_dtype())
        bank.attrs.update(format=FORMAT, version=VERSION, plan=json.dumps(plan))
    unfinished.replace(out)


def _join_array(parts: Sequence[Path], bank: h5py.File, name: str, rows: int) -> None:
    target: Any = None
    start = 0
    for part in parts:
        with h5py.File(part, "r") as file:
            block = _read(file, name)
        if target is None:
            target = bank.create_dataset(name, shape=(rows, *block.shape[1:]), dtype=block.dtype)
        target[start : start + len(block)] = block
        start += len(block)


def _read(file: h5py.File, name: str) -> np.ndarray:
    dataset: Any = file[name]
    return dataset[...]


def _memory_map(path: Path, dataset: Any) -> np.ndarray:
    offset = dataset.id.get_offset()
    if offset is None:  # an empty data set has no place in the file
        return dataset[:]
    return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)


def _parts(out: Path) -> Path:
    return out.with_name(out.name + ".parts")


def _open_parts_folder(out: Path, plan: dict[str, Any]) -> Path:
    """The folder of parts with its plan; refuses to mix two plans in one build."""
    parts = _parts(out)
    parts.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plan, sort_keys=True)
    plan_file = parts / "plan.json"
    if plan_file.exists() and plan_file.read_text() != text:
        raise BankError(f"{parts} holds an unfinished build with other photos or settings; delete it or choose another -o")
    unfinished = plan_file.with_suffix(".unfinished")
    unfinished.write_text(text)
    unfinished.replace(plan_file)
    return parts


def _resolve(photos: str | Path | Sequence[Path]) -> tuple[Path, list[Path]]:
    if isinstance(photos, str | Path):
        root = Path(photos).resolve()
        return root, [path.resolve() for path in list_images(root)]
    paths = sorted(Path(path).resolve() for path in photos)
    if not paths:
        raise InputError("the list of photos is empty; give at least one")
    return Path(os.path.commonpath([path.parent for path in paths])), paths
