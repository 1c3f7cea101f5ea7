"""Reading, converting and resizing photos."""

import logging
import math
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from lumiglue.errors import ImageError, InputError
from lumiglue.io.decoding import decode, open_photo, pixels_of
from lumiglue.io.listing import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from lumiglue.io.listing import image_names as image_names
from lumiglue.io.listing import list_images as list_images
from lumiglue.io.text import reason

# Accepted types of a photo and of a mask.
ImageLike = str | Path | np.ndarray | Tensor | Image.Image
MaskLike = str | Path | np.ndarray | Tensor | Image.Image
# Which photos are stretched: their 1st percentile becomes black, their 99th white. "auto": those of 16 bits and of floats.
Stretch = Literal["auto", "always", "never"]
_PERCENTILES = (1, 99)
_LARGEST = 1e30  # what is larger marks pixels without data
_LOW_CONTRAST = 32  # grey levels between the percentiles
_TOLERANCE = 0.01  # how far a float image may exceed [0, 1]: filters overshoot
# EXIF orientation -> directions in the stored photo from those in the upright one.
STORED_FROM_UPRIGHT = {
    1: ((1, 0), (0, 1)), 2: ((-1, 0), (0, 1)), 3: ((-1, 0), (0, -1)), 4: ((1, 0), (0, -1)),
    5: ((0, 1), (1, 0)), 6: ((0, 1), (-1, 0)), 7: ((0, -1), (-1, 0)), 8: ((0, -1), (1, 0)),
}  # fmt: skip
_log = logging.getLogger(__name__)


def read_image(path: str | Path, *, stretch: Stretch = "auto") -> UInt8[np.ndarray, "h w 3"]:
    """Reads a photo as 8-bit RGB, rotated upright by its EXIF orientation.

    Grey, palette, CMYK and alpha images (composed over white) are converted. Photos of 16 bits and of floats are stretched,
    since many use a small part of their range: thermal images, 12-bit sensors. A JPEG whose last bytes are missing is read
    as far as it goes. A note is logged for such a JPEG, and for low contrast.

    Args:
        path: The photo.
        stretch: Which photos are stretched so that the 1st percentile of the values of all channels is black and the 99th
            white (NaN and infinity are left out, and black): "auto" those of 16 bits and of floats, "always" also those of
            8 bits, "never" none. Then 16 bits are divided by 257, and floats by their maximum.

    Raises:
        ImageError: The file is missing, empty, damaged or not an image.
    """
    path = Path(path)
    pixels = decode(_read_bytes(path), str(path), max_pixels=_most_pixels()).pixels
    if stretch == "never" and np.issubdtype(pixels.dtype, np.floating):
        pixels = pixels / max(float(pixels[np.abs(pixels) < _LARGEST].max(initial=0)), 1e-12)
    rgb = _to_rgb8(pixels, stretch)
    _note_contrast(rgb, str(path), stretch)
    return rgb


def exif_orientation(path: str | Path) -> int:
    """The EXIF orientation that `read_image` undoes, 1 to 8; 1 for a photo that is stored upright.

    Raises:
        ImageError: The photo cannot be read.
    """
    path = Path(path)
    try:
        orientation = open_photo(_read_bytes(path), str(path)).getexif().get(ExifTags.Base.Orientation, 1)
    except UnidentifiedImageError:  # read with OpenCV, which does not rotate it
        return 1
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{path} cannot be read ({reason(error)}); copy it again") from None
    return orientation if orientation in STORED_FROM_UPRIGHT else 1


def as_stored(path: str | Path, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Converts points of an upright photo to pixels of the stored one: COLMAP and others ignore the EXIF orientation.

    Args:
        path: The photo.
        points: n x 2, pixels of the photo as `read_image` returns it.
        size: (width, height) of that photo.

    Returns:
        n x 2, pixels of the photo as stored in the file.

    Raises:
        ImageError: The photo cannot be read.
    """
    matrix = np.array(STORED_FROM_UPRIGHT[exif_orientation(path)])
    centre = (np.array(size) - 1) / 2
    return (points - centre) @ matrix.T + np.abs(matrix) @ centre


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder; give an image file")
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise ImageError(f"{path} is not a file; give an image file")
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be opened ({error.strerror}); check the path") from None
    except ValueError:  # a zero byte in the name
        raise ImageError(f"{str(path)!r} is not a path; check it") from None


def read_mask(path: str | Path) -> Bool[np.ndarray, "h w"]:
    """Reads a mask: false where the image is black and true elsewhere, as in COLMAP.

    Raises:
        ImageError: As for `read_image`.
    """
    return _not_black(decode(_read_bytes(Path(path)), str(path), max_pixels=_most_pixels()).pixels)


def _not_black(pixels: np.ndarray) -> np.ndarray:
    return (pixels[..., :3].max(axis=2) if pixels.ndim == 3 else pixels) > 0


def load_image(image: ImageLike, *, stretch: Stretch = "auto") -> np.ndarray:
    """Converts any accepted image to h x w x 3 RGB uint8.

    Args:
        image: A path; a Pillow image, whose pixels are taken as they are (its EXIF orientation is not applied); an array,
            see `as_rgb8`; or a tensor C x H x W (also with a leading 1), H x W x C or H x W.
        stretch: See `read_image`, and for arrays and tensors `as_rgb8`.

    Raises:
        ImageError: The file cannot be read.
        InputError: The array or tensor is not an image.
    """
    if stretch not in get_args(Stretch):
        raise InputError(f"unknown stretch {stretch!r}; choose from {list(get_args(Stretch))}")
    if isinstance(image, str | Path):
        return read_image(image, stretch=stretch)
    if isinstance(image, Image.Image):
        return to_rgb8(image, stretch=stretch)
    if isinstance(image, Tensor):
        return as_rgb8(_array_of(image), stretch=stretch)
    if isinstance(image, np.ndarray):
        return as_rgb8(image, stretch=stretch)
    raise InputError(f"an image must be a path, a Pillow image, an array or a tensor, not {type(image).__name__}")


def _array_of(tensor: Tensor) -> np.ndarray:
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        raise InputError(f"the image tensor of shape {tuple(tensor.shape)} is not dense; give a dense one")
    tensor = tensor.detach().cpu()
    tensor = tensor.squeeze(0) if tensor.ndim == 4 else tensor
    tensor = tensor.permute(1, 2, 0) if tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4) else tensor
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()


def load_mask(mask: MaskLike) -> np.ndarray:
    """Converts any accepted mask to h x w booleans, false where it is 0.

    Args:
        mask: A path, a Pillow image, or an array or tensor h x w.

    Raises:
        ImageError: The file cannot be read.
        InputError: The array or tensor is not a mask.
    """
    if isinstance(mask, str | Path):
        return read_mask(mask)
    if isinstance(mask, Image.Image):
        return _not_black(pixels_of(mask))
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.ndim != 2 or not (array.dtype == bool or np.issubdtype(array.dtype, np.number)):
        raise InputError(f"a mask array has shape {array.shape} and dtype {array.dtype}; give h x w numbers or booleans")
    return array != 0


def decode_untrusted(data: bytes, name: str, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a photo that came over the network, as `read_image` does, but refuses a JPEG whose last bytes are missing.

    The header is read first; of an image above `max_pixels` no pixels are decoded.

    Args:
        data: The bytes of the file.
        name: What messages call it.
        max_pixels: Largest accepted number of pixels.

    Raises:
        TooLargeError: The image has more pixels.
        ImageError: It is damaged or not an image.
    """
    return _to_rgb8(decode(data, name, max_pixels=max_pixels, again="send", cut_jpeg=False).pixels, "auto")


def to_rgb8(image: Image.Image, *, stretch: Stretch = "auto") -> UInt8[np.ndarray, "h w 3"]:
    """Converts a Pillow image of any mode to 8-bit RGB; alpha is composed over white. `stretch`: see `read_image`."""
    return _to_rgb8(pixels_of(image), stretch)


def as_rgb8(image: np.ndarray, *, stretch: Stretch = "auto") -> UInt8[np.ndarray, "h w 3"]:
    """Converts an array to 8-bit RGB.

    Args:
        image: H x W, H x W x 1, H x W x 3 or H x W x 4, in RGB order: uint8, uint16 or float in [0, 1] (with a tolerance of
            0.01, for filters that overshoot). Alpha is composed over white.
        stretch: Which arrays are stretched, see `read_image`: "auto" uint16, "always" all, also floats of any range,
            "never" none (uint16 is divided by 257).

    Raises:
        InputError: The array has another shape, type or range.
    """
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
        raise InputError(f"image array has shape {array.shape}; give H x W x 3 (C x H x W is accepted as a torch tensor)")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or min(array.shape) < 1:
        raise InputError(f"image array has shape {np.shape(image)}; give H x W or H x W x 3")
    if np.issubdtype(array.dtype, np.floating):
        if stretch != "always":
            _check_range(array)
            stretch = "never"
    elif array.dtype not in (np.uint8, np.uint16):
        raise InputError(f"image array has dtype {array.dtype}; give uint8, uint16 or float in [0, 1]")
    return _to_rgb8(array, stretch)


def _check_range(array: np.ndarray) -> None:
    remedy = 'divide by 255 first, give uint8, or stretch="always" for any range'
    if not np.isfinite(array).all():
        raise InputError(f"a float image must have finite numbers in [0, 1]; {remedy}")
    low, high = float(array.min()), float(array.max())
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise InputError(f"a float image must have numbers in [0, 1], but these are {low:g} to {high:g}; {remedy}")


def _to_rgb8(pixels: np.ndarray, stretch: Stretch) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of any depth, h x w or h x w x 1, 3 or 4, as 8-bit RGB. Alpha is composed over white."""
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    is_float = np.issubdtype(pixels.dtype, np.floating)
    if stretch == "always" or (stretch == "auto" and pixels.dtype != np.uint8):
        rgb = _stretched(colours)
    elif pixels.dtype == np.uint8:
        rgb = colours
    else:
        levels = colours.astype(np.float32) * (255.0 if is_float else 1 / 257)
        rgb = (np.nan_to_num(levels, nan=0).clip(0, 255) + 0.5).astype(np.uint8)
    if alpha.size:
        opaque = alpha.astype(np.float32) / (1.0 if is_float else np.iinfo(pixels.dtype).max)
        rgb = (rgb * opaque + 255.0 * (1.0 - opaque) + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rgb, (*rgb.shape[:2], 3)))


def _stretched(values: np.ndarray) -> np.ndarray:
    """In 8 bits, with the 1st percentile at 0 and the 99th at 255; minimum and maximum where these are equal."""
    step = max(1, math.isqrt(values.shape[0] * values.shape[1] // 10**6))  # a million pixels are enough
    sample = values[::step, ::step]
    sample = sample[np.abs(sample) < _LARGEST]  # without NaN
    if not sample.size:
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(sample, _PERCENTILES).tolist()
    if high <= low:
        low, high = float(sample.min()), float(sample.max())
    levels = (values.astype(np.result_type(values, np.float32)) - low) * (255 / (high - low) if high > low else 0.0)
    return (np.nan_to_num(levels, nan=0).clip(0, 255) + 0.5).astype(np.uint8)


def _note_contrast(image: UInt8[np.ndarray, "h w 3"], name: str, stretch: Stretch) -> None:
    """Logs a note if most values are within a few grey levels: detectors find next to nothing."""
    step = max(1, min(image.shape[:2]) // 128)
    low, high = np.percentile(image[::step, ::step], _PERCENTILES).tolist()
    if high - low < _LOW_CONTRAST and image.min() < image.max():
        remedy = "" if stretch == "always" else '; stretch="always" (--stretch always) spreads them'
        label = {"label": "note"}
        _log.warning("%s has low contrast: 98 %% of its values are %d to %d of 255%s", name, low, high, remedy, extra=label)


def to_grey(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Converts RGB to grey (luma)."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def resize_long_side(image: np.ndarray, long_side: int | None) -> np.ndarray:
    """Downscales an image with an area filter.

    Args:
        image: h x w or h x w x c.
        long_side: Long side of the result in pixels. Smaller images are returned unchanged, and all with None.
    """
    height, width = image.shape[:2]
    if long_side is None or max(height, width) <= long_side:
        return image
    scale = long_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _most_pixels() -> int:
    """The number of pixels above which an image counts as a decompression bomb."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)
