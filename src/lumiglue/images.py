"""Photos from disk to arrays, and resizing: the only pixel I/O."""

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

# What is taken for a photo, or for a mask of one.
ImageLike = str | Path | np.ndarray | Tensor
MaskLike = str | Path | np.ndarray | Tensor
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm"}
# What Pillow may open. Of its other readers one starts a program (EPS, Ghostscript); none is of photos.
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "GIF", "JPEG2000")


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a photo as 8-bit RGB, upright as its EXIF orientation says.

    Grey, 16-bit (scaled to 8), palette, CMYK and alpha (laid over white) images are converted. Raises ImageError where
    the file is missing, empty, truncated or not an image.
    """
    path = Path(path)
    data = _read_bytes(path)
    if not data:
        raise ImageError(f"{path} is empty (0 bytes); copy it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the error comes at twice as many pixels
            warnings.simplefilter("ignore", UserWarning)  # of what is odd in metadata that is not used
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
    """Points (n x 2, pixels) of a photo of (width, height) `size`, upright as `read_image` gives it, in the pixels as they
    lie in the file, which COLMAP and others read without regard to the EXIF orientation. Raises as `read_image`."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except UnidentifiedImageError:  # read with OpenCV, which does not turn it
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
    except ValueError:  # the name holds a zero byte
        raise ImageError(f"{str(path)!r} is not a path; check it") from None


def read_mask(path: str | Path) -> Bool[np.ndarray, "h w"]:
    """Reads a mask: false where the image is black, true elsewhere, as COLMAP has it. Raises ImageError as `read_image`."""
    return read_image(path).max(axis=2) > 0


def load_image(image: ImageLike) -> np.ndarray:
    """Any accepted image as h x w x 3 RGB uint8. Raises ImageError for files, InputError for arrays."""
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Tensor):
        if image.is_meta or image.layout is not torch.strided or image.is_quantized:
            raise InputError(f"the image tensor of shape {tuple(image.shape)} holds no plain numbers; give a dense one")
        tensor = image.detach().cpu()
        tensor = tensor.squeeze(0) if tensor.ndim == 4 else tensor
        tensor = tensor.permute(1, 2, 0) if tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4) else tensor
        return as_rgb8(tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy())
    if isinstance(image, np.ndarray):
        return as_rgb8(image)
    raise InputError(f"an image is a path, an array or a tensor, not {type(image).__name__}")


def load_mask(mask: MaskLike) -> np.ndarray:
    """Any accepted mask as h x w booleans, false where it is 0. Raises ImageError for files, InputError for arrays."""
    if isinstance(mask, str | Path):
        return read_mask(mask)
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.ndim != 2 or not (array.dtype == bool or np.issubdtype(array.dtype, np.number)):
        raise InputError(f"a mask array has shape {array.shape} and dtype {array.dtype}; give h x w numbers or booleans")
    return array != 0


# What strangers may send: no format whose reader starts another program or holds vectors.
UNTRUSTED_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM")


def decode_untrusted(data: bytes, name: str, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """A photo that came over the network, as `read_image` gives it. The header is read first, and nothing is unpacked of an
    image above `max_pixels`. Raises TooLargeError for that, ImageError for what is not a photo; messages call it `name`."""
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
    """A Pillow image of any mode as 8-bit RGB; 16-bit and float grey are scaled, alpha is laid over white."""
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
    """An array H x W, H x W x 1, H x W x 3 or H x W x 4 (RGB order) as 8-bit RGB.

    uint8 is taken as it is, uint16 is scaled by 1/257, floats are read as [0, 1]. Raises InputError for anything else.
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
            raise InputError("a float image must hold finite numbers in [0, 1]; divide by 255 first or give uint8")
        array = (array * 255.0 + 0.5).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(f"image array has dtype {array.dtype}; give uint8, uint16 or float in [0, 1]")
    if array.shape[2] == 4:
        alpha = array[..., 3:].astype(np.float32) / 255.0
        array = (array[..., :3] * alpha + 255.0 * (1.0 - alpha) + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def to_grey(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Luma of an RGB image."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def resize_long_side(image: np.ndarray, long_side: int | None) -> np.ndarray:
    """Shrinks an image so that its longer side is `long_side` (area filter); smaller images and None leave it as it is."""
    height, width = image.shape[:2]
    if long_side is None or max(height, width) <= long_side:
        return image
    scale = long_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def list_images(folder: str | Path) -> list[Path]:
    """Every image file below a folder, sorted by path. Raises InputError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder of photos")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        raise InputError(f"{folder} holds no images; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


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
    """TIFF of the kinds that Pillow does not know, 16-bit RGB foremost.

    Nothing else is tried: of a damaged PNG OpenCV takes any length that the file claims as memory.
    """
    try:
        if _tiff_pixels(data) > _most_pixels():
            raise ImageError(f"{path} has more than {_most_pixels() // 10**6} megapixels; downscale it first")
    except ImageError:
        raise
    except Exception:  # no TIFF, or one whose header is damaged
        raise ImageError(f"{path} is not an image; give a JPEG, PNG, TIFF, WebP or BMP file") from None
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        array = None
    if array is None or array.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{path} is not an image; give a JPEG, PNG, TIFF, WebP or BMP file")
    return as_rgb8(array if array.ndim == 2 else np.ascontiguousarray(array[..., ::-1]))


def _tiff_pixels(data: bytes) -> int:
    """Width times height of the first page, as its header says."""
    start = 16 if data[2:4] in (b"+\0", b"\0+") else 8  # BigTIFF's header is longer
    directory, file = TiffImagePlugin.ImageFileDirectory_v2(data[:start]), io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    return int(directory[TiffImagePlugin.IMAGEWIDTH]) * int(directory[TiffImagePlugin.IMAGELENGTH])


def _most_pixels() -> int:
    """Beyond these an image is taken for a decompression bomb."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)
