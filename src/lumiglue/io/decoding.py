"""From the bytes of a photo to its pixels, upright and in their own depth. Every format that is read is read here."""

import io
import logging
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError
from PIL import features as pillow_features

from lumiglue.errors import ImageError, LumiglueError, TooLargeError
from lumiglue.io.text import reason
from lumiglue.system.extras import outdated, remedy

# Formats that Pillow may open. The others are not for photos, and the reader of EPS starts a program (Ghostscript).
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "GIF", "JPEG2000")
_ACCEPTED = "give a JPEG, PNG, TIFF, WebP, BMP, GIF, JPEG 2000, AVIF or HEIC file"
# Brands of ISO media files (ftyp). mif1 and msf1 alone may be either; HEIF is the likelier.
_AVIF, _HEIF = {b"avif", b"avis"}, {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_END_OF_JPEG = b"\xff\xd9"
_JPEG_BLOCK = 16  # rows; something is always decoded of the first block, and the next row is interpolated from it
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Decoded:
    """The pixels of a photo as its file has them.

    Attributes:
        pixels: h x w x 3 RGB in 8 bits; or of 16-bit and float photos h x w, h x w x 3 or h x w x 4, in the file's depth.
        orientation: The EXIF orientation that was applied, 1 to 8; 1 for none.
    """

    pixels: np.ndarray
    orientation: int


def decode(data: bytes, name: str, *, max_pixels: int, again: str = "copy", cut_jpeg: bool = True) -> Decoded:
    """Decodes a photo and turns it upright by its EXIF orientation.

    The header is read first; of a photo above `max_pixels` no pixels are decoded.

    Args:
        data: The bytes of the file.
        name: What messages call it.
        max_pixels: Largest accepted number of pixels.
        again: The verb of the remedy for a damaged file.
        cut_jpeg: Whether a JPEG whose last bytes are missing is read as far as it goes, and not damaged. The rest is grey,
            and a note is logged.

    Raises:
        TooLargeError: It has more pixels.
        ImageError: It is empty, damaged, not a photo, or of a format whose package is not installed.
    """
    if not data:
        raise ImageError(f"{name} is empty (0 bytes); {again} it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is checked here
            warnings.simplefilter("ignore", UserWarning)  # about metadata that is not used
            image = open_photo(data, name)
            _check_size(name, image.width, image.height, max_pixels)
            decoded = _decoded(image, data, name, cut_jpeg)
    except LumiglueError:
        raise
    except Image.DecompressionBombError:
        raise TooLargeError(f"{name} is above the limit of {max_pixels / 1e6:.3g} megapixels; downscale it first") from None
    except UnidentifiedImageError:
        decoded = Decoded(_with_opencv(data, name, max_pixels), 1)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more on damaged files
        raise ImageError(f"{name} is damaged ({reason(error)}); {again} it again") from None
    if not decoded.pixels.size:
        height, width = decoded.pixels.shape[:2]
        raise ImageError(f"{name} has no pixels, its size is {width} x {height}; {again} it again")
    return decoded


def pixels_of(image: Image.Image) -> np.ndarray:
    """The pixels of a Pillow image of any mode, see `Decoded`; alpha is composed over white."""
    if image.mode.startswith("I") or image.mode == "F":
        array = np.asarray(image)
        return array.astype(array.dtype.newbyteorder("="))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.array(image.convert("RGB"))


def open_photo(data: bytes, name: str) -> Image.Image:
    """Opens a photo with Pillow, which reads its header alone.

    Raises:
        ImageError: A package for this format is not installed.
        UnidentifiedImageError: It is not an image that Pillow reads. Damaged files raise other errors, too.
    """
    brands = _brands(data)
    formats = _FORMATS
    if brands & _AVIF:
        if not pillow_features.check("avif"):
            raise ImageError(f"{name} is an AVIF photo, which this Pillow does not read; pip install 'pillow>=11.3'")
        formats = ("AVIF",)
    elif brands & _HEIF:
        if not find_spec("pillow_heif"):
            raise ImageError(f"{name} is a HEIC photo; {remedy('pillow_heif')}")
        if message := outdated("pillow_heif"):
            raise ImageError(f"{name} is a HEIC photo; {message}")
        from pillow_heif import HeifImageFile

        return HeifImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(data), formats=formats)


def _brands(data: bytes) -> set[bytes]:
    """The brands of an ISO media file: AVIF, HEIC, videos."""
    if data[4:8] != b"ftyp":
        return set()
    header = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    return {header[start : start + 4] for start in range(0, len(header), 4)}


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLargeError(
            f"{name} has {width} x {height} pixels, above the limit of {max_pixels / 1e6:.3g} megapixels; downscale it first"
        )


def _decoded(image: Image.Image, data: bytes, name: str, cut_jpeg: bool) -> Decoded:
    # Pillow drops the lower byte of 16-bit colours: all of them, in a photo of 12 bits.
    deep_colour = (
        image.format in ("PNG", "TIFF")
        and image.mode in ("RGB", "RGBA", "LA")
        and ";16" in str(getattr(image, "tile", [])[:1])
    )
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    try:
        image.load()
        pixels = pixels_of(image)
    except OSError:
        if not cut_jpeg or image.format not in ("JPEG", "MPO"):
            raise
        pixels = _as_far_as_it_goes(data, name)
    if deep_colour:
        deep = _opencv_array(data, cv2.IMREAD_UNCHANGED)
        pixels = pixels if deep is None else deep
    return Decoded(upright(pixels, orientation), orientation if orientation in range(1, 9) else 1)


def _as_far_as_it_goes(data: bytes, name: str) -> np.ndarray:
    """The pixels of a JPEG that lacks its last bytes. The decoder fills the rows that are missing with one colour.

    Raises:
        OSError: Nothing can be decoded.
    """
    image = Image.open(io.BytesIO(data + _END_OF_JPEG), formats=("JPEG",))
    pixels = pixels_of(image)
    rows = np.flatnonzero((pixels != pixels[-1, -1]).any(axis=(1, 2)))
    if not len(rows) or rows[-1] <= _JPEG_BLOCK < len(pixels):
        raise OSError("it ends before its pixels begin")
    missing = 1 - (rows[-1] + 1) / len(pixels)
    what = f"the lower {100 * max(missing, 0.01):.0f} % of it is missing" if missing else "details may be missing"
    _log.warning("%s lacks its last bytes: %s; copy it again", name, what, extra={"label": "note"})
    return pixels


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels turned upright, as an EXIF orientation (1 to 8) says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _with_opencv(data: bytes, name: str, max_pixels: int) -> np.ndarray:
    """Reads TIFF files that Pillow does not support, mainly 16-bit and float RGB.

    Other formats are not tried: for a damaged PNG, OpenCV allocates any size that the file claims.
    """
    try:
        width, height = _tiff_size(data)
    except Exception:  # no TIFF, or a damaged header
        raise ImageError(f"{name} is not an image; {_ACCEPTED}") from None
    _check_size(name, width, height, max_pixels)
    array = _opencv_array(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if array is None or array.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise ImageError(f"{name} is not an image; {_ACCEPTED}")
    return array if array.ndim == 3 or array.dtype != np.uint8 else np.repeat(array[..., None], 3, axis=2)


def _opencv_array(data: bytes, flags: int) -> Any:
    """What OpenCV decodes, in RGB order; None if it decodes nothing."""
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    if array is None or array.ndim == 2:
        return array
    return array[..., [2, 1, 0, 3][: array.shape[2]]]


def _tiff_size(data: bytes) -> tuple[int, int]:
    """Width and height of the first page, from its header."""
    start = 16 if data[2:4] in (b"+\0", b"\0+") else 8  # BigTIFF's header is longer
    directory, file = TiffImagePlugin.ImageFileDirectory_v2(data[:start]), io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    return int(directory[TiffImagePlugin.IMAGEWIDTH]), int(directory[TiffImagePlugin.IMAGELENGTH])
