"""Starting weights for new features from a matcher of other features: its layers, and a new input projection.

    python benchmarks/tools/carry_over.py sift-compact --from sift.h5 --to aliked.h5 -o start.safetensors
    lumiglue train aliked.h5 -o run --start-from start.safetensors
    python benchmarks/tools/carry_over.py aliked-n16-deep --photos PHOTOS --to rotated.h5 -o start.safetensors

The projection is the linear map after which the new descriptors have the mean and covariance of the old states, principal
direction by principal direction; it needs no correspondences. Both datasets should show similar photos. With `--photos`, the
old features describe the new keypoints as well (ALIKED can), and the projection is the one of least squares. If the new
features have no scale and orientation, the rotary frequencies of x and y are kept.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lumiglue.errors import InputError
from lumiglue.extractors import create_extractor
from lumiglue.extractors.networks import Aliked
from lumiglue.images import read_image
from lumiglue.io.listing import list_images
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.weights.files import load_weights, save_weights
from lumiglue.weights.registry import resolve

SAMPLE = 40_000  # keypoints
SMALLEST = 1e-3  # eigenvalues of the new descriptors are at least this fraction of the largest
PER_PHOTO = 512  # keypoints described by both features


def some_descriptors(dataset: FeatureDataset) -> Tensor:
    """Descriptors of random keypoints, n x channels."""
    rng, total = np.random.default_rng(0), int(dataset.counts.sum())
    rows = np.sort(rng.choice(total, min(SAMPLE, total), replace=False))
    return dataset.gather(rows)["descriptors"]


def aligning_map(descriptors: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias that give descriptors (n x a) the mean and the leading covariance of states (m x d)."""
    (small, from_axes), (large, to_axes) = (torch.linalg.eigh(torch.cov(x.T)) for x in (descriptors, states))
    kept = min(len(small), len(large))
    gains = (large[-kept:].clamp_min(0) / small[-kept:].clamp_min(SMALLEST * float(small[-1]))).sqrt()
    weight = to_axes[:, -kept:] @ torch.diag(gains) @ from_axes[:, -kept:].T
    return weight, states.mean(0) - weight @ descriptors.mean(0)


def least_squares_map(descriptors: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias that bring descriptors (n x a) nearest to the states of the same keypoints (n x d)."""
    centred = descriptors - descriptors.mean(0)
    weight = torch.linalg.lstsq(centred, states - states.mean(0)).solution.T
    missed = (states - states.mean(0) - centred @ weight.T).var(0).sum() / states.var(0).sum()
    print(f"{1 - float(missed):.0%} of the variance of the old states is kept")
    return weight, states.mean(0) - weight @ descriptors.mean(0)


def described_twice(photos: Path, old: str, new: str) -> tuple[Tensor, Tensor]:
    """Old and new descriptors of the new features' keypoints."""
    detector, describer = create_extractor(new, max_keypoints=PER_PHOTO), create_extractor(old)
    if not isinstance(describer, Aliked):
        raise InputError(f"{old} describes its own keypoints only; leave out --photos, and give a dataset with --from")
    before, after = [], []
    for path in list_images(photos):
        image = read_image(path)
        features = detector(image)
        before.append(describer.describe(image, features.keypoints))
        after.append(features.descriptors)
    return torch.cat(before), torch.cat(after)


@torch.no_grad()
def carried_over(model: LightGlue, before: FeatureDataset | Path, after: FeatureDataset) -> LightGlue:
    """The layers of `model` for the features of `after`. `before` has the model's features, or is a folder of photos."""
    if isinstance(before, Path):
        old, new = described_twice(before, model.config.extractor, after.extractor["name"])
        weight, bias = least_squares_map(new, model.input_projection(old))
    elif before.extractor["name"] == model.config.extractor:
        weight, bias = aligning_map(some_descriptors(after), model.input_projection(some_descriptors(before)))
    else:
        raise InputError(f"{before.path} has features {before.extractor['name']}, the weights {model.config.extractor}")
    encoding = model.config.encoding if after.has_orientation else "xy"
    new = LightGlue(
        replace(
            model.config, extractor=after.extractor["name"], descriptor_dim=after.descriptor_dim, encoding=encoding,
            project_input=True,
        )
    )  # fmt: skip
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("input_projection.")}
    frequencies = kept["position_encoding.frequencies"]
    kept["position_encoding.frequencies"] = frequencies[:, : new.state_dict()["position_encoding.frequencies"].shape[1]]
    new.load_state_dict(kept | {"input_projection.weight": weight, "input_projection.bias": bias})
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a name or a .safetensors file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="before", type=Path, help="dataset of the weights' features")
    source.add_argument("--photos", type=Path, help="photos whose keypoints both features describe")
    parser.add_argument("--to", dest="after", type=Path, required=True, help="dataset of the new features")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    model = load_weights(resolve(args.weights)).float()
    if not isinstance(model, LightGlue):
        parser.error(f"{args.weights} is a {type(model).__name__}; use a LightGlue")
    new = carried_over(model, args.photos or FeatureDataset(args.before), FeatureDataset(args.after))
    save_weights(new, args.out, {"carried_over_from": args.weights})
    print(f"{args.out}: {new.config}")


if __name__ == "__main__":
    main()
