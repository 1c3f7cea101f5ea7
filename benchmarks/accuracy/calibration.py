"""Calibration: do match scores mean what they say, and does a pair's score tell pairs with overlap from pairs without?

Reliability: matches of all planar pairs of an evaluation folder, right within 3 px, by score. No overlap: each pair's sum of
match scores (and other numbers) on pairs that show one scene against pairs of photos from two groups; ROC AUC.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from lumiglue.cli.flags import PipelineFlags
from lumiglue.evaluation.baselines import BASELINES
from lumiglue.evaluation.calibration import expected_calibration_error, reliability, roc_auc
from lumiglue.evaluation.pairs import HomographyPair, read_pairs
from lumiglue.geometry.projective import reprojection_error
from lumiglue.geometry.robust import estimate
from lumiglue.images import read_image
from lumiglue.types import Features, Matches
from lumiglue.visualization import draw_curves, save_figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of pairs.json")
    parser.add_argument("--features", default="sift")
    parser.add_argument("--weights", help="a .safetensors file; by default the built-in ones")
    parser.add_argument("--max-keypoints", type=int, default=1024)
    parser.add_argument("--negatives", type=int, default=150)
    parser.add_argument("--out", type=Path, help="picture of the reliability diagram")
    options = parser.parse_args()
    flags = PipelineFlags(features=options.features, weights=options.weights, max_keypoints=options.max_keypoints, resize=0)
    pipeline = flags.pipeline()
    features_by_name: dict[str, Features] = {}

    def features(name: str) -> Features:
        if name not in features_by_name:
            features_by_name[name] = pipeline.extractor(read_image(options.folder / name))
        return features_by_name[name]

    pairs = read_pairs(options.folder)
    scores, right = [], []
    for pair in (pair for pair in pairs if isinstance(pair, HomographyPair)):
        a, b = features(pair.a), features(pair.b)
        matches = pipeline.match_features([(a, b)])[0]
        true = torch.from_numpy(pair.b_from_a)
        points = a.keypoints[matches.pairs[:, 0]].double(), b.keypoints[matches.pairs[:, 1]].double()
        scores += matches.scores.tolist()
        right += (reprojection_error(true, *points) <= 3).tolist()
    bins = reliability(scores, right)
    print(f"{len(scores)} matches, expected calibration error {100 * expected_calibration_error(bins):.1f} %\n")
    print("| score | matches | mean score | right |\n|---|---|---|---|")
    for b in bins:
        print(f"| {b.low:.1f} to {b.high:.1f} | {b.count} | {b.score:.2f} | {b.right:.2f} |")
    if options.out:
        lines = {"matches": ([b.score for b in bins], [b.right for b in bins]), "ideal": ([0.0, 1.0], [0.0, 1.0])}
        save_figure(draw_curves({"reliability of match scores": lines}, "share that is right"), options.out)

    rng = np.random.default_rng(0)
    names = {name: pair.group for pair in pairs for name in (pair.a, pair.b)}
    files = sorted(names)
    unrelated: list[tuple[str, str]] = []
    while len(unrelated) < options.negatives:
        a, b = rng.choice(files, 2).tolist()
        if names[a].split("_")[0] != names[b].split("_")[0]:
            unrelated.append((a, b))
    chosen = rng.choice(len(pairs), min(options.negatives, len(pairs)), replace=False)
    friends = [(pairs[k].a, pairs[k].b) for k in chosen.tolist()]
    print(f"\n{len(friends)} pairs of one scene, {len(unrelated)} of two: ROC AUC (%)\n\n| number | AUC |\n|---|---|")
    table = [
        [_numbers(pipeline.match_features, features(a), features(b)) for a, b in group] for group in (friends, unrelated)
    ]
    for name in table[0][0]:
        print(f"| {name} | {100 * roc_auc(*([row[name] for row in group] for group in table)):.1f} |")


def _numbers(match: object, a: Features, b: Features) -> dict[str, float]:
    """What could decide whether two images overlap."""
    ours: Matches = match([(a, b)])[0]  # pyright: ignore[reportCallIssue]
    ratio = BASELINES["ratio-0.85"](a, b)
    return {
        "lumiglue, sum of scores": float(ours.scores.sum()),
        "lumiglue, number of matches": float(len(ours)),
        "lumiglue, inliers of F": _inliers(a, b, ours),
        "ratio test 0.85, number of matches": float(len(ratio)),
        "ratio test 0.85, inliers of F": _inliers(a, b, ratio),
    }


def _inliers(a: Features, b: Features, matches: Matches) -> float:
    points = a.keypoints[matches.pairs[:, 0]].numpy(), b.keypoints[matches.pairs[:, 1]].numpy()
    return float(estimate("fundamental", *points).inliers.sum())


if __name__ == "__main__":
    main()
