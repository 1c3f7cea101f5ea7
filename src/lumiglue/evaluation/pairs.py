"""A folder of pairs with ground truth, and what each matcher makes of it.

`pairs.json`: {"images": {key: {"size": [w, h]}}, "pairs": [...]}; each pair has `group`, `a`, `b` (image files) and
    type "homography": H (3 x 3, maps a to b);
    type "pose": K_a, K_b, R, t with X_b = R X_a + t;
    type "correspondences": pts_a, pts_b, annotated by hand.
Pixel convention: the centre of the top-left pixel is (0, 0).
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lumiglue.errors import InputError
from lumiglue.evaluation.baselines import Matcher
from lumiglue.evaluation.metrics import (
    annotated_epipolar_error,
    auc,
    corner_error,
    homography_precision_recall,
    pose_error,
)
from lumiglue.extractors import Extractor
from lumiglue.images import read_image
from lumiglue.robust import estimate, relative_pose
from lumiglue.types import Features, Matches

PIXEL_THRESHOLDS = (1.0, 3.0, 5.0, 10.0)
POSE_THRESHOLDS = (5.0, 10.0, 20.0)
EPIPOLAR_THRESHOLDS = (3.0, 10.0, 20.0)


@dataclass(frozen=True)
class PairScore:
    """One matcher on one pair. error: corner (px), pose (degrees) or epipolar (px) by the pair's type."""

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


def read_pairs(folder: str | Path) -> list[dict[str, Any]]:
    """The pairs of a folder with a `pairs.json`. Raises InputError where it is missing or not in the format."""
    file = Path(folder) / "pairs.json"
    if not file.exists():
        raise InputError(f"{file} does not exist; give a folder with a pairs.json (format: evaluation/pairs.py)")
    try:
        pairs = json.loads(file.read_text())["pairs"]
        kinds = {pair["type"] for pair in pairs}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not in the pairs.json format ({type(error).__name__}: {error})") from None
    if unknown := kinds - {"homography", "pose", "correspondences"}:
        raise InputError(f"{file} has pairs of unknown type {sorted(unknown)}; see evaluation/pairs.py")
    return pairs


def select_pairs(folder: str | Path, groups: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The pairs of a folder whose group starts with one of `groups`; all of them when it is empty."""
    chosen = [pair for pair in read_pairs(folder) if not groups or pair["group"].startswith(tuple(groups))]
    if not chosen:
        known = sorted({pair["group"] for pair in read_pairs(folder)})
        raise InputError(f"no pair is in the groups {list(groups)}; choose from {known}")
    return chosen


def evaluate(
    folder: str | Path, pairs: Sequence[dict[str, Any]], extractor: Extractor, methods: Mapping[str, Matcher]
) -> Iterator[PairScore]:
    """Runs every method on every pair with the same features, methods in turn on each pair; yields as it goes."""
    folder = Path(folder)
    cache: dict[str, Features] = {}
    for pair in pairs:
        for side in ("a", "b"):
            if pair[side] not in cache:
                cache[pair[side]] = extractor(read_image(folder / pair[side]))
        features = cache[pair["a"]], cache[pair["b"]]
        for name, method in methods.items():
            start = time.perf_counter()
            matches = method(*features)
            milliseconds = (time.perf_counter() - start) * 1000
            yield _score(name, pair, features, matches, milliseconds)


def _score(name: str, pair: dict[str, Any], features: tuple[Features, Features], matches: Matches, ms: float) -> PairScore:
    a, b = features
    rows = matches.pairs
    points = a.keypoints[rows[:, 0]].numpy(), b.keypoints[rows[:, 1]].numpy()
    precision = recall = float("nan")
    if pair["type"] == "homography":
        true = torch.tensor(pair["H"], dtype=torch.float64)
        error = corner_error(estimate("homography", *points).matrix, true, a.image_size)
        precision, recall = homography_precision_recall(a.keypoints, b.keypoints, rows, true)
    elif pair["type"] == "pose":
        error = _pose_error(pair, points)
    else:
        annotated = (torch.tensor(pair[key], dtype=torch.float64) for key in ("pts_a", "pts_b"))
        error = annotated_epipolar_error(estimate("fundamental", *points).matrix, *annotated)
    return PairScore(
        name, pair["type"], pair["group"], pair["a"], pair["b"], len(a), len(b), len(rows), ms, matches.stop_layer,
        error, precision, recall,
    )  # fmt: skip


def _pose_error(pair: dict[str, Any], points: tuple[np.ndarray, np.ndarray]) -> float:
    found = relative_pose(*points, np.array(pair["K_a"]), np.array(pair["K_b"]))
    if found is None:
        return float("inf")
    true = [torch.tensor(pair[key], dtype=torch.float64).squeeze() for key in ("R", "t")]
    return pose_error(torch.tensor(found[0]), torch.tensor(found[1]), *true)


@dataclass(frozen=True)
class Summary:
    """One matcher on a whole folder; AUCs and shares in percent, NaN where the folder has no such pairs."""

    method: str
    pairs: int
    precision: float
    recall: float
    f1: float
    corner_auc: list[float]
    pose_auc: list[float]
    epipolar_auc: list[float]
    matches: float
    milliseconds: float
    stop_layer: float


def summarise(scores: Sequence[PairScore]) -> list[Summary]:
    """One line a method, in order of first appearance. Precision and recall are means over the planar pairs; a pair
    without matches has precision 0. F1 is their harmonic mean. Milliseconds are the median over the pairs."""
    return [_summary([s for s in scores if s.method == name]) for name in dict.fromkeys(s.method for s in scores)]


def _summary(scores: list[PairScore]) -> Summary:
    errors = {kind: [s.error for s in scores if s.type == kind] for kind in ("homography", "pose", "correspondences")}
    planar = [s for s in scores if s.type == "homography"]
    precision = 100 * _mean([0.0 if np.isnan(s.precision) else s.precision for s in planar])
    recall = 100 * _mean([s.recall for s in planar if not np.isnan(s.recall)])
    f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else precision + recall
    none = float("nan")
    return Summary(
        method=scores[0].method,
        pairs=len(scores),
        precision=precision,
        recall=recall,
        f1=f1,
        corner_auc=auc(errors["homography"], PIXEL_THRESHOLDS) if planar else [none] * 4,
        pose_auc=auc(errors["pose"], POSE_THRESHOLDS) if errors["pose"] else [none] * 3,
        epipolar_auc=auc(errors["correspondences"], EPIPOLAR_THRESHOLDS) if errors["correspondences"] else [none] * 3,
        matches=_mean([s.matches for s in scores]),
        milliseconds=float(np.median([s.milliseconds for s in scores])),
        stop_layer=_mean([s.stop_layer for s in scores]),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
