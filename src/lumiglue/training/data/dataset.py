"""Feature datasets: views of scenes with their features and ground truth, so that training reads no pixels.

One HDF5 file of flat arrays (V views, K keypoints in all, d descriptor channels, Q pairs):
    keypoints K x 2, scales K, orientations K (0 where the extractor has none), scores K,
    descriptors K x d int8 with descriptor_steps K (value = int8 * step),
    depths K float32 (z in the camera, NaN where unknown; all NaN in planar datasets),
    offsets V + 1 (view v has the rows offsets[v] : offsets[v + 1]), view_scenes V, view_sizes V x 2,
    homographies V x 3 x 3 (view_from_scene), intrinsics V x 3 x 3, cameras V x 4 x 4 (camera_from_world),
    pairs Q x 2 (views), overlaps Q (fraction of each view that the other sees, the smaller of the two),
    scenes (names), skipped (names of unreadable items).
The attribute `kind` states what relates two views: "plane" homographies, "depth" cameras and depths, "taught" the labels of
a teacher (`training/data/taught.py` lists their arrays).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import h5py
import numpy as np
import torch
from torch import Tensor

from lumiglue.errors import DatasetError
from lumiglue.extractors import Extractor
from lumiglue.io.hdf5 import HDF5_ERRORS, LARGEST_ARRAY, read_numbers
from lumiglue.io.text import reason
from lumiglue.training.data.taught import PairLabels, TaughtPairs
from lumiglue.types import Features

FORMAT = "lumiglue-bank"  # the old name of a feature dataset; files keep it
VERSION = 2
ROWS = ("keypoints", "scales", "orientations", "scores", "descriptors", "descriptor_steps", "depths")
VIEWS = ("view_sizes", "homographies", "intrinsics", "cameras")

Kind = Literal["plane", "depth", "taught"]
LabelledPair = tuple[int, int, float, PairLabels]  # two views, their overlap, labels of their keypoints


@dataclass(frozen=True, eq=False)
class View:
    """One view of a scene: its features and their ground truth.

    Attributes:
        scene: Name of the scene; views of one scene may be paired. Names are paths ("set/name.jpg"): two scenes from
            different folders never show the same place.
        features: Features of the view.
        view_from_scene: 3 x 3 homography, for planar scenes; a photo's scene is the photo itself.
        intrinsics: 3 x 3 camera matrix in pixels, for scenes with depth.
        camera_from_world: 4 x 4 rigid transform, for scenes with depth.
        depths: z in the camera at each of n keypoints; NaN where unknown.
    """

    scene: str
    features: Features
    view_from_scene: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    camera_from_world: np.ndarray | None = None
    depths: np.ndarray | None = None


@runtime_checkable
class ViewSource(Protocol):
    """Where the views of a dataset come from. It must be picklable, because worker processes get a copy."""

    @property
    def kind(self) -> Kind:
        """What relates two views of a scene."""
        ...

    @property
    def items(self) -> Sequence[str]:
        """Names of the units of work: photos, synthetic scenes or frames."""
        ...

    def plan(self) -> dict[str, Any]:
        """All that the views depend on besides the items and the extractor, as JSON values."""
        ...

    def views(self, item: int, extractor: Extractor, max_keypoints: int) -> list[View]:
        """The views of one item, the same each time. Raises ImageError if its photo cannot be read."""
        ...

    def pairs(self) -> list[tuple[int, int, float]] | None:
        """The pairs (item, item, overlap) if each item gives one view; None if all views of a scene are paired."""
        ...


@runtime_checkable
class LabelledSource(ViewSource, Protocol):
    """A source that labels its pairs itself, without homographies or depths."""

    def labelled(self, item: int, extractor: Extractor, max_keypoints: int) -> tuple[list[View], list[LabelledPair]]:
        """Makes the views of an item and its pairs, which refer to the views by number."""
        ...


class FeatureDataset:
    """A finished feature dataset, memory-mapped, so that memory does not grow with its size.

    Args:
        path: The .h5 file.

    Raises:
        DatasetError: If the file is missing, unfinished or not a dataset.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            hint = " (its build is unfinished: run the same command again)" if parts_folder(self.path).exists() else ""
            raise DatasetError(
                f"{path} does not exist{hint}; build it with `lumiglue dataset homographies PHOTOS -o {path}`"
            )
        if self.path.is_dir():
            raise DatasetError(f"{path} is a folder; give the .h5 file of `lumiglue dataset`")
        try:
            with h5py.File(self.path, "r") as file:
                if file.attrs.get("format") != FORMAT or int(file.attrs.get("version", 0)) != VERSION:
                    raise DatasetError(
                        f"{path} is not a feature dataset of version {VERSION}; build it with `lumiglue dataset`"
                    )
                self.plan: dict[str, Any] = json.loads(str(file.attrs["plan"]))
                kind = str(file.attrs["kind"])
                self.kind: Kind = "plane" if kind == "plane" else "taught" if kind == "taught" else "depth"
                self.has_orientation = bool(file.attrs["has_orientation"])
                self.scenes, self.skipped = (_read_names(file, name) for name in ("scenes", "skipped"))
                self.offsets, self.view_scenes = read_numbers(file, "offsets"), read_numbers(file, "view_scenes")
                self.view_sizes, self.homographies, self.intrinsics, self.cameras = (read_numbers(file, n) for n in VIEWS)
                self.pairs, self.overlaps = read_numbers(file, "pairs"), read_numbers(file, "overlaps")
                self._rows: dict[str, np.ndarray] = {name: _memory_map(self.path, file[name]) for name in ROWS}
                self.counts: np.ndarray = np.diff(self.offsets)
                self._check()
                self.taught = TaughtPairs(file, self.pairs, self.counts) if self.kind == "taught" else None
        except DatasetError:
            raise
        except (*HDF5_ERRORS, RecursionError) as error:
            raise DatasetError(f"{path} cannot be read as a dataset ({reason(error)}); build it again") from None
        self._resident: dict[str, Tensor] = {}

    def _check(self) -> None:
        """Raises ValueError if the arrays do not fit each other. Keypoint values are not checked."""
        views, pairs, keypoints = len(self.view_scenes), len(self.overlaps), len(self._rows["keypoints"])
        channels = self._rows["descriptors"].shape[1:]
        expected = {
            "offsets": (self.offsets, (views + 1,)), "view_scenes": (self.view_scenes, (views,)),
            "view_sizes": (self.view_sizes, (views, 2)), "homographies": (self.homographies, (views, 3, 3)),
            "intrinsics": (self.intrinsics, (views, 3, 3)), "cameras": (self.cameras, (views, 4, 4)),
            "pairs": (self.pairs, (pairs, 2)), "overlaps": (self.overlaps, (pairs,)),
            **{name: (rows, (keypoints,)) for name, rows in self._rows.items()},
            "keypoints": (self._rows["keypoints"], (keypoints, 2)),
            "descriptors": (self._rows["descriptors"], (keypoints, *channels)),
        }  # fmt: skip
        for name, (array, shape) in expected.items():
            if array.shape != shape or array.dtype.kind not in "iuf":
                raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, not {shape}")
        for name, array, end in (("view_scenes", self.view_scenes, len(self.scenes)), ("pairs", self.pairs, views)):
            if array.dtype.kind not in "iu" or (array.size and not (array.min() >= 0 and array.max() < end)):
                raise ValueError(f"{name} are not whole numbers from 0 to {end - 1}")
        whole = self.offsets.dtype.kind in "iu" and self._rows["descriptors"].dtype == np.int8
        if not whole or self.offsets[0] != 0 or self.offsets[-1] != keypoints or (self.counts < 0).any():
            raise ValueError(f"offsets do not rise from 0 to {keypoints}, or descriptors are not int8")
        if not isinstance(self.plan, dict) or not isinstance(self.plan.get("extractor"), dict) or len(channels) != 1:
            raise ValueError("its features are not recorded")
        if not isinstance(self.extractor.get("name"), str) or not isinstance(self.plan.get("settings"), dict):
            raise ValueError("its features and settings are not recorded")

    def __len__(self) -> int:
        """Number of views."""
        return len(self.counts)

    @property
    def descriptor_dim(self) -> int:
        """Channels of a descriptor."""
        return self._rows["descriptors"].shape[1]

    @property
    def extractor(self) -> dict[str, Any]:
        """The record of the features: name, settings, descriptor_dim."""
        return self.plan["extractor"]

    def hold_on(self, device: torch.device | str) -> None:
        """Copies all keypoints to a device, so that `gather` does not wait for a disk or a bus."""
        self._resident = {name: torch.from_numpy(np.array(array)).to(device) for name, array in self._rows.items()}

    def gather(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Reads the arrays of some keypoints, given by their row numbers; descriptors are dequantised to float32."""
        if self._resident:
            index = torch.from_numpy(rows).to(self._resident["keypoints"].device, non_blocking=True)
            tensors = {name: array[index] for name, array in self._resident.items()}
        else:
            tensors = {name: torch.from_numpy(array[rows]) for name, array in self._rows.items()}
        tensors["descriptors"] = tensors["descriptors"].float() * tensors.pop("descriptor_steps")[:, None]
        return tensors

    def view(self, view: int) -> dict[str, np.ndarray]:
        """Reads all arrays of one view's keypoints, strongest first."""
        rows = np.arange(self.offsets[view], self.offsets[view + 1])
        return {name: tensor.cpu().numpy() for name, tensor in self.gather(rows).items()}


def parts_folder(dataset: Path) -> Path:
    """The folder with the parts of an unfinished build."""
    return dataset.with_name(dataset.name + ".parts")


def read_array(file: h5py.File, name: str) -> np.ndarray:
    """Reads a whole HDF5 data set."""
    dataset: Any = file[name]
    return dataset[...]


def _read_names(file: h5py.File, name: str) -> list[str]:
    dataset: Any = file[name]
    if dataset.ndim != 1 or dataset.size * dataset.dtype.itemsize > LARGEST_ARRAY:
        raise ValueError(f"{name} has shape {dataset.shape}, not a list of names")
    return [str(text.decode()) for text in dataset[...].tolist()]


def _memory_map(path: Path, dataset: Any) -> np.ndarray:
    if dataset.shape is None or dataset.dtype.kind not in "iuf":
        raise ValueError(f"{dataset.name} is not numeric")
    offset = dataset.id.get_offset()
    if offset is None:  # an empty data set has no place in the file
        return read_numbers(dataset.parent, dataset.name)
    return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
