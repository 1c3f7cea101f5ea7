"""How hard a dataset's views are for its features: mutual nearest neighbours, an untrained matcher and, where they are
given, weights on held-out pairs.

python benchmarks/accuracy/nearest_in_dataset.py orb.h5 sift.h5
python benchmarks/accuracy/nearest_in_dataset.py repeating.h5 --weights sift-compact run/weights.safetensors
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.models import ModelConfig, preset
from lumiglue.training.config import TrainSettings
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.sampling import PairSampler
from lumiglue.training.validation import truth_of, validate
from lumiglue.weights.files import load_weights
from lumiglue.weights.registry import resolve

BATCHES, PAIRS, POINTS = 8, 8, 384


def held_out(dataset: FeatureDataset, config: ModelConfig) -> PairSampler:
    return PairSampler([dataset], config, split="validation", seed=0, negative_pair_ratio=0.0)


def look_at(file: Path, weights: Sequence[str]) -> None:
    dataset = FeatureDataset(file)
    encoding = "xy-logscale-angle" if dataset.has_orientation else "xy"
    config = preset("compact", dataset.extractor["name"], dataset.descriptor_dim, encoding)
    sampler = held_out(dataset, config)
    right = predicted = true = 0
    for step in range(BATCHES):
        batch = sampler.batch(step, PAIRS, POINTS)
        truth, labelled = truth_of(batch)
        descriptors = batch.pairs.descriptors.unflatten(0, (PAIRS, 2, POINTS))
        similarity = descriptors[:, 0] @ descriptors[:, 1].mT
        partner = similarity.argmax(2)
        mutual = similarity.argmax(1).gather(1, partner) == torch.arange(POINTS)
        right += int(((partner == truth) & mutual).sum())
        predicted += int((mutual & labelled).sum())
        true += int((truth >= 0).sum())
    recall, precision = 100 * right / true, 100 * right / predicted
    print(f"{file.name}: mutual nearest neighbours, recall {recall:.1f} %, precision {precision:.1f} %")
    torch.manual_seed(0)
    models = {"untrained": LightGlue(config), **{name: load_weights(resolve(name)) for name in weights}}
    for name, model in models.items():
        last = validate(model, held_out(dataset, model.config), TrainSettings(precision="fp32"), 1)[-1]
        print(f"{file.name}: {name}, " + ", ".join(f"{figure} {value:.1f} %" for figure, value in last.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--weights", nargs="*", default=[], help="names or files")
    options = parser.parse_args()
    for dataset in options.datasets:
        look_at(dataset, options.weights)
