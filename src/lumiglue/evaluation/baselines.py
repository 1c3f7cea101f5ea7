"""Matchers without learning: nearest neighbours, the ratio test, OpenCV's matchers, AdaLAM."""

from collections.abc import Callable
from typing import Any

import cv2
import torch

from lumiglue.types import Features, Matches

Matcher = Callable[[Features, Features], Matches]


def mutual_nearest_neighbours(features0: Features, features1: Features, ratio: float | None = None) -> Matches:
    """Matches mutual nearest neighbours in Euclidean distance of descriptors. ratio: of Lowe's test against the second
    nearest in image 1, if any. Scores are cosines of the descriptors."""
    if min(len(features0), len(features1)) < 2:
        return Matches(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0))
    similarity = features0.descriptors @ features1.descriptors.mT
    best, row = similarity.topk(2, dim=1)
    mutual = similarity.argmax(0)[row[:, 0]] == torch.arange(len(features0))
    if ratio is not None:
        distance = (2 - 2 * best).clamp_min(0).sqrt()  # descriptors have unit length
        mutual &= distance[:, 0] <= ratio * distance[:, 1]
    rows = mutual.nonzero()[:, 0]
    return Matches(torch.stack([rows, row[rows, 0]], 1), best[rows, 0].clamp(0, 1))


def adalam(features0: Features, features1: Features) -> Matches:
    """Matches by AdaLAM (Cavalli et al., ECCV 2020) as kornia implements it, with default settings.

    The tests of scale and orientation are off for features that have neither.
    """
    from kornia.feature import laf_from_center_scale_ori, match_adalam
    from kornia.feature.adalam.adalam import get_adalam_default_config

    if min(len(features0), len(features1)) < 2:
        return Matches(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0))
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
    return Matches(pairs, scores)


def opencv_ratio(features0: Features, features1: Features, *, flann: bool, ratio: float) -> Matches:
    """Matches as OpenCV's tutorials do: the ratio test from image 0 to image 1, by brute force or FLANN's k-d trees.

    Of several points that are matched to one, the nearest is taken. Scores are cosines of the descriptors.
    """
    if min(len(features0), len(features1)) < 2:
        return Matches(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0))
    a, b = (features.descriptors.float().numpy() for features in (features0, features1))
    cv2.setRNGSeed(0)
    matcher = cv2.FlannBasedMatcher({"algorithm": 1, "trees": 5}, {"checks": 50}) if flann else cv2.BFMatcher(cv2.NORM_L2)
    candidates = [
        (m.queryIdx, m.trainIdx, m.distance) for m, n in matcher.knnMatch(a, b, k=2) if m.distance < ratio * n.distance
    ]
    nearest: dict[int, tuple[int, float]] = {}
    for i, j, distance in candidates:
        if j not in nearest or distance < nearest[j][1]:
            nearest[j] = (i, distance)
    pairs = torch.tensor(sorted((i, j) for j, (i, _) in nearest.items()), dtype=torch.int64).reshape(-1, 2)
    cosines = (features0.descriptors[pairs[:, 0]] * features1.descriptors[pairs[:, 1]]).sum(1)
    return Matches(pairs, cosines.clamp(0, 1))


BASELINES: dict[str, Matcher] = {
    "nn": mutual_nearest_neighbours,
    "ratio-0.8": lambda a, b: mutual_nearest_neighbours(a, b, 0.8),
    "ratio-0.85": lambda a, b: mutual_nearest_neighbours(a, b, 0.85),
    "ratio-0.9": lambda a, b: mutual_nearest_neighbours(a, b, 0.9),
    "adalam": adalam,
    "opencv-bf": lambda a, b: opencv_ratio(a, b, flann=False, ratio=0.75),
    "opencv-flann": lambda a, b: opencv_ratio(a, b, flann=True, ratio=0.7),
}
