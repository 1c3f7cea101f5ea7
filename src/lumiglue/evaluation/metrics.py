"""The field's metrics. Errors that could not be computed are infinite, so that they count as failures."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lumiglue.geometry.projective import direction_angle, epipolar_error, reprojection_error, rotation_angle, transform


def auc(errors: Sequence[float], thresholds: Sequence[float]) -> list[float]:
    """Area under the curve of recall over error, by the trapezoid rule as in SuperGlue's evaluation.

    Args:
        errors: One error for each pair; infinite for a failure.
        thresholds: Upper ends of the curve.

    Returns:
        The area up to each threshold, divided by the threshold, in percent; 0 without errors.
    """
    ordered = np.sort(np.asarray(errors, dtype=np.float64))
    recall = np.arange(1, len(ordered) + 1) / max(1, len(ordered))
    ordered, recall = np.concatenate([[0.0], ordered]), np.concatenate([[0.0], recall])
    areas = []
    for threshold in thresholds:
        last = int(np.searchsorted(ordered, threshold))
        x = np.concatenate([ordered[:last], [threshold]])
        y = np.concatenate([recall[:last], [recall[last - 1]]])
        areas.append(float(np.diff(x) @ (y[1:] + y[:-1]) / 2 / threshold * 100))  # NumPy 1 has no trapezoid
    return areas


def homography_precision_recall(
    points0: Float[Tensor, "m 2"],
    points1: Float[Tensor, "n 2"],
    pairs: Tensor,
    image1_from_image0: Float[Tensor, "3 3"],
    px: float = 3.0,
) -> tuple[float, float]:
    """Computes precision and recall of matches under a known homography.

    A match is right if its reprojection error in image 1 is at most `px`. True correspondences are the mutual nearest
    keypoints with such an error.

    Args:
        points0: m x 2 keypoints of image 0.
        points1: n x 2 keypoints of image 1.
        pairs: k x 2 rows of matching keypoints.
        image1_from_image0: 3 x 3 homography.
        px: Largest error of a right match, in pixels.

    Returns:
        Precision, the right matches over all matches; NaN without matches. Recall, the right matches over the true
        correspondences; at most 1, as a right match need not be between mutual nearest keypoints; NaN without
        correspondences.
    """
    points0, points1, homography = points0.double(), points1.double(), image1_from_image0.double()
    right = int((reprojection_error(homography, points0[pairs[:, 0]], points1[pairs[:, 1]]) <= px).sum())
    if not len(points0) or not len(points1):
        return float("nan"), float("nan")
    distance = torch.cdist(transform(homography, points0).nan_to_num(posinf=1e9), points1)
    row, column = distance.argmin(1), distance.argmin(0)
    mutual = column[row] == torch.arange(len(points0))
    true = int((mutual & (distance.amin(1) <= px)).sum())
    precision = right / len(pairs) if len(pairs) else float("nan")
    return precision, min(1.0, right / true) if true else float("nan")


def corner_error(estimated: Float[Tensor, "3 3"] | None, true: Float[Tensor, "3 3"], size: tuple[int, int]) -> float:
    """Mean distance in pixels of the four corners of an image of (width, height) `size` under two homographies; infinite
    without an estimate."""
    if estimated is None:
        return float("inf")
    width, height = size
    corners = torch.tensor([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], dtype=torch.float64)
    error = (transform(estimated.double(), corners) - transform(true.double(), corners)).norm(dim=1).mean()
    return float(error.nan_to_num(float("inf"), float("inf")))


def pose_error(
    rotation: Float[Tensor, "3 3"], translation: Float[Tensor, " 3"], true_rotation: Tensor, true_translation: Tensor
) -> float:
    """The larger of the angles between rotations and between directions of translation, at any scale and sign, in degrees;
    infinite for a translation of zero."""
    if not bool(translation.any()):
        return float("inf")
    turn = rotation_angle(rotation, true_rotation)
    heading = direction_angle(translation, true_translation)
    return max(turn, min(heading, 180.0 - heading))


def annotated_epipolar_error(fundamental: Tensor | None, points0: Tensor, points1: Tensor) -> float:
    """Mean symmetric epipolar distance in pixels of annotated correspondences (n x 2 each); infinite without an estimate."""
    if fundamental is None:
        return float("inf")
    return float(epipolar_error(fundamental.double(), points0.double(), points1.double()).mean())


def f1(shares: Float[np.ndarray, "n 2"]) -> float:
    """Harmonic mean in percent of the mean precision and the mean recall of n pairs. A recall of NaN does not count."""
    known = shares[:, 1][~np.isnan(shares[:, 1])]
    precision, recall = shares[:, 0].mean(), known.mean() if len(known) else 0.0
    return float(200 * precision * recall / max(precision + recall, 1e-12))


def bootstrap_interval(values: Sequence[float], statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """The central 95 % of a statistic's bootstrap distribution (1,000 samples, seed 0), of a mean or an AUC for example."""
    rng = np.random.default_rng(0)
    array = np.asarray(values, dtype=np.float64)
    samples = [float(statistic(rng.choice(array, len(array)))) for _ in range(1000)]
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)
