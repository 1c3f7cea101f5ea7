"""Matches of one pair as .npz or .json, and of many pairs as .h5 in hloc's layout."""

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
from lumiglue.types import PIXELS, Features, Geometry, GeometryKind, Matches


@dataclass(frozen=True, eq=False)
class MatchResult:
    """The correspondences of a pair of images, 0 and 1.

    features0, features1: all keypoints. matches: rows into them with scores, and how adaptively it went.
    seconds: wall time of each step that was run for this result.
    """

    features0: Features
    features1: Features
    matches: Matches
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def points0(self) -> Float[np.ndarray, "k 2"]:
        """Matched points of image 0 in pixels (x, y), centre of the top-left pixel at (0, 0)."""
        return _numpy(self.features0.keypoints[self.matches.pairs[:, 0]])

    @property
    def points1(self) -> Float[np.ndarray, "k 2"]:
        """Matched points of image 1; row i belongs to row i of `points0`."""
        return _numpy(self.features1.keypoints[self.matches.pairs[:, 1]])

    @property
    def scores(self) -> Float[np.ndarray, " k"]:
        """Assignment probability of each match, in (0, 1]."""
        return self.matches.scores.numpy()

    def __len__(self) -> int:
        return len(self.matches)

    def __repr__(self) -> str:
        return f"MatchResult({self.matches!r}, {self.features0!r}, {self.features1!r})"

    def geometry(self, kind: GeometryKind = "fundamental", *, threshold: float | None = None) -> Geometry:
        """A homography or fundamental matrix that fits the matches, and which of them fit it; see
        `geometry.robust.estimate`."""
        return estimate(kind, self.points0, self.points1, threshold=threshold)


def _numpy(points: Tensor) -> np.ndarray:
    """Whatever the features' own precision, and whether they want gradients."""
    return (points.float() if points.dtype.itemsize < 4 else points).detach().cpu().numpy()


DATA_SUFFIXES = (".npz", ".json")


def result_arrays(result: MatchResult, geometry: Geometry | None = None) -> dict[str, np.ndarray]:
    """One pair by name: points0, points1, scores, matches (rows), keypoints0, keypoints1, image_size0, image_size1,
    stop_layer; with a geometry also inliers and, where it was found, the 3 x 3 matrix under its kind."""
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
    return arrays


def encode_result(suffix: str, result: MatchResult, geometry: Geometry | None = None) -> bytes:
    """`result_arrays` as the bytes of an .npz or .json file."""
    arrays = result_arrays(result, geometry)
    if suffix == ".npz":
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]  (its names are not allow_pickle)
        return file.getvalue()
    lists = {name: value.tolist() for name, value in arrays.items()}
    return json.dumps({"pixels": PIXELS, **lists}).encode()


def save_result(path: str | Path, result: MatchResult, geometry: Geometry | None = None) -> None:
    """Writes one pair as .npz or .json, by the suffix; see `result_arrays` for what is in it."""
    path = Path(path)
    if path.suffix.lower() not in DATA_SUFFIXES:
        raise InputError(f"{path} has no suffix that matches can be written to; choose from {list(DATA_SUFFIXES)}")
    write_whole(path, encode_result(path.suffix.lower(), result, geometry))
