"""Quarter turns: for features and matchers of upright photos, the rotation of the second photo that matches best."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from lumiglue.types import Features, Matches

TURNS = (0, 1, 2, 3)


def turned_image(image: np.ndarray, turns: int) -> np.ndarray:
    """The image rotated by quarter turns, counter-clockwise."""
    return np.ascontiguousarray(np.rot90(image, turns))


def turned_features(features: Features, turns: int) -> Features:
    """The points in pixels of the rotated image, with rotated orientations and unchanged descriptors."""
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
    """Matches image 1 in all four orientations, in one batch, and keeps the one with the highest sum of scores.

    Args:
        features0: Features of image 0.
        image1: h x w x 3, RGB.
        extract: Returns the features of a rotated image; takes it and the number of quarter turns. Features with
            orientations are extracted once and rotated, others from each rotated image.
        match: Matches a batch of pairs.

    Returns:
        Features of image 1 in its own pixels, the matches, and the number of quarter turns.
    """
    upright = extract(image1, 0)
    if upright.orientations is not None:
        turned = [turned_features(upright, turns) for turns in TURNS]
    else:
        turned = [upright, *(extract(turned_image(image1, turns), turns) for turns in TURNS[1:])]
    matches = match([(features0, candidate) for candidate in turned])
    best = max(TURNS, key=lambda turns: float(matches[turns].scores.sum()))
    return turned_features(turned[best], -best), matches[best], best
