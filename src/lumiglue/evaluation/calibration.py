"""Calibration of match scores, and how well a number separates two classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bin:
    """Matches with a score in [low, high).

    Attributes:
        low: Lower end.
        high: Upper end.
        count: How many matches there are.
        score: Their mean score.
        right: The share of them that is right.
    """

    low: float
    high: float
    count: int
    score: float
    right: float


def reliability(scores: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[Bin]:
    """The bins of a reliability diagram (DeGroot and Fienberg 1983) that are not empty: `bins` equally wide ones over [0,
    1]."""
    score, hit = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=np.float64)
    edges = np.linspace(0, 1, bins + 1)
    member = np.clip(np.digitize(score, edges) - 1, 0, bins - 1)
    return [
        Bin(float(edges[k]), float(edges[k + 1]), int(rows.sum()), float(score[rows].mean()), float(hit[rows].mean()))
        for k in range(bins)
        if (rows := member == k).any()
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between score and share of right matches, weighted by count (Guo et al., ICML 2017); NaN without
    matches."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.score - b.right) for b in bins) / total if total else float("nan")


def roc_auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Area under the ROC curve: the chance that a positive's number exceeds a negative's; ties count half. NaN if either is
    empty."""
    a, b = np.asarray(positive, dtype=np.float64)[:, None], np.asarray(negative, dtype=np.float64)[None]
    if not a.size or not b.size:
        return float("nan")
    return float((a > b).mean() + 0.5 * (a == b).mean())
