"""Photometric augmentation: changes by camera, weather and time of day.

Pixels are computed on the device of the image. Random numbers come from a CPU generator, so the result is the same on each
device up to rounding. OpenCV computes small fields of shade, and JPEG.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor


def augment_photometric(rng: np.random.Generator, image: UInt8[Tensor, "h w 3"], strength: float) -> UInt8[Tensor, "h w 3"]:
    """Changes colour, saturation, exposure, gamma, shade, dusk, haze, blur, noise and JPEG quality, each at random. A
    strength of 0 changes nothing, 1 is strong."""
    if strength <= 0:
        return image
    values = image.permute(2, 0, 1).float() / 255.0  # (3, h, w)
    if rng.random() < 0.5:
        gains = rng.uniform(1 - 0.25 * strength, 1 + 0.25 * strength, 3)
        values = values * values.new_tensor(gains)[:, None, None]
    if rng.random() < 0.3:  # towards grey, or more saturated
        grey = values.mean(0, keepdim=True)
        values = grey + (values - grey) * float(rng.uniform(1 - strength, 1 + 0.5 * strength))
    contrast = float(np.exp(rng.normal(0, 0.25 * strength)))
    values = (values - 0.5) * contrast + float(0.5 + rng.normal(0, 0.12 * strength))
    values = values.clamp(0, 1) ** float(np.exp(rng.normal(0, 0.3 * strength)))
    shape = (image.shape[0], image.shape[1])
    if rng.random() < 0.3 * strength:
        values = values * torch.from_numpy(_soft_shade(rng, shape, strength)).to(values.device)
    if rng.random() < 0.2 * strength:
        values = values * torch.from_numpy(_cast_shadow(rng, shape, strength)).to(values.device)
    noise = rng.uniform(0.005, 0.04) if rng.random() < 0.5 * strength else 0.0
    if rng.random() < 0.08 * strength:  # dusk: little light, much noise
        values, noise = values * float(rng.uniform(0.12, 0.5)), noise + 0.015
    elif rng.random() < 0.08 * strength:  # haze
        veil = float(rng.uniform(0.2, 0.6))
        values = values * (1 - veil) + veil * float(rng.uniform(0.6, 0.95))
    if rng.random() < 0.35 * strength:
        values = _blur(rng, values)
    if noise:
        values = values + torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(values.device) * noise
    changed = (values.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).contiguous()
    if rng.random() < 0.4 * strength:
        changed = _as_jpeg(changed, int(rng.integers(20, 90)))
    return changed


def gaussian_blur(values: Float[Tensor, "c h w"], sigma: float) -> Float[Tensor, "c h w"]:
    """Gaussian blur of `sigma` pixels, truncated at 4 times sigma; the image is mirrored at its edge."""
    radius = min(round(sigma * 4.0), *(side - 1 for side in values.shape[1:]))
    if radius < 1:
        return values
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)[None]
    weights /= weights.sum()
    return _correlate(_correlate(values, weights), weights.T)


def _correlate(values: Tensor, kernel: np.ndarray) -> Tensor:
    """Filters each channel (c, h, w) with a small kernel, mirrored at the edge, as a sum of shifted images.

    On CPUs this takes a fifth of the time of a convolution with one channel.
    """
    rows, columns = kernel.shape
    height, width = values.shape[1:]
    before = columns // 2, rows // 2
    sides = (before[0], columns - 1 - before[0], before[1], rows - 1 - before[1])
    fits = max(sides[:2]) < width and max(sides[2:]) < height  # a photo a few pixels wide cannot be mirrored that far
    padded = F.pad(values[None], sides, mode="reflect" if fits else "replicate")[0]
    total = torch.zeros_like(values)
    for row, column in np.argwhere(kernel):
        total.add_(padded[:, row : row + height, column : column + width], alpha=float(kernel[row, column]))
    return total


def _soft_shade(rng: np.random.Generator, shape: tuple[int, int], strength: float) -> np.ndarray:
    """A smooth field in [1 - 0.7 strength, 1]: uneven lighting."""
    coarse = rng.uniform(1 - 0.7 * strength, 1.0, (4, 4)).astype(np.float32)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def _cast_shadow(rng: np.random.Generator, shape: tuple[int, int], strength: float) -> np.ndarray:
    """A cast shadow: a dark random polygon with an edge a few pixels soft."""
    corners = rng.uniform(-0.3, 1.3, (int(rng.integers(3, 6)), 2)) * shape[::-1]
    field = np.ones(shape, np.float32)
    cv2.fillPoly(field, [np.rint(corners).astype(np.int32)], float(1 - rng.uniform(0.3, 0.7) * strength))
    return cv2.GaussianBlur(field, (0, 0), rng.uniform(0.5, 4.0))


def _blur(rng: np.random.Generator, values: Tensor) -> Tensor:
    """Defocus or motion blur of a few pixels."""
    if rng.random() < 0.5:
        return gaussian_blur(values, rng.uniform(0.5, 2.0))
    length = int(rng.integers(3, 10))
    kernel = np.zeros((length, length), dtype=np.float32)
    angle = rng.uniform(0, np.pi)
    half = (length - 1) / 2
    step = np.array([np.cos(angle), np.sin(angle)]) * half
    start, end = (np.rint(half + sign * step).astype(int).tolist() for sign in (-1, 1))
    cv2.line(kernel, start, end, 1.0, 1)
    return _correlate(values, kernel / max(float(kernel.sum()), 1.0))


def _as_jpeg(image: Tensor, quality: int) -> Tensor:
    """The image after JPEG compression, on the CPU. OpenCV reads RGB as BGR here, in both directions."""
    _, data = cv2.imencode(".jpg", image.cpu().numpy(), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return torch.from_numpy(decoded).to(image.device)
