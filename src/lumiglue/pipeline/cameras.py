"""The camera of a photo: from the focal length in its EXIF, or a guess."""

import math
from pathlib import Path
from typing import Literal

from PIL import ExifTags, Image

from lumiglue.types import Camera

CameraSource = Literal["exif", "estimated"]
# Without EXIF, the long side times this is the guess of the focal length, as in COLMAP.
DEFAULT_FOCAL_FACTOR = 1.2
_FILM_DIAGONAL = math.hypot(36.0, 24.0)  # millimetres; "35 mm equivalent" compares diagonals
_MILLIMETRES = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # of EXIF's units of the focal plane


def photo_camera(path: str | Path, image_size: tuple[int, int]) -> tuple[Camera, CameraSource]:
    """The camera of a photo, whose principal point is the middle.

    Args:
        path: The photo.
        image_size: Its (width, height) in pixels.

    Returns:
        A pinhole camera, and where its focal length comes from: "exif" or "estimated" (1.2 times the longer side).
    """
    focal = read_focal(path, image_size)
    source: CameraSource = "estimated" if focal is None else "exif"
    return Camera.from_focal(focal or DEFAULT_FOCAL_FACTOR * max(image_size), image_size), source


def read_focal(path: str | Path, image_size: tuple[int, int]) -> float | None:
    """Reads the focal length from a photo's EXIF: its 35 mm equivalent, or millimetres and the density of the sensor.

    Args:
        path: The photo.
        image_size: Its (width, height) in pixels.

    Returns:
        Pixels; None if EXIF has none.
    """
    try:
        with Image.open(path) as image:
            exif = dict(image.getexif().get_ifd(ExifTags.IFD.Exif))
    except Exception:  # Pillow's parsers raise OSError, SyntaxError, struct.error and more on damaged files
        return None
    if (equivalent := _positive(exif, ExifTags.Base.FocalLengthIn35mmFilm)) is not None:
        return equivalent / _FILM_DIAGONAL * math.hypot(*image_size)
    focal, density, width = (
        _positive(exif, tag)
        for tag in (ExifTags.Base.FocalLength, ExifTags.Base.FocalPlaneXResolution, ExifTags.Base.ExifImageWidth)
    )
    unit = _MILLIMETRES.get(exif.get(ExifTags.Base.FocalPlaneResolutionUnit, 2))
    if focal is None or density is None or unit is None:
        return None
    shrunk = max(image_size) / max(width, _positive(exif, ExifTags.Base.ExifImageHeight) or 0) if width else 1.0
    return focal * density / unit * shrunk


def _positive(exif: dict, tag: int) -> float | None:
    try:
        value = float(exif[tag])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return value if 0 < value < math.inf else None
