"""Two-view models from matches that hold outliers, by LO-RANSAC over PoseLib."""

import numpy as np
import poselib
import torch

from lumiglue.errors import InputError
from lumiglue.types import Geometry, GeometryKind

# Points that a model needs at least, and the usual inlier threshold in pixels.
MINIMUM = {"homography": 4, "fundamental": 7}
THRESHOLD = {"homography": 2.0, "fundamental": 1.5}
MINIMUM_POSE = 5


def estimate(
    kind: GeometryKind,
    points0: np.ndarray,
    points1: np.ndarray,
    *,
    threshold: float | None = None,
    seed: int = 0,
) -> Geometry:
    """A homography (points1 ~ H points0) or fundamental matrix (x1^T F x0 = 0) from k x 2 matched pixels.

    threshold: largest reprojection (homography) or Sampson (fundamental) error of an inlier in pixels; None takes 2 and
    1.5. With too few matches, or when no model is found, the matrix is None and nothing is an inlier. A model always
    fits the few matches that it takes to make one, so a handful of inliers proves nothing. Raises InputError for an
    unknown kind.
    """
    if kind not in ("homography", "fundamental"):
        raise InputError(f"unknown geometry {kind!r}; choose from ['fundamental', 'homography']")
    limit = THRESHOLD[kind] if threshold is None else threshold
    nothing = Geometry(kind, None, torch.zeros(len(points0), dtype=torch.bool))
    if len(points0) < MINIMUM[kind]:
        return nothing
    points0, points1 = (np.asarray(points, dtype=np.float64) for points in (points0, points1))
    if kind == "homography":
        matrix, info = poselib.estimate_homography(points0, points1, {"max_reproj_error": limit, "seed": seed})
    else:
        matrix, info = poselib.estimate_fundamental(points0, points1, {"max_epipolar_error": limit, "seed": seed})
    inliers = torch.tensor(np.asarray(info["inliers"], dtype=bool))
    if kind == "homography" and abs(matrix[2, 2]) > 1e-12:
        matrix = matrix / matrix[2, 2]  # PoseLib's may be negative as a whole, which would put the image behind us
    if not np.isfinite(matrix).all() or int(inliers.sum()) < MINIMUM[kind]:
        return nothing
    return Geometry(kind, torch.tensor(np.asarray(matrix)).float(), inliers)


def relative_pose(
    points0: np.ndarray,
    points1: np.ndarray,
    intrinsics0: np.ndarray,
    intrinsics1: np.ndarray,
    *,
    threshold: float = 1.5,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Rotation (3 x 3), unit translation (3) with X_1 = R X_0 + t, and inliers (k); None with under 5 matches.

    Intrinsics are 3 x 3 pinhole matrices in the pixel convention of the points.
    """
    if len(points0) < MINIMUM_POSE:
        return None
    points0, points1 = (np.asarray(points, dtype=np.float64) for points in (points0, points1))
    options = {"max_epipolar_error": threshold, "seed": seed}
    pose, info = poselib.estimate_relative_pose(points0, points1, _pinhole(intrinsics0), _pinhole(intrinsics1), options)
    return np.asarray(pose.R), np.asarray(pose.t), np.asarray(info["inliers"], dtype=bool)


def _pinhole(intrinsics: np.ndarray) -> dict:
    """PoseLib's camera; width and height are unused by the pinhole model."""
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    return {"model": "PINHOLE", "width": 0, "height": 0, "params": [float(value) for value in (fx, fy, cx, cy)]}
