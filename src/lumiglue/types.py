"""The dataclasses that modules exchange.

Pixel convention, everywhere inside Lumiglue: the centre of the top-left pixel is (0, 0), x points right and y down, so an
image of width w covers [-0.5, w - 0.5]. Code that writes another convention (COLMAP adds 0.5) converts on writing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from lumiglue.errors import InputError

PIXELS = "x right, y down, centre of the top-left pixel at (0, 0)"
_COLMAP_SHIFT = 0.5
GeometryKind = Literal["homography", "fundamental", "essential"]
# Models of COLMAP that PoseLib supports, and their parameters.
CAMERA_MODELS = {
    "SIMPLE_PINHOLE": "f, cx, cy",
    "PINHOLE": "fx, fy, cx, cy",
    "SIMPLE_RADIAL": "f, cx, cy, k",
    "RADIAL": "f, cx, cy, k1, k2",
    "OPENCV": "fx, fy, cx, cy, k1, k2, p1, p2",
    "OPENCV_FISHEYE": "fx, fy, cx, cy, k1, k2, k3, k4",
}


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
            raise InputError(f"descriptors have shape {tuple(self.descriptors.shape)}; give {n} x d, one row per keypoint")
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


@dataclass(frozen=True)
class Camera:
    """A camera, by COLMAP's name of its model.

    Attributes:
        model: One of `CAMERA_MODELS`.
        params: In the order of `CAMERA_MODELS`, lengths in pixels. The principal point is in Lumiglue's pixels, where (0, 0)
            is the centre of the top-left one.

    Raises:
        InputError: The model is unknown, or the parameters do not fit.
    """

    model: str
    params: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.model not in CAMERA_MODELS:
            raise InputError(f"unknown camera model {self.model!r}; choose from {list(CAMERA_MODELS)}")
        names = CAMERA_MODELS[self.model].split(", ")
        if len(self.params) != len(names) or not all(math.isfinite(value) for value in self.params):
            raise InputError(f"a camera {self.model} has the parameters {', '.join(names)}; {self.params} was given")
        if min(self.focal) <= 0:
            raise InputError(f"the focal length is {min(self.focal):g}; give a number of pixels above 0")

    @classmethod
    def from_focal(cls, focal: float, image_size: tuple[int, int]) -> "Camera":
        """A pinhole camera whose principal point is the middle of the image; `focal` is in pixels."""
        width, height = image_size
        return cls("SIMPLE_PINHOLE", (focal, (width - 1) / 2, (height - 1) / 2))

    @classmethod
    def parse(cls, text: str) -> "Camera":
        """Reads "MODEL,parameters" in COLMAP's pixels, where (0.5, 0.5) is the centre of the top-left one."""
        model, *words = (word.strip() for word in text.split(","))
        try:
            params = tuple(float(word) for word in words)
        except ValueError:
            raise InputError(f"the camera {text!r} is not MODEL,parameters, such as SIMPLE_PINHOLE,800,320,240") from None
        return cls(model, params)._moved(-_COLMAP_SHIFT)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return ",".join([self.model, *(f"{value:.10g}" for value in self._moved(_COLMAP_SHIFT).params)])

    @property
    def focal(self) -> tuple[float, float]:
        """Focal lengths in x and y, in pixels."""
        return (self.params[0], self.params[1] if CAMERA_MODELS[self.model].startswith("fx") else self.params[0])

    @property
    def intrinsics(self) -> Float64[Tensor, "3 3"]:
        """The matrix K in Lumiglue's pixels, without distortion."""
        (fx, fy), at = self.focal, self._centre
        cx, cy = self.params[at : at + 2]
        return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], dtype=torch.float64)

    @property
    def _centre(self) -> int:
        return 2 if CAMERA_MODELS[self.model].startswith("fx") else 1

    def _moved(self, shift: float) -> "Camera":
        """The same with a moved principal point."""
        at = self._centre
        return replace(self, params=tuple(v + shift * (at <= i < at + 2) for i, v in enumerate(self.params)))


@dataclass(frozen=True, eq=False)
class Geometry:
    """A two-view model estimated from matches.

    Attributes:
        kind: Which model it is.
        matrix: 3 x 3; a homography maps A to B, a fundamental matrix fulfils x_B^T F x_A = 0, and an essential matrix the
            same for rays. None if none was found.
        inliers: k, one boolean per match.
        rotation: 3 x 3, of an essential matrix: X_B = rotation X_A + translation in the coordinates of the cameras.
        translation: 3, of unit length, because two photos do not show the scale.
        cameras: Those of A and B, of an essential matrix.
    """

    kind: GeometryKind
    matrix: Float[Tensor, "3 3"] | None
    inliers: Tensor
    rotation: Float[Tensor, "3 3"] | None = None
    translation: Float[Tensor, " 3"] | None = None
    cameras: tuple[Camera, Camera] | None = None

    def __repr__(self) -> str:
        count = "not found" if self.matrix is None else f"{int(self.inliers.sum())} inliers of {len(self.inliers)}"
        return f"Geometry({self.kind}, {count})"
