"""Two-view models from matches with outliers: PoseLib's LO-RANSAC, OpenCV's RANSAC, and a direct linear transform."""

import cv2
import numpy as np
import poselib
import torch
from jaxtyping import Float64

from lumiglue.errors import InputError
from lumiglue.geometry.projective import skew
from lumiglue.types import Camera, Geometry, GeometryKind

# The smallest number of points for a model, and the default inlier threshold in pixels.
MINIMUM = {"homography": 4, "fundamental": 7, "essential": 5}
THRESHOLD = {"homography": 2.0, "fundamental": 1.5, "essential": 1.5}
MINIMUM_POSE = 5


def estimate(
    kind: GeometryKind,
    points0: np.ndarray,
    points1: np.ndarray,
    *,
    threshold: float | None = None,
    seed: int = 0,
    cameras: tuple[Camera, Camera] | None = None,
) -> Geometry:
    """Estimates a homography (points1 ~ H points0), a fundamental matrix (x1^T F x0 = 0), or the relative pose of two known
    cameras (an essential matrix).

    A model always fits the few matches that it is computed from, so a handful of inliers proves nothing.

    Args:
        kind: "homography", "fundamental" or "essential".
        points0: k x 2, pixels of image 0.
        points1: k x 2, the matching pixels of image 1.
        threshold: Largest error of an inlier in pixels: the reprojection error for a homography, the Sampson error for the
            others. None takes 2 and 1.5.
        seed: Of the random samples.
        cameras: Those of image 0 and image 1; an essential matrix needs them.

    Returns:
        The model and its inliers. With too few matches, or if no model is found, the matrix is None and no match is an
        inlier.

    Raises:
        InputError: The kind is unknown, or cameras are missing.
    """
    if kind not in MINIMUM:
        raise InputError(f"unknown geometry {kind!r}; choose from {sorted(MINIMUM)}")
    if kind == "essential" and cameras is None:
        raise InputError("an essential matrix needs the cameras; give their focal length in pixels")
    limit = THRESHOLD[kind] if threshold is None else threshold
    nothing = Geometry(kind, None, torch.zeros(len(points0), dtype=torch.bool), cameras=cameras)
    if len(points0) < MINIMUM[kind]:
        return nothing
    points0, points1 = (np.asarray(points, dtype=np.float64) for points in (points0, points1))
    if kind == "essential":
        assert cameras is not None
        camera0, camera1 = (_poselib_camera(camera) for camera in cameras)
        pose = _relative_pose(points0, points1, camera0, camera1, limit, seed)
        if pose is None:
            return nothing
        rotation, translation, inliers = (torch.tensor(part) for part in pose)
        translation = translation / translation.norm()
        matrix = (skew(translation) @ rotation).float()
        return Geometry(kind, matrix, inliers, rotation.float(), translation.float(), cameras)
    if kind == "homography":
        matrix, info = poselib.estimate_homography(points0, points1, {"max_reproj_error": limit, "seed": seed})
    else:
        matrix, info = poselib.estimate_fundamental(points0, points1, {"max_epipolar_error": limit, "seed": seed})
    inliers = torch.tensor(np.asarray(info["inliers"], dtype=bool))
    if kind == "homography" and abs(matrix[2, 2]) > 1e-12:
        matrix = matrix / matrix[2, 2]  # fixes the sign, which PoseLib leaves open
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
    """Estimates the relative pose of two calibrated cameras by LO-RANSAC (PoseLib).

    Args:
        points0: k x 2, pixels of image 0.
        points1: k x 2, the matching pixels of image 1.
        intrinsics0: 3 x 3 pinhole matrix in the pixel convention of the points.
        intrinsics1: The same of camera 1.
        threshold: Largest Sampson error of an inlier in pixels.
        seed: Of the random samples.

    Returns:
        Rotation (3 x 3), unit translation (3) with X_1 = R X_0 + t, and inliers (k booleans). None if there are fewer than
        5 matches, or fewer than 5 fit one pose.
    """
    return _relative_pose(points0, points1, _pinhole(intrinsics0), _pinhole(intrinsics1), threshold, seed)


def _relative_pose(
    points0: np.ndarray, points1: np.ndarray, camera0: dict, camera1: dict, threshold: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """`relative_pose` of PoseLib's cameras."""
    if len(points0) < MINIMUM_POSE:
        return None
    points0, points1 = (np.asarray(points, dtype=np.float64) for points in (points0, points1))
    options = {"max_epipolar_error": threshold, "seed": seed}
    pose, info = poselib.estimate_relative_pose(points0, points1, camera0, camera1, options)
    inliers = np.asarray(info["inliers"], dtype=bool)
    if inliers.sum() < MINIMUM_POSE or not np.any(pose.t):  # PoseLib returns the identity if it found none
        return None
    return np.asarray(pose.R), np.asarray(pose.t), inliers


def relative_pose_opencv(
    points0: np.ndarray,
    points1: np.ndarray,
    intrinsics0: np.ndarray,
    intrinsics1: np.ndarray,
    *,
    threshold: float = 1.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """`relative_pose` by OpenCV's five-point RANSAC, as in SuperGlue's evaluation.

    The threshold is `threshold` in pixels divided by the mean focal length, the confidence 0.99999. Of several essential
    matrices, the one with the most points in front of both cameras counts. Arguments and result as in `relative_pose`.
    """
    if len(points0) < MINIMUM_POSE:
        return None
    focal = float(np.mean([intrinsics0[0, 0], intrinsics0[1, 1], intrinsics1[0, 0], intrinsics1[1, 1]]))
    rays0, rays1 = (
        (np.asarray(points, dtype=np.float64) - k[[0, 1], [2, 2]]) / k[[0, 1], [0, 1]]
        for points, k in ((points0, intrinsics0), (points1, intrinsics1))
    )
    cv2.setRNGSeed(seed)
    essentials, mask = cv2.findEssentialMat(
        rays0, rays1, np.eye(3), method=cv2.RANSAC, prob=0.99999, threshold=threshold / focal, maxIters=1000
    )
    if essentials is None:
        return None
    best: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    most = 0
    for essential in np.split(essentials, len(essentials) // 3):
        count, rotation, translation, in_front, _ = cv2.recoverPose(
            essential, rays0, rays1, np.eye(3), distanceThresh=1e9, mask=mask.copy()
        )
        if count > most:
            most, best = count, (rotation, translation[:, 0], in_front.ravel() > 0)
    return best


def homography_by_dlt(
    points0: np.ndarray, points1: np.ndarray, weights: np.ndarray | None = None
) -> Float64[np.ndarray, "3 3"] | None:
    """The homography of all matches by the weighted direct linear transform (Hartley and Zisserman, algorithm 4.2).

    No outlier is rejected, so the result measures the matches as they are.

    Args:
        points0: k x 2, pixels of image 0.
        points1: k x 2, the matching pixels of image 1.
        weights: k, at least 0; None weighs all matches equally.

    Returns:
        The 3 x 3 homography, or None if fewer than 4 matches have positive weight.
    """
    weights = np.ones(len(points0)) if weights is None else np.asarray(weights, dtype=np.float64)
    if (weights > 0).sum() < MINIMUM["homography"]:
        return None
    (x, from0), (y, from1) = (_normalised(np.asarray(points, dtype=np.float64)) for points in (points0, points1))
    ones, none = np.column_stack([x, np.ones(len(x))]), np.zeros((len(x), 3))
    rows = (
        np.concatenate([np.hstack([ones, none, -y[:, :1] * ones]), np.hstack([none, ones, -y[:, 1:] * ones])])
        * np.sqrt(np.tile(weights, 2))[:, None]
    )
    homography = np.linalg.inv(from1) @ np.linalg.svd(rows, full_matrices=len(rows) < 9)[2][-1].reshape(3, 3) @ from0
    scale = homography[2, 2]
    return homography / scale if abs(scale) > 1e-12 else homography


def _normalised(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points normalised to zero mean and a mean norm of sqrt(2), and the 3 x 3 matrix of that map."""
    centre = points.mean(0)
    scale = np.sqrt(2) / max(float(np.linalg.norm(points - centre, axis=1).mean()), 1e-12)
    return (points - centre) * scale, np.array([[scale, 0, -scale * centre[0]], [0, scale, -scale * centre[1]], [0, 0, 1]])


def _poselib_camera(camera: Camera) -> dict:
    """PoseLib's camera; it does not use width and height."""
    return {"model": camera.model, "width": 0, "height": 0, "params": list(camera.params)}


def _pinhole(intrinsics: np.ndarray) -> dict:
    fx, fy, cx, cy = (float(value) for value in (intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]))
    return _poselib_camera(Camera("PINHOLE", (fx, fy, cx, cy)))
