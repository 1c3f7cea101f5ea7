"""Absolute poses from 2D-3D matches: PoseLib's LO-RANSAC, refined with COLMAP's camera models.

Pixels, cameras and poses are COLMAP's: (0.5, 0.5) is the centre of the top-left pixel of the photo as stored, and a pose
maps the world to the camera.
"""

from dataclasses import dataclass

import numpy as np
import poselib
from jaxtyping import Bool, Float, Float64

from lumiglue.collection.cameras import pycolmap
from lumiglue.collection.query_cameras import CameraSource

MINIMUM_POINTS = 4
_STEP = 1e-6  # of the derivatives, relative to the depth of the scene


@dataclass(frozen=True, eq=False)
class AbsolutePose:
    """The pose of a camera.

    Attributes:
        rotation: World to camera.
        translation: World to camera, in units of the model.
        camera: The camera; its focal length is refined if it was not given.
        inliers: One boolean per 2D-3D match.
        error: Mean reprojection error of the inliers, in pixels.
        covariance: Of the rotation vector in radians about the camera's axes, then of the camera centre in units of the
            model, from the residuals of the inliers. The focal length counts as known.
    """

    rotation: Float64[np.ndarray, "3 3"]
    translation: Float64[np.ndarray, "3"]
    camera: pycolmap.Camera
    inliers: Bool[np.ndarray, " k"]
    error: float
    covariance: Float64[np.ndarray, "6 6"]

    @property
    def centre(self) -> Float64[np.ndarray, "3"]:
        """The camera centre in the world."""
        return -self.rotation.T @ self.translation


def estimate_absolute_pose(
    points2d: Float[np.ndarray, "k 2"],
    points3d: Float[np.ndarray, "k 3"],
    camera: pycolmap.Camera,
    source: CameraSource,
    *,
    threshold: float,
    seed: int = 0,
) -> AbsolutePose | None:
    """Estimates a pose from 2D-3D matches with outliers.

    The samples use the rays of the camera's model, so every model of COLMAP is supported. The focal length is refined if it
    comes from EXIF, and estimated (by P4Pf) if it is unknown.

    Args:
        points2d: Pixels of the photo.
        points3d: Points of the model.
        camera: The camera. Its focal length is changed unless `source` is "given" or "model".
        source: Where the camera comes from.
        threshold: Largest reprojection error of an inlier, in pixels.
        seed: Of the random samples.

    Returns:
        The pose, or None if fewer than 4 matches agree with one.
    """
    points2d, points3d = np.asarray(points2d, np.float64), np.asarray(points3d, np.float64)
    if len(points2d) < MINIMUM_POINTS:
        return None
    pose = _sample(points2d, points3d, camera, source, threshold, seed)
    options = pycolmap.AbsolutePoseRefinementOptions()
    options.refine_focal_length = source in ("exif", "estimated")
    options.loss_function_scale = threshold / 4
    for _ in range(2):
        inliers = _errors(points2d, points3d, pose, camera) <= threshold
        if pose is None or inliers.sum() < MINIMUM_POINTS:
            return None
        refined = pycolmap.refine_absolute_pose(pose, points2d, points3d, inliers, camera, options)
        pose = refined["cam_from_world"] if refined else None
    errors = _errors(points2d, points3d, pose, camera)
    inliers = errors <= threshold
    absurd = options.refine_focal_length and camera.has_bogus_params(0.1, 10.0, 1.0)
    if pose is None or inliers.sum() < MINIMUM_POINTS or absurd:
        return None
    covariance = _covariance(points2d[inliers], points3d[inliers], pose, camera)
    rotation, translation = pose.rotation.matrix(), np.array(pose.translation)
    return AbsolutePose(rotation, translation, camera, inliers, float(errors[inliers].mean()), covariance)


def _sample(
    points2d: np.ndarray,
    points3d: np.ndarray,
    camera: pycolmap.Camera,
    source: CameraSource,
    threshold: float,
    seed: int,
) -> pycolmap.Rigid3d | None:
    """The best pose of LO-RANSAC. Sets the focal length of a camera that was only guessed."""
    if source == "estimated":
        options = pycolmap.AbsolutePoseEstimationOptions()
        options.estimate_focal_length = True
        options.ransac.max_error, options.ransac.random_seed = threshold, seed
        estimate = pycolmap.estimate_absolute_pose(points2d, points3d, camera, options)
        return estimate["cam_from_world"] if estimate else None
    rays = np.asarray(camera.cam_from_img(points2d))
    usable = np.isfinite(rays).all(1)
    focal = camera.mean_focal_length()
    pinhole = {"model": "SIMPLE_PINHOLE", "width": 0, "height": 0, "params": [focal, 0.0, 0.0]}
    limits = {"max_reproj_error": threshold, "seed": seed}
    if usable.sum() < MINIMUM_POINTS:
        return None
    pose, info = poselib.estimate_absolute_pose(focal * rays[usable], points3d[usable], pinhole, limits)
    return pycolmap.Rigid3d(pycolmap.Rotation3d(pose.R), pose.t) if info["num_inliers"] >= MINIMUM_POINTS else None


def _errors(
    points2d: np.ndarray, points3d: np.ndarray, pose: pycolmap.Rigid3d | None, camera: pycolmap.Camera
) -> Float64[np.ndarray, " k"]:
    """Reprojection errors in pixels; infinite behind the camera, and without a pose."""
    if pose is None:
        return np.full(len(points2d), np.inf)
    in_camera = pose * points3d
    errors = np.linalg.norm(np.asarray(camera.img_from_cam(in_camera)) - points2d, axis=1)
    return np.where((in_camera[:, 2] > 0) & np.isfinite(errors), errors, np.inf)


def _covariance(
    points2d: np.ndarray, points3d: np.ndarray, pose: pycolmap.Rigid3d, camera: pycolmap.Camera
) -> Float64[np.ndarray, "6 6"]:
    """s^2 (J^T J)^-1 of least squares, J by central differences: three small rotations and three moves of the centre."""
    rotation, in_camera = pose.rotation.matrix(), pose * points3d
    step = _STEP * np.median(in_camera[:, 2])
    axes = np.eye(3)
    moves = [_STEP * np.cross(axis, in_camera) for axis in axes] + [-step * rotation @ axis for axis in axes]
    columns = [
        (np.asarray(camera.img_from_cam(in_camera + move)) - np.asarray(camera.img_from_cam(in_camera - move))).ravel()
        for move in moves
    ]
    jacobian = np.stack(columns, axis=1) / (2 * np.array([_STEP] * 3 + [step] * 3))
    residuals = (np.asarray(camera.img_from_cam(in_camera)) - points2d).ravel()
    variance = (residuals**2).sum() / max(len(residuals) - 6, 1)
    return variance * np.linalg.pinv(jacobian.T @ jacobian, hermitian=True)
