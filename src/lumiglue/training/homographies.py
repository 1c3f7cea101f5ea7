"""Random views of a photo: the photo as a plane in front of a tilted, rolled, moved camera, under changed light.

Every view is a homography of the photo, so any two views of one photo are a training pair with known ground truth.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from lumiglue.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """The distribution of views. Angles in degrees.

    roll: standard deviation of the in-plane rotation; any_roll: share of views with a uniform roll in [0, 360).
    tilt: largest angle between the optical axis and the photo's normal.
    zoom: smallest and largest magnification, log-uniform. shift: where the camera looks, as a share of the photo's size.
    photometric: strength of light, blur, noise and JPEG changes; 0 is none, 1 is strong.
    """

    roll: float = 20.0
    any_roll: float = 0.15
    tilt: float = 50.0
    zoom: tuple[float, float] = (0.7, 2.2)
    shift: float = 0.25
    photometric: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.tilt < 80:
            raise InputError(f"tilt is {self.tilt} degrees; give 0 up to 80")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise InputError(f"zoom is {self.zoom}; give two positive numbers, the smaller first")
        if not 0 <= self.any_roll <= 1:
            raise InputError(f"any_roll is {self.any_roll}; give a share between 0 and 1")


def sample_view(rng: np.random.Generator, size: tuple[int, int], settings: ViewSettings) -> Float64[np.ndarray, "3 3"]:
    """`view_from_photo`, the homography of a random camera; view and photo share `size` (width, height).

    The whole photo lies in front of the camera, so the homography has no horizon inside the photo.
    """
    width, height = size
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [width - 1, height - 1, 1], [0, height - 1, 1]], dtype=np.float64)
    while True:
        roll = rng.uniform(0, 360) if rng.random() < settings.any_roll else rng.normal(0, settings.roll)
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
    """K [r1 r2 t] of a camera that looks at the photo's point `look_at`, tilted by `tilt` about the axis at `azimuth`.

    All angles in radians, `focal` in pixels; `zoom` is the magnification at `look_at`.
    """
    axis = np.array([np.cos(azimuth), np.sin(azimuth), 0.0]) * tilt
    rotation = cv2.Rodrigues(np.array([0.0, 0.0, roll]))[0] @ cv2.Rodrigues(axis)[0]
    translation = np.array([0.0, 0.0, focal / zoom]) - rotation[:, :2] @ look_at
    intrinsics = np.array([[focal, 0, (size[0] - 1) / 2], [0, focal, (size[1] - 1) / 2], [0, 0, 1.0]])
    return intrinsics @ np.column_stack([rotation[:, :2], translation])


def warp(image: UInt8[np.ndarray, "h w c"], view_from_photo: Float64[np.ndarray, "3 3"]) -> UInt8[np.ndarray, "h w c"]:
    """The view of `image`, of the same size; beyond the photo's edge it is mirrored, so that no false edge appears."""
    height, width = image.shape[:2]
    zoom_out = np.sqrt(abs(np.linalg.det(view_from_photo[:2, :2])))
    if zoom_out < 0.8:  # keep the sampling theorem: blur before shrinking
        image = cv2.GaussianBlur(image, (0, 0), 0.5 * np.sqrt(1 / zoom_out**2 - 1))
    flags = cv2.INTER_LINEAR
    return cv2.warpPerspective(image, view_from_photo, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def change_light(rng: np.random.Generator, image: UInt8[np.ndarray, "h w 3"], strength: float) -> UInt8[np.ndarray, "h w 3"]:
    """Photometric change: colour, exposure, gamma, a soft shadow, blur, noise, JPEG; each with its own chance."""
    if strength <= 0:
        return image
    values = image.astype(np.float32) / 255.0
    if rng.random() < 0.5:
        values = values * rng.uniform(1 - 0.25 * strength, 1 + 0.25 * strength, 3).astype(np.float32)
    contrast = np.float32(np.exp(rng.normal(0, 0.25 * strength)))
    values = (values - 0.5) * contrast + np.float32(0.5 + rng.normal(0, 0.12 * strength))
    values = np.clip(values, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.3 * strength)))
    if rng.random() < 0.3 * strength:
        values = values * _shadow(rng, image.shape[:2], strength)[..., None]
    if rng.random() < 0.35 * strength:
        values = _blur(rng, values)
    if rng.random() < 0.5 * strength:
        noise = rng.standard_normal(values.shape[:2], dtype=np.float32)[..., None]
        values = values + noise * np.float32(rng.uniform(0.005, 0.04))
    changed = (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.4 * strength:
        _, data = cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 90))])
        changed = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert changed is not None
    return changed


def _shadow(rng: np.random.Generator, shape: tuple[int, int], strength: float) -> np.ndarray:
    """A smooth field in [1 - 0.7 strength, 1]: light falls off across the image."""
    coarse = rng.uniform(1 - 0.7 * strength, 1.0, (4, 4)).astype(np.float32)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def _blur(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Defocus or motion blur of a few pixels."""
    if rng.random() < 0.5:
        return cv2.GaussianBlur(values, (0, 0), rng.uniform(0.5, 2.0))
    length = int(rng.integers(3, 10))
    kernel = np.zeros((length, length), dtype=np.float32)
    angle = rng.uniform(0, np.pi)
    half = (length - 1) / 2
    step = np.array([np.cos(angle), np.sin(angle)]) * half
    start, end = (np.rint(half + sign * step).astype(int).tolist() for sign in (-1, 1))
    cv2.line(kernel, start, end, 1.0, 1)
    return cv2.filter2D(values, -1, kernel / max(float(kernel.sum()), 1.0))
