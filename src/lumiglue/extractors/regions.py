"""Parts of photos: very large ones in tiles, so that memory is bounded, and masks that leave regions out."""

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


# Tiles begin at multiples of this, so that the pyramids and strides of extractors meet the pixels that they would meet in
# the whole photo.
_ALIGNED = 64
_MARGIN = 128
SMALLEST_SIDE = 16  # pixels of the long side of an image
# A mask that leaves little asks for this many times the keypoints, at most.
_MOST = 16


@dataclass(frozen=True, kw_only=True)
class Tiled:
    """An extractor that is shown large photos in overlapping tiles.

    A tile yields the points of its core, so each point is found once, with 128 pixels around it. Photos that fit into one
    tile are shown whole. Points whose neighbourhood is larger than the margin, such as those of large scale, may differ
    from the whole photo's.

    extractor: what sees the tiles, made with resize=None. tile: side in pixels of what it sees at a time.
    max_keypoints: the strongest of the photo by score are kept. resize: the long side in pixels that larger photos are
    shrunk to first; None keeps the full size. Raises InputError for a tile under 512 pixels; a call raises it where features
    without scores are too many, as the strongest cannot be told.
    """

    extractor: "Extractor"
    tile: int
    max_keypoints: int
    resize: int | None = None

    def __post_init__(self) -> None:
        if self.tile < 4 * _MARGIN:
            raise InputError(f"tile is {self.tile}; give at least {4 * _MARGIN} pixels")
        check_limits(self.max_keypoints, self.resize)

    @property
    def name(self) -> str:
        """Of the extractor: tiles change no descriptor."""
        return self.extractor.name

    @property
    def descriptor_dim(self) -> int:
        """Channels of a descriptor."""
        return self.extractor.descriptor_dim

    def config(self) -> dict[str, Any]:
        """What the descriptors depend on, as the extractor says."""
        return self.extractor.config()

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Features:
        """image: h x w x 3, RGB. Returns up to `max_keypoints` features in pixels of this image, strongest first."""
        height, width = image.shape[:2]
        small = resize_long_side(image, self.resize)
        found: Features | None = None
        extractor = _asked_for(self.extractor, self.max_keypoints)
        for rows, columns in _tiles(small.shape[0], small.shape[1], self.tile):
            points = extractor(np.ascontiguousarray(small[rows.shown, columns.shown]))
            corner = torch.tensor([columns.shown.start, rows.shown.start], dtype=points.keypoints.dtype)
            whole = (small.shape[1], small.shape[0])
            points = replace(points, keypoints=points.keypoints + corner, image_size=whole)
            x, y = points.keypoints.unbind(1)
            points = points[torch.nonzero(columns.holds(x) & rows.holds(y))[:, 0]]
            found = points if found is None else _joined(found, points)
            if len(found) > self.max_keypoints and found.scores is None:
                raise InputError(f"{self.name!r} gives no scores, so the strongest cannot be told; leave tile out")
            found = strongest(found, self.max_keypoints)
        assert found is not None
        found = rescaled(found, width / small.shape[1], height / small.shape[0]) if small is not image else found
        return replace(found, image_size=(width, height))


@dataclass(frozen=True)
class _Span:
    """One side of a tile: the pixels that are shown, and those of them whose points count."""

    shown: slice
    first: float
    end: float

    def holds(self, x: Tensor) -> Tensor:
        return (x >= self.first) & (x < self.end)


def _tiles(height: int, width: int, tile: int) -> Iterator[tuple[_Span, _Span]]:
    columns = _spans(width, tile)
    return ((row, column) for row in _spans(height, tile) for column in columns)


def _spans(length: int, tile: int) -> list[_Span]:
    """Spans of at most `tile` pixels whose cores cover the length once; points may lie outside the pixels' centres."""
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
    """The first `max_keypoints` by score, or as they come where there are no scores; None keeps all."""
    if max_keypoints is None or len(features) <= max_keypoints:
        return features
    if features.scores is None:
        return features[:max_keypoints]
    return features[features.scores.sort(descending=True, stable=True).indices[:max_keypoints]]


def rescaled(features: Features, x: float, y: float) -> Features:
    """Features of a shrunk image in pixels of the image that is x and y times as large; `image_size` is left as it is."""
    keypoints = (features.keypoints + 0.5) * torch.tensor([x, y], dtype=features.keypoints.dtype) - 0.5
    scales = None if features.scales is None else features.scales * math.sqrt(x * y)
    return replace(features, keypoints=keypoints, scales=scales)


def extract_inside(extractor: "Extractor", image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "mh mw"]) -> Features:
    """Features whose keypoints lie where the mask is true, as many as the extractor gives for a whole photo, if there are.

    The extractor sees the whole photo, so the edge of the mask makes no keypoints. Where it can be asked for more keypoints
    (a dataclass with max_keypoints, as all built-in ones), it is, until enough of them lie inside or there are no more.
    Raises InputError where the mask has another size than the image.
    """
    if mask.shape != image.shape[:2]:
        sizes = (f"{shape[1]} x {shape[0]}" for shape in (mask.shape, image.shape))
        raise InputError("the mask has {} pixels, the image {}; give a mask of the image's size".format(*sizes))
    wanted = _limit(extractor)
    if wanted is None:
        return _inside(extractor(image), mask)
    times = 1
    while times < _MOST and times * mask.mean() < 1:
        times *= 2
    while True:
        found = _asked_for(extractor, times * wanted)(image)
        inside = _inside(found, mask)
        if len(inside) >= wanted or len(found) < times * wanted or times >= _MOST:
            return strongest(inside, wanted)
        times *= 2


def _limit(extractor: "Extractor") -> int | None:
    """How many keypoints an extractor keeps, where it can be asked for another number."""
    limit = getattr(extractor, "max_keypoints", None)
    return limit if is_dataclass(extractor) and isinstance(limit, int) else None


def _asked_for(extractor: "Extractor", keypoints: int) -> "Extractor":
    """The extractor, asked for at least so many keypoints where it can be."""
    limit = _limit(extractor)
    if limit is None or limit >= keypoints:
        return extractor
    asked: Any = replace(extractor, max_keypoints=keypoints)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return asked


def _inside(features: Features, mask: Bool[np.ndarray, "h w"]) -> Features:
    height, width = mask.shape
    column, row = (features.keypoints + 0.5).floor().long().unbind(1)
    kept = torch.from_numpy(mask)[row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return features[torch.nonzero(kept)[:, 0]]


def check_limits(max_keypoints: int | None, resize: int | None, smallest_side: int = SMALLEST_SIDE) -> None:
    """Raises InputError for fewer keypoints than 1, or a long side that is too small to find any; None is no limit."""
    if max_keypoints is not None and max_keypoints < 1:
        raise InputError(f"max_keypoints is {max_keypoints}; give at least 1")
    if resize is not None and resize < smallest_side:
        raise InputError(f"resize is {resize}; give a long side of at least {smallest_side} pixels, or None")
