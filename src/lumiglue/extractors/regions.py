"""Parts of photos: tiles, which limit the memory for large photos, and masks, which exclude regions."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from lumiglue.errors import InputError
from lumiglue.images import resize_long_side
from lumiglue.types import Features

if TYPE_CHECKING:
    from lumiglue.extractors.protocol import Extractor


# Tiles start at multiples of this, so that an extractor's pyramids and strides are aligned as in the whole photo.
_ALIGNED = 64
_MARGIN = 128
SMALLEST_SIDE = 16  # pixels of the long side of an image
# With a small mask, the extractor is run with at most this many times the keypoints.
_MOST = 16


@dataclass(frozen=True, kw_only=True)
class Tiled:
    """An extractor that processes large photos in overlapping tiles.

    A tile contributes the points of its core, so each point is found once, with at least 128 pixels around it. A photo that
    fits into one tile is processed whole. Points with a neighbourhood larger than the margin, such as those of large scale,
    may differ from those of the whole photo.

    Attributes:
        extractor: Processes the tiles; create it with resize=None.
        tile: Side of a tile in pixels.
        max_keypoints: Number of keypoints to keep per photo, the strongest by score; None keeps all.
        resize: Long side in pixels to which larger photos are downscaled first; None keeps the full size.

    Raises:
        InputError: The tile is smaller than 512 pixels, or another limit is too small.
    """

    extractor: "Extractor"
    tile: int
    max_keypoints: int | None
    resize: int | None = None

    def __post_init__(self) -> None:
        if self.tile < 4 * _MARGIN:
            raise InputError(f"tile is {self.tile}; give at least {4 * _MARGIN} pixels")
        check_limits(self.max_keypoints, self.resize)

    @property
    def name(self) -> str:
        """The extractor's name: tiles do not change descriptors."""
        return self.extractor.name

    @property
    def descriptor_dim(self) -> int:
        """Number of channels of a descriptor."""
        return self.extractor.descriptor_dim

    def config(self) -> dict[str, Any]:
        """The settings that descriptors depend on, from the extractor."""
        return self.extractor.config()

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Features:
        """Extracts features tile by tile.

        Args:
            image: h x w x 3, RGB.

        Returns:
            Up to `max_keypoints` features in pixels of this image, strongest first.

        Raises:
            InputError: There are too many features and they have no scores to choose by.
        """
        height, width = image.shape[:2]
        small = resize_long_side(image, self.resize)
        features: Features | None = None
        extractor = _with_keypoints(self.extractor, self.max_keypoints)
        for rows, columns in _tiles(small.shape[0], small.shape[1], self.tile):
            points = extractor(np.ascontiguousarray(small[rows.shown, columns.shown]))
            corner = torch.tensor([columns.shown.start, rows.shown.start], dtype=points.keypoints.dtype)
            whole = (small.shape[1], small.shape[0])
            points = replace(points, keypoints=points.keypoints + corner, image_size=whole)
            x, y = points.keypoints.unbind(1)
            points = points[torch.nonzero(columns.contains(x) & rows.contains(y))[:, 0]]
            features = points if features is None else _joined(features, points)
            if self.max_keypoints is not None and len(features) > self.max_keypoints and features.scores is None:
                raise InputError(f"{self.name!r} returns no scores for choosing the strongest keypoints; omit tile")
            features = strongest(features, self.max_keypoints)
        assert features is not None
        if small is not image:
            features = rescaled(features, width / small.shape[1], height / small.shape[0])
        return replace(features, image_size=(width, height))


@dataclass(frozen=True)
class _Span:
    """One side of a tile: the pixels that the extractor sees, and the core whose points count."""

    shown: slice
    first: float
    end: float

    def contains(self, x: Tensor) -> Tensor:
        return (x >= self.first) & (x < self.end)


def _tiles(height: int, width: int, tile: int) -> Iterator[tuple[_Span, _Span]]:
    columns = _spans(width, tile)
    return ((row, column) for row in _spans(height, tile) for column in columns)


def _spans(length: int, tile: int) -> list[_Span]:
    """Spans of at most `tile` pixels whose cores cover the length once, and also points beyond its ends."""
    if length <= tile:
        return [_Span(slice(0, length), -math.inf, math.inf)]
    step = (tile - 2 * _MARGIN) // _ALIGNED * _ALIGNED
    starts = [*range(0, length - tile, step), -(-(length - tile) // _ALIGNED) * _ALIGNED]
    cores = [-math.inf, *(start + _MARGIN - 0.5 for start in starts[1:]), math.inf]
    return [
        _Span(slice(start, min(start + tile, length)), cores[number], cores[number + 1])
        for number, start in enumerate(starts)
    ]


def _joined(a: Features, b: Features) -> Features:
    def both(name: str) -> Tensor | None:
        first, second = getattr(a, name), getattr(b, name)
        return None if first is None or second is None else torch.cat([first, second])

    optional = {name: both(name) for name in ("scores", "scales", "orientations")}
    keypoints, descriptors = torch.cat([a.keypoints, b.keypoints]), torch.cat([a.descriptors, b.descriptors])
    return replace(a, keypoints=keypoints, descriptors=descriptors, **optional)


def strongest(features: Features, max_keypoints: int | None) -> Features:
    """The `max_keypoints` features of highest score, or the first ones if there are no scores; None keeps all."""
    if max_keypoints is None or len(features) <= max_keypoints:
        return features
    if features.scores is None:
        return features[:max_keypoints]
    return features[features.scores.sort(descending=True, stable=True).indices[:max_keypoints]]


def rescaled(features: Features, x: float, y: float) -> Features:
    """Features of a downscaled image in pixels of the original, x and y times as large; `image_size` is unchanged."""
    keypoints = (features.keypoints + 0.5) * torch.tensor([x, y], dtype=features.keypoints.dtype) - 0.5
    scales = None if features.scales is None else features.scales * math.sqrt(x * y)
    return replace(features, keypoints=keypoints, scales=scales)


def extract_inside(extractor: "Extractor", image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "mh mw"]) -> Features:
    """Extracts features inside a mask: as many as of a whole photo, if there are so many.

    The extractor sees the whole photo, so the edge of the mask creates no keypoints. If it is a dataclass with
    `max_keypoints`, as all built-in ones are, it is run with more of them until enough are inside or there are no more.

    Args:
        extractor: Any extractor.
        image: h x w x 3, RGB.
        mask: h x w, true where keypoints are accepted.

    Raises:
        InputError: The mask has another size than the image.
    """
    if mask.shape != image.shape[:2]:
        sizes = (f"{shape[1]} x {shape[0]}" for shape in (mask.shape, image.shape))
        raise InputError("the mask has {} pixels, the image {}; give a mask of the image's size".format(*sizes))
    limit = _limit(extractor)
    if limit is None:
        return _inside(extractor(image), mask)
    times = 1
    while times < _MOST and times * mask.mean() < 1:
        times *= 2
    while True:
        features = _with_keypoints(extractor, times * limit)(image)
        inside = _inside(features, mask)
        if len(inside) >= limit or len(features) < times * limit or times >= _MOST:
            return strongest(inside, limit)
        times *= 2


def _limit(extractor: "Extractor") -> int | None:
    """The number of keypoints that an extractor keeps; None if it cannot be changed."""
    limit = getattr(extractor, "max_keypoints", None)
    return limit if is_dataclass(extractor) and isinstance(limit, int) else None


def _with_keypoints(extractor: "Extractor", keypoints: int | None) -> "Extractor":
    """The extractor with `max_keypoints` of at least this number (None: without a limit), if that can be changed."""
    limit = _limit(extractor)
    if limit is None or (keypoints is not None and limit >= keypoints):
        return extractor
    other: Any = replace(extractor, max_keypoints=keypoints)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return other


def _inside(features: Features, mask: Bool[np.ndarray, "h w"]) -> Features:
    height, width = mask.shape
    column, row = (features.keypoints + 0.5).floor().long().unbind(1)
    inside = torch.from_numpy(mask)[row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return features[torch.nonzero(inside)[:, 0]]


def check_limits(max_keypoints: int | None, resize: int | None, smallest_side: int = SMALLEST_SIDE) -> None:
    """Checks the limits of an extractor; None is no limit.

    Args:
        max_keypoints: Number of keypoints to keep.
        resize: Long side in pixels.
        smallest_side: The smallest long side in which the extractor detects anything, in pixels.

    Raises:
        InputError: A limit is too small.
    """
    if max_keypoints is not None and max_keypoints < 1:
        raise InputError(f"max_keypoints is {max_keypoints}; give at least 1")
    if resize is not None and resize < smallest_side:
        raise InputError(f"resize is {resize}; give a long side of at least {smallest_side} pixels, or None")
