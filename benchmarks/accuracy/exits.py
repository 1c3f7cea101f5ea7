"""What early exit costs, free of RANSAC's luck: each weights file at full depth and with its exit classifiers, on the pairs
of a folder with a known pose or homography; every AUC is the mean over several seeds of RANSAC.

One seed is not enough to see half a point: on a hard pair the pose changes from seed to seed on the same matches. Errors
of full depth are measured once for all files of one matcher, so give files that differ in their classifiers alone.

python benchmarks/accuracy/exits.py EVAL --weights sift-compact run/weights.safetensors --max-keypoints 2048 \\
    --groups oxford homogr strecha fox
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lumiglue import Features, Matches
from lumiglue.cli.flags import PipelineFlags
from lumiglue.evaluation.formats import read_upright
from lumiglue.evaluation.metrics import auc, corner_error, homography_precision_recall
from lumiglue.evaluation.pairs import CorrespondencePair, HomographyPair, PosePair, only_groups, read_pairs
from lumiglue.evaluation.scoring import PIXEL_THRESHOLDS, POSE_THRESHOLDS, error_of_pose
from lumiglue.geometry.robust import estimate, relative_pose

SEEDS = 5
FULL = "full depth"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One pair: errors by seed, precision and recall of planar pairs, what was matched, the layer that it stopped at."""

    kind: str
    errors: list[float]
    shares: tuple[float, float]
    matched: set[tuple[int, int]]
    stop_layer: int


def measure(pair: HomographyPair | PosePair, features: tuple[Features, Features], matches: Matches) -> Outcome:
    a, b = features
    ends = (a.keypoints[matches.pairs[:, 0]].numpy(), b.keypoints[matches.pairs[:, 1]].numpy())
    shares = float("nan"), float("nan")
    if isinstance(pair, HomographyPair):
        true = torch.from_numpy(pair.b_from_a)
        errors = [corner_error(estimate("homography", *ends, seed=s).matrix, true, a.image_size) for s in range(SEEDS)]
        shares = homography_precision_recall(a.keypoints, b.keypoints, matches.pairs, true)
    else:
        cameras = pair.intrinsics_a, pair.intrinsics_b
        errors = [error_of_pose(pair, relative_pose(*ends, *cameras, seed=s)) for s in range(SEEDS)]
    matched = {(i, j) for i, j in matches.pairs.tolist()}
    return Outcome(pair.type, errors, shares, matched, matches.stop_layer)


def summary(outcomes: Sequence[Outcome], full: Sequence[Outcome]) -> str:
    cells = [f"{np.mean([o.stop_layer for o in outcomes]):.2f}"]
    for kind, thresholds in (("pose", POSE_THRESHOLDS), ("homography", PIXEL_THRESHOLDS)):
        chosen = [o for o in outcomes if o.kind == kind]
        areas = np.mean([auc([o.errors[seed] for o in chosen], thresholds) for seed in range(SEEDS)], 0)
        cells.append(" / ".join(f"{area:.1f}" for area in areas) if chosen else "")
    planar = np.array([o.shares for o in outcomes if o.kind == "homography"]).reshape(-1, 2)
    if len(planar):
        precision, recall = np.nan_to_num(planar[:, 0]).mean(), np.nanmean(planar[:, 1])
        cells.append(f"{200 * precision * recall / (precision + recall):.1f}")
    both = [len(o.matched & f.matched) / max(1, len(o.matched | f.matched)) for o, f in zip(outcomes, full, strict=True)]
    cells.append(f"{100 * np.mean(both):.0f}")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", nargs="+", required=True)
    parser.add_argument("--features", default="sift")
    parser.add_argument("--max-keypoints", type=int, default=2048)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--groups", nargs="*", default=[])
    options = parser.parse_args()

    pipelines = {
        name: PipelineFlags(
            features=options.features,
            weights=name,
            max_keypoints=options.max_keypoints,
            resize=0,
            precision=options.precision,
        ).pipeline()
        for name in options.weights
    }
    first = next(iter(pipelines.values()))
    whole = first.with_settings(dataclasses.replace(first.settings, exit_ratio=0, prune_below=0))
    matchers = {FULL: whole, **pipelines}

    outcomes: dict[str, list[Outcome]] = {name: [] for name in matchers}
    described: dict[tuple[str, int], Features] = {}
    for pair in only_groups(read_pairs(options.folder), options.groups):
        if isinstance(pair, CorrespondencePair):
            continue
        sides = [(pair.a, pair.turns_a), (pair.b, pair.turns_b)]
        for name, turns in sides:
            if (name, turns) not in described:
                described[name, turns] = first.extractor(read_upright(options.folder / name, turns))
        features = described[sides[0]], described[sides[1]]
        for name, pipeline in matchers.items():
            outcomes[name].append(measure(pair, features, pipeline.match_features([features])[0]))
    print("weights | stop layer | pose AUC 5/10/20 | corner AUC 1/3/5/10 px | F1 | matches in common with full depth, %")
    for name, scores in outcomes.items():
        print(f"{name} | {summary(scores, outcomes[FULL])}")


if __name__ == "__main__":
    main()
