"""One photo in the pixels of another, by a homography, and pictures that show how well they agree."""

import io
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from lumiglue.errors import InputError
from lumiglue.images import resize_long_side
from lumiglue.io.atomic import write_whole

WARP_SUFFIXES = (".png", ".tif", ".tiff", ".webp", ".jpg", ".jpeg", ".gif")
_BLINK_MS = 600
_BLINK_SIDE = 1024  # pixels; GIF is a format for small pictures


def warp_onto(
    image1: UInt8[np.ndarray, "h1 w1 3"], image1_from_image0: Float[np.ndarray, "3 3"], size0: tuple[int, int]
) -> UInt8[np.ndarray, "h0 w0 4"]:
    """Resamples image 1 in the pixels of image 0.

    Args:
        image1: RGB.
        image1_from_image0: The homography of `estimate`.
        size0: (width, height) of image 0 in pixels.

    Returns:
        RGB and alpha; alpha is 0 where image 1 does not reach, and where the homography's horizon is crossed.
    """
    homography = np.asarray(image1_from_image0, dtype=np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    rgba = np.dstack([image1, np.full(image1.shape[:2], 255, np.uint8)])
    # The border repeats the colour, so that half-covered pixels are not darkened.
    warped = cv2.warpPerspective(rgba, homography, size0, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpPerspective(rgba[..., 3], homography, size0, flags=flags)
    x, y = np.meshgrid(np.arange(size0[0]), np.arange(size0[1]))
    in_front = homography[2, 0] * x + homography[2, 1] * y + homography[2, 2] > 0
    warped[..., 3] = np.where(in_front, inside, 0)
    return warped


def checkerboard(
    image0: UInt8[np.ndarray, "h w 3"], warped1: UInt8[np.ndarray, "h w 4"], squares: int = 8
) -> UInt8[np.ndarray, "h w 3"]:
    """Squares of image 0 and of the warped image 1 in turn; where that does not reach, image 0.

    Args:
        image0: RGB.
        warped1: The result of `warp_onto`.
        squares: Number along the longer side.
    """
    height, width = image0.shape[:2]
    side = max(1, -(-max(height, width) // squares))
    rows, columns = np.arange(height)[:, None] // side, np.arange(width)[None] // side
    return _laid_over(image0, warped1, (rows + columns) % 2 == 1)


def save_warp(path: str | Path, image0: UInt8[np.ndarray, "h w 3"], warped1: UInt8[np.ndarray, "h w 4"]) -> None:
    """Writes image 1 in the pixels of image 0.

    Args:
        path: .png, .tif or .webp: image 1, transparent where it does not reach. .jpg: the same over image 0. .gif: both in
            turn, at most 1024 pixels wide or high.
        image0: RGB.
        warped1: The result of `warp_onto`.

    Raises:
        InputError: The suffix is another one.
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    if suffix not in WARP_SUFFIXES:
        raise InputError(f"{path} has none of the suffixes {list(WARP_SUFFIXES)}; use one of them")
    everywhere = np.ones(image0.shape[:2], bool)
    if suffix == ".gif":
        both = (image0, _laid_over(image0, warped1, everywhere))
        first, second = (Image.fromarray(resize_long_side(image, _BLINK_SIDE)).quantize() for image in both)
        buffer = io.BytesIO()
        first.save(buffer, "GIF", save_all=True, append_images=[second], duration=_BLINK_MS, loop=0)
        write_whole(path, buffer.getvalue())
    else:
        save_image(path, _laid_over(image0, warped1, everywhere) if suffix in (".jpg", ".jpeg") else warped1)


def save_image(path: str | Path, image: UInt8[np.ndarray, "h w c"]) -> None:
    """Writes an image in the format of its suffix."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, Image.registered_extensions()[Path(path).suffix.lower()], quality=92)
    write_whole(path, buffer.getvalue())


def _laid_over(image0: np.ndarray, warped1: np.ndarray, where: np.ndarray) -> np.ndarray:
    alpha = (warped1[..., 3:] / 255.0) * where[..., None]
    return (image0 * (1 - alpha) + warped1[..., :3] * alpha + 0.5).astype(np.uint8)
