"""Speed on photos: published weights in several implementations, and two photos on disk to matches.

`speed` has the contest. End to end a side reads both photos, extracts features and matches them; models are loaded before.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from lumiglue.backends.autotune import default_precision
from lumiglue.errors import InputError
from lumiglue.evaluation import ports
from lumiglue.evaluation.speed import Clock, MatchingJob, Row, busy_programs, race
from lumiglue.geometry.robust import estimate
from lumiglue.images import resize_long_side
from lumiglue.io.state_dicts import load_into, read_state_dict
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.ops.native import library
from lumiglue.matcher.settings import MatchSettings
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.system.extras import require
from lumiglue.types import Features
from lumiglue.weights.files import load_weights
from lumiglue.weights.registry import default_weights, network_file, resolve

PEERS = ("lumiglue bf16", "without kernels", "original", "kornia", "transformers", "onnxruntime", "openvino")
# Two photos to the matching points, k x 2 of each.
Side = Callable[[Path, Path], tuple[np.ndarray, np.ndarray]]
PhotoPairs = Sequence[tuple[Path, Path]]


def photo_pairs(photos: Sequence[Path], folder: Path) -> list[tuple[Path, Path]]:
    """The given photos two by two; without any, a stereo pair of scikit-image and the sample pair, written to the folder.

    Raises:
        InputError: The number of photos is odd, or one is not there.
    """
    if len(photos) % 2:
        raise InputError(f"{len(photos)} photos are given; give an even number, the two of a pair side by side")
    if missing := [photo for photo in photos if not photo.is_file()]:
        raise InputError(f"there is no photo {missing[0]}")
    if not photos:
        require("skimage")
        from skimage.data import stereo_motorcycle

        from lumiglue.samples import sample_pair

        sample, photos = sample_pair(), [folder / f"{number}.jpg" for number in range(4)]
        for path, pixels in zip(photos, [*stereo_motorcycle()[:2], sample.image0, sample.image1], strict=True):
            Image.fromarray(pixels).save(path, quality=95)
    return list(zip(photos[0::2], photos[1::2], strict=True))


def peers(device: str) -> list[str]:
    """What published matchers are compared with; bfloat16 only where photos are matched in it."""
    useless = set()
    if default_precision(torch.device(device)) == "fp32":
        useless.add("lumiglue bf16")
    if device != "cpu" or isinstance(library(), str):  # there are no kernels to do without
        useless.add("without kernels")
    return [name for name in PEERS if name not in useless]


def released_job(features: str, n: int, photos: PhotoPairs, device: str = "cpu") -> MatchingJob:
    """The published matcher for the features, the photos' features with at most n keypoints each, and a description."""
    pipeline = Pipeline.pretrained(features, max_keypoints=n, device=device, precision="fp32")
    pairs = [(pipeline.extract(a).to(device), pipeline.extract(b).to(device)) for a, b in photos]
    assert isinstance(pipeline.matcher, LightGlue)
    return pipeline.matcher, pairs, f"released {default_weights(features)}"


def end_to_end(
    sides: dict[str, Side],
    photos: PhotoPairs,
    condition: str,
    points: int,
    rounds: int,
    busy: int = 0,
    clock: Clock = "wall",
) -> list[Row]:
    """Times sides in turns over all pairs of photos; each side's ratio is to the first. See `speed.Row`."""
    counts = {}
    for name, side in sides.items():
        found = [side(a, b) for a, b in photos]
        inliers = sum(int(estimate("fundamental", *pair).inliers.sum()) for pair in found)
        counts[name] = sum(len(pair[0]) for pair in found), inliers
    jobs = {name: partial(_all_pairs, side, photos) for name, side in sides.items()}
    with busy_programs(busy):
        timings = race(jobs, rounds, clock)
    return [
        Row(condition, points, busy, t.name, t.milliseconds, t.ratio, len(photos), matches=counts[t.name][0],
            inliers=counts[t.name][1])
        for t in timings
    ]  # fmt: skip


def _all_pairs(side: Side, photos: PhotoPairs) -> None:
    for a, b in photos:
        side(a, b)


def _ours(features: str, n: int, resize: int) -> Side:
    pipeline = Pipeline.pretrained(features, max_keypoints=n, resize=resize, device="cpu")

    def match(a: Path, b: Path) -> tuple[np.ndarray, np.ndarray]:
        result = pipeline.match(a, b)
        return result.points0, result.points1

    return match


def _opencv(flann: bool, n: int, resize: int) -> Side:
    """SIFT, two nearest neighbours and the ratio test, as in OpenCV's tutorials."""
    sift = cv2.SIFT.create(n)
    matcher = cv2.FlannBasedMatcher({"algorithm": 1, "trees": 5}, {"checks": 50}) if flann else cv2.BFMatcher(cv2.NORM_L2)
    ratio = 0.7 if flann else 0.75

    def match(*photos: Path) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for photo in photos:
            grey = cv2.imread(str(photo), cv2.IMREAD_GRAYSCALE)
            if grey is None:
                raise InputError(f"OpenCV cannot read {photo}")
            small = resize_long_side(grey, resize)
            keypoints, descriptors = sift.detectAndCompute(small, None)
            found.append((cv2.KeyPoint.convert(keypoints) * (grey.shape[1] / small.shape[1]), descriptors))
        (points0, a), (points1, b) = found
        nearest = [two[0] for two in matcher.knnMatch(a, b, k=2) if two[0].distance < ratio * two[-1].distance]
        rows = np.array([(m.queryIdx, m.trainIdx) for m in nearest], dtype=int).reshape(-1, 2)
        return points0[rows[:, 0]], points1[rows[:, 1]]

    return match


def _kornia(features: str, n: int, resize: int) -> Side:
    """kornia's reading, resizing, features and LightGlue, with the published weights."""
    require("kornia")
    from kornia.feature import ALIKED, XFeat
    from kornia.geometry import resize as resized
    from kornia.io import ImageLoadType, load_image

    model = load_weights(resolve(default_weights(features)))
    assert isinstance(model, LightGlue)
    matcher, aliked = ports.kornia(model, MatchSettings()), features.startswith("aliked")
    network = ALIKED(features, max_num_keypoints=n, detection_threshold=0.0) if aliked else XFeat(top_k=n)
    if aliked:
        loaded = network.load_state_dict(read_state_dict(network_file(features)).tensors, strict=False)
        if set(loaded.missing_keys) - {"dkd.hw_grid"}:  # a constant
            raise InputError(f"this kornia's ALIKED needs {loaded.missing_keys[0]!r}, which the published file lacks")
    else:
        load_into(network, network_file(features), features, "give the published file")
    network.eval()

    def extract(photo: Path) -> Features:
        pixels = load_image(photo, ImageLoadType.RGB32)[None]
        height, width = pixels.shape[2:]
        if max(height, width) > resize:
            pixels = resized(pixels, resize, side="long", antialias=True)
        if isinstance(network, ALIKED):
            found = network(pixels)[0]
            keypoints, descriptors = found.keypoints, found.descriptors
        else:
            output = network.detectAndCompute(pixels, n)[0]
            keypoints, descriptors = output["keypoints"], output["descriptors"]
        scale = keypoints.new_tensor([width / pixels.shape[3], height / pixels.shape[2]])
        return Features(keypoints * scale, descriptors, image_size=(width, height))

    def match(*photos: Path) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            a, b = (extract(photo) for photo in photos)
            rows = matcher((a, b))["matches"][0]
            return a.keypoints[rows[:, 0]].numpy(), b.keypoints[rows[:, 1]].numpy()

    return match


# A side, from the number of keypoints and the long side in pixels; the first is compared with.
SIDES: dict[str, Callable[[int, int], Side]] = {
    "sift + ours": partial(_ours, "sift"),
    "xfeat + lighterglue": partial(_ours, "xfeat"),
    "aliked + released": partial(_ours, "aliked"),
    "aliked + ours": partial(_ours, "aliked-n16rot"),
    "opencv sift + flann": partial(_opencv, True),
    "opencv sift + brute force": partial(_opencv, False),
    "kornia xfeat + lighterglue": partial(_kornia, "xfeat"),
    "kornia aliked + lightglue": partial(_kornia, "aliked-n16"),
}
