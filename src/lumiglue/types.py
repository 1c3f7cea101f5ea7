"""The dataclasses that modules exchange.

Pixel convention, everywhere inside Lumiglue: the centre of the top-left pixel is (0, 0), x points right and y down, so an
image of width w covers [-0.5, w - 0.5]. Code that writes another convention (COLMAP adds 0.5) converts on writing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lumiglue.errors import InputError

PIXELS = "x right, y down, centre of the top-left pixel at (0, 0)"
GeometryKind = Literal["homography", "fundamental"]


@dataclass(frozen=True, eq=False)
class Features:
    """Local features of one image; n may be 0.

    Attributes:
        keypoints: n x 2, pixels (x, y), where (0, 0) is the centre of the top-left pixel.
        descriptors: n x d.
        image_size: (width, height) in pixels of the image that `keypoints` refer to.
        scores: n, detector response, larger is better; optional.
        scales: n, standard deviation in pixels of the blur at which the point was detected; optional.
        orientations: n, radians from +x towards +y (clockwise on the screen); optional.
        extractor: Name of the extractor, so that a matcher can refuse other features; "" if unknown.

    Raises:
        InputError: Shapes disagree, or a number is not finite.
    """

    keypoints: Float[Tensor, "n 2"]
    descriptors: Float[Tensor, "n d"]
    image_size: tuple[int, int]
    scores: Float[Tensor, " n"] | None = None
    scales: Float[Tensor, " n"] | None = None
    orientations: Float[Tensor, " n"] | None = None
    extractor: str = ""

    def __post_init__(self) -> None:
        for name, value in self._rows():
            if not isinstance(value, Tensor) and (value is not None or name in ("keypoints", "descriptors")):
                raise InputError(f"{name} are of type {type(value).__name__}; give a torch tensor")
            if isinstance(value, Tensor) and (value.is_meta or value.is_complex() or value.dtype == torch.bool):
                raise InputError(f"{name} are of {value.dtype} on {value.device.type}; give real numbers on a CPU or GPU")
        if self.keypoints.ndim != 2 or self.keypoints.shape[1] != 2:
            raise InputError(f"keypoints have shape {tuple(self.keypoints.shape)}; give n x 2 (x, y) pixels")
        n = self.keypoints.shape[0]
        if self.descriptors.ndim != 2 or self.descriptors.shape[0] != n:
            raise InputError(f"descriptors have shape {tuple(self.descriptors.shape)}; give {n} x d, one row a keypoint")
        if not _is_size(self.image_size):
            raise InputError(f"image_size is {self.image_size}; give (width, height) in pixels, each at least 1")
        for name in ("scores", "scales", "orientations"):
            value = getattr(self, name)
            if value is not None and value.shape != (n,):
                raise InputError(f"{name} have shape {tuple(value.shape)}; give one number for each of {n} keypoints")
        for name, value in self._rows():
            if value is not None and not bool((finite := torch.isfinite(value.float())).all()):  # float32, as in use
                bad = (~finite).reshape(n, -1).any(1).nonzero()[0].item()
                raise InputError(f"{name} contain NaN or infinity (first at row {bad}); drop such keypoints")
        if self.scales is not None and n and float(self.scales.float().min()) <= 0:
            raise InputError(f"scales must be positive pixels; the smallest is {float(self.scales.min()):g}")

    def __len__(self) -> int:
        return self.keypoints.shape[0]

    def __repr__(self) -> str:
        width, height = self.image_size
        return f"Features({len(self)} keypoints, {self.extractor or 'unknown'}, image {width} x {height})"

    def __getitem__(self, rows: Int[Tensor, " m"] | slice) -> "Features":
        """The features at `rows`, in that order."""
        return replace(self, **{name: value[rows] for name, value in self._rows() if value is not None})

    def to(self, device: torch.device | str) -> "Features":
        """The same features on `device`."""
        return replace(self, **{name: value.to(device) for name, value in self._rows() if value is not None})

    def _rows(self) -> Iterator[tuple[str, Tensor | None]]:
        for entry in fields(self):
            if entry.name not in ("image_size", "extractor"):
                yield entry.name, getattr(self, entry.name)


def _is_size(size: object) -> bool:
    """Whether this is a pair of numbers that an image can have as its width and height."""
    try:
        width, height = (float(side) for side in size)  # pyright: ignore[reportGeneralTypeIssues]  (that is the question)
    except (TypeError, ValueError):
        return False
    return 1 <= width < 2**31 and 1 <= height < 2**31


@dataclass(frozen=True, eq=False)
class Matches:
    """The partial assignment between two images A (0) and B (1).

    Attributes:
        pairs: k x 2, row numbers into the features (row in A, row in B). A row occurs in at most one pair.
        scores: k, assignment probability P_ij in (0, 1].
        stop_layer: Number of layers that ran, 1..L; 0 if an image has no keypoints.
        layers0: N_A, the number of layers that each point of A went through before it was pruned or the pair finished.
        layers1: N_B, the same for B.
    """

    pairs: Int[Tensor, "k 2"]
    scores: Float[Tensor, " k"]
    stop_layer: int = 0
    layers0: Int[Tensor, " a"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    layers1: Int[Tensor, " b"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        return self.pairs.shape[0]

    def __repr__(self) -> str:
        return f"Matches({len(self)}, stop_layer={self.stop_layer})"

    def matches0(self, n: int) -> Int[Tensor, " n"]:
        """For each of the n points of A, its row in B or -1: the form that hloc and COLMAP tools store."""
        partner = torch.full((n,), -1, dtype=torch.int64)
        partner[self.pairs[:, 0].cpu()] = self.pairs[:, 1].cpu()
        return partner

    def scores0(self, n: int) -> Float[Tensor, " n"]:
        """For each of the n points of A, the score of its match, or 0."""
        scores = torch.zeros(n)
        scores[self.pairs[:, 0].cpu()] = self.scores.float().cpu()
        return scores


@dataclass(frozen=True, eq=False)
class Geometry:
    """A two-view model estimated from matches.

    Attributes:
        kind: Which model it is.
        matrix: 3 x 3; a homography maps A to B, a fundamental matrix fulfils x_B^T F x_A = 0. None if none was found.
        inliers: k, one boolean per match.
    """

    kind: GeometryKind
    matrix: Float[Tensor, "3 3"] | None
    inliers: Tensor

    def __repr__(self) -> str:
        count = "not found" if self.matrix is None else f"{int(self.inliers.sum())} inliers of {len(self.inliers)}"
        return f"Geometry({self.kind}, {count})"
