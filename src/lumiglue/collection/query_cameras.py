"""The cameras of query photos: given, that of the model, or a guess from EXIF or from the size of the photo."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from lumiglue.collection.cameras import check_camera_model, make_camera, numbers, pycolmap, read_camera_list
from lumiglue.errors import InputError
from lumiglue.pipeline.cameras import DEFAULT_FOCAL_FACTOR

CameraSource = Literal["given", "model", "exif", "estimated"]


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
            raise InputError(f"the focal length is {focal}; give a number of pixels above 0")
        if camera == "model":
            if len(reconstruction.cameras) != 1:
                raise InputError(f"the model has {len(reconstruction.cameras)} cameras; give the parameters of one")
            self._of_model = next(iter(reconstruction.cameras.values()))
        elif camera is not None and Path(camera).suffix == ".txt":
            self._file, self._by_key = str(camera), read_camera_list(Path(camera))
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
            return make_camera("SIMPLE_PINHOLE", (width, height), [self._focal, width / 2, height / 2], "focal"), "given"
        if self._all is not None:
            return make_camera(self._all[0], (width, height), self._all[1], "camera"), "given"
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
        params = [focal, width / 2, height / 2, 0.0]
        return pycolmap.Camera(model="SIMPLE_RADIAL", width=width, height=height, params=params), "estimated"

    def _listed(self, name: str, width: int, height: int) -> pycolmap.Camera:
        if name in self._by_key:
            return _of_size(self._by_key[name], width, height, f"its camera in {self._file}")
        numbered = [camera for key, camera in self._by_key.items() if key.isdigit()]
        of_size = [camera for camera in numbered if (camera.width, camera.height) == (width, height)]
        if len(of_size) != 1:
            count = "several cameras" if of_size else "no camera"
            raise InputError(f"{self._file} has {count} for it, by its name or its size {width} x {height}")
        return _of_size(of_size[0], width, height, "")


def camera_record(camera: pycolmap.Camera) -> Mapping[str, object]:
    """A camera as JSON values."""
    parameters = [float(value) for value in camera.params]
    return {"model": camera.model.name, "width": camera.width, "height": camera.height, "params": parameters}


def _of_size(camera: pycolmap.Camera, width: int, height: int, what: str) -> pycolmap.Camera:
    """A copy."""
    if (camera.width, camera.height) != (width, height):
        raise InputError(f"{what} is for {camera.width} x {camera.height} pixels, the photo is {width} x {height}")
    return pycolmap.Camera(model=camera.model, width=width, height=height, params=list(camera.params))


def _parse_camera(text: str) -> tuple[str, list[float]]:
    model, *words = [word.strip() for word in text.split(",")]
    check_camera_model(model)
    parameters = numbers(words, f"the camera {text!r}")
    make_camera(model, (1, 1), parameters, f"the camera {text!r}")
    return model, parameters
