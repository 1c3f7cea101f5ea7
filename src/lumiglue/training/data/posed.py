"""Posed images: photos with intrinsics, camera poses and depth maps, as a source of views for a dataset.

They have what homographies lack: parallax, occlusion, and very different viewpoints. The readers of folders are in
`posed_formats`, the choice of pairs in `overlap`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Float, Float64
from PIL import Image

from lumiglue.errors import ImageError, InputError
from lumiglue.extractors import Extractor
from lumiglue.images import read_image, resize_long_side
from lumiglue.io.hdf5 import HDF5_ERRORS, LARGEST_ARRAY, read_numbers
from lumiglue.io.text import reason
from lumiglue.training.data.build import strongest
from lumiglue.training.data.dataset import Kind, View
from lumiglue.training.data.homographies import rng_for
from lumiglue.training.data.overlap import DepthCamera, OverlapSettings, choose_pairs, overlap_matrix
from lumiglue.training.data.photometric import augment_photometric

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True, eq=False, kw_only=True)
class DepthSource:
    """The file of a depth map. Depth is z in the camera, not the length of the ray; 0, NaN and infinity are unknown.

    Attributes:
        path: A 16-bit .png, a numeric .npy, or an .h5 with the data set "depth".
        scale: depth = stored value / scale, in the unit of the poses.
        intrinsics: Camera matrix in pixels of the map; None if it has the field of view of the photo, at any resolution.
    """

    path: Path
    scale: float = 1.0
    intrinsics: Float64[np.ndarray, "3 3"] | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"depth_scale of {self.path} is {self.scale}; give the stored value of depth 1, more than 0")
        if self.intrinsics is not None:
            check_intrinsics(self.intrinsics, f"the depth map {self.path}")

    def read(self) -> Float[np.ndarray, "h w"]:
        """Reads the map as float32, NaN where unknown. Raises ImageError if it cannot be read."""
        stored = _read_stored_depth(self.path)
        if stored.ndim != 2 or 0 in stored.shape:
            raise ImageError(f"{self.path} has shape {stored.shape}; a depth map is height x width")
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # values that overflow are unknown
            depth = stored.astype(np.float32) / np.float32(self.scale)
        depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
        return depth


@dataclass(frozen=True, eq=False, kw_only=True)
class PosedFrame:
    """One photo with its camera.

    Attributes:
        name: Unique name, which seeds the photometric augmentation.
        scene: Name of the scene; frames of one scene may be paired.
        image: The photo.
        depth: Its depth map.
        intrinsics: Camera matrix in pixels of the stored photo, without distortion; (0, 0) is a pixel's centre.
        camera_from_world: Rigid transform; x is right, y down, z forward.
    """

    name: str
    scene: str
    image: Path
    depth: DepthSource
    intrinsics: Float64[np.ndarray, "3 3"]
    camera_from_world: Float64[np.ndarray, "4 4"]

    def __post_init__(self) -> None:
        check_intrinsics(self.intrinsics, self.name)
        check_rigid(self.camera_from_world, self.name)

    def depth_camera(self) -> DepthCamera:
        """Reads the depth map as a camera of its own. Raises ImageError if the photo or the map cannot be read."""
        depth = self.depth.read()
        return DepthCamera(
            depth=depth,
            intrinsics=self._depth_intrinsics(stored_size(self.image), depth),
            camera_from_world=self.camera_from_world,
        )

    def depths_at(self, points: Float[np.ndarray, "n 2"], size: tuple[int, int]) -> Float[np.ndarray, " n"]:
        """z at pixels (x, y) of the stored photo, which has this (width, height); NaN where unknown or at a depth edge."""
        depth = self.depth.read()
        map_from_image = self._depth_intrinsics(size, depth) @ np.linalg.inv(self.intrinsics)
        return depth_at(depth, points @ map_from_image[:2, :2].T + map_from_image[:2, 2])

    def _depth_intrinsics(self, size: tuple[int, int], depth: np.ndarray) -> np.ndarray:
        if self.depth.intrinsics is not None:
            return self.depth.intrinsics
        return scale_intrinsics(self.intrinsics, (depth.shape[1] / size[0], depth.shape[0] / size[1]))


@dataclass(frozen=True, eq=False, kw_only=True)
class PosedFrames:
    """The source of a dataset with depth: one view per frame, paired by overlap.

    Attributes:
        frames: The photos with their cameras.
        long_side: Photos are shrunk to this long side, in pixels.
        photometric: Strength of the photometric augmentation, 0 for none.
        device: Where it is computed.
        seed: Seed of the photometric augmentation.
        pairing: Which pairs to use.
        overlaps: For scenes whose overlaps are published, the symmetric matrix over the scene's frames in their order. The
            overlaps of other scenes are measured with their depth maps.
    """

    frames: Sequence[PosedFrame]
    long_side: int = 480
    photometric: float = 0.5
    device: str = "cpu"
    seed: int = 0
    pairing: OverlapSettings = field(default_factory=OverlapSettings)
    overlaps: Mapping[str, Float[np.ndarray, "f f"]] = field(default_factory=dict)

    kind: Kind = "depth"

    def __post_init__(self) -> None:
        if not self.frames:
            raise InputError("there are no posed frames; give at least two")
        if self.long_side < 64:
            raise InputError(f"long_side is {self.long_side}; give at least 64 pixels")
        if not 0 <= self.photometric <= 2:
            raise InputError(f"photometric is {self.photometric}; give 0 (none) to 2 (very strong)")
        names = [frame.name for frame in self.frames]
        if len(set(names)) < len(names):
            duplicate = next(name for name in names if names.count(name) > 1)
            raise InputError(f"two frames are called {duplicate!r}; list each image once")
        for scene, matrix in self.overlaps.items():
            count = sum(frame.scene == scene for frame in self.frames)
            if matrix.shape != (count, count):
                raise InputError(f"overlaps of {scene} have shape {matrix.shape}; give {count} x {count}, one row per frame")

    @property
    def items(self) -> list[str]:
        """Names of the frames."""
        return [frame.name for frame in self.frames]

    def plan(self) -> dict[str, Any]:
        """All that the views depend on besides the frames' names and the extractor, as JSON values."""
        return {
            "source": "posed", "long_side": self.long_side, "photometric": self.photometric, "seed": self.seed,
            "pairing": asdict(self.pairing), "cameras": self._fingerprint,
        }  # fmt: skip

    def views(self, item: int, extractor: Extractor, max_keypoints: int) -> list[View]:
        """The view of one frame. Raises ImageError if its photo or depth map cannot be read."""
        frame = self.frames[item]
        size = stored_size(frame.image)
        photo = resize_long_side(read_image(frame.image), self.long_side)
        factors = (photo.shape[1] / size[0], photo.shape[0] / size[1])
        pixels = torch.from_numpy(photo.copy()).to(self.device)
        features = extractor(augment_photometric(rng_for(self.seed, frame.name), pixels, self.photometric).cpu().numpy())
        rows = strongest(features, np.ones(len(features), dtype=bool), max_keypoints)
        features = features[torch.from_numpy(rows)]
        in_stored = (features.keypoints.numpy().astype(np.float64) + 0.5) / np.array(factors) - 0.5
        return [
            View(
                frame.scene,
                features,
                intrinsics=scale_intrinsics(frame.intrinsics, factors),
                camera_from_world=frame.camera_from_world,
                depths=frame.depths_at(in_stored, size),
            )
        ]

    def pairs(self) -> list[tuple[int, int, float]]:
        """The pairs (frame, frame, overlap) of all scenes; see `choose_pairs`."""
        pairs: list[tuple[int, int, float]] = []
        for scene in dict.fromkeys(frame.scene for frame in self.frames):
            rows = [number for number, frame in enumerate(self.frames) if frame.scene == scene]
            matrix = self.overlaps.get(scene)
            if matrix is None:
                matrix = overlap_matrix([self._depth_camera(row) for row in rows])
            pairs += [(rows[a], rows[b], overlap) for a, b, overlap in choose_pairs(matrix, self.pairing, scene)]
        return pairs

    def _depth_camera(self, row: int) -> DepthCamera | None:
        """The reduced depth map; None if it cannot be read, in which case the frame has no view either."""
        try:
            return self.frames[row].depth_camera().reduced()
        except ImageError:
            return None

    @cached_property
    def _fingerprint(self) -> str:
        """Hash of all cameras and scales, which tells apart datasets with different poses."""
        digest = hashlib.sha256()
        for frame in self.frames:
            own = frame.depth.intrinsics
            numbers = [*frame.intrinsics.ravel(), *frame.camera_from_world.ravel(), *([] if own is None else own.ravel())]
            digest.update(json.dumps([frame.scene, frame.depth.scale, *map(float, numbers)]).encode())
        for scene in sorted(self.overlaps):
            digest.update(np.ascontiguousarray(self.overlaps[scene], dtype=np.float64).tobytes())
        return digest.hexdigest()[:16]


def depth_at(
    depth: Float[np.ndarray, "h w"], points: Float[np.ndarray, "n 2"], *, jump: float = 0.03
) -> Float[np.ndarray, " n"]:
    """Interpolates a depth map at pixels (x, y): 1 / depth is linear in pixels on a plane.

    NaN outside the map, next to unknown pixels, and at depth edges: where the four pixels around a point differ by more than
    the fraction `jump`, the point may belong to either side.
    """
    height, width = depth.shape
    inside = np.all((points >= -0.5) & (points <= np.array([width, height]) - 0.5), axis=1)
    x, y = (np.clip(np.where(inside, points[:, axis], 0.0), 0, limit - 1) for axis, limit in ((0, width), (1, height)))
    left, top = (np.minimum(np.floor(v).astype(int), max(limit - 2, 0)) for v, limit in ((x, width), (y, height)))
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    corners = np.stack([depth[top, left], depth[top, right], depth[bottom, left], depth[bottom, right]]).astype(np.float64)
    x, y = x - left, y - top
    weights = np.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y])
    with np.errstate(divide="ignore", invalid="ignore"):
        value = 1 / (weights / corners).sum(0)
        smooth = corners.max(0) <= corners.min(0) * (1 + jump)  # False where one is NaN
    return np.where(inside & smooth, value, np.nan)


def scale_intrinsics(intrinsics: Float64[np.ndarray, "3 3"], factors: tuple[float, float]) -> Float64[np.ndarray, "3 3"]:
    """Intrinsics of an image that is resized by (x, y) factors: pixel x becomes (x + 0.5) * factor - 0.5."""
    fx, fy = factors
    resized_from_image = np.array([[fx, 0, 0.5 * fx - 0.5], [0, fy, 0.5 * fy - 0.5], [0, 0, 1]])
    return resized_from_image @ intrinsics


def stored_size(path: Path) -> tuple[int, int]:
    """The (width, height) of a photo, from its header.

    Raises ImageError if it cannot be read, or has an EXIF rotation: poses refer to stored pixels.
    """
    try:
        with Image.open(path) as image:
            orientation, size = image.getexif().get(_EXIF_ORIENTATION, 1), image.size
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist; check the path") from None
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, struct.error and more on damaged files
        raise ImageError(f"{path} cannot be read as an image ({reason(error)}); copy it again") from None
    if orientation != 1:
        raise ImageError(
            f"{path} has the EXIF orientation {orientation}; store its pixels in the orientation of its intrinsics and pose"
        )
    return size


def check_intrinsics(intrinsics: np.ndarray, name: str) -> None:
    """Raises InputError unless this is a 3 x 3 camera matrix in pixels."""
    if intrinsics.shape != (3, 3):
        raise InputError(f"K of {name} has shape {intrinsics.shape}; give 3 x 3")
    if not np.isfinite(intrinsics).all():
        raise InputError(f"K of {name} has NaN or infinity; give finite numbers")
    if min(intrinsics[0, 0], intrinsics[1, 1]) <= 0 or not np.allclose(intrinsics[2], [0, 0, 1]):
        raise InputError(
            f"K of {name} is {intrinsics.round(3).tolist()}; give [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels"
        )


def check_rigid(pose: np.ndarray, name: str) -> None:
    """Raises InputError unless this is a 4 x 4 rigid transform."""
    if pose.shape != (4, 4):
        raise InputError(f"the pose of {name} has shape {pose.shape}; give 4 x 4")
    if not np.isfinite(pose).all():
        raise InputError(f"the pose of {name} has NaN or infinity; remove frames without a pose")
    rotation = pose[:3, :3]
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if error > 5e-3:
        raise InputError(f"the rotation of {name} is not orthogonal (error {error:.3g}); give a pose without scale or shear")
    if np.linalg.det(rotation) < 0:
        raise InputError(f"the rotation of {name} mirrors (determinant {np.linalg.det(rotation):.3f}); flip one axis")
    if not np.allclose(pose[3], [0, 0, 0, 1], atol=1e-6):
        raise InputError(f"the last row of the pose of {name} is {pose[3].tolist()}; give 0 0 0 1")


def _read_stored_depth(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ImageError(f"{path} does not exist, or is not a file; check the path of the depth map")
    match path.suffix.lower():
        case ".png":
            try:  # OpenCV would allocate any length that a damaged file claims
                with Image.open(path, formats=("PNG",)) as image:
                    stored = np.asarray(image)
            except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, struct.error and more
                raise ImageError(f"{path} is not a 16-bit PNG ({reason(error)}); copy it again") from None
            if not image.mode.startswith("I"):
                raise ImageError(f"{path} is not a 16-bit PNG; depth maps are 16-bit .png, .npy or .h5")
            return stored.astype(np.uint16)
        case ".npy":
            try:
                # numbers only; a header that claims more than the file has allocates nothing
                mapped = np.lib.format.open_memmap(path, mode="r")
                if mapped.dtype.kind not in "iuf" or mapped.nbytes > LARGEST_ARRAY:
                    raise ValueError("it is not a depth map")
                return np.array(mapped)
            except Exception as error:  # NumPy parses the header as Python literals, with their errors
                raise ImageError(f"{path} cannot be read as a NumPy array ({reason(error)}); copy it again") from None
        case ".h5" | ".hdf5":
            try:
                with h5py.File(path, "r") as file:
                    return read_numbers(file, "depth")
            except HDF5_ERRORS as error:
                raise ImageError(f"{path} has no readable data set 'depth' ({reason(error)}); copy it again") from None
        case _:
            raise ImageError(f"{path} has an unknown format; depth maps are 16-bit .png, .npy or .h5")
