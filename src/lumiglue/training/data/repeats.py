"""Photos with a repeated part, like windows, tiles and wallpaper.

Descriptors cannot tell the copies apart, but their surroundings can. Random views of photos rarely contain repeats, so a
matcher trained only on them matches whichever copies agree.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

PATCH = (0.06, 0.25)  # sides of the patch, relative to the photo's long side
REGION = (0.5, 1.0)  # sides of the rectangle that it fills, relative to the photo's
MISSING = 0.1  # fraction of copies that are left out, like doors in a wall
SHADE = 0.04  # standard deviation of the logarithm of a copy's brightness
CANDIDATES = 4  # number of random patches, of which the one with the highest contrast is used


def sometimes_repeating(
    rng: np.random.Generator, photo: UInt8[np.ndarray, "h w 3"], share: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Applies `with_repeats` with probability `share`. A share of 0 draws no random number."""
    return with_repeats(rng, photo) if share and rng.random() < share else photo


def with_repeats(rng: np.random.Generator, photo: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Copies a photo and fill a rectangle of it with copies of one of its patches."""
    size = np.array(photo.shape[:2])
    patch = _patch(rng, photo)
    region = np.maximum(np.rint(size * rng.uniform(*REGION, size=2)).astype(int), 1)
    top, left = rng.integers(0, size - region + 1)
    textured = photo.copy()
    window = textured[top : top + region[0], left : left + region[1]]
    for y in range(0, region[0], patch.shape[0]):
        for x in range(0, region[1], patch.shape[1]):
            shade = np.exp(rng.normal(0, SHADE))
            if rng.random() >= MISSING:
                place = window[y : y + patch.shape[0], x : x + patch.shape[1]]
                place[:] = cv2.convertScaleAbs(patch[: place.shape[0], : place.shape[1]], alpha=shade)
    return textured


def _patch(rng: np.random.Generator, photo: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "p q 3"]:
    """The random patch with the highest contrast; in a patch of sky there is nothing to repeat."""
    size = np.array(photo.shape[:2])
    sides = np.clip(np.rint(size.max() * np.exp(rng.uniform(*np.log(PATCH), size=2))).astype(int), 1, size)
    corners = rng.integers(0, size - sides + 1, (CANDIDATES, 2))
    patches = [photo[top : top + sides[0], left : left + sides[1]] for top, left in corners]
    return max(patches, key=lambda patch: float(patch.std()))
