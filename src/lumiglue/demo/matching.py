"""The work of a worker process of the demo: decode two photos, match them, draw."""

import io
import pickle
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image

from lumiglue.backends.autotune import default_precision
from lumiglue.errors import InputError
from lumiglue.extractors import create_extractor
from lumiglue.images import decode_untrusted, resize_long_side, to_rgb8
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.models import MatcherModel
from lumiglue.matcher.settings import MatchSettings
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.pipeline.result import MatchResult
from lumiglue.system.extras import available
from lumiglue.types import Features, Geometry, GeometryKind, Matches
from lumiglue.visualization import ColourBy, draw_layer, draw_matches, figure_bytes
from lumiglue.weights.files import is_ours, load_weights, read_metadata
from lumiglue.weights.registry import default_weights, needed_files, resolve

# What can be chosen: the weights, and the features that they were trained for.
MODELS = {
    "sift-deep": "sift",
    "sift-compact": "sift",
    "sift-clean": "sift",
    "aliked-n16-compact": "aliked-n16",
    "aliked-n16-deep": "aliked-n16",
    "aliked-n16rot-deep": "aliked-n16rot",
    "aliked-lightglue": "aliked-n16",
    "disk-lightglue": "disk",
    "xfeat-lighterglue": "xfeat",
}
DEFAULT = default_weights("sift")
Estimator = Literal["fundamental", "homography", "none"]
NAMES = ("photo A", "photo B")
_DRAWN_SIDE = 1024  # pixels of the longer side of a photo in a picture
_MIN_KEYPOINTS = 16


@dataclass(frozen=True, kw_only=True)
class MatchRequest:
    """Two photos and how to match them.

    Attributes:
        photos: The files as they were sent.
        weights: A key of `MODELS`.
        estimator: Model that separates inliers.
        max_keypoints: Keypoints per photo.
        settings: Thresholds, early exit and pruning.

    Raises:
        InputError: a setting cannot be used.
    """

    photos: tuple[bytes, bytes] = field(repr=False)
    weights: str = DEFAULT
    estimator: Estimator = "fundamental"
    max_keypoints: int = 2048
    settings: MatchSettings = field(default_factory=MatchSettings)

    def __post_init__(self) -> None:
        if self.weights not in MODELS:
            raise InputError(f"unknown weights {self.weights!r}; choose from {list(MODELS)}")
        if self.estimator not in get_args(Estimator):
            raise InputError(f"unknown estimator {self.estimator!r}; choose from {list(get_args(Estimator))}")
        if self.max_keypoints < _MIN_KEYPOINTS:
            raise InputError(f"max_keypoints is {self.max_keypoints}; give at least {_MIN_KEYPOINTS}")


@dataclass(frozen=True, eq=False)
class Outcome:
    """A matched pair.

    Attributes:
        result: The matches, without descriptors.
        layers: The matches after each layer that ran; the last are the result's.
        geometry: The estimated model, if one was requested.
        n_layers: Layers of the matcher.
        photos: JPEGs of at most 1024 pixels a side, to draw on.
        seconds: Time of each step.
    """

    result: MatchResult
    layers: list[Matches]
    geometry: Geometry | None
    n_layers: int
    photos: tuple[bytes, bytes]
    seconds: dict[str, float]

    @property
    def stop_layer(self) -> int:
        return self.result.matches.stop_layer


def available_models() -> list[str]:
    """Lists the weights that need no download; those of learned features only if kornia is installed."""
    learned = available("kornia")

    def is_here(weights: str, features: str) -> bool:
        return features == "sift" or (learned and all(file.is_here() for file in needed_files(features, weights)))

    return [weights for weights, features in MODELS.items() if is_here(weights, features)]


def own_thresholds(weights: str) -> tuple[float, float]:
    """The exit ratio and pruning limit that weights of `available_models` are meant to be run with."""
    file = resolve(weights)
    config = read_metadata(file)[0] if is_ours(file) else LightGlueConfig()
    assert isinstance(config, LightGlueConfig)
    return config.exit_ratio, config.prune_below


def prepare(threads: int) -> None:
    """Prepares a new process: sets PyTorch's threads and loads the default matcher."""
    torch.set_num_threads(min(threads, torch.get_num_threads()))  # OMP_NUM_THREADS may ask for fewer
    _matcher(DEFAULT)


def match(request: MatchRequest, max_pixels: int) -> bytes:
    """Matches two photos of at most `max_pixels` pixels.

    Returns the pickled `Outcome`. Tensors would be sent through shared memory, which does not survive a killed process.
    """
    start = time.perf_counter()
    images = [decode_untrusted(data, name, max_pixels) for data, name in zip(request.photos, NAMES, strict=True)]
    seconds = {"decode": time.perf_counter() - start}
    model = _matcher(request.weights)
    extractor = create_extractor(MODELS[request.weights], max_keypoints=request.max_keypoints)
    pipeline = Pipeline(extractor, model, request.settings, precision=default_precision(torch.device("cpu")))
    result = pipeline.match(images[0], images[1])
    seconds |= result.seconds
    start = time.perf_counter()
    layers = pipeline.match_by_layer(result.features0, result.features1)
    seconds["each layer's matches"] = time.perf_counter() - start
    geometry = None
    if request.estimator != "none":
        start = time.perf_counter()
        kind: GeometryKind = request.estimator
        geometry = result.geometry(kind)
        seconds["geometry"] = time.perf_counter() - start
    small = [_jpeg(resize_long_side(image, _DRAWN_SIDE)) for image in images]
    bare = replace(result, features0=_bare(result.features0), features1=_bare(result.features1))
    return pickle.dumps(Outcome(bare, layers, geometry, model.config.n_layers, (small[0], small[1]), seconds))


@dataclass(frozen=True, kw_only=True)
class View:
    """What to draw.

    Attributes:
        layer: The matches after this layer, counted from 1; None draws the result.
        colour_by: Colour of the lines.
        stacked: One photo above the other, for narrow screens.
    """

    layer: int | None = None
    colour_by: ColourBy = "score"
    stacked: bool = False


def draw(pickled: bytes, view: View) -> bytes:
    """Draws a view of a pickled `Outcome`, as JPEG."""
    outcome: Outcome = pickle.loads(pickled)
    image0, image1 = (to_rgb8(Image.open(io.BytesIO(photo))) for photo in outcome.photos)
    points0, points1 = _moved(outcome.result.features0, image0), _moved(outcome.result.features1, image1)
    if view.layer is None:
        matches, geometry = outcome.result.matches, outcome.geometry
        title = f"{len(matches)} matches" + (
            f", {int(geometry.inliers.sum())} inliers ({geometry.kind})" if geometry else ""
        )
        figure = draw_matches(image0, image1, points0, points1, matches, geometry, title, view.colour_by, view.stacked)
    else:
        figure = draw_layer(image0, image1, points0, points1, outcome.layers, view.layer, outcome.n_layers, view.stacked)
    return figure_bytes(figure, "jpg")


@lru_cache(maxsize=len(MODELS))
def _matcher(name: str) -> MatcherModel:
    model = load_weights(resolve(name))
    assert isinstance(model, LightGlue)
    return model


def _bare(features: Features) -> Features:
    return replace(features, descriptors=features.descriptors[:, :0].clone())


def _moved(features: Features, image: np.ndarray) -> Features:
    """The keypoints in the pixels of the photo at another size."""
    height, width = image.shape[:2]
    scale = torch.tensor([width / features.image_size[0], height / features.image_size[1]])
    return replace(features, keypoints=(features.keypoints + 0.5) * scale - 0.5, image_size=(width, height))


def _jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=92)
    return file.getvalue()
