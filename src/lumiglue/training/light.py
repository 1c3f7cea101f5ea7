"""Random light: what a camera, the weather and the hour do to the same view."""

import cv2
import numpy as np
from jaxtyping import UInt8


def change_light(rng: np.random.Generator, image: UInt8[np.ndarray, "h w 3"], strength: float) -> UInt8[np.ndarray, "h w 3"]:
    """Photometric change: colour, saturation, exposure, gamma, shade, dusk, haze, blur, noise, JPEG; each by chance.

    strength: 0 changes nothing, 1 is strong.
    """
    if strength <= 0:
        return image
    values = image.astype(np.float32) / 255.0
    if rng.random() < 0.5:
        values = values * rng.uniform(1 - 0.25 * strength, 1 + 0.25 * strength, 3).astype(np.float32)
    if rng.random() < 0.3:  # towards grey, or gaudy
        grey = values.mean(2, keepdims=True)
        values = grey + (values - grey) * np.float32(rng.uniform(1 - strength, 1 + 0.5 * strength))
    contrast = np.float32(np.exp(rng.normal(0, 0.25 * strength)))
    values = (values - 0.5) * contrast + np.float32(0.5 + rng.normal(0, 0.12 * strength))
    values = np.clip(values, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.3 * strength)))
    if rng.random() < 0.3 * strength:
        values = values * _soft_shade(rng, image.shape[:2], strength)[..., None]
    if rng.random() < 0.2 * strength:
        values = values * _cast_shadow(rng, image.shape[:2], strength)[..., None]
    noise = rng.uniform(0.005, 0.04) if rng.random() < 0.5 * strength else 0.0
    if rng.random() < 0.08 * strength:  # dusk: little light, much noise
        values, noise = values * np.float32(rng.uniform(0.12, 0.5)), noise + 0.015
    elif rng.random() < 0.08 * strength:  # haze
        veil = np.float32(rng.uniform(0.2, 0.6))
        values = values * (1 - veil) + veil * np.float32(rng.uniform(0.6, 0.95))
    if rng.random() < 0.35 * strength:
        values = _blur(rng, values)
    if noise:
        values = values + rng.standard_normal(values.shape[:2], dtype=np.float32)[..., None] * np.float32(noise)
    changed = (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.4 * strength:
        _, data = cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 90))])
        changed = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert changed is not None
    return changed


def _soft_shade(rng: np.random.Generator, shape: tuple[int, int], strength: float) -> np.ndarray:
    """A smooth field in [1 - 0.7 strength, 1]: light falls off across the image."""
    coarse = rng.uniform(1 - 0.7 * strength, 1.0, (4, 4)).astype(np.float32)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def _cast_shadow(rng: np.random.Generator, shape: tuple[int, int], strength: float) -> np.ndarray:
    """A shadow with an edge: a random polygon, darkened, its rim softened by a few pixels."""
    corners = rng.uniform(-0.3, 1.3, (int(rng.integers(3, 6)), 2)) * shape[::-1]
    field = np.ones(shape, np.float32)
    cv2.fillPoly(field, [np.rint(corners).astype(np.int32)], float(1 - rng.uniform(0.3, 0.7) * strength))
    return cv2.GaussianBlur(field, (0, 0), rng.uniform(0.5, 4.0))


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
