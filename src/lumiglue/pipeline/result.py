"""The matches of one pair, in memory and as .npz or .json files."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lumiglue.errors import InputError
from lumiglue.geometry.robust import estimate
from lumiglue.io.atomic import write_whole
from lumiglue.types import PIXELS, Camera, Features, Geometry, GeometryKind, Matches


@dataclass(frozen=True, eq=False)
class MatchResult:
    """The correspondences of a pair of images, 0 and 1.

    Attributes:
        features0: All features of image 0.
        features1: All features of image 1.
        matches: Rows of both with scores, and the layers that ran.
        seconds: Wall-clock time of each step.
    """

    features0: Features
    features1: Features
    matches: Matches
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def points0(self) -> Float[np.ndarray, "k 2"]:
        """Matched points of image 0 in pixels (x, y); (0, 0) is the centre of the top-left pixel."""
        return _numpy(self.features0.keypoints[self.matches.pairs[:, 0]])

    @property
    def points1(self) -> Float[np.ndarray, "k 2"]:
        """Matched points of image 1; row i matches row i of `points0`."""
        return _numpy(self.features1.keypoints[self.matches.pairs[:, 1]])

    @property
    def scores(self) -> Float[np.ndarray, " k"]:
        """Assignment probability of each match, in (0, 1]."""
        return self.matches.scores.numpy()

    def __len__(self) -> int:
        return len(self.matches)

    def __repr__(self) -> str:
        return f"MatchResult({self.matches!r}, {self.features0!r}, {self.features1!r})"

    def geometry(
        self,
        kind: GeometryKind = "fundamental",
        *,
        threshold: float | None = None,
        focal: float | None = None,
        cameras: tuple[Camera, Camera] | None = None,
    ) -> Geometry:
        """Estimates a two-view model from the matches; see `lumiglue.geometry.estimate`.

        Args:
            kind: "homography", "fundamental", or "essential" (the relative pose of known cameras).
            threshold: Largest error of an inlier in pixels; None takes the default.
            focal: For "essential": focal length in pixels of both images, with the principal point in the middle.
            cameras: For "essential", instead: the cameras of image 0 and image 1; see also `pipeline.cameras.photo_camera`.

        Raises:
            InputError: The kind is unknown, or "essential" was asked for without cameras or with both.
        """
        if focal is not None:
            if cameras is not None:
                raise InputError("both a focal length and cameras were given; give one of them")
            sizes = self.features0.image_size, self.features1.image_size
            cameras = Camera.from_focal(focal, sizes[0]), Camera.from_focal(focal, sizes[1])
        return estimate(kind, self.points0, self.points1, threshold=threshold, cameras=cameras)


def _numpy(points: Tensor) -> np.ndarray:
    """An array on the CPU, also of half-precision points and of those that require gradients."""
    return (points.float() if points.dtype.itemsize < 4 else points).detach().cpu().numpy()


DATA_SUFFIXES = (".npz", ".json")


def result_arrays(result: MatchResult, geometry: Geometry | None = None) -> dict[str, np.ndarray]:
    """One pair as named arrays.

    Args:
        result: The pair.
        geometry: A model of its matches.

    Returns:
        points0, points1 (k x 2, pixels), scores (k), matches (k x 2, rows), keypoints0, keypoints1 (n x 2, pixels),
        image_size0, image_size1 (width, height), stop_layer; with a geometry also inliers (k) and, if it was found, the
        3 x 3 matrix under the name of its kind; with an essential matrix also rotation (3 x 3), translation (3, unit
        length) and camera0, camera1 (COLMAP's model and parameters, as `Camera.parse` reads).
    """
    arrays: dict[str, np.ndarray] = {
        "points0": result.points0,
        "points1": result.points1,
        "scores": result.scores,
        "matches": result.matches.pairs.numpy(),
        "keypoints0": result.features0.keypoints.detach().float().cpu().numpy(),
        "keypoints1": result.features1.keypoints.detach().float().cpu().numpy(),
        "image_size0": np.array(result.features0.image_size),
        "image_size1": np.array(result.features1.image_size),
        "stop_layer": np.array(result.matches.stop_layer),
    }
    if geometry is not None:
        arrays["inliers"] = geometry.inliers.numpy()
        if geometry.matrix is not None:
            arrays[geometry.kind] = geometry.matrix.numpy()
        for name in ("rotation", "translation"):
            if (value := getattr(geometry, name)) is not None:
                arrays[name] = value.numpy()
        for side, camera in enumerate(geometry.cameras or ()):
            arrays[f"camera{side}"] = np.array(str(camera))
    return arrays


def encode_result(suffix: str, result: MatchResult, geometry: Geometry | None = None) -> bytes:
    """`result_arrays` as the bytes of an .npz or .json file."""
    arrays = result_arrays(result, geometry)
    if suffix == ".npz":
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]  (no array is called allow_pickle)
        return file.getvalue()
    lists = {name: value.tolist() for name, value in arrays.items()}
    return json.dumps({"pixels": PIXELS, **lists}).encode()


def save_result(path: str | Path, result: MatchResult, geometry: Geometry | None = None) -> None:
    """Writes one pair as an .npz or .json file; see `result_arrays` for its content.

    Args:
        path: The file; its suffix chooses the format.
        result: The pair.
        geometry: A model of its matches.

    Raises:
        InputError: The suffix is unknown, or the disk is full.
    """
    path = Path(path)
    if path.suffix.lower() not in DATA_SUFFIXES:
        raise InputError(f"{path} has an unknown suffix; matches can be written to {list(DATA_SUFFIXES)}")
    write_whole(path, encode_result(path.suffix.lower(), result, geometry))
