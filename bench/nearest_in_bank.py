"""How hard a bank's views are for its features: mutual nearest neighbours, an untrained matcher and, where they are given,
weights on held-out pairs.

python bench/nearest_in_bank.py orb.h5 sift.h5
python bench/nearest_in_bank.py repeating.h5 --weights sift run/weights.safetensors
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.presets import preset
from lumiglue.registry import resolve
from lumiglue.training.bank import Bank
from lumiglue.training.presets import TrainSettings
from lumiglue.training.sampling import PairSampler
from lumiglue.training.validation import truth_of, validate
from lumiglue.weights import load_weights

BATCHES, PAIRS, POINTS = 8, 8, 384


def look_at(file: Path, weights: Sequence[str]) -> None:
    bank = Bank(file)
    config = preset("compact", bank.extractor["name"], bank.descriptor_dim, "xy-logscale-angle")
    sampler = PairSampler([bank], config, split="validation", seed=0, negatives=0.0)
    right = found = true = 0
    for step in range(BATCHES):
        batch = sampler.batch(step, PAIRS, POINTS)
        truth, labelled = truth_of(batch)
        descriptors = batch.pairs.descriptors.unflatten(0, (PAIRS, 2, POINTS))
        similarity = descriptors[:, 0] @ descriptors[:, 1].mT
        partner = similarity.argmax(2)
        mutual = similarity.argmax(1).gather(1, partner) == torch.arange(POINTS)
        right += int(((partner == truth) & mutual).sum())
        found += int((mutual & labelled).sum())
        true += int((truth >= 0).sum())
    print(
        f"{file.name}: mutual nearest neighbours, recall {100 * right / true:.1f} %, precision {100 * right / found:.1f} %"
    )
    torch.manual_seed(0)
    models = {"untrained": LightGlue(config), **{name: load_weights(resolve(name)) for name in weights}}
    for name, model in models.items():
        last = validate(model, sampler, TrainSettings(precision="fp32"), 1)[-1]
        print(f"{file.name}: {name}, " + ", ".join(f"{figure} {value:.1f} %" for figure, value in last.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("banks", type=Path, nargs="+")
    parser.add_argument("--weights", nargs="*", default=[], help="names or files, with the encoding of SIFT's")
    options = parser.parse_args()
    for bank in options.banks:
        look_at(bank, options.weights)
