"""Whether one run of `lumiglue eval --out` is better than another on the same pairs: pose AUC and a paired bootstrap.

python benchmarks/accuracy/paired.py homographies.csv scenes.csv
"""

import sys
from pathlib import Path

import numpy as np

from lumiglue.evaluation.metrics import auc
from lumiglue.evaluation.scores import read_scores
from lumiglue.evaluation.scoring import POSE_THRESHOLDS


def main(first: Path, second: Path, rounds: int = 2000) -> None:
    errors = []
    for file in (first, second):
        scores = [score for score in read_scores(file) if score.type == "pose"]
        errors.append({(score.a, score.b): score.error for score in scores if score.method == scores[0].method})
    pairs = sorted(errors[0].keys() & errors[1].keys())
    table = np.array([[side[pair] for pair in pairs] for side in errors])  # 2 x pairs
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(rounds):
        rows = rng.integers(0, len(pairs), len(pairs))
        gains.append(np.subtract(*(np.array(auc(errors.tolist(), POSE_THRESHOLDS)) for errors in table[::-1, rows])))
    low, high = np.percentile(gains, [2.5, 97.5], axis=0)
    print(f"{len(pairs)} pairs, pose AUC at 5 / 10 / 20 degrees")
    for file, row in zip((first, second), table, strict=True):
        print(f"{file.stem}: " + " / ".join(f"{value:.1f}" for value in auc(row.tolist(), POSE_THRESHOLDS)))
    print("gain, 95 % interval: " + ", ".join(f"{a:+.1f} to {b:+.1f}" for a, b in zip(low, high, strict=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
