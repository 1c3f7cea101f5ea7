"""LightGlue beside SuperGlue and the ablations of the paper, of one size, in turns in one process: training steps, and
matching at full depth.

    python benchmarks/speed/paper_cost.py [--preset compact] [--rounds 7]

Random weights: what a step or a match costs does not depend on them. Ratios are medians of the rounds' ratios.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import numpy as np
import torch
from torch import nn

from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.models import MatcherModel, preset, superglue_preset
from lumiglue.matcher.packed import PackedPairs
from lumiglue.matcher.settings import Ablation, MatchSettings
from lumiglue.matcher.superglue import SuperGlue
from lumiglue.training.labels import Labels
from lumiglue.training.loss import matcher_loss
from lumiglue.types import Features

FULL = MatchSettings(exit_ratio=0, prune_below=0)


def features(n: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        keypoints=torch.rand(n, 2, generator=generator) * 480,
        descriptors=nn.functional.normalize(torch.randn(n, 128, generator=generator), dim=1),
        image_size=(480, 480),
        scores=torch.rand(n, generator=generator),
        scales=torch.rand(n, generator=generator) + 1,
        orientations=torch.rand(n, generator=generator),
    )


def training_step(model: MatcherModel, pairs: int, points: int) -> Callable[[], object]:
    """Forward, loss and backward of one batch, a quarter of the points matched."""
    images = [(features(points, 2 * k), features(points, 2 * k + 1)) for k in range(pairs)]
    packed: PackedPairs = pack(images, model.config)
    rows = torch.arange(points // 4)
    matches = torch.cat([torch.stack([torch.full_like(rows, k), rows, rows], 1) for k in range(pairs)])
    alone = (torch.arange(points) >= points // 4).expand(pairs, points)
    labels = Labels(matches, alone, alone)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        matcher_loss(model.train(), packed, labels).backward()

    return step


def matching(model: MatcherModel, points: int) -> Callable[[], object]:
    packed = pack([(features(points, 0), features(points, 1))], model.config)
    return lambda: model.eval().match(packed, FULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    usual = preset(options.preset, "sift", 128, "xy-logscale-angle")
    models: dict[str, MatcherModel] = {
        "LightGlue": LightGlue(usual),
        "SuperGlue": SuperGlue(superglue_preset(options.preset, "sift", 128)),
        **{name: LightGlue(replace(usual, ablation=name)) for name in get_args(Ablation)},
        f"layer {usual.n_layers // 2 + 1} of {usual.n_layers}": LightGlue(replace(usual, n_layers=usual.n_layers // 2 + 1)),
    }
    for name, model in models.items():
        print(f"{name}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    print("\n| what | matcher | ms | ratio to LightGlue (lowest to highest) |\n|---|---|---|---|")
    jobs: list[tuple[str, Callable[[MatcherModel], Callable[[], object]]]] = [
        ("training step, 8 pairs of 256", lambda m: training_step(m, 8, 256)),
        *((f"match {n} x {n}, full depth", lambda m, n=n: matching(m, n)) for n in (512, 1024, 2048)),
    ]
    for title, job in jobs:
        runs = {name: job(model) for name, model in models.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(options.rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
        light = np.array(seconds["LightGlue"])
        for name, times in seconds.items():
            ratios = np.array(times) / light
            spread = f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
            print(f"| {title} | {name} | {1000 * np.median(times):.0f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
