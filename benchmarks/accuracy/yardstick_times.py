"""Times of several matchers on the pairs of the yardstick, in turns: what their accuracy costs.

    python benchmarks/accuracy/yardstick_times.py YARDSTICK --cache CACHE --features aliked-n16 \\
        --matchers released=RELEASED/aliked_lightglue.pth deep=aliked-n16-deep "deep, full depth=aliked-n16-deep:full"

The yardstick's `measure` gives the accuracy. For each pair the matchers take turns, in another order each time; ratios
are to the first one on the same pair. Features are extracted before, and not timed.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from yardstick import FeatureCache, pipeline_of

from lumiglue.evaluation.baselines import Matcher
from lumiglue.evaluation.pairs import read_pairs
from lumiglue.evaluation.run import matcher_of
from lumiglue.matcher.settings import MatchSettings
from lumiglue.training.data.homographies import rng_for
from lumiglue.weights.registry import resolve


def named_matcher(text: str, features: str) -> tuple[str, Matcher]:
    """NAME=WEIGHTS, or NAME=WEIGHTS:full for all layers of all points."""
    name, _, weights = text.partition("=")
    if not weights:
        raise SystemExit(f"{text!r} is not NAME=WEIGHTS")
    weights, full = weights.removesuffix(":full"), weights.endswith(":full")
    settings = MatchSettings(exit_ratio=0, prune_below=0) if full else MatchSettings()
    return name, matcher_of(pipeline_of(features, resolve(weights), settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--features", default="aliked-n16")
    parser.add_argument("--matchers", nargs="+", required=True, help="NAME=WEIGHTS[:full]; ratios are to the first")
    parser.add_argument("--max-keypoints", nargs="+", type=int, default=[1024, 2048])
    parser.add_argument("--pairs", type=int, default=60, help="of the yardstick's, a fair sample")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pairs = read_pairs(options.folder)
    pairs = [pairs[row] for row in rng_for(0, "order").permutation(len(pairs))[: options.pairs]]
    cache = FeatureCache(options.folder, options.cache)
    cache.extract(options.features, {name for pair in pairs for name in (pair.a, pair.b)})
    matchers = dict(named_matcher(text, options.features) for text in options.matchers)
    names, rng = list(matchers), np.random.default_rng(0)
    print("| keypoints | matcher | ms, median | first one's time / its time, median (quartiles) |\n|---|---|---|---|")
    for count in options.max_keypoints:
        sides = [tuple(cache.features(options.features, name, count) for name in (pair.a, pair.b)) for pair in pairs]
        for match in matchers.values():
            match(*sides[0])  # the first one allocates memory
        times = np.empty((len(sides), len(names)))
        for row, (a, b) in enumerate(sides):
            for column in rng.permutation(len(names)):
                start = time.perf_counter()
                matchers[names[column]](a, b)
                times[row, column] = 1000 * (time.perf_counter() - start)
        low, middle, high = np.percentile(times[:, :1] / times, [25, 50, 75], axis=0)
        for column, name in enumerate(names):
            spread = f"{middle[column]:.2f} ({low[column]:.2f} to {high[column]:.2f})"
            print(f"| {count} | {name} | {np.median(times[:, column]):.0f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
