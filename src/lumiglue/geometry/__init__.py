"""Projective geometry in closed form, and robust estimation."""

from lumiglue.geometry.projective import (
    direction_angle,
    epipolar_distances,
    epipolar_error,
    fundamental_from_pose,
    reprojection_error,
    rotation_angle,
    skew,
    transfer,
    transform,
)
from lumiglue.geometry.robust import (
    MINIMUM,
    MINIMUM_POSE,
    THRESHOLD,
    estimate,
    homography_by_dlt,
    relative_pose,
    relative_pose_opencv,
)

__all__ = [
    "MINIMUM",
    "MINIMUM_POSE",
    "THRESHOLD",
    "direction_angle",
    "epipolar_distances",
    "epipolar_error",
    "estimate",
    "fundamental_from_pose",
    "homography_by_dlt",
    "relative_pose",
    "relative_pose_opencv",
    "reprojection_error",
    "rotation_angle",
    "skew",
    "transfer",
    "transform",
]
