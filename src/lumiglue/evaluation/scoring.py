"""Scores of matchers on pairs with ground truth, and their summaries.

What is measured for a pair depends on its type: corner errors for homographies, pose errors for known cameras, epipolar
errors for annotated correspondences.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lumiglue.errors import InputError
from lumiglue.evaluation.baselines import Matcher
from lumiglue.evaluation.formats import read_upright
from lumiglue.evaluation.metrics import (
    annotated_epipolar_error,
    auc,
    bootstrap_interval,
    corner_error,
    f1,
    homography_precision_recall,
    pose_error,
)
from lumiglue.evaluation.pairs import CorrespondencePair, GroundTruthPair, HomographyPair, PosePair
from lumiglue.extractors import Extractor
from lumiglue.geometry.projective import epipolar_error, fundamental_from_pose
from lumiglue.geometry.robust import estimate, homography_by_dlt, relative_pose, relative_pose_opencv
from lumiglue.types import Features, Matches

PIXEL_THRESHOLDS = (1.0, 3.0, 5.0, 10.0)
POSE_THRESHOLDS = (5.0, 10.0, 20.0)
EPIPOLAR_THRESHOLDS = (3.0, 10.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How errors are measured. It is printed and stored with each result, as figures of different protocols differ.

    Attributes:
        homography_px: Inlier threshold of PoseLib's LO-RANSAC for homographies, in pixels.
        pose_px: The same for poses.
        fundamental_px: The same for fundamental matrices.
        opencv_px: Inlier threshold of OpenCV's five-point RANSAC.
        match_px: A match is right if its reprojection error or epipolar error is at most this.
        factors: Factors of the RANSAC thresholds; there is a result for each.
        seeds: Seeds of RANSAC; there is a result for each.

    Raises:
        InputError: there is no factor or seed, or one cannot be used.
    """

    homography_px: float = 2.0
    pose_px: float = 1.5
    fundamental_px: float = 1.5
    opencv_px: float = 1.0
    match_px: float = 3.0
    factors: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not self.factors or min(self.factors) <= 0:
            raise InputError(f"factors is {self.factors}; give at least one positive number")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds is {self.seeds}; give at least one whole number from 0 up, each once")

    def __str__(self) -> str:
        ransac = f"PoseLib homography {self.homography_px:g} px, pose {self.pose_px:g} px, F {self.fundamental_px:g} px"
        swept = "" if self.factors == (1.0,) else " times " + ", ".join(f"{factor:g}" for factor in self.factors)
        seeded = "" if self.seeds == (0,) else ", seeds " + ", ".join(map(str, self.seeds))
        return f"{ransac}, OpenCV pose {self.opencv_px:g} px{swept}{seeded}; matches right within {self.match_px:g} px"


@dataclass(frozen=True)
class PairScore:
    """One matcher on one pair, with one factor of the thresholds and one seed of RANSAC.

    Attributes:
        method: Name of the matcher.
        type: Type of the pair: "homography", "pose" or "correspondences".
        group: Group of the pair.
        a: First image.
        b: Second image.
        keypoints_a: Keypoints of a.
        keypoints_b: Keypoints of b.
        matches: How many matches there are.
        milliseconds: Time of matching alone.
        stop_layer: Last layer that ran; 0 for a matcher without layers.
        error: Corner error (px), pose error (degrees) or epipolar error (px), by the type of the pair.
        precision: For homographies the share of matches within `match_px`; for poses the share within `match_px` of the
            epipolar line; NaN without matches.
        recall: Of homographies, within `match_px`.
        precision_1px: Of homographies, within 1 px.
        recall_1px: Of homographies, within 1 px.
        error_plain: Corner error of the weighted DLT of all matches, or pose error by OpenCV.
        inliers: Inliers of the estimated model.
        pruned: Points that were pruned before the last layer that ran.
        factor: Factor of the RANSAC thresholds.
        turns_a: Quarter turns of a.
        turns_b: Quarter turns of b.
        layers_per_point: Mean over the points of both images; 0 for a matcher without layers.
        seed: Seed of RANSAC.
    """

    method: str
    type: str
    group: str
    a: str
    b: str
    keypoints_a: int
    keypoints_b: int
    matches: int
    milliseconds: float
    stop_layer: int
    error: float
    precision: float
    recall: float
    precision_1px: float = float("nan")
    recall_1px: float = float("nan")
    error_plain: float = float("nan")
    inliers: int = 0
    pruned: int = 0
    factor: float = 1.0
    turns_a: int = 0
    turns_b: int = 0
    layers_per_point: float = 0.0
    seed: int = 0


def score_pairs(
    folder: str | Path,
    pairs: Sequence[GroundTruthPair],
    extractor: Extractor,
    methods: Mapping[str, Matcher],
    protocol: Protocol | None = None,
) -> Iterator[PairScore]:
    """Scores matchers on pairs of images, all with the same features.

    Args:
        folder: Folder that the image files are relative to.
        pairs: Pairs with ground truth.
        extractor: Features for all methods. Each image is extracted once.
        methods: Matchers by name; they take turns on each pair.
        protocol: Thresholds and seeds; None uses the defaults.

    Returns:
        An iterator that yields one score for each pair, method, factor and seed of the protocol, as it goes.
    """
    folder = Path(folder)
    cache: dict[tuple[str, int], Features] = {}

    def features_of(name: str, turns: int) -> Features:
        if (name, turns) not in cache:
            cache[name, turns] = extractor(read_upright(folder / name, turns))
        return cache[name, turns]

    return score_features(pairs, features_of, methods, protocol)


def score_features(
    pairs: Sequence[GroundTruthPair],
    features_of: Callable[[str, int], Features],
    methods: Mapping[str, Matcher],
    protocol: Protocol | None = None,
) -> Iterator[PairScore]:
    """Scores matchers like `score_pairs`, on features that exist already.

    Args:
        pairs: Pairs with ground truth.
        features_of: Returns the features of an image file after a number of quarter turns counter-clockwise.
        methods: Matchers by name.
        protocol: Thresholds and seeds; None uses the defaults.
    """
    protocol = protocol or Protocol()
    for pair in pairs:
        features = features_of(pair.a, pair.turns_a), features_of(pair.b, pair.turns_b)
        for name, method in methods.items():
            start = time.perf_counter()
            matches = method(*features)
            milliseconds = (time.perf_counter() - start) * 1000
            for factor, seed in product(protocol.factors, protocol.seeds):
                yield _score(name, pair, features, matches, milliseconds, protocol, factor, seed)


def _score(
    name: str,
    pair: GroundTruthPair,
    features: tuple[Features, Features],
    matches: Matches,
    milliseconds: float,
    protocol: Protocol,
    factor: float,
    seed: int,
) -> PairScore:
    a, b = features
    points = a.keypoints[matches.pairs[:, 0]].numpy(), b.keypoints[matches.pairs[:, 1]].numpy()
    measured: dict[str, Any]
    match pair:
        case HomographyPair():
            measured = _score_homography(pair, features, matches, points, protocol, factor, seed)
        case PosePair():
            measured = _score_pose(pair, points, protocol, factor, seed)
        case CorrespondencePair():
            estimated = estimate("fundamental", *points, threshold=factor * protocol.fundamental_px, seed=seed)
            annotated = torch.from_numpy(pair.points_a), torch.from_numpy(pair.points_b)
            error = annotated_epipolar_error(estimated.matrix, *annotated)
            measured = {"error": error, "inliers": int(estimated.inliers.sum())}
    layers = torch.cat([matches.layers0, matches.layers1])
    return PairScore(
        method=name, type=pair.type, group=pair.group, a=pair.a, b=pair.b, keypoints_a=len(a), keypoints_b=len(b),
        matches=len(matches), milliseconds=milliseconds, stop_layer=matches.stop_layer,
        pruned=int((layers < matches.stop_layer).sum()), factor=factor, turns_a=pair.turns_a, turns_b=pair.turns_b,
        seed=seed, layers_per_point=float(layers.double().mean()) if len(layers) else 0.0,
        **{"precision": float("nan"), "recall": float("nan"), **measured},
    )  # fmt: skip


def _score_homography(
    pair: HomographyPair,
    features: tuple[Features, Features],
    matches: Matches,
    points: tuple[np.ndarray, np.ndarray],
    protocol: Protocol,
    factor: float,
    seed: int,
) -> dict[str, Any]:
    a, b = features
    true = torch.from_numpy(pair.b_from_a)
    estimated = estimate("homography", *points, threshold=factor * protocol.homography_px, seed=seed)
    by_dlt = homography_by_dlt(*points, matches.scores.double().numpy())
    shares = [
        homography_precision_recall(a.keypoints, b.keypoints, matches.pairs, true, px) for px in (protocol.match_px, 1.0)
    ]
    return {
        "error": corner_error(estimated.matrix, true, a.image_size),
        "error_plain": corner_error(None if by_dlt is None else torch.from_numpy(by_dlt), true, a.image_size),
        "inliers": int(estimated.inliers.sum()),
        "precision": shares[0][0], "recall": shares[0][1], "precision_1px": shares[1][0], "recall_1px": shares[1][1],
    }  # fmt: skip


def _score_pose(
    pair: PosePair, points: tuple[np.ndarray, np.ndarray], protocol: Protocol, factor: float, seed: int
) -> dict[str, Any]:
    views = (*points, pair.intrinsics_a, pair.intrinsics_b)
    estimated = relative_pose(*views, threshold=factor * protocol.pose_px, seed=seed)
    opencv = relative_pose_opencv(*views, threshold=factor * protocol.opencv_px, seed=seed)
    truth = (pair.intrinsics_a, pair.intrinsics_b, pair.rotation, pair.translation)
    fundamental = fundamental_from_pose(*(torch.from_numpy(array) for array in truth))
    distance = epipolar_error(fundamental, *(torch.from_numpy(side).double() for side in points))
    return {
        "error": error_of_pose(pair, estimated), "error_plain": error_of_pose(pair, opencv),
        "inliers": 0 if estimated is None else int(estimated[2].sum()),
        "precision": float((distance <= protocol.match_px).double().mean()) if len(distance) else float("nan"),
    }  # fmt: skip


def error_of_pose(pair: PosePair, estimated: tuple[np.ndarray, np.ndarray, np.ndarray] | None) -> float:
    """`metrics.pose_error` in degrees of what `robust.relative_pose` returns; infinite for None."""
    if estimated is None:
        return float("inf")
    pose = torch.tensor(estimated[0]), torch.tensor(estimated[1])
    return pose_error(*pose, torch.from_numpy(pair.rotation), torch.from_numpy(pair.translation))


@dataclass(frozen=True)
class Summary:
    """One matcher on a set of pairs. AUCs and shares are in percent, and NaN if the set has no such pairs.

    Attributes:
        method: Name of the matcher.
        pairs: How many pairs there are.
        precision: Mean over the homographies, at `match_px`; a pair without matches counts 0.
        recall: Mean over the homographies, at `match_px`.
        f1: Harmonic mean of precision and recall.
        precision_1px: The same at 1 px.
        recall_1px: The same at 1 px.
        corner_auc: Of homographies, at 1, 3, 5 and 10 px.
        corner_auc_dlt: The same by the weighted DLT of all matches.
        pose_auc: Of poses, at 5, 10 and 20 degrees.
        pose_auc_opencv: The same by OpenCV's RANSAC.
        epipolar_precision: Mean share of matches on the epipolar line, over the poses.
        epipolar_auc: Of annotated pairs, at 3, 10 and 20 px.
        matches: Mean number of matches.
        inliers: Mean number of inliers.
        milliseconds: Median time of matching alone.
        stop_layer: Mean of the last layers that ran.
        pruned: Share of pruned keypoints.
        factor: Factor of the RANSAC thresholds.
        layers_per_point: Mean over the pairs.
    """

    method: str
    pairs: int
    precision: float
    recall: float
    f1: float
    precision_1px: float
    recall_1px: float
    corner_auc: list[float]
    corner_auc_dlt: list[float]
    pose_auc: list[float]
    pose_auc_opencv: list[float]
    epipolar_precision: float
    epipolar_auc: list[float]
    matches: float
    inliers: float
    milliseconds: float
    stop_layer: float
    pruned: float
    factor: float
    layers_per_point: float


def summarise(scores: Sequence[PairScore]) -> list[Summary]:
    """Summarises scores by method and factor. AUCs of several seeds are averaged.

    Args:
        scores: Scores of any methods on the same pairs.

    Returns:
        One summary for each method and factor, in order of first appearance.
    """
    keys = dict.fromkeys((s.method, s.factor) for s in scores)
    return [_summary([s for s in scores if (s.method, s.factor) == key]) for key in keys]


def _summary(scores: list[PairScore]) -> Summary:
    kinds = {kind: [s for s in scores if s.type == kind] for kind in ("homography", "pose", "correspondences")}
    planar, posed = kinds["homography"], kinds["pose"]
    precision, recall = _percentages([s.precision for s in planar]), 100 * _mean_known([s.recall for s in planar])
    f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else precision + recall
    keypoints = sum(s.keypoints_a + s.keypoints_b for s in scores)
    return Summary(
        method=scores[0].method,
        pairs=len({(s.a, s.b, s.turns_a, s.turns_b) for s in scores}),
        precision=precision,
        recall=recall,
        f1=f1,
        precision_1px=_percentages([s.precision_1px for s in planar]),
        recall_1px=100 * _mean_known([s.recall_1px for s in planar]),
        corner_auc=_areas(planar, PIXEL_THRESHOLDS),
        corner_auc_dlt=_areas(planar, PIXEL_THRESHOLDS, "error_plain"),
        pose_auc=_areas(posed, POSE_THRESHOLDS),
        pose_auc_opencv=_areas(posed, POSE_THRESHOLDS, "error_plain"),
        epipolar_precision=_percentages([s.precision for s in posed]),
        epipolar_auc=_areas(kinds["correspondences"], EPIPOLAR_THRESHOLDS),
        matches=_mean_known([s.matches for s in scores]),
        inliers=_mean_known([s.inliers for s in scores]),
        milliseconds=float(np.median([s.milliseconds for s in scores])),
        stop_layer=_mean_known([s.stop_layer for s in scores]),
        pruned=100 * sum(s.pruned for s in scores) / max(keypoints, 1),
        factor=scores[0].factor,
        layers_per_point=_mean_known([s.layers_per_point for s in scores]),
    )


def intervals(scores: Sequence[PairScore]) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over the pairs of planar F1, corner AUC@5 and pose AUC@5, as far as there are such pairs.

    Scores are of one method; of several seeds only the first is used. `classes.figures` has intervals over scenes and seeds.
    """
    scores = [s for s in scores if s.seed == scores[0].seed]
    kinds = {kind: [s for s in scores if s.type == kind] for kind in ("homography", "pose")}
    ends = {}
    for name, kind in (("corner AUC@5", "homography"), ("pose AUC@5", "pose")):
        if errors := [s.error for s in kinds[kind]]:
            ends[name] = bootstrap_interval(errors, lambda v: auc(v.tolist(), (5.0,))[0])
    planar = np.array([[np.nan_to_num(s.precision), s.recall] for s in kinds["homography"]])
    if len(planar):
        numbers = list(range(len(planar)))
        ends["planar F1"] = bootstrap_interval(numbers, lambda k: f1(planar[k.astype(int)]))
    return ends


def _percentages(values: Sequence[float]) -> float:
    """Mean in percent; NaN, a pair without matches, counts 0."""
    return 100 * float(np.mean(np.nan_to_num(values))) if values else float("nan")


def _areas(scores: Sequence[PairScore], thresholds: Sequence[float], name: str = "error") -> list[float]:
    """The AUCs of each seed, averaged: pooled errors would give another area, as the trapezoid rule sees more of them."""
    if not scores:
        return [float("nan")] * len(thresholds)
    seeds = sorted({s.seed for s in scores})
    return np.mean([auc([getattr(s, name) for s in scores if s.seed == seed], thresholds) for seed in seeds], 0).tolist()


def _mean_known(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
