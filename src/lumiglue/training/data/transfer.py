"""Transfer of keypoints between two photos by the matches around them, and labels from it.

Matches that fit one epipolar geometry are anchors. A keypoint of any features is transferred by the affine map of the
anchors around it. A transfer counts if the anchors agree on it, it is near the epipolar line, and the transfer back ends
where it started. Where three or more photos match, their matches must agree first (`consistent_matches`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer

from lumiglue.geometry.robust import estimate
from lumiglue.training.data.taught import NEAR_PX, PairLabels, SparseAssignment


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """When a transferred keypoint counts. Lengths are in pixels.

    Attributes:
        neighbours: Number of anchors that an affine map is fitted to.
        reach: Largest distance of the third nearest anchor.
        residual: Largest root mean square of the anchors' residuals.
        spread: Largest standard error of the transferred position.
        epipolar: Largest distance from the epipolar line.
        cycle: Largest distance after the transfer back.
        third: Largest distance between the two places in a third photo that the ends of a match are matched with.
        least_anchors: Smallest number of anchors of a pair; other pairs are not used.
        least_share: Smallest fraction of a pair's matches that are anchors; other pairs are not used.
        planar_share: If a homography explains this fraction of the anchors, the epipolar geometry is not determined, and is
            not used.
    """

    neighbours: int = 8
    reach: float = 32.0
    residual: float = 1.5
    spread: float = 1.0
    epipolar: float = 2.0
    cycle: float = 2.0
    third: float = 3.0
    least_anchors: int = 30
    least_share: float = 0.3
    planar_share: float = 0.9


@dataclass(frozen=True, eq=False)
class Anchors:
    """Reliable matches of two photos.

    Attributes:
        points0: Pixels in the first photo.
        points1: Pixels in the second photo.
        fundamental: The fundamental matrix; None if it is not determined.
    """

    points0: Float[np.ndarray, "k 2"]
    points1: Float[np.ndarray, "k 2"]
    fundamental: Float[np.ndarray, "3 3"] | None

    def reversed(self) -> "Anchors":
        """The same with the two photos swapped."""
        return Anchors(self.points1, self.points0, None if self.fundamental is None else self.fundamental.T)


def consistent_matches(
    keypoints: Mapping[str, Float[np.ndarray, "_ 2"]],
    pairs: Mapping[tuple[str, str], Integer[np.ndarray, "_ 2"]],
    settings: TransferSettings,
) -> dict[tuple[str, str], Integer[np.ndarray, "_ 2"]]:
    """Removes the matches that more of the other photos contradict than confirm.

    A third photo confirms a match if it matches both of its ends at one place, and contradicts it if at two places. Walls
    that repeat give pairs that agree with themselves and not with the other photos.

    Args:
        keypoints: Pixels of each photo's keypoints.
        pairs: Rows of the matched keypoints of each pair of photos.
        settings: `third` is the largest distance of what counts as one place.
    """
    partners = {}
    for (a, b), matches in pairs.items():
        for first, second, rows in ((a, b, matches), (b, a, matches[:, ::-1])):
            partners[first, second] = np.full(len(keypoints[first]), -1)
            partners[first, second][rows[:, 0]] = rows[:, 1]
    kept = {}
    for (a, b), matches in pairs.items():
        balance = np.zeros(len(matches), dtype=np.int64)
        for third, places in keypoints.items():
            if (a, third) not in partners or (b, third) not in partners:
                continue
            seen = [partners[end, third][matches[:, side]] for side, end in enumerate((a, b))]
            apart = np.linalg.norm(places[seen[0]] - places[seen[1]], axis=1)
            known = (seen[0] >= 0) & (seen[1] >= 0)
            balance += np.where(known, np.where(apart <= settings.third, 1, -1), 0)
        kept[a, b] = matches[balance >= 0]
    return kept


def find_anchors(
    points0: Float[np.ndarray, "k 2"],
    points1: Float[np.ndarray, "k 2"],
    settings: TransferSettings,
    seed: int = 0,
    fundamental: Float[np.ndarray, "3 3"] | None = None,
) -> Anchors | None:
    """Selects the matches that fit one epipolar geometry and their own neighbours; None if there are too few.

    Args:
        points0: Pixels of the matches in the first photo.
        points1: Pixels of the matches in the second photo.
        settings: When matches count.
        seed: Seed of RANSAC.
        fundamental: The fundamental matrix, if poses are known; by default it is estimated from the matches.
    """
    fewest = max(settings.least_anchors, settings.least_share * len(points0))
    points0, points1 = (np.asarray(points, dtype=np.float64) for points in (points0, points1))
    matrix = fundamental
    if matrix is None:
        epipolar = estimate("fundamental", points0, points1, threshold=settings.epipolar, seed=seed)
        if epipolar.matrix is None:
            return None
        matrix, inliers = epipolar.matrix.numpy().astype(np.float64), epipolar.inliers.numpy()
    else:
        off = _off_line(points0, points1, matrix), _off_line(points1, points0, matrix.T)
        inliers = np.maximum(*off) <= settings.epipolar
    if inliers.sum() < fewest:
        return None
    points0, points1 = points0[inliers], points1[inliers]
    plane = estimate("homography", points0, points1, threshold=settings.epipolar, seed=seed)
    if int(plane.inliers.sum()) >= settings.planar_share * len(
        points0
    ):  # even many photos of a plane leave focal lengths open
        matrix = None
    consistent = np.ones(len(points0), dtype=bool)
    for ends in ((points0, points1), (points1, points0)):
        predicted, _, _ = _affine_predictions(ends[0], *ends, settings, leave_out_self=True)
        consistent &= np.linalg.norm(predicted - ends[1], axis=1) <= 2 * NEAR_PX
    if consistent.sum() < fewest:
        return None
    return Anchors(points0[consistent], points1[consistent], matrix)


def transfer_points(
    points: Float[np.ndarray, "n 2"], anchors: Anchors, settings: TransferSettings
) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    """Pixels of the first photo's points in the second photo, which may be outside it, and whether each is reliable."""
    forth, reliable = _transfer_once(points, anchors, settings)
    back, reliable_back = _transfer_once(forth, anchors.reversed(), settings)
    returned = np.linalg.norm(back - points, axis=1) <= settings.cycle
    return forth, reliable & reliable_back & returned


def _transfer_once(
    points: np.ndarray, anchors: Anchors, settings: TransferSettings
) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    """The transfer in one direction, and whether the anchors agree on it."""
    predicted, residual, spread = _affine_predictions(points, anchors.points0, anchors.points1, settings)
    nearest = np.partition(_distances(points, anchors.points0), 2, axis=1)[:, 2]
    reliable = (residual <= settings.residual) & (spread <= settings.spread) & (nearest <= settings.reach)
    if anchors.fundamental is not None:
        lines = _homogeneous(points) @ anchors.fundamental.T
        length = np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12)
        off = (lines * _homogeneous(predicted)).sum(1) / length
        reliable &= np.abs(off) <= settings.epipolar
        predicted = predicted - (off / length)[:, None] * lines[:, :2]  # onto the line
    return predicted, reliable


def _affine_predictions(
    points: np.ndarray, ends0: np.ndarray, ends1: np.ndarray, settings: TransferSettings, *, leave_out_self: bool = False
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Positions by a weighted affine map of the nearest anchors, the anchors' residuals, and standard errors in pixels."""
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
    """Labels the keypoints of two photos of (width, height) `sizes` by transfer in both directions. assignment: the
    teacher's, if these keypoints are its own."""
    in1, reliable0 = transfer_points(keypoints0.astype(np.float64), anchors, settings)
    in0, reliable1 = transfer_points(keypoints1.astype(np.float64), anchors.reversed(), settings)
    forth = np.where(reliable0[:, None], _distances(in1, keypoints1), np.nan)
    back = np.where(reliable1[None, :], _distances(keypoints0, in0), np.nan)
    near = np.argwhere(np.fmin(forth, back) <= NEAR_PX)
    both = np.maximum(forth, back)[tuple(near.T)]  # NaN where one is unknown
    judged0 = reliable0 & _inside(in1, sizes[1]) | _out_of_sight(keypoints0, sizes[1], anchors)
    judged1 = reliable1 & _inside(in0, sizes[0]) | _out_of_sight(keypoints1, sizes[0], anchors.reversed())
    return PairLabels(near, np.nan_to_num(both, nan=np.inf), judged0, judged1, assignment)


def _off_line(points0: np.ndarray, points1: np.ndarray, fundamental: np.ndarray) -> Float[np.ndarray, " n"]:
    """Distances of the second photo's points from the epipolar lines of the first photo's, in pixels."""
    lines = _homogeneous(points0) @ fundamental.T
    return np.abs((lines * _homogeneous(points1)).sum(1)) / np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12)


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
