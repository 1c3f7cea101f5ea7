"""Pairs per second of training from a dataset against a plain loop that reads, warps and extracts in every step, in turns.

    python benchmarks/speed/loop_against_plain.py PHOTOS [--photos 24] [--rounds 7] [--pairs 16] [--points 256]

Both train the same model (`compact`, bf16 autocast) with batches of the same size, on views of the same distribution and
with the same threads. The plain loop makes each pair anew: it reads the photo, warps two views of it, applies photometric
augmentation and extracts SIFT. The dataset's cost is paid once and printed below the rates.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lumiglue import Features, LightGlue, Sift
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlueConfig
from lumiglue.matcher.models import preset
from lumiglue.matcher.packed import PackedPairs
from lumiglue.training.data.build import DatasetSettings, build_dataset
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.data.homographies import PhotoViews
from lumiglue.training.labels import Labels, labels_from_homographies
from lumiglue.training.loss import matcher_loss
from lumiglue.training.sampling import PairSampler

Batches = Callable[[int], tuple[PackedPairs, Labels]]


def plain_batches(source: PhotoViews, config: LightGlueConfig, pairs: int, points: int) -> Batches:
    """Makes each pair anew; photos whose views have too few keypoints are tried and dropped, as such a loop has to."""
    extractor = Sift(max_keypoints=round(1.5 * points), resize=None)

    def batch(step: int) -> tuple[PackedPairs, Labels]:
        rng = np.random.default_rng(step)
        made: list[tuple[Features, Features]] = []
        homographies: list[np.ndarray] = []
        while len(made) < pairs:
            fresh = replace(source, n_views=2, seed=int(rng.integers(2**31)))
            a, b = fresh.views(int(rng.integers(len(fresh.items))), extractor, points)
            if min(len(a.features), len(b.features)) == points:
                assert a.view_from_scene is not None
                assert b.view_from_scene is not None
                made.append((a.features, b.features))
                homographies.append(b.view_from_scene @ np.linalg.inv(a.view_from_scene))
        keypoints = [torch.stack([pair[side].keypoints for pair in made]) for side in (0, 1)]
        h = torch.from_numpy(np.stack(homographies)).float()
        related = torch.ones(pairs, dtype=torch.bool)
        return pack(made, config), labels_from_homographies(keypoints[0], keypoints[1], h, related)

    return batch


def dataset_batches(dataset: Path, config: LightGlueConfig, pairs: int, points: int) -> Batches:
    sampler = PairSampler([FeatureDataset(dataset)], config, split="training", seed=0, negative_pair_ratio=0.0)

    def batch(step: int) -> tuple[PackedPairs, Labels]:
        drawn = sampler.batch(step, pairs, points)
        return drawn.pairs, drawn.labels()

    return batch


def train_step(model: LightGlue, optimizer: torch.optim.Optimizer, packed: PackedPairs, labels: Labels) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = matcher_loss(model, packed, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--points", type=int, default=256)
    flags = parser.parse_args()
    source = PhotoViews.of_folder(flags.folder, n_views=6, long_side=480)
    chosen = np.random.default_rng(0).permutation(len(source.items))[: flags.photos]
    source = replace(source, items=[source.items[i] for i in sorted(chosen)])
    config = preset("compact", "sift", 128, "xy-logscale-angle")
    torch.manual_seed(0)
    model = LightGlue(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "dataset.h5"
        start = time.perf_counter()
        for _ in build_dataset(source, dataset, Sift(max_keypoints=768, resize=None), DatasetSettings(), workers=1):
            pass
        building = time.perf_counter() - start
        sources = {
            "plain": plain_batches(source, config, flags.pairs, flags.points),
            "dataset": dataset_batches(dataset, config, flags.pairs, flags.points),
        }
        drawing: dict[str, list[float]] = {name: [] for name in sources}
        whole: dict[str, list[float]] = {name: [] for name in sources}
        for step in range(flags.rounds + 1):
            for name, batches in sources.items():
                start = time.perf_counter()
                batch = batches(step)
                drawn = time.perf_counter()
                train_step(model, optimizer, *batch)
                if step:  # the first round warms up
                    drawing[name].append(drawn - start)
                    whole[name].append(time.perf_counter() - start)
    print("| batches from | pairs/s | of a step, ms | of it for the batch, ms |\n|---|---|---|---|")
    for name in sources:
        seconds, batch_seconds = np.median(whole[name]), np.median(drawing[name])
        print(f"| {name} | {flags.pairs / seconds:.2f} | {1000 * seconds:.0f} | {1000 * batch_seconds:.0f} |")
    ratio = np.median(np.array(whole["plain"]) / np.array(whole["dataset"]))
    print(f"\ndataset over plain: {ratio:.2f} x (median of the rounds' ratios)")
    views = 6 * len(source.items)
    print(f"the dataset, once: {1000 * building / views:.0f} ms a view with one process; a plain step pays it twice a pair")


if __name__ == "__main__":
    main()
