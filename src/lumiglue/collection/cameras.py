"""The cameras of a collection: which photos share one, and what is known about it."""

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import ExifTags, Image

from lumiglue.collection import CameraMode
from lumiglue.collection.features import Failures
from lumiglue.collection.pairs import without_comment
from lumiglue.errors import ImageError, InputError
from lumiglue.images import read_image
from lumiglue.io.text import read_text, reason
from lumiglue.system.extras import require

try:
    import pycolmap
except ImportError:
    raise InputError("reconstruction needs the package pycolmap; pip install 'lumiglue[sfm]'") from None
require("pycolmap")

# Formats that every build of COLMAP reads.
_COMMON_FORMATS = {"JPEG", "PNG", "TIFF", "BMP", "PPM"}
_LINE = "the name of a photo or folder, or a number, then MODEL WIDTH HEIGHT PARAMETERS, as in COLMAP's cameras.txt"
Size = tuple[int, int]
CAMERA_MODELS = sorted(set(pycolmap.CameraModelId.__members__) - {"INVALID"})


def check_camera_model(name: str) -> None:
    """Raises InputError unless COLMAP has this camera model."""
    if name not in CAMERA_MODELS:
        raise InputError(f"unknown camera model {name!r}; choose from {', '.join(CAMERA_MODELS)}")


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """What is known about the cameras of a collection.

    Attributes:
        mode: Which photos share a camera: "image" (none), "folder" (those of a folder), "exif" (those of the same make,
            model, size and focal length in EXIF) or "single" (all).
        model: COLMAP's name of the camera model.
        params: Parameters of the model, in COLMAP's order and pixels; None estimates them, from EXIF where possible.
        file: A list of cameras, see `read_cameras`, or a folder with a model of COLMAP, whose photos have its cameras.
    """

    mode: CameraMode = "image"
    model: str = "SIMPLE_RADIAL"
    params: Sequence[float] | None = None
    file: str | Path | None = None

    def __post_init__(self) -> None:
        check_camera_model(self.model)
        if self.params is not None:
            if self.file is not None:
                raise InputError("both camera parameters and a list of cameras were given; give one of them")
            make_camera(self.model, (1, 1), self.params, "the camera parameters")


@dataclass(frozen=True)
class CameraGroup:
    """Photos that share a camera.

    Attributes:
        names: The photos.
        camera: COLMAP's camera, if it is known.
    """

    names: tuple[str, ...]
    camera: Any = None


def group_photos(photos: Path, names: Sequence[str], settings: CameraSettings) -> tuple[tuple[CameraGroup, ...], Failures]:
    """Assigns a camera to each photo, and finds photos that COLMAP cannot use.

    Args:
        photos: Folder of the photos.
        names: The photos.
        settings: The cameras.

    Returns:
        The groups, and (name, reason) of each photo that cannot be used: COLMAP cannot read it, or it is not of the size of
        its camera.

    Raises:
        InputError: the list of cameras cannot be used.
    """
    known = {} if settings.file is None else read_cameras(settings.file, photos, names)
    members: dict[Any, list[str]] = defaultdict(list)
    left_out: list[tuple[str, str]] = []
    sizes: dict[str, Size] = {}
    for name in names:
        header = _Header.read(photos / name)
        if header.error:
            left_out.append((name, header.error))
            continue
        sizes[name] = header.size
        key = {"image": name, "single": "", "folder": PurePosixPath(name).parent, "exif": header.camera or name}
        members[("known", known[name].camera_id) if name in known else key[settings.mode]].append(name)
    groups = []
    for group in members.values():
        camera = known.get(group[0])
        size = Counter(sizes[name] for name in group).most_common(1)[0][0]
        if camera is not None:
            size = camera.width, camera.height
        elif settings.params is not None:
            camera = make_camera(settings.model, size, settings.params, "the camera parameters")
        fitting = tuple(name for name in group if sizes[name] == size)
        whose = "its camera has" if camera is not None else "most photos of its camera have"
        left_out += [
            (name, f"it has {_text(sizes[name])} pixels, but {whose} {_text(size)}") for name in group if sizes[name] != size
        ]
        if fitting:
            groups.append(CameraGroup(fitting, camera))
    return tuple(groups), tuple(left_out)


def read_cameras(file: str | Path, photos: Path, names: Sequence[str]) -> dict[str, Any]:
    """Reads the known cameras of photos.

    Args:
        file: A text file with a camera on each line, MODEL WIDTH HEIGHT PARAMETERS after the name of a photo, the name of a
            folder, or a number (as COLMAP's cameras.txt). A numbered camera is that of all photos of its size. Or a folder
            with a model of COLMAP.
        photos: Folder of the photos.
        names: The photos.

    Returns:
        COLMAP's camera of each photo that has one; photos with the same `camera_id` share it.

    Raises:
        InputError: the file cannot be read, a line is not a camera, or a camera belongs to no photo.
    """
    file = Path(file)
    if file.is_dir():
        model = read_model(file)
        known = set(names)
        return {image.name: model.cameras[image.camera_id] for image in model.images.values() if image.name in known}
    return _owned(file, read_camera_list(file), photos, names)


def read_camera_list(file: Path) -> dict[str, Any]:
    """Reads a list of cameras.

    Args:
        file: A text file with a camera on each line: an owner, which may hold spaces, then MODEL WIDTH HEIGHT PARAMETERS.

    Returns:
        COLMAP's camera of each owner, with a `camera_id` of its own.

    Raises:
        InputError: the file cannot be read, has no camera, a line is not a camera, or an owner has two.
    """
    cameras: dict[str, Any] = {}
    for number, line in enumerate(read_text(file, f"give on each line {_LINE}").splitlines(), start=1):
        words = without_comment(line).split()
        if not words:
            continue
        where = f"{file}, line {number}"
        at = next((i for i, word in enumerate(words) if i and word in CAMERA_MODELS), None)
        if at is None:
            raise InputError(f"{where} has no COLMAP camera model; give {_LINE}")
        try:
            width, height = (int(word) for word in words[at + 1 : at + 3])
        except ValueError:
            raise InputError(f"{where} has no width and height after {words[at]}; give {_LINE}") from None
        owner = " ".join(words[:at])
        if owner in cameras:
            raise InputError(f"{where}: {owner} already has a camera; give one")
        cameras[owner] = make_camera(words[at], (width, height), numbers(words[at + 3 :], where), where)
        cameras[owner].camera_id = len(cameras)
    if not cameras:
        raise InputError(f"{file} has no camera; give on each line {_LINE}")
    return cameras


def _owned(file: Path, cameras: Mapping[str, Any], photos: Path, names: Sequence[str]) -> dict[str, Any]:
    """The camera of each photo: its own, that of the innermost folder, or the numbered one of its size."""
    of_photos = cameras.keys() & set(names)
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    numbered: dict[Size, Any] = {}
    for owner, camera in cameras.items():
        if owner in of_photos or owner.rstrip("/") in folders:
            continue
        if not owner.isdecimal():
            raise InputError(f"{file}: {owner} is neither a photo nor a folder of {photos}; correct the name")
        if (size := (camera.width, camera.height)) in numbered:
            raise InputError(f"{file} has two cameras of {_text(size)} pixels; give names of photos or folders instead")
        numbered[size] = camera
    of_folder = {owner.rstrip("/"): camera for owner, camera in cameras.items() if owner not in of_photos}
    owned = {}
    for name in names:
        above = (of_folder.get(str(parent)) for parent in PurePosixPath(name).parents)
        camera = cameras.get(name) or next((camera for camera in above if camera is not None), None)
        if camera is None and numbered:
            camera = next(iter(numbered.values())) if len(numbered) == 1 else numbered.get(_Header.read(photos / name).size)
        if camera is not None:
            owned[name] = camera
    return owned


def find_model(folder: str | Path) -> Path:
    """Finds the model in a folder, or in its subfolder 0/, as `reconstruct` writes it.

    Raises:
        InputError: there is none.
    """
    folder = Path(folder)
    place = next((path for path in (folder, folder / "0") if has_model(path)), None)
    if place is None:
        raise InputError(f"{folder} has no COLMAP model; give the folder with cameras, images and points3D (.bin or .txt)")
    return place


def has_model(folder: Path) -> bool:
    """Whether a folder itself has a model of COLMAP."""
    return any((folder / f"images{suffix}").is_file() for suffix in (".bin", ".txt"))


def read_model(folder: str | Path) -> Any:
    """Reads a model of COLMAP.

    Args:
        folder: Has cameras, images and points3D as .bin or .txt, or a subfolder 0/ with them.

    Returns:
        The `pycolmap.Reconstruction`.

    Raises:
        InputError: it cannot be read.
    """
    place = find_model(folder)
    try:
        return pycolmap.Reconstruction(place)
    except Exception as error:  # pycolmap raises ValueError, RuntimeError, IndexError, MemoryError and more
        raise InputError(f"{place} cannot be read as a COLMAP model ({reason(error)}); write it again") from None


def make_camera(model: str, size: Size, params: Sequence[float], where: str) -> Any:
    """Makes a camera with known parameters.

    Args:
        model: COLMAP's name of the camera model.
        size: Width and height in pixels.
        params: The parameters, in COLMAP's order and pixels.
        where: What gave them, for the message.

    Returns:
        COLMAP's camera.

    Raises:
        InputError: the model is unknown, the size is empty, or the parameters are not as many finite numbers as it has.
    """
    check_camera_model(model)
    names = pycolmap.Camera(model=model, width=1, height=1).params_info
    if len(params) != (count := len(names.split(","))):
        raise InputError(f"{where}: {model} has {count} parameters ({names}), {len(params)} were given")
    if not all(math.isfinite(value) for value in params) or min(size) < 1:
        raise InputError(f"{where}: parameters must be finite numbers, width and height above 0")
    camera = pycolmap.Camera(model=model, width=size[0], height=size[1], params=list(params))
    camera.has_prior_focal_length = True
    return camera


def numbers(words: Sequence[str], where: str) -> list[float]:
    """Reads the parameters of a camera. Raises InputError where a word is not a number."""
    try:
        return [float(word) for word in words]
    except ValueError:
        raise InputError(f"{where}: parameters must be numbers, not {' '.join(words)!r}") from None


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


@dataclass(frozen=True)
class _Header:
    """What the first bytes of a photo tell.

    Attributes:
        size: Width and height as stored.
        camera: Make, model, size and focal length; None where EXIF has no make or model.
        error: Why COLMAP cannot use the photo; "" if it can.
    """

    size: Size = (0, 0)
    camera: tuple | None = None
    error: str = ""

    @classmethod
    def read(cls, path: Path) -> "_Header":
        if not path.is_file():
            return cls(error=f"there is no photo {path}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about many pixels, and metadata that is not used
                with Image.open(path) as image:
                    exif, size, kind = image.getexif(), image.size, image.format or ""
            focal = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLength)
        except Exception:  # Pillow's parsers raise OSError, SyntaxError, struct.error and more
            try:
                read_image(path)
            except ImageError as error:
                return cls(error=str(error))
            return cls._of_bitmap(path, "")
        if kind not in _COMMON_FORMATS:
            return cls._of_bitmap(path, kind)
        made = tuple(str(exif.get(tag, "")).strip(" \0") for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
        return cls(size, (*made, *size, str(focal)) if any(made) else None)

    @classmethod
    def _of_bitmap(cls, path: Path, kind: str) -> "_Header":
        with quiet(3):
            bitmap = pycolmap.Bitmap.read(path, as_rgb=True)
        if bitmap is None:
            return cls(error=f"COLMAP cannot read it{f' ({kind})' if kind else ''}; convert it to JPEG or PNG")
        return cls((bitmap.width, bitmap.height))


@contextmanager
def quiet(level: int = 2) -> Iterator[None]:
    """Silences COLMAP's log below `level`; 2 shows errors."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = level
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before
