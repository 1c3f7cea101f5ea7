"""Compression: how near a sliced matcher is to the one it was made from, and how much faster."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.models import MatcherModel
from lumiglue.matcher.packed import PackedPairs
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.sampling import PairSampler

PAIRS = {"training": 48, "validation": 12}


@dataclass(frozen=True)
class Likeness:
    """A small matcher beside the original, on held-out pairs.

    Attributes:
        parameters: Number of its parameters.
        kept: Fraction of the original's matches that it finds.
        shared: Fraction of its matches that the original finds.
        faster: Time of the original divided by its time, median over the pairs.
    """

    parameters: int
    kept: float
    shared: float
    faster: float


def sample_pairs(
    dataset: FeatureDataset, model: LightGlue, points: int, split: Literal["training", "validation"]
) -> list[PackedPairs]:
    """Pairs of a dataset: of "training" for `sliced`, of "validation" for `compare`.

    Args:
        dataset: The dataset.
        model: The matcher that they are for.
        points: Keypoints per image.
        split: Which of the dataset's pairs.

    Raises:
        DatasetError: No pair has that many keypoints.
    """
    sampler = PairSampler([dataset], model.config, split=split, seed=0, negative_pair_ratio=0.0)
    return [sampler.batch(step, 1, points).pairs for step in range(PAIRS[split])]


def compare(original: LightGlue, small: Mapping[str, MatcherModel], pairs: Sequence[PackedPairs]) -> dict[str, Likeness]:
    """Runs the original and each small matcher in turns, adaptively, as their weights are meant to be run.

    Args:
        original: The matcher that was compressed.
        small: The others by name.
        pairs: Pairs of images.

    Returns:
        What was found for each name.
    """
    models: dict[str, MatcherModel] = {"": original, **small}
    matches: dict[str, list[set[tuple[int, ...]]]] = {name: [] for name in models}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.eval().match(pairs[0])  # the first one allocates memory
    for pair in pairs:
        for name, model in models.items():
            found, duration = _timed(lambda model=model, pair=pair: model.match(pair)[0].pairs)
            matches[name].append({tuple(row) for row in found.tolist()})
            seconds[name].append(duration)
    result = {}
    for name, model in small.items():
        both = sum(len(theirs & ours) for theirs, ours in zip(matches[""], matches[name], strict=True))
        result[name] = Likeness(
            parameters=sum(p.numel() for p in model.parameters()),
            kept=both / max(sum(map(len, matches[""])), 1),
            shared=both / max(sum(map(len, matches[name])), 1),
            faster=float(np.median(np.array(seconds[""]) / np.array(seconds[name]))),
        )
    return result


def _timed(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    start = time.perf_counter()
    found = run()
    return found, time.perf_counter() - start
