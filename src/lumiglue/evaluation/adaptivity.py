"""What adaptive depth and width save and cost: by difficulty of the pair, and over alpha and beta (Section 5.4)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lumiglue.errors import InputError
from lumiglue.evaluation.baselines import BASELINES, Matcher
from lumiglue.evaluation.run import evaluate, matcher_of
from lumiglue.evaluation.scoring import PairScore, summarise
from lumiglue.matcher.settings import MatchSettings
from lumiglue.pipeline.pipeline import Pipeline

FULL_DEPTH = "full depth"
YARDSTICK = "nn"
LEVELS = ("easy", "medium", "hard")
ALPHAS = (0.8, 0.9, 0.98, 0.0)
BETAS = (0.0, 0.05, 0.2)


def evaluate_adaptivity(
    folder: str | Path,
    pipeline: Pipeline | None = None,
    *,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
    **options: Any,
) -> list[PairScore]:
    """Measures the settings of `sweep`, and nearest neighbours as the yardstick, on pairs with ground truth.

    `by_difficulty` and `saving` summarise the scores.

    Args:
        folder: Folder that the image files are relative to, and of `pairs.json`.
        pipeline: Features and matcher; its exit ratio and pruning are replaced. None uses the default pipeline.
        alphas: Exit ratios beside that of the weights; 0 is off.
        betas: Limits of pruning beside that of the weights; 0 is off.
        options: Further arguments of `run.evaluate`.

    Returns:
        One score for each pair and setting.
    """
    pipeline = pipeline or Pipeline.pretrained(precision="fp32")
    methods: dict[str, Matcher] = {YARDSTICK: BASELINES[YARDSTICK]}
    for name, settings in sweep(pipeline.matcher.own_settings, alphas, betas).items():
        settings = replace(settings, score_threshold=pipeline.settings.score_threshold)
        methods[name] = matcher_of(pipeline.with_settings(settings))
    return evaluate(folder, pipeline, methods=methods, **options)


def sweep(usual: MatchSettings, alphas: Sequence[float], betas: Sequence[float]) -> dict[str, MatchSettings]:
    """Settings by name: full depth, the usual ones, each alpha with the usual beta, each beta with the usual alpha; 0 is
    off."""
    chosen = [usual, *(replace(usual, exit_ratio=alpha) for alpha in alphas)]
    chosen += [replace(usual, prune_below=beta) for beta in betas]
    return {FULL_DEPTH: MatchSettings(exit_ratio=0, prune_below=0)} | {settings_name(s): s for s in chosen}


def settings_name(settings: MatchSettings) -> str:
    """Names settings: `alpha 0.95, beta 0.01`."""
    shown = (f"{value:g}" if value else "off" for value in (settings.exit_ratio, settings.prune_below))
    return "alpha {}, beta {}".format(*shown)


def difficulties(scores: Sequence[PairScore]) -> dict[tuple[str, str], str]:
    """Sorts the pairs (a, b) with a known geometry into "easy", "medium" and "hard" thirds, by the share of keypoints that
    the yardstick, any method but the measured one, matches correctly.

    Raises InputError if there is no score of the yardstick.
    """
    share = {
        (s.a, s.b): (0.0 if np.isnan(s.precision) else s.precision) * s.matches / max(min(s.keypoints_a, s.keypoints_b), 1)
        for s in scores
        if s.method == YARDSTICK and s.type != "correspondences"
    }
    if not share:
        raise InputError(f"there is no score of {YARDSTICK!r} on a pair with a known pose or homography")
    from_easiest = sorted(share, key=lambda pair: -share[pair])
    return {pair: LEVELS[rank * len(LEVELS) // len(from_easiest)] for rank, pair in enumerate(from_easiest)}


@dataclass(frozen=True)
class Saving:
    """One setting compared with full depth on the same pairs. AUCs are in percent, NaN if there are no such pairs.

    Attributes:
        setting: Its name.
        pairs: How many pairs there are.
        stop_layer: Mean of the last layers that ran.
        pruned: Pruned keypoints in percent, mean.
        speed_up: Median over the pairs of full depth's time over this setting's.
        pose_auc: At 5, 10 and 20 degrees.
        pose_auc_full: The same at full depth.
        f1: Of homographies.
        f1_full: The same at full depth.
    """

    setting: str
    pairs: int
    stop_layer: float
    pruned: float
    speed_up: float
    pose_auc: list[float]
    pose_auc_full: list[float]
    f1: float
    f1_full: float


def saving(scores: Sequence[PairScore], setting: str) -> Saving:
    """Compares a setting with full depth. Raises InputError unless the scores have the same pairs of both."""
    mine, full = ([s for s in scores if s.method == name] for name in (setting, FULL_DEPTH))
    if not mine or len(mine) != len(full):
        raise InputError(f"the scores have no pairs of both {setting!r} and {FULL_DEPTH!r}")
    (of_mine,), (of_full,) = summarise(mine), summarise(full)
    times = {(s.a, s.b): s.milliseconds for s in full}
    return Saving(
        setting=setting,
        pairs=len(mine),
        stop_layer=of_mine.stop_layer,
        pruned=of_mine.pruned,
        speed_up=float(np.median([times[s.a, s.b] / s.milliseconds for s in mine])),
        pose_auc=of_mine.pose_auc,
        pose_auc_full=of_full.pose_auc,
        f1=of_mine.f1,
        f1_full=of_full.f1,
    )


def by_difficulty(scores: Sequence[PairScore], setting: str) -> dict[str, Saving]:
    """Compares a setting with full depth for easy, medium and hard pairs, and for all. The scores also include the
    yardstick's."""
    level = difficulties(scores)
    groups = {name: [s for s in scores if level.get((s.a, s.b)) == name] for name in LEVELS}
    groups["all"] = [s for s in scores if (s.a, s.b) in level]
    return {name: saving(group, setting) for name, group in groups.items() if group}
