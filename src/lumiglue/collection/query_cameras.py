"""The cameras of query photos: given, that of the model, or a guess from EXIF or from the size of the photo."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from lumiglue.collection.cameras import check_camera_model, pycolmap
from lumiglue.errors import InputError
from lumiglue.io.text import read_text

CameraSource = Literal["given", "model", "exif", "estimated"]
# Without EXIF, the long side times this is the first guess of the focal length, as in COLMAP.
DEFAULT_FOCAL_FACTOR = 1.2


class QueryCameras:
    """The camera of each query.

    Attributes:
        text: What was given; None if cameras are guessed.

    Args:
        camera: "MODEL,parameters" with COLMAP's name and parameters, for all queries; a text file with a line "KEY MODEL
            WIDTH HEIGHT PARAMETERS" for each camera, where KEY is the name of a query (as hloc writes it) or a number (as
            COLMAP writes it: the camera with the size of the photo is used); "model" for the one camera of the model; None
            to guess.
        focal: Focal length in pixels, for all queries, with the principal point in the middle.
        reconstruction: The model.

    Raises:
        InputError: The camera cannot be read, both arguments are given, or the model has several cameras.
    """

    def __init__(self, camera: str | Path | None, focal: float | None, reconstruction: pycolmap.Reconstruction) -> None:
        self._all: tuple[str, list[float]] | None = None
        self._by_key: dict[str, pycolmap.Camera] = {}
        self._file, self._focal, self._of_model = "", focal, None
        self.text = None if camera is None and focal is None else str(camera or focal)
        if camera is not None and focal is not None:
            raise InputError("both a camera and a focal length were given; give one of them")
        if focal is not None and not 0 < focal < float("inf"):
            raise InputError(f"the focal length is {focal}; give pixels, above 0")
        if camera == "model":
            if len(reconstruction.cameras) != 1:
                raise InputError(f"the model has {len(reconstruction.cameras)} cameras; give the parameters of one")
            self._of_model = next(iter(reconstruction.cameras.values()))
        elif camera is not None and Path(camera).suffix == ".txt":
            self._file, self._by_key = str(camera), _read_cameras(Path(camera))
            self.text = "; ".join(f"{key} {one.model.name} {one.params_to_string()}" for key, one in self._by_key.items())
        elif camera is not None:
            self._all = _parse_camera(str(camera))

    def of(self, name: str, path: Path, width: int, height: int) -> tuple[pycolmap.Camera, CameraSource]:
        """Finds the camera of a query.

        Args:
            name: Name of the query.
            path: The photo, for its EXIF.
            width: Of the photo as stored, in pixels.
            height: The same.

        Returns:
            A camera, which may be changed, and where it comes from.

        Raises:
            InputError: The camera is of another size than the photo, or not in the list.
        """
        if self._focal is not None:
            return make_camera("SIMPLE_PINHOLE", width, height, [self._focal, width / 2, height / 2]), "given"
        if self._all is not None:
            return make_camera(self._all[0], width, height, self._all[1]), "given"
        if self._file:
            return self._listed(name, width, height), "given"
        if self._of_model is not None:
            return _of_size(self._of_model, width, height, "the camera of the model"), "model"
        try:
            guess = pycolmap.infer_camera_from_image(path)
        except Exception:  # COLMAP does not read this format
            guess = None
        if guess is not None and guess.has_prior_focal_length and (guess.width, guess.height) == (width, height):
            return guess, "exif"
        focal = DEFAULT_FOCAL_FACTOR * max(width, height)
        return make_camera("SIMPLE_RADIAL", width, height, [focal, width / 2, height / 2, 0.0]), "estimated"

    def _listed(self, name: str, width: int, height: int) -> pycolmap.Camera:
        if name in self._by_key:
            return _of_size(self._by_key[name], width, height, f"its camera in {self._file}")
        numbered = [camera for key, camera in self._by_key.items() if key.isdigit()]
        of_size = [camera for camera in numbered if (camera.width, camera.height) == (width, height)]
        if len(of_size) != 1:
            count = "several cameras" if of_size else "no camera"
            raise InputError(f"{self._file} has {count} for it, by its name or its size {width} x {height}")
        return _of_size(of_size[0], width, height, "")


def make_camera(model: str, width: int, height: int, params: list[float]) -> pycolmap.Camera:
    """Makes a camera. Raises InputError if the number of parameters is wrong."""
    camera = pycolmap.Camera(model=model, width=width, height=height, params=params)
    if not camera.verify_params():
        raise InputError(f"a camera {model} has the parameters {camera.params_info}; {len(params)} were given")
    return camera


def camera_record(camera: pycolmap.Camera) -> Mapping[str, object]:
    """A camera as JSON values."""
    parameters = [float(value) for value in camera.params]
    return {"model": camera.model.name, "width": camera.width, "height": camera.height, "params": parameters}


def _of_size(camera: pycolmap.Camera, width: int, height: int, what: str) -> pycolmap.Camera:
    """A copy."""
    if (camera.width, camera.height) != (width, height):
        raise InputError(f"{what} is for {camera.width} x {camera.height} pixels, the photo is {width} x {height}")
    return make_camera(camera.model.name, width, height, [float(value) for value in camera.params])


def _parse_camera(text: str) -> tuple[str, list[float]]:
    model, *words = [word.strip() for word in text.split(",")]
    check_camera_model(model)
    parameters = _numbers(words, f"the camera {text!r}")
    make_camera(model, 1, 1, parameters)
    return model, parameters


def _read_cameras(path: Path) -> dict[str, pycolmap.Camera]:
    """A line is "KEY MODEL WIDTH HEIGHT PARAMETERS"; the key may hold spaces."""
    remedy = "give a line KEY MODEL WIDTH HEIGHT PARAMETERS for each camera"
    cameras = {}
    for number, line in enumerate(read_text(path, remedy).splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        at = next((i for i, word in enumerate(words) if i and word in pycolmap.CameraModelId.__members__), None)
        if at is None or len(words) < at + 4:
            raise InputError(f"{path}, line {number}: no camera of COLMAP's models; {remedy}")
        width, height, *parameters = _numbers(words[at + 1 :], f"{path}, line {number}")
        cameras[" ".join(words[:at])] = make_camera(words[at], int(width), int(height), parameters)
    return cameras


def _numbers(words: list[str], where: str) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise InputError(f"{where}: parameters are numbers, not {' '.join(words)!r}") from None
    if not np.isfinite(numbers).all():
        raise InputError(f"{where}: parameters are finite numbers")
    return numbers
