"""Transfer of keypoints between two photos of a scene by the matches around them, and the labels that follow from it.

Matches that fit one epipolar geometry are the anchors. A keypoint of any features is transferred by the affine map of the
anchors around it. A transfer counts where the anchors agree on it, it lies on the epipolar line, and transferring back
returns to where it began.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from lumiglue.geometry.robust import estimate
from lumiglue.training.data.taught import NEAR_PX, PairLabels, SparseAssignment


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """When a transferred keypoint counts. Lengths in pixels.

    neighbours: anchors that the affine map is fitted to. reach: largest distance of the third nearest anchor.
    residual: largest root mean square of the anchors' residuals. spread: largest standard error of the transferred place.
    epipolar: largest distance from the epipolar line. cycle: largest distance after the transfer back.
    least_anchors: fewest anchors of a pair. least_share: smallest share of its matches that are anchors; others are left
        out. planar_share: where a homography explains this share of the anchors, the epipolar geometry is not determined,
        and is not asked.
    """

    neighbours: int = 8
    reach: float = 32.0
    residual: float = 1.5
    spread: float = 1.0
    epipolar: float = 2.0
    cycle: float = 2.0
    least_anchors: int = 30
    least_share: float = 0.3
    planar_share: float = 0.9


@dataclass(frozen=True, eq=False)
class Anchors:
    """Matched places of two photos, k of them, and their epipolar geometry; None where it is not determined."""

    points0: Float[np.ndarray, "k 2"]
    points1: Float[np.ndarray, "k 2"]
    fundamental: Float[np.ndarray, "3 3"] | None

    def reversed(self) -> "Anchors":
        """Of the pair the other way round."""
        return Anchors(self.points1, self.points0, None if self.fundamental is None else self.fundamental.T)


def find_anchors(
    points0: Float[np.ndarray, "k 2"], points1: Float[np.ndarray, "k 2"], settings: TransferSettings, seed: int = 0
) -> Anchors | None:
    """The matches that fit one epipolar geometry and their own neighbours; None where there are too few."""
    fewest = max(settings.least_anchors, settings.least_share * len(points0))
    found = estimate("fundamental", points0, points1, threshold=settings.epipolar, seed=seed)
    inliers = found.inliers.numpy()
    if found.matrix is None or inliers.sum() < fewest:
        return None
    points0, points1 = (np.asarray(points, dtype=np.float64)[inliers] for points in (points0, points1))
    plane = estimate("homography", points0, points1, threshold=settings.epipolar, seed=seed)
    planar = int(plane.inliers.sum()) >= settings.planar_share * len(points0)
    kept = np.ones(len(points0), dtype=bool)
    for ends in ((points0, points1), (points1, points0)):
        predicted, _, _ = _affine_predictions(ends[0], *ends, settings, leave_out_self=True)
        kept &= np.linalg.norm(predicted - ends[1], axis=1) <= 2 * NEAR_PX
    if kept.sum() < fewest:
        return None
    matrix = None if planar else found.matrix.numpy().astype(np.float64)
    return Anchors(points0[kept], points1[kept], matrix)


def transfer_points(
    points: Float[np.ndarray, "n 2"], anchors: Anchors, settings: TransferSettings
) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    """Places of points of photo 0 in photo 1, and whether they can be relied on; they may lie outside of photo 1."""
    there, sure = _transfer_once(points, anchors, settings)
    back, sure_back = _transfer_once(there, anchors.reversed(), settings)
    returned = np.linalg.norm(back - points, axis=1) <= settings.cycle
    return there, sure & sure_back & returned


def _transfer_once(
    points: np.ndarray, anchors: Anchors, settings: TransferSettings
) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    predicted, residual, spread = _affine_predictions(points, anchors.points0, anchors.points1, settings)
    nearest = np.partition(_distances(points, anchors.points0), 2, axis=1)[:, 2]
    sure = (residual <= settings.residual) & (spread <= settings.spread) & (nearest <= settings.reach)
    if anchors.fundamental is not None:
        lines = _homogeneous(points) @ anchors.fundamental.T
        length = np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12)
        off = (lines * _homogeneous(predicted)).sum(1) / length
        sure &= np.abs(off) <= settings.epipolar
        predicted = predicted - (off / length)[:, None] * lines[:, :2]  # onto the line
    return predicted, sure


def _affine_predictions(
    points: np.ndarray, ends0: np.ndarray, ends1: np.ndarray, settings: TransferSettings, *, leave_out_self: bool = False
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """By the weighted affine map of the nearest anchors: places, residuals of the anchors, standard errors of the places."""
    distance = _distances(points, ends0)
    if leave_out_self:
        np.fill_diagonal(distance, np.inf)
    k = min(settings.neighbours, len(ends0) - leave_out_self)
    near = np.argpartition(distance, k - 1, axis=1)[:, :k]
    distance = np.take_along_axis(distance, near, axis=1)
    width = 1.1 * distance.max(1, keepdims=True) + 1e-9
    weights = (1 - (distance / width) ** 2) ** 2
    offsets = (ends0[near] - points[:, None]) / width[..., None]
    design = np.concatenate([np.ones((*offsets.shape[:2], 1)), offsets], axis=2)  # n, k, 3
    targets = ends1[near]
    centre = targets.mean(1, keepdims=True)
    weighted = design * weights[..., None]
    normal = weighted.swapaxes(1, 2) @ design + np.diag([0, 1e-6, 1e-6])
    solve = np.linalg.inv(normal) @ weighted.swapaxes(1, 2)  # n, 3, k
    affine = solve @ (targets - centre)
    misses = np.linalg.norm(targets - centre - design @ affine, axis=2)
    residual = np.sqrt((weights * misses**2).sum(1) / weights.sum(1) * k / max(k - 3, 1))
    spread = np.maximum(residual, 0.5) * np.linalg.norm(solve[:, 0], axis=1)
    return affine[:, 0] + centre[:, 0], residual, spread


def label_pair(
    keypoints0: Float[np.ndarray, "m 2"],
    keypoints1: Float[np.ndarray, "n 2"],
    sizes: tuple[tuple[int, int], tuple[int, int]],
    anchors: Anchors,
    settings: TransferSettings,
    assignment: SparseAssignment | None = None,
) -> PairLabels:
    """Labels of keypoints of two photos of (width, height) `sizes` by transfer in both directions."""
    in1, sure0 = transfer_points(keypoints0.astype(np.float64), anchors, settings)
    in0, sure1 = transfer_points(keypoints1.astype(np.float64), anchors.reversed(), settings)
    forth = np.where(sure0[:, None], _distances(in1, keypoints1), np.nan)
    back = np.where(sure1[None, :], _distances(keypoints0, in0), np.nan)
    near = np.argwhere(np.fmin(forth, back) <= NEAR_PX)
    both = np.maximum(forth, back)[tuple(near.T)]  # NaN where one is unknown
    judged0 = sure0 & _inside(in1, sizes[1]) | _out_of_sight(keypoints0, sizes[1], anchors)
    judged1 = sure1 & _inside(in0, sizes[0]) | _out_of_sight(keypoints1, sizes[0], anchors.reversed())
    return PairLabels(near, np.nan_to_num(both, nan=np.inf), judged0, judged1, assignment)


def _inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.all((points >= 0) & (points <= np.array(size) - 1), axis=1)


def _out_of_sight(points: np.ndarray, size: tuple[int, int], anchors: Anchors) -> np.ndarray:
    """Points whose epipolar line misses the other photo by more than NEAR_PX."""
    if anchors.fundamental is None:
        return np.zeros(len(points), dtype=bool)
    lines = _homogeneous(points.astype(np.float64)) @ anchors.fundamental.T
    corners = np.array([(x, y, 1.0) for x in (0, size[0] - 1) for y in (0, size[1] - 1)])
    signed = lines @ corners.T / np.maximum(np.linalg.norm(lines[:, :2], axis=1, keepdims=True), 1e-12)
    return (signed > NEAR_PX).all(1) | (signed < -NEAR_PX).all(1)


def _homogeneous(points: np.ndarray) -> np.ndarray:
    return np.column_stack([points, np.ones(len(points))])


def _distances(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "m n"]:
    return np.hypot(a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1])
