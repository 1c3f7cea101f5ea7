"""Rotation and scale curves: photos against themselves, turned by 0 to 180 degrees or shrunk 1 to 6 times.

Prints precision and recall at 3 px for each method and draws them.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from lumiglue.cli.flags import PipelineFlags
from lumiglue.evaluation.baselines import BASELINES, Matcher
from lumiglue.evaluation.metrics import homography_precision_recall
from lumiglue.evaluation.synthetic import shrunk, turned
from lumiglue.images import list_images, read_image
from lumiglue.visualization import draw_curves, save_figure

DEGREES = tuple(range(0, 181, 15))
FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--features", default="sift")
    parser.add_argument("--weights", nargs="*", default=[], help="more matchers to compare, as name=file.safetensors")
    parser.add_argument("--methods", nargs="*", default=["ratio-0.9", "adalam"])
    parser.add_argument("--max-keypoints", type=int, default=1024)
    parser.add_argument("--count", type=int, default=12, help="photos used")
    parser.add_argument("--out", type=Path, help="picture of the curves")
    options = parser.parse_args()

    pipelines = {
        "lumiglue": PipelineFlags(features=options.features, max_keypoints=options.max_keypoints, resize=0).pipeline()
    }
    for named in options.weights:
        name, _, file = named.partition("=")
        flags = PipelineFlags(features=options.features, max_keypoints=options.max_keypoints, resize=0, weights=file)
        pipelines[name] = flags.pipeline()
    extract = pipelines["lumiglue"].extractor
    methods: dict[str, Matcher] = {
        name: (lambda a, b, p=pipeline: p.match_features([(a, b)])[0]) for name, pipeline in pipelines.items()
    }
    methods |= {name: BASELINES[name] for name in options.methods}

    photos = [read_image(path) for path in list_images(options.photos)[: options.count]]
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for kind, change, values in (("rotation (degrees)", turned, DEGREES), ("times smaller", shrunk, FACTORS)):
        originals = [extract(photo) for photo in photos]
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        for value in values:
            scores: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
            for photo, original in zip(photos, originals, strict=True):
                image, image_from_photo = change(photo, value)
                features = extract(image)
                for name, method in methods.items():
                    pairs = method(original, features).pairs
                    points = original.keypoints, features.keypoints
                    scores[name].append(homography_precision_recall(*points, pairs, torch.from_numpy(image_from_photo)))
            for name in methods:
                precision, recall = np.array(scores[name]).T
                rows[name].append((100 * float(np.nan_to_num(precision).mean()), 100 * float(np.nanmean(recall))))
        print(f"\nprecision / recall (%) by {kind}\n| method | " + " | ".join(f"{value:g}" for value in values) + " |")
        print("|---" * (len(values) + 1) + "|")
        for name, line in rows.items():
            print(f"| {name} | " + " | ".join(f"{p:.0f} / {r:.0f}" for p, r in line) + " |", flush=True)
        x = [float(value) for value in values]
        panels[f"recall by {kind}"] = {name: (x, [r for _, r in line]) for name, line in rows.items()}
        panels[f"precision by {kind}"] = {name: (x, [p for p, _ in line]) for name, line in rows.items()}
    if options.out:
        save_figure(draw_curves(panels, "percent"), options.out)


if __name__ == "__main__":
    main()
