"""Figures by class of pairs, with intervals over scenes and RANSAC's seeds.

A group is named CLASS/SCENE. Pairs of one scene resemble each other, so an interval over pairs is too narrow: whole scenes
are resampled, and for each pair one of its seeds. Where a class has few scenes, pairs are resampled instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lumiglue.errors import InputError
from lumiglue.evaluation.metrics import auc, f1
from lumiglue.evaluation.scoring import EPIPOLAR_THRESHOLDS, POSE_THRESHOLDS, PairScore

FEWEST_SCENES = 5  # with fewer scenes, pairs are resampled


@dataclass(frozen=True)
class Figure:
    """A figure with the central 95 % of its bootstrap distribution.

    Attributes:
        value: The figure.
        low: Low end of the interval.
        high: High end.
    """

    value: float
    low: float
    high: float


def class_of(group: str) -> str:
    """Returns the part of a group's name before the first slash."""
    return group.split("/", 1)[0]


def by_class(scores: Sequence[PairScore]) -> dict[str, list[PairScore]]:
    """Groups scores by class, in order of first appearance."""
    classes: dict[str, list[PairScore]] = {}
    for score in scores:
        classes.setdefault(class_of(score.group), []).append(score)
    return classes


@dataclass(frozen=True, eq=False)
class _Table:
    """One method's scores: a row for each pair, a column for each seed. shares: precision and recall."""

    pairs: list[tuple[str, str, int, int]]
    types: np.ndarray
    scenes: np.ndarray
    errors: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, scores: Sequence[PairScore]) -> "_Table":
        rows: dict[tuple[str, str, int, int], list[PairScore]] = {}
        for score in scores:
            rows.setdefault((score.a, score.b, score.turns_a, score.turns_b), []).append(score)
        keys = sorted(rows)
        seeds = [sorted((s.method, s.factor, s.seed) for s in rows[key]) for key in keys]
        methods = {(method, factor) for method, factor, _ in seeds[0]}
        if len(methods) > 1 or any(of_pair != seeds[0] for of_pair in seeds):
            raise InputError("the scores mix methods, factors or seeds; give those of one method, all seeds of each pair")
        ordered = [sorted(rows[key], key=lambda s: s.seed) for key in keys]
        return cls(
            keys,
            np.array([of_pair[0].type for of_pair in ordered]),
            np.array([of_pair[0].group for of_pair in ordered]),
            np.array([[s.error for s in of_pair] for of_pair in ordered]),
            np.array([[np.nan_to_num(of_pair[0].precision), of_pair[0].recall] for of_pair in ordered]),
        )

    def figures(self, rows: np.ndarray, columns: np.ndarray) -> dict[str, float]:
        """Figures of these pairs (which may repeat), each with the seed in `columns`."""
        figures = {}
        planar = self.shares[rows][self.types[rows] == "homography"]
        if len(planar):
            figures["planar F1"] = f1(planar)
        errors = self.errors[rows, columns]
        for kind, name, thresholds in (
            ("pose", "pose AUC", POSE_THRESHOLDS),
            ("correspondences", "epipolar AUC", EPIPOLAR_THRESHOLDS),
        ):
            of_kind = errors[self.types[rows] == kind]
            if len(of_kind):
                areas = auc(of_kind.tolist(), thresholds)
                figures |= {f"{name}@{t:g}": area for t, area in zip(thresholds, areas, strict=True)}
        return figures

    def mean_figures(self) -> dict[str, float]:
        """Figures of all pairs, as means over the seeds."""
        rows = np.arange(len(self.pairs))
        of_seeds = [self.figures(rows, np.full(len(rows), column)) for column in range(self.errors.shape[1])]
        return {name: float(np.mean([of_seed[name] for of_seed in of_seeds])) for name in of_seeds[0]}


def figures(
    scores: Sequence[PairScore],
    *,
    against: Sequence[PairScore] | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> dict[str, Figure]:
    """Computes planar F1, pose AUC at 5, 10, 20 degrees and epipolar AUC at 3, 10, 20 px, as far as there are such pairs.

    Args:
        scores: Scores of one method and factor, with the same seeds for every pair.
        against: Scores of another method on the same pairs. The figures are then gains over it.
        rounds: Bootstrap samples.
        seed: Random seed of the bootstrap.

    Returns:
        Figures by name.

    Raises:
        InputError: there are no scores, they mix methods, or `against` has other pairs.
    """
    if not scores:
        raise InputError("there are no scores; measure something first")
    table = _Table.of(scores)
    other = None if against is None else _Table.of(against)
    if other is not None and (other.pairs != table.pairs or other.errors.shape != table.errors.shape):
        raise InputError("the two methods were measured on different pairs or seeds; compare what they have in common")

    def gain(figures_of: Callable[[_Table], dict[str, float]]) -> dict[str, float]:
        mine = figures_of(table)
        theirs = dict.fromkeys(mine, 0.0) if other is None else figures_of(other)
        return {name: value - theirs[name] for name, value in mine.items()}

    rng = np.random.default_rng(seed)
    units = _units(table)
    samples: dict[str, list[float]] = {}
    for _ in range(rounds):
        rows = np.concatenate([units[k] for k in rng.integers(0, len(units), len(units))])
        columns = rng.integers(0, table.errors.shape[1], len(rows))
        for name, value in gain(lambda of, rows=rows, columns=columns: of.figures(rows, columns)).items():
            samples.setdefault(name, []).append(value)
    intervals = {}
    for name, value in gain(_Table.mean_figures).items():
        low, high = np.percentile(samples.get(name, [value]), [2.5, 97.5])
        intervals[name] = Figure(value, float(low), float(high))
    return intervals


def _units(table: _Table) -> list[np.ndarray]:
    """Units of resampling: the rows of each scene, or single rows if there are too few scenes."""
    scenes = sorted(set(table.scenes.tolist()))
    if len(scenes) < FEWEST_SCENES:
        return [np.array([row]) for row in range(len(table.pairs))]
    return [np.flatnonzero(table.scenes == scene) for scene in scenes]
