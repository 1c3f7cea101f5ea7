"""Pairs with exact ground truth from any photos: the photo against itself, turned or shrunk."""

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from lumiglue.errors import InputError


def turned(
    photo: UInt8[np.ndarray, "h w 3"], degrees: float
) -> tuple[UInt8[np.ndarray, "k l 3"], Float64[np.ndarray, "3 3"]]:
    """Turns a photo clockwise about its centre, on a grey canvas on which all of it is visible.

    Returns:
        The turned photo and the 3 x 3 turned_from_photo.
    """
    height, width = photo.shape[:2]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    size = [int(np.ceil(abs(a * cosine) + abs(b * sine))) for a, b in ((width, height), (height, width))]
    centre, middle = (np.array([(side - 1) / 2 for side in sides]) for sides in ((width, height), size))
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    turned_from_photo = np.eye(3)
    turned_from_photo[:2, :2], turned_from_photo[:2, 2] = rotation, middle - rotation @ centre
    image = cv2.warpPerspective(photo, turned_from_photo, size, flags=cv2.INTER_CUBIC, borderValue=(127, 127, 127))
    return image, turned_from_photo


def shrunk(
    photo: UInt8[np.ndarray, "h w 3"], factor: float
) -> tuple[UInt8[np.ndarray, "k l 3"], Float64[np.ndarray, "3 3"]]:
    """Shrinks a photo `factor` times, at least 1.

    Returns:
        The shrunk photo and the 3 x 3 shrunk_from_photo.
    """
    if factor < 1:
        raise InputError(f"factor is {factor}; give 1 or more, the photo is shrunk by it")
    height, width = photo.shape[:2]
    size = [max(1, round(side / factor)) for side in (width, height)]
    image = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    scale_x, scale_y = size[0] / width, size[1] / height  # (x + 0.5) s - 0.5: pixel centres
    return image, np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1.0]])
