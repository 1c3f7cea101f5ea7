"""Reading, converting and resizing photos."""

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from lumiglue.errors import ImageError, InputError, TooLargeError
from lumiglue.io.text import reason

# Accepted types of a photo and of a mask.
ImageLike = str | Path | np.ndarray | Tensor
MaskLike = str | Path | np.ndarray | Tensor
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm"}
# Formats that Pillow may open. The others are not for photos, and the reader of EPS starts a program (Ghostscript).
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "GIF", "JPEG2000")


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a photo as 8-bit RGB, rotated upright by its EXIF orientation.

    Grey, 16-bit (scaled to 8), palette, CMYK and alpha images (composed over white) are converted.

    Raises:
        ImageError: The file is missing, empty, damaged or not an image.
    """
    path = Path(path)
    data = _read_bytes(path)
    if not data:
        raise ImageError(f"{path} is empty (0 bytes); copy it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the error comes at twice as many pixels
            warnings.simplefilter("ignore", UserWarning)  # about metadata that is not used
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            image.load()
            pixels = to_rgb8(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise ImageError(f"{path} has more than {_most_pixels() // 10**6} megapixels; downscale it first") from None
    except UnidentifiedImageError:
        pixels = _read_with_opencv(path, data)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more on damaged files
        raise ImageError(f"{path} is damaged ({reason(error)}); copy it again") from None
    if not pixels.size:
        raise ImageError(f"{path} has no pixels, its size is {pixels.shape[1]} x {pixels.shape[0]}; copy it again")
    return pixels


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
    try:
        with Image.open(path, formats=_FORMATS) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except UnidentifiedImageError:  # read with OpenCV, which does not rotate it
        return points
    except Exception as error:
        raise ImageError(f"{path} cannot be read ({reason(error)}); copy it again") from None
    x, y = points[:, 0], points[:, 1]
    right, bottom = size[0] - 1 - x, size[1] - 1 - y
    turned = {
        2: (right, y),
        3: (right, bottom),
        4: (x, bottom),
        5: (y, x),
        6: (y, right),
        7: (bottom, right),
        8: (bottom, x),
    }
    return np.stack(turned.get(orientation, (x, y)), axis=1)


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
    return read_image(path).max(axis=2) > 0


def load_image(image: ImageLike) -> np.ndarray:
    """Converts any accepted image to h x w x 3 RGB uint8.

    Args:
        image: A path; an array, see `as_rgb8`; or a tensor C x H x W (also with a leading 1), H x W x C or H x W.

    Raises:
        ImageError: The file cannot be read.
        InputError: The array or tensor is not an image.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Tensor):
        if image.is_meta or image.layout is not torch.strided or image.is_quantized:
            raise InputError(f"the image tensor of shape {tuple(image.shape)} is not dense; give a dense one")
        tensor = image.detach().cpu()
        tensor = tensor.squeeze(0) if tensor.ndim == 4 else tensor
        tensor = tensor.permute(1, 2, 0) if tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4) else tensor
        return as_rgb8(tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy())
    if isinstance(image, np.ndarray):
        return as_rgb8(image)
    raise InputError(f"an image is a path, an array or a tensor, not {type(image).__name__}")


def load_mask(mask: MaskLike) -> np.ndarray:
    """Converts any accepted mask to h x w booleans, false where it is 0.

    Args:
        mask: A path, or an array or tensor h x w.

    Raises:
        ImageError: The file cannot be read.
        InputError: The array or tensor is not a mask.
    """
    if isinstance(mask, str | Path):
        return read_mask(mask)
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.ndim != 2 or not (array.dtype == bool or np.issubdtype(array.dtype, np.number)):
        raise InputError(f"a mask array has shape {array.shape} and dtype {array.dtype}; give h x w numbers or booleans")
    return array != 0


# Formats accepted over the network: none whose reader starts another program or draws vectors.
UNTRUSTED_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM")


def decode_untrusted(data: bytes, name: str, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a photo that came over the network, as `read_image` does.

    The header is read first; of an image above `max_pixels` no pixels are decoded.

    Args:
        data: The bytes of the file.
        name: What messages call it.
        max_pixels: Largest accepted number of pixels.

    Raises:
        TooLargeError: The image has more pixels.
        ImageError: It is damaged or not an image.
    """
    if not data:
        raise ImageError(f"{name} is empty (0 bytes); send it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            image = Image.open(io.BytesIO(data), formats=UNTRUSTED_FORMATS)
            width, height = image.size
            if width * height <= max_pixels:
                return to_rgb8(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise TooLargeError(f"{name} is above the limit of {max_pixels / 1e6:g} megapixels; downscale it first") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image; give a JPEG, PNG, TIFF, WebP or BMP file") from None
    except Exception as error:  # as in read_image
        raise ImageError(f"{name} is damaged ({str(error) or type(error).__name__}); send it again") from None
    raise TooLargeError(
        f"{name} has {width} x {height} pixels, above the limit of {max_pixels / 1e6:g} megapixels; downscale it first"
    )


def to_rgb8(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Converts a Pillow image of any mode to 8-bit RGB; 16-bit and float grey is scaled, alpha is composed over white."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image).astype(np.float32)
        top = 65535.0 if image.mode.startswith("I") else max(float(grey.max(initial=0.0)), 1e-12)
        grey8 = np.clip(grey * (255.0 / top) + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey8[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.array(image.convert("RGB"))


def as_rgb8(image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """Converts an array to 8-bit RGB.

    Args:
        image: H x W, H x W x 1, H x W x 3 or H x W x 4, in RGB order: uint8, uint16 (scaled by 1/257) or float in [0, 1].
            Alpha is composed over white.

    Raises:
        InputError: The array has another shape, type or range.
    """
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
        raise InputError(f"image array has shape {array.shape}; give H x W x 3 (a tensor C x H x W is accepted as a tensor)")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or min(array.shape) < 1:
        raise InputError(f"image array has shape {np.shape(image)}; give H x W or H x W x 3")
    if array.dtype == np.uint16:
        array = (array.astype(np.float32) / 257.0 + 0.5).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1.0 + 1e-4:
            raise InputError("a float image must have finite numbers in [0, 1]; divide by 255 first or give uint8")
        array = (array * 255.0 + 0.5).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(f"image array has dtype {array.dtype}; give uint8, uint16 or float in [0, 1]")
    if array.shape[2] == 4:
        alpha = array[..., 3:].astype(np.float32) / 255.0
        array = (array[..., :3] * alpha + 255.0 * (1.0 - alpha) + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


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


def list_images(folder: str | Path) -> list[Path]:
    """Lists the image files in a folder and its subfolders, sorted by path.

    Raises:
        InputError: There are none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder of photos")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise InputError(f"{folder} has no images; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return paths


def image_names(folder: str | Path) -> list[str]:
    """Lists the images below a folder by name.

    Args:
        folder: Searched with all its subfolders.

    Returns:
        Paths relative to the folder, with slashes, in alphabetical order.

    Raises:
        InputError: the folder does not exist or has no image.
    """
    return sorted(path.relative_to(folder).as_posix() for path in list_images(folder))


def _read_with_opencv(path: Path, data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Reads TIFF files that Pillow does not support, mainly 16-bit RGB.

    Other formats are not tried: for a damaged PNG, OpenCV allocates any size that the file claims.
    """
    try:
        if _tiff_pixels(data) > _most_pixels():
            raise ImageError(f"{path} has more than {_most_pixels() // 10**6} megapixels; downscale it first")
    except ImageError:
        raise
    except Exception:  # no TIFF, or a damaged header
        raise ImageError(f"{path} is not an image; give a JPEG, PNG, TIFF, WebP or BMP file") from None
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        array = None
    if array is None or array.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{path} is not an image; give a JPEG, PNG, TIFF, WebP or BMP file")
    return as_rgb8(array if array.ndim == 2 else np.ascontiguousarray(array[..., ::-1]))


def _tiff_pixels(data: bytes) -> int:
    """Width times height of the first page, from its header."""
    start = 16 if data[2:4] in (b"+\0", b"\0+") else 8  # BigTIFF's header is longer
    directory, file = TiffImagePlugin.ImageFileDirectory_v2(data[:start]), io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    return int(directory[TiffImagePlugin.IMAGEWIDTH]) * int(directory[TiffImagePlugin.IMAGELENGTH])


def _most_pixels() -> int:
    """The number of pixels above which an image counts as a decompression bomb."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)
