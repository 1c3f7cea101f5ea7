"""Random views of a photo: the photo as a plane seen by a tilted, rolled and shifted camera, with photometric changes.

Every view is a homography of the photo, so any two views of one photo are a training pair with known ground truth.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, UInt8
from torch import Tensor

from lumiglue.errors import InputError
from lumiglue.extractors import Extractor
from lumiglue.images import list_images, read_image, resize_long_side
from lumiglue.training.data.build import strongest
from lumiglue.training.data.dataset import Kind, View
from lumiglue.training.data.photometric import augment_photometric, gaussian_blur
from lumiglue.training.data.repeats import sometimes_repeating


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """The distribution of views. Angles are in degrees.

    Attributes:
        roll: Standard deviation of the in-plane rotation.
        largest_roll: Limit of that rotation.
        any_roll: Fraction of views with a uniform rotation in [0, 360) instead.
        tilt: Largest angle between the optical axis and the photo's normal.
        zoom: Smallest and largest magnification, log-uniform; two views differ by up to their quotient.
        shift: Largest offset of the look-at point from the photo's centre, as a fraction of the photo's size.
        photometric: Strength of the photometric augmentation; 0 is none, 1 is strong.
        repeats: Fraction of photos with a part that repeats (`training/data/repeats.py`).
    """

    roll: float = 20.0
    largest_roll: float = 45.0
    any_roll: float = 0.3
    tilt: float = 60.0
    zoom: tuple[float, float] = (0.6, 2.4)
    shift: float = 0.35
    photometric: float = 1.0
    repeats: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tilt < 80:
            raise InputError(f"tilt is {self.tilt} degrees; give 0 to 80")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise InputError(f"zoom is {self.zoom}; give two positive numbers, the smaller first")
        check_share("any_roll", self.any_roll)
        check_share("repeats", self.repeats)
        if not 0 < self.largest_roll <= 180:
            raise InputError(f"largest_roll is {self.largest_roll} degrees; give more than 0 and at most 180")


def check_share(name: str, share: float) -> None:
    """Raises InputError unless 0 <= share <= 1."""
    if not 0 <= share <= 1:
        raise InputError(f"{name} is {share}; give a number from 0 to 1")


VIEW_PRESETS = {
    "upright": ViewSettings(any_roll=0.0),  # cameras as people hold them: in-plane rotation within 45 degrees
    "any": ViewSettings(),  # three in ten views are rotated by any angle, so about half of the pairs are
}


def view_preset(name: str) -> ViewSettings:
    """The view settings of a name in `VIEW_PRESETS`. Raises InputError for another name."""
    if name not in VIEW_PRESETS:
        raise InputError(f"unknown views {name!r}; choose from {sorted(VIEW_PRESETS)}")
    return VIEW_PRESETS[name]


@dataclass(frozen=True)
class PhotoViews:
    """The source of a planar dataset: random views of each photo of a folder.

    Views depend on the seed and the photo's name only; on another device they are the same up to rounding.

    Attributes:
        root: Folder of the photos.
        items: Names of the photos.
        n_views: Views of each photo; any two are a pair.
        long_side: Photos are shrunk to this long side, in pixels.
        seed: Seed of the views.
        edge: Width in pixels of the photo's margin without keypoints, because the photo's border itself is detected.
        settings: Distribution of the views.
        device: Where pixels are computed.
    """

    root: Path
    items: Sequence[str]
    n_views: int = 8
    long_side: int = 640
    seed: int = 0
    edge: float = 4.0
    settings: ViewSettings = ViewSettings()
    device: str = "cpu"

    kind: Kind = field(default="plane", init=False)

    def __post_init__(self) -> None:
        if self.n_views < 2:
            raise InputError(f"views is {self.n_views}; give at least 2, a pair is two views of one photo")
        if self.long_side < 64:
            raise InputError(f"long_side is {self.long_side}; give at least 64 pixels")

    @classmethod
    def of_folder(cls, folder: str | Path, **settings: Any) -> "PhotoViews":
        """A source of all photos in a folder and its subfolders. Raises InputError if there is none."""
        root = Path(folder).resolve()
        return cls(root, photo_names(root), **settings)

    def plan(self) -> dict[str, Any]:
        """All that the views depend on besides the photos and the extractor, as JSON values."""
        return {
            "source": "photos", "views": self.n_views, "long_side": self.long_side, "seed": self.seed, "edge": self.edge,
            "view": asdict(self.settings), "photos_sha256": photos_sha256(self.root, self.items),
        }  # fmt: skip

    def pairs(self) -> None:
        """None: all views of a photo are paired."""

    def views(self, item: int, extractor: Extractor, max_keypoints: int) -> list[View]:
        """Makes the views of one photo. Raises ImageError if it cannot be read."""
        name = self.items[item]
        pixels = resize_long_side(read_image(self.root / name), self.long_side)
        rng = rng_for(self.seed, name)
        photo = torch.from_numpy(sometimes_repeating(rng, pixels, self.settings.repeats).copy()).to(self.device)
        return [self._view(name, photo, extractor, max_keypoints, rng) for _ in range(self.n_views)]

    def _view(self, name: str, photo: Tensor, extractor: Extractor, max_keypoints: int, rng: np.random.Generator) -> View:
        """One view, with its strongest keypoints that are on the photo."""
        height, width = photo.shape[:2]
        view_from_photo = sample_view(rng, (width, height), self.settings)
        view = augment_photometric(rng, warp(photo, view_from_photo), self.settings.photometric)
        features = extractor(view.cpu().numpy())
        on_photo = _project(features.keypoints.numpy().astype(np.float64), np.linalg.inv(view_from_photo))
        high = np.array([width - 1, height - 1]) - self.edge
        rows = strongest(features, np.all((on_photo >= self.edge) & (on_photo <= high), axis=1), max_keypoints)
        return View(name, features[torch.from_numpy(rows)], view_from_scene=view_from_photo)


def photo_names(root: Path) -> list[str]:
    """Names of all photos in a folder and its subfolders, relative to it. Raises InputError if there is none."""
    return [path.relative_to(root).as_posix() for path in list_images(root)]


def photos_sha256(root: Path, names: Sequence[str]) -> str:
    """Hash of the photos' names and sizes in bytes, which tells apart two folders with the same names."""
    sizes = [(name, file.stat().st_size if (file := root / name).is_file() else None) for name in names]
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


def rng_for(seed: int, name: str) -> np.random.Generator:
    """A generator that depends on a seed and a name only."""
    return np.random.default_rng(
        int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()[:8], "little")
    )


def sample_view(rng: np.random.Generator, size: tuple[int, int], settings: ViewSettings) -> Float64[np.ndarray, "3 3"]:
    """Draws `view_from_photo`, the homography of a random camera to a view of the photo's own size.

    The whole photo is in front of the camera, so the horizon is never inside the photo.
    """
    width, height = size
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [width - 1, height - 1, 1], [0, height - 1, 1]], dtype=np.float64)
    while True:
        roll = np.clip(rng.normal(0, settings.roll), -settings.largest_roll, settings.largest_roll)
        if rng.random() < settings.any_roll:
            roll = rng.uniform(0, 360)
        tilt = np.radians(settings.tilt) * np.sqrt(rng.random()) * rng.uniform(0.3, 1.0)
        zoom = np.exp(rng.uniform(*np.log(settings.zoom)))
        focal = rng.uniform(0.7, 1.6) * max(size)
        look_at = np.array([width - 1, height - 1]) * (0.5 + settings.shift * rng.uniform(-1, 1, 2))
        view_from_photo = plane_homography(size, np.radians(roll), tilt, rng.uniform(0, 2 * np.pi), zoom, focal, look_at)
        depths = corners @ view_from_photo[2]
        if depths.min() > 0.25 * depths.max():
            return view_from_photo / view_from_photo[2, 2]


def plane_homography(
    size: tuple[int, int], roll: float, tilt: float, azimuth: float, zoom: float, focal: float, look_at: np.ndarray
) -> Float64[np.ndarray, "3 3"]:
    """The homography K [r1 r2 t] of a camera that looks at a photo. Angles are in radians.

    Args:
        size: (width, height) of the view.
        roll: In-plane rotation.
        tilt: Angle between the optical axis and the photo's normal.
        azimuth: Direction of the tilt's axis in the photo.
        zoom: Magnification at `look_at`.
        focal: Focal length in pixels.
        look_at: Pixel of the photo at the centre of the view.
    """
    axis = np.array([np.cos(azimuth), np.sin(azimuth), 0.0]) * tilt
    rotation = cv2.Rodrigues(np.array([0.0, 0.0, roll]))[0] @ cv2.Rodrigues(axis)[0]
    translation = np.array([0.0, 0.0, focal / zoom]) - rotation[:, :2] @ look_at
    intrinsics = np.array([[focal, 0, (size[0] - 1) / 2], [0, focal, (size[1] - 1) / 2], [0, 0, 1.0]])
    return intrinsics @ np.column_stack([rotation[:, :2], translation])


def warp(image: UInt8[Tensor, "h w c"], view_from_photo: Float64[np.ndarray, "3 3"]) -> UInt8[Tensor, "h w c"]:
    """Warps an image to a view of the same size. Beyond the image's edge it is mirrored, so that no false edge appears."""
    height, width = image.shape[:2]
    values = image.permute(2, 0, 1).float()
    zoom_out = np.sqrt(abs(np.linalg.det(view_from_photo[:2, :2])))
    if zoom_out < 0.8:  # blur before shrinking, against aliasing
        values = gaussian_blur(values, 0.5 * np.sqrt(1 / zoom_out**2 - 1))
    x, y = (torch.arange(side, device=image.device, dtype=torch.float64) for side in (width, height))
    (a, b, c), (d, e, f), (g, h, i) = np.linalg.inv(view_from_photo).tolist()
    third = g * x + (h * y + i)[:, None]
    # grid_sample's coordinates: the centres of the first and last pixel are at -1 and 1
    u, v = (
        (a * x + (b * y + c)[:, None]) / third * (2 / max(width - 1, 1)),
        (d * x + (e * y + f)[:, None]) / third * (2 / max(height - 1, 1)),
    )
    grid = torch.stack([u, v], dim=-1).float() - 1
    view = F.grid_sample(values[None], grid[None], "bilinear", "reflection", align_corners=True)[0]
    return (view.clamp(0, 255) + 0.5).to(torch.uint8).permute(1, 2, 0)


def _project(points: np.ndarray, homography: np.ndarray) -> np.ndarray:
    mapped = np.column_stack([points, np.ones(len(points))]) @ homography.T
    return mapped[:, :2] / mapped[:, 2:]
