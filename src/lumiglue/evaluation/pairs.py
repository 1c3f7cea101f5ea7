"""Pairs with ground truth, and what each matcher makes of them.

`pairs.json`: {"images": {key: {"size": [w, h]}}, "pairs": [...]}; each pair has `group`, `a`, `b` (image files) and
    type "homography": H (3 x 3, maps a to b);
    type "pose": K_a, K_b, R, t with X_b = R X_a + t;
    type "correspondences": pts_a, pts_b, annotated by hand.
turns_a, turns_b, where given: quarter turns counter-clockwise after which an image is matched; all else is in turned pixels.
Pixel convention: the centre of the top-left pixel is (0, 0).
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
from lumiglue.evaluation.formats import check_camera, check_homography, check_rotation, read_upright
from lumiglue.evaluation.metrics import (
    annotated_epipolar_error,
    auc,
    bootstrap_interval,
    corner_error,
    homography_precision_recall,
    pose_error,
)
from lumiglue.extractors import Extractor
from lumiglue.geometry.projective import epipolar_error, fundamental_from_pose
from lumiglue.geometry.robust import estimate, homography_by_dlt, relative_pose, relative_pose_opencv
from lumiglue.io.text import read_json
from lumiglue.types import Features, Matches

PIXEL_THRESHOLDS = (1.0, 3.0, 5.0, 10.0)
POSE_THRESHOLDS = (5.0, 10.0, 20.0)
EPIPOLAR_THRESHOLDS = (3.0, 10.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How errors are measured, printed and stored with each result, as unstated protocol is why figures disagree.

    homography_px, pose_px, fundamental_px: inlier thresholds of PoseLib's LO-RANSAC; each is multiplied by every one of
    `factors`, and a result is given for each. opencv_px: of OpenCV's five-point RANSAC, multiplied alike.
    match_px: a match is right when its reprojection error, or epipolar error, is at most this.
    seeds: of both RANSACs; a result is given for each.
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

    error: corner (px), pose (degrees) or epipolar (px) by the pair's type. error_plain: the corner error of the weighted DLT
    of all matches, or the pose error by OpenCV. precision, recall: of planar pairs within `match_px`, precision_1px and
    recall_1px within 1 px; of pairs with a known pose, precision is the share within `match_px` of the epipolar line.
    inliers: of the estimated model. pruned: points that left before the last layer that ran. turns_a, turns_b: of the
    images. layers_per_point: mean over the points of both images; 0, as stop_layer, for a matcher without layers.
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


def read_pairs(folder: str | Path) -> list[dict[str, Any]]:
    """The pairs of a folder with a `pairs.json`. Raises InputError where it is missing or not in the format."""
    file = Path(folder) / "pairs.json"
    content = read_json(file, "give a folder with a pairs.json (format: evaluation/pairs.py)")
    pairs = content.get("pairs") if isinstance(content, dict) else None
    if not isinstance(pairs, list):
        raise InputError(f"{file} is not in the pairs.json format, it has no list 'pairs'; see evaluation/pairs.py")
    for number, pair in enumerate(pairs):
        _check_pair(pair, f"{file}, pair {number}")
    return pairs


_FIELDS = {"homography": ("H",), "pose": ("K_a", "K_b", "R", "t"), "correspondences": ("pts_a", "pts_b")}


def _check_pair(pair: Any, where: str) -> None:
    """Raises InputError unless all is there, and is what it should be."""
    if not isinstance(pair, dict) or not all(isinstance(pair.get(key), str) for key in ("type", "group", "a", "b")):
        raise InputError(f"{where} lacks a type, group, a or b; give each as text")
    if pair["type"] not in _FIELDS:
        raise InputError(f"{where} is of unknown type {pair['type']!r}; choose from {sorted(_FIELDS)}")
    if not all(isinstance(pair.get(key, 0), int) for key in ("turns_a", "turns_b")):
        raise InputError(f"{where} has turns that are no whole numbers; give counts of quarter turns")
    arrays = {}
    for key in _FIELDS[pair["type"]]:
        try:
            arrays[key] = np.asarray(pair[key], np.float64)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(f"{where} has no numbers {key!r}; see evaluation/pairs.py") from None
    match pair["type"]:
        case "homography":
            pair["H"] = check_homography(arrays["H"], where).tolist()
        case "pose":
            check_camera(arrays["K_a"], f"{where}, K_a")
            check_camera(arrays["K_b"], f"{where}, K_b")
            check_rotation(arrays["R"], where)
            if arrays["t"].size != 3 or not np.isfinite(arrays["t"]).all() or not arrays["t"].any():
                raise InputError(f"{where} has t {pair['t']}; give three finite numbers, not all zero")
        case _:
            shapes = arrays["pts_a"].shape, arrays["pts_b"].shape
            finite = all(np.isfinite(points).all() for points in arrays.values())
            if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][1] != 2 or not shapes[0][0] or not finite:
                raise InputError(f"{where} has points of shapes {shapes}; give as many finite x, y on either side")


def evaluate(
    folder: str | Path,
    pairs: Sequence[dict[str, Any]],
    extractor: Extractor,
    methods: Mapping[str, Matcher],
    protocol: Protocol | None = None,
) -> Iterator[PairScore]:
    """Runs every method on every pair with the same features, methods in turn on each pair; yields as it goes: for each
    pair, each method, each factor and each seed of the protocol one score."""
    folder = Path(folder)
    cache: dict[tuple[str, int], Features] = {}

    def features_of(name: str, turns: int) -> Features:
        if (name, turns) not in cache:
            cache[name, turns] = extractor(read_upright(folder / name, turns))
        return cache[name, turns]

    return evaluate_features(pairs, features_of, methods, protocol)


def evaluate_features(
    pairs: Sequence[dict[str, Any]],
    features_of: Callable[[str, int], Features],
    methods: Mapping[str, Matcher],
    protocol: Protocol | None = None,
) -> Iterator[PairScore]:
    """`evaluate` with features that are there already: `features_of` returns those of an image after so many quarter
    turns."""
    protocol = protocol or Protocol()
    for pair in pairs:
        a, b = (features_of(pair[side], pair.get(f"turns_{side}", 0)) for side in ("a", "b"))
        features = a, b
        for name, method in methods.items():
            start = time.perf_counter()
            matches = method(*features)
            milliseconds = (time.perf_counter() - start) * 1000
            for factor, seed in product(protocol.factors, protocol.seeds):
                yield _score(name, pair, features, matches, milliseconds, protocol, factor, seed)


def _score(
    name: str,
    pair: dict[str, Any],
    features: tuple[Features, Features],
    matches: Matches,
    milliseconds: float,
    protocol: Protocol,
    factor: float,
    seed: int,
) -> PairScore:
    a, b = features
    points = a.keypoints[matches.pairs[:, 0]].numpy(), b.keypoints[matches.pairs[:, 1]].numpy()
    figures: dict[str, Any]
    match pair["type"]:
        case "homography":
            figures = _homography_figures(pair, features, matches, points, protocol, factor, seed)
        case "pose":
            figures = _pose_figures(pair, points, protocol, factor, seed)
        case _:
            annotated = (torch.tensor(pair[key], dtype=torch.float64) for key in ("pts_a", "pts_b"))
            found = estimate("fundamental", *points, threshold=factor * protocol.fundamental_px, seed=seed)
            error = annotated_epipolar_error(found.matrix, *annotated)
            figures = {"error": error, "inliers": int(found.inliers.sum())}
    layers = torch.cat([matches.layers0, matches.layers1])
    return PairScore(
        method=name, type=pair["type"], group=pair["group"], a=pair["a"], b=pair["b"], keypoints_a=len(a),
        keypoints_b=len(b), matches=len(matches), milliseconds=milliseconds, stop_layer=matches.stop_layer,
        pruned=int((layers < matches.stop_layer).sum()), factor=factor, turns_a=pair.get("turns_a", 0),
        turns_b=pair.get("turns_b", 0), seed=seed,
        layers_per_point=float(layers.double().mean()) if len(layers) else 0.0,
        **{"precision": float("nan"), "recall": float("nan"), **figures},
    )  # fmt: skip


def _homography_figures(
    pair: dict[str, Any],
    features: tuple[Features, Features],
    matches: Matches,
    points: tuple[np.ndarray, np.ndarray],
    protocol: Protocol,
    factor: float,
    seed: int,
) -> dict[str, Any]:
    a, b = features
    true = torch.tensor(pair["H"], dtype=torch.float64)
    found = estimate("homography", *points, threshold=factor * protocol.homography_px, seed=seed)
    plain = homography_by_dlt(*points, matches.scores.double().numpy())
    shares = [
        homography_precision_recall(a.keypoints, b.keypoints, matches.pairs, true, px) for px in (protocol.match_px, 1.0)
    ]
    return {
        "error": corner_error(found.matrix, true, a.image_size),
        "error_plain": corner_error(None if plain is None else torch.from_numpy(plain), true, a.image_size),
        "inliers": int(found.inliers.sum()),
        "precision": shares[0][0], "recall": shares[0][1], "precision_1px": shares[1][0], "recall_1px": shares[1][1],
    }  # fmt: skip


def _pose_figures(
    pair: dict[str, Any], points: tuple[np.ndarray, np.ndarray], protocol: Protocol, factor: float, seed: int
) -> dict[str, Any]:
    intrinsics = np.array(pair["K_a"], dtype=np.float64), np.array(pair["K_b"], dtype=np.float64)
    (points_a, points_b), (intrinsics_a, intrinsics_b) = points, intrinsics
    views = (points_a, points_b, intrinsics_a, intrinsics_b)
    found = relative_pose(*views, threshold=factor * protocol.pose_px, seed=seed)
    opencv = relative_pose_opencv(*views, threshold=factor * protocol.opencv_px, seed=seed)
    k_a, k_b = (torch.from_numpy(k) for k in intrinsics)
    fundamental = fundamental_from_pose(k_a, k_b, *_true_pose(pair))
    in_a, in_b = (torch.from_numpy(side).double() for side in points)
    distance = epipolar_error(fundamental, in_a, in_b)
    return {
        "error": error_of_pose(pair, found), "error_plain": error_of_pose(pair, opencv),
        "inliers": 0 if found is None else int(found[2].sum()),
        "precision": float((distance <= protocol.match_px).double().mean()) if len(distance) else float("nan"),
    }  # fmt: skip


def error_of_pose(pair: Mapping[str, Any], found: tuple[np.ndarray, np.ndarray, np.ndarray] | None) -> float:
    """Degrees between what `robust.relative_pose` found and the pair's pose (`metrics.pose_error`); infinite for None."""
    if found is None:
        return float("inf")
    return pose_error(torch.tensor(found[0]), torch.tensor(found[1]), *_true_pose(pair))


def _true_pose(pair: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    rotation, translation = (torch.tensor(pair[key], dtype=torch.float64).squeeze() for key in ("R", "t"))
    return rotation, translation


@dataclass(frozen=True)
class Summary:
    """One matcher on a whole set; AUCs and shares in percent, NaN where the set has no such pairs.

    corner_auc_dlt: by the weighted DLT of all matches. pose_auc_opencv: by OpenCV's RANSAC. epipolar_precision: mean share
    of the matches on the epipolar line, over pairs with a known pose. pruned: percent of the keypoints. layers_per_point:
    mean over the pairs.
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
    """One line a method and factor, in order of first appearance. Precision and recall are means over the planar pairs; a
    pair without matches has precision 0. F1 is their harmonic mean. Milliseconds are the median over the pairs. AUCs
    of several seeds are averaged."""
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


def intervals(scores: Sequence[PairScore], *, rounds: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals, over the pairs, of one method's figures: planar F1, corner AUC@5, pose AUC@5. Of several
    seeds the first counts; `classes.figures` has intervals over scenes and seeds."""
    scores = [s for s in scores if s.seed == scores[0].seed]
    kinds = {kind: [s for s in scores if s.type == kind] for kind in ("homography", "pose")}
    found = {}
    for name, kind, threshold in (("corner AUC@5", "homography", 5.0), ("pose AUC@5", "pose", 5.0)):
        errors = [s.error for s in kinds[kind]]
        if errors:
            found[name] = bootstrap_interval(
                errors, lambda v, t=threshold: auc(v.tolist(), (t,))[0], rounds=rounds, seed=seed
            )
    planar = np.array([[0.0 if np.isnan(s.precision) else s.precision, s.recall] for s in kinds["homography"]])
    if len(planar):
        numbers = list(range(len(planar)))
        found["planar F1"] = bootstrap_interval(numbers, lambda k: _f1(planar[k.astype(int)]), rounds=rounds, seed=seed)
    return found


def _f1(shares: np.ndarray) -> float:
    precision, recall = shares[:, 0].mean(), np.nanmean(shares[:, 1])
    return float(200 * precision * recall / max(precision + recall, 1e-12))


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
