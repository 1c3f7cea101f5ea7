"""What a user would pick instead of a learned matcher: nearest neighbours, the ratio test, AdaLAM."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lumiglue.types import Features, Matches

Matcher = Callable[[Features, Features], Matches]


def mutual_nearest_neighbours(features0: Features, features1: Features, ratio: float | None = None) -> Matches:
    """Mutual nearest neighbours in Euclidean descriptor distance; with `ratio`, Lowe's test against the second best in
    image 1. Scores are the cosine of the descriptors."""
    if min(len(features0), len(features1)) < 2:
        return _matches(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0))
    similarity = features0.descriptors @ features1.descriptors.mT
    best, row = similarity.topk(2, dim=1)
    mutual = similarity.argmax(0)[row[:, 0]] == torch.arange(len(features0))
    if ratio is not None:
        distance = (2 - 2 * best).clamp_min(0).sqrt()  # descriptors have unit length
        mutual &= distance[:, 0] <= ratio * distance[:, 1]
    kept = mutual.nonzero()[:, 0]
    return _matches(torch.stack([kept, row[kept, 0]], 1), best[kept, 0].clamp(0, 1))


def adalam(features0: Features, features1: Features) -> Matches:
    """AdaLAM (Cavalli et al., ECCV 2020) as kornia implements it. Default settings, less the tests of scale and orientation
    for features that have neither."""
    from kornia.feature import laf_from_center_scale_ori, match_adalam
    from kornia.feature.adalam.adalam import get_adalam_default_config

    if min(len(features0), len(features1)) < 2:
        return _matches(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0))
    settings: Any = get_adalam_default_config()
    frames = []
    for features in (features0, features1):
        n = len(features)
        if features.scales is None or features.orientations is None:
            settings["orientation_difference_threshold"] = settings["scale_rate_threshold"] = None
        scales = torch.ones(n) if features.scales is None else features.scales
        degrees = torch.zeros(n) if features.orientations is None else -torch.rad2deg(features.orientations)  # kornia: ccw
        frames.append(
            laf_from_center_scale_ori(features.keypoints[None], scales[None, :, None, None], degrees[None, :, None])
        )
    sizes = [(features.image_size[1], features.image_size[0]) for features in (features0, features1)]
    distance, pairs = match_adalam(
        features0.descriptors, features1.descriptors, *frames, hw1=sizes[0], hw2=sizes[1], config=settings
    )
    pairs = pairs.long()
    scores = (1 - distance.flatten() / 2).clamp(0, 1) if len(distance) == len(pairs) else torch.ones(len(pairs))
    return _matches(pairs, scores)


BASELINES: dict[str, Matcher] = {
    "nn": mutual_nearest_neighbours,
    "ratio-0.8": lambda a, b: mutual_nearest_neighbours(a, b, 0.8),
    "ratio-0.85": lambda a, b: mutual_nearest_neighbours(a, b, 0.85),
    "ratio-0.9": lambda a, b: mutual_nearest_neighbours(a, b, 0.9),
    "adalam": adalam,
}


def _matches(pairs: Tensor, scores: Tensor) -> Matches:
    return Matches(pairs, scores)
