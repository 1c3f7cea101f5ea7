"""Features in pixels of the upright photo, which are matched, and of the photo as stored, which COLMAP and hloc read."""

import math
from dataclasses import replace

import torch

from lumiglue.images import STORED_FROM_UPRIGHT
from lumiglue.types import Features


def stored_features(features: Features, orientation: int) -> Features:
    """Features of an upright photo in pixels of the stored one.

    Args:
        features: In pixels of the photo as `read_image` returns it.
        orientation: Its EXIF orientation, 1 to 8. Any other number is upright, as for `read_image`.
    """
    return _turned(features, _matrix(orientation))


def upright_features(features: Features, orientation: int) -> Features:
    """The inverse of `stored_features`."""
    return _turned(features, _matrix(orientation).T)


def _matrix(orientation: int) -> torch.Tensor:
    return torch.tensor(STORED_FROM_UPRIGHT.get(orientation, STORED_FROM_UPRIGHT[1]), dtype=torch.float64)


def _turned(features: Features, matrix: torch.Tensor) -> Features:
    if torch.equal(matrix, torch.eye(2, dtype=matrix.dtype)):
        return features
    centre = (torch.tensor(features.image_size, dtype=matrix.dtype) - 1) / 2
    new_centre = matrix.abs() @ centre
    keypoints = (features.keypoints.double() - centre) @ matrix.T + new_centre
    orientations = features.orientations
    if orientations is not None:
        directions = torch.stack([orientations.double().cos(), orientations.double().sin()], dim=1) @ matrix.T
        orientations = torch.atan2(directions[:, 1], directions[:, 0]).remainder(2 * math.pi).to(orientations.dtype)
    width, height = (2 * new_centre + 1).long().tolist()
    keypoints = keypoints.to(features.keypoints.dtype)
    return replace(features, keypoints=keypoints, image_size=(width, height), orientations=orientations)
