"""Quarter turns: for features or matchers that know upright photos alone, the turn of the second photo that matches best."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from lumiglue.types import Features, Matches

TURNS = (0, 1, 2, 3)


def turned_image(image: np.ndarray, turns: int) -> np.ndarray:
    """The image after so many quarter turns counter-clockwise."""
    return np.ascontiguousarray(np.rot90(image, turns))


def turned_features(features: Features, turns: int) -> Features:
    """The same points in the pixels of the turned image; orientations turn along, descriptors stay."""
    turns %= 4
    for _ in range(turns):
        width, height = features.image_size
        x, y = features.keypoints.unbind(1)
        orientations = features.orientations
        if orientations is not None:
            orientations = torch.remainder(orientations - math.pi / 2, 2 * math.pi)
        features = replace(
            features, keypoints=torch.stack([y, width - 1 - x], dim=1), image_size=(height, width), orientations=orientations
        )
    return features


def match_best_turn(
    features0: Features,
    image1: np.ndarray,
    extract: Callable[[np.ndarray, int], Features],
    match: Callable[[Sequence[tuple[Features, Features]]], list[Matches]],
) -> tuple[Features, Matches, int]:
    """Features of image 1 (in its own pixels), the matches with it, and the quarter turns after which it matched best, by
    the sum of the scores.

    extract: features of the image after so many quarter turns, which is handed over too. Features with orientations are
    turned as they are; others are extracted of each turned image. All turns are one batch.
    """
    upright = extract(image1, 0)
    if upright.orientations is not None:
        turned = [turned_features(upright, turns) for turns in TURNS]
    else:
        turned = [upright, *(extract(turned_image(image1, turns), turns) for turns in TURNS[1:])]
    found = match([(features0, candidate) for candidate in turned])
    best = max(TURNS, key=lambda turns: float(found[turns].scores.sum()))
    return turned_features(turned[best], -best), found[best], best
