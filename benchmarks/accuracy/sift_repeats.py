"""The cost of SIFT's repeated keypoints: distinct positions matched correctly on planar pairs, with and without them."""

import sys
from pathlib import Path

import numpy as np
import torch

from lumiglue.evaluation.baselines import BASELINES
from lumiglue.evaluation.pairs import HomographyPair, read_pairs
from lumiglue.extractors import Sift
from lumiglue.geometry import reprojection_error
from lumiglue.images import read_image

METHODS = ("nn", "ratio-0.8", "ratio-0.9")


def main(folder: Path) -> None:
    pairs = [pair for pair in read_pairs(folder) if isinstance(pair, HomographyPair)]
    print("| keypoints | " + " | ".join(METHODS) + " |\n" + "|---" * 4 + "|")
    for name, single in (("repeated", False), ("one orientation per position", True)):
        extractor = Sift(max_keypoints=1024, resize=None, one_orientation=single)
        cells = []
        features = {key: extractor(read_image(folder / key)) for pair in pairs for key in (pair.a, pair.b)}
        for method in METHODS:
            right, precision = [], []
            for pair in pairs:
                a, b = features[pair.a], features[pair.b]
                rows = BASELINES[method](a, b).pairs
                points0, points1 = a.keypoints[rows[:, 0]], b.keypoints[rows[:, 1]]
                good = reprojection_error(torch.from_numpy(pair.b_from_a).float(), points0, points1) <= 3
                right.append(len(torch.unique(points0[good].round(decimals=1), dim=0)))
                precision.append(float(good.float().mean()) if len(rows) else 0.0)
            cells.append(f"{np.mean(right):.0f} ({100 * np.mean(precision):.1f} %)")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
