"""From features to a matcher's input: normalises positions and packs pairs."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lumiglue.errors import InputError
from lumiglue.matcher.packed import PackedPairs
from lumiglue.types import Features

# A larger descriptor is a mistake, and sums over it overflow. SIFT's own numbers reach 255.
LARGEST_DESCRIPTOR = 1e6
FARTHEST = 1e6  # how far a keypoint may be from the origin, in sizes of its image
LARGEST_NUMBER = 1e12  # of a scale in pixels, an orientation in radians, a detector's score
PositionInput = Literal["xy", "xy-scale-orientation", "xy-logscale-angle", "xy-score"]


@runtime_checkable
class MatcherConfig(Protocol):
    """What `pack` needs of a matcher's config."""

    @property
    def extractor(self) -> str:
        """Name of the features that the matcher was trained for; "" accepts any of the right width."""
        ...

    @property
    def descriptor_dim(self) -> int:
        """Channels of a descriptor."""
        ...

    @property
    def encoding(self) -> PositionInput:
        """What the matcher sees of a keypoint besides its descriptor."""
        ...


def normalize_positions(
    keypoints: Float[Tensor, "n 2"],
    image_sizes: Float[Tensor, "n 2"],
    encoding: PositionInput,
    *,
    scales: Float[Tensor, " n"] | None = None,
    orientations: Float[Tensor, " n"] | None = None,
    scores: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "n p"]:
    """What the matcher sees of each keypoint besides its descriptor.

    p = (pixel - size / 2) / (max(size) / 2), size being the (width, height) of the keypoint's image.

    Args:
        keypoints: Pixels (x, y).
        image_sizes: Width and height in pixels of each keypoint's image.
        encoding: What the matcher sees.
        scales: In pixels; the encodings with scale and orientation need them.
        orientations: In radians; the encodings with scale and orientation need them.
        scores: The detector's; "xy-score" needs them.

    Returns:
        n x 2, n x 3 with the score, or n x 4 with scale and orientation.

    Raises:
        InputError: The encoding needs scales, orientations or scores, and they are missing.
    """
    xy = (keypoints - image_sizes / 2) / (image_sizes.amax(1, keepdim=True) / 2)
    if encoding == "xy":
        return xy
    if encoding == "xy-score":
        if scores is None:
            raise InputError("the matcher needs detector scores, which the features lack")
        return torch.cat([xy, scores[:, None]], dim=1)
    if scales is None or orientations is None:
        raise InputError(f"the matcher's encoding {encoding!r} needs scales and orientations, which the features lack")
    scales = scales.log() if encoding == "xy-logscale-angle" else scales
    return torch.cat([xy, scales[:, None], orientations[:, None]], dim=1)


def positions_of(features: Features, encoding: PositionInput) -> Float[Tensor, "n p"]:
    """`normalize_positions` of one image's keypoints, in float32."""
    size = torch.tensor([features.image_size], dtype=torch.float32, device=features.keypoints.device)
    names = ("scales", "orientations", "scores")
    optional = {name: value.float() for name in names if (value := getattr(features, name)) is not None}
    return normalize_positions(features.keypoints.float(), size.expand(len(features), 2), encoding, **optional)


def check_features(pairs: Sequence[tuple[Features, Features]], config: MatcherConfig) -> None:
    """Checks that features fit a matcher.

    Args:
        pairs: At least one pair.
        config: The config of the matcher.

    Raises:
        InputError: There is no pair, or the features are not those that the matcher was made for.
    """
    if not pairs:
        raise InputError("there are no pairs to match; give at least one")
    for number, pair in enumerate(pairs):
        if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(side, Features) for side in pair)):
            types = f"({', '.join(type(x).__name__ for x in pair)})" if isinstance(pair, Sequence) else type(pair).__name__
            raise InputError(f"pair {number} is {types}; give a list of pairs (Features, Features)")
    needs_scale = config.encoding in ("xy-scale-orientation", "xy-logscale-angle")
    for features in (features for pair in pairs for features in pair):
        if config.extractor and features.extractor and features.extractor != config.extractor:
            raise InputError(f"the matcher is for {config.extractor!r} features; these are {features.extractor!r}")
        if features.descriptors.shape[1] != config.descriptor_dim:
            width = features.descriptors.shape[1]
            raise InputError(f"descriptors have {width} channels; this matcher takes {config.descriptor_dim}")
        _check_range(features)
        if needs_scale and (features.scales is None or features.orientations is None):
            raise InputError(
                f"the matcher's encoding {config.encoding!r} needs scales and orientations, which the features lack"
            )


def _check_range(features: Features) -> None:
    if not len(features):
        return
    if (largest := float(features.descriptors.detach().abs().max())) > LARGEST_DESCRIPTOR:
        raise InputError(f"descriptors have values of {largest:g}; scale them to unit length")
    if (farthest := float(features.keypoints.detach().abs().max())) > FARTHEST * max(features.image_size):
        raise InputError(f"a keypoint is at {farthest:g} in an image of {features.image_size}; drop such keypoints")
    for name in ("scales", "orientations", "scores"):
        value = getattr(features, name)
        if value is not None and (largest := float(value.detach().abs().max())) > LARGEST_NUMBER:
            raise InputError(f"{name} have values of {largest:g}; drop such keypoints")


def pack(pairs: Sequence[tuple[Features, Features]], config: MatcherConfig) -> PackedPairs:
    """Packs pairs of features for a matcher.

    Args:
        pairs: Features of image 0 and image 1 of each pair; images without keypoints are legal.
        config: The config of the matcher.

    Returns:
        The input of `LightGlue.match` and `SuperGlue.match`.

    Raises:
        InputError: There is no pair, or the features are not those that the matcher was made for.
    """
    check_features(pairs, config)
    images = [features for pair in pairs for features in pair]
    return PackedPairs(
        descriptors=torch.cat([features.descriptors.float() for features in images]),
        positions=torch.cat([positions_of(features, config.encoding) for features in images]),
        lengths=tuple((len(a), len(b)) for a, b in pairs),
    )
