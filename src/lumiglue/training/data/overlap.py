"""Overlap of the frames of a scene, from their depth maps, and the choice of pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from lumiglue.errors import InputError
from lumiglue.training.data.homographies import rng_for

REDUCED_SIDE = 160  # long side of a depth map in the search for pairs; enough for a tolerance of 5 %
SAMPLES = 500  # points of a frame that are projected into every other frame
AGREE = 0.05  # largest relative difference in depth of the same surface
FEWEST = 10  # smallest number of samples with known depth for a meaningful overlap
_BINS = 0.1  # width of the bins of overlap, which are drawn from equally often


@dataclass(frozen=True, kw_only=True)
class OverlapSettings:
    """Which pairs of a scene to use.

    Attributes:
        min_overlap: Smallest overlap of a pair.
        max_overlap: Largest overlap of a pair.
        max_pairs: Largest number of pairs per scene; low overlaps are as frequent as high ones.
        seed: Seed of the choice.
    """

    min_overlap: float = 0.1
    max_overlap: float = 0.9
    max_pairs: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.min_overlap < self.max_overlap <= 1:
            raise InputError(
                f"no pair has an overlap from {self.min_overlap} to {self.max_overlap}; give 0 <= min < max <= 1"
            )
        if self.max_pairs < 1:
            raise InputError(f"max_pairs is {self.max_pairs}; give at least 1")


@dataclass(frozen=True, eq=False, kw_only=True)
class DepthCamera:
    """A depth map and its camera.

    Attributes:
        depth: z at each pixel; NaN where unknown.
        intrinsics: Camera matrix in pixels of the map.
        camera_from_world: Rigid transform.
    """

    depth: Float[np.ndarray, "h w"]
    intrinsics: Float64[np.ndarray, "3 3"]
    camera_from_world: Float64[np.ndarray, "4 4"]

    def reduced(self, long_side: int = REDUCED_SIDE) -> "DepthCamera":
        """Reduces the map to at most `long_side` pixels by taking every k-th pixel, which never mixes depths."""
        height, width = self.depth.shape
        step = -(-max(height, width) // long_side)
        start_x, start_y = ((size - 1) % step // 2 for size in (width, height))
        shift = np.array([[1 / step, 0, -start_x / step], [0, 1 / step, -start_y / step], [0, 0, 1]])
        depth = np.ascontiguousarray(self.depth[start_y::step, start_x::step])
        return DepthCamera(depth=depth, intrinsics=shift @ self.intrinsics, camera_from_world=self.camera_from_world)

    def samples(self) -> Float64[np.ndarray, "n 3"]:
        """World points of a grid of pixels of which about `SAMPLES` have a depth; NaN for the others."""
        height, width = self.depth.shape
        count = round(SAMPLES / max(float(np.isfinite(self.depth).mean()), SAMPLES / (height * width)))
        columns = min(width, max(1, round((count * width / height) ** 0.5)))
        rows = min(height, max(1, round(count / columns)))
        x = ((np.arange(columns) + 0.5) * width / columns).astype(int)
        y = ((np.arange(rows) + 0.5) * height / rows).astype(int)
        pixels = np.stack([*np.meshgrid(x, y), np.ones((rows, columns))], axis=-1).reshape(-1, 3)
        in_camera = (pixels @ np.linalg.inv(self.intrinsics).T) * self.depth[np.ix_(y, x)].reshape(-1, 1)
        return (in_camera - self.camera_from_world[:3, 3]) @ self.camera_from_world[:3, :3]

    def sees(self, points: Float[np.ndarray, "n 3"]) -> tuple[Bool[np.ndarray, " n"], ...]:
        """Which world points are inside the image and in front of the camera; of these, which are at pixels with known
        depth; of these, which are on the same surface, within `AGREE`."""
        height, width = self.depth.shape
        projection = (self.intrinsics @ self.camera_from_world[:3]).astype(points.dtype)
        mapped = points @ projection[:, :3].T + projection[:, 3]
        z = mapped[:, 2]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            x, y = np.rint(mapped[:, 0] / z), np.rint(mapped[:, 1] / z)
            inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        depth = np.full(len(points), np.nan, self.depth.dtype)
        depth[inside] = self.depth[y[inside].astype(int), x[inside].astype(int)]
        with np.errstate(invalid="ignore"):
            return inside, np.isfinite(depth), np.abs(depth - z) <= AGREE * z


def overlap_matrix(cameras: Sequence[DepthCamera | None]) -> Float[np.ndarray, "f f"]:
    """Overlap of each pair of cameras, symmetric, with a diagonal of 1; None has no overlap with others.

    It is the smaller one, over both directions, of the fraction of one camera's samples that the other sees. This fraction
    is the one of samples inside the other image, times the one of samples that agree in depth among those with known depth:
    unknown depths count neither for nor against.
    """
    present = [number for number, camera in enumerate(cameras) if camera is not None]
    known = [camera for camera in cameras if camera is not None]
    overlap = np.eye(len(cameras))
    if not known:
        return overlap
    grids = [camera.samples() for camera in known]
    finite = [grid[np.isfinite(grid).all(1)].astype(np.float32) for grid in grids]
    points, starts = np.concatenate(finite), np.cumsum([0, *map(len, finite)])
    fractions = np.stack([_fractions_seen(camera, points, starts) for camera in known], axis=1)  # row: whose samples
    overlap[np.ix_(present, present)] = np.minimum(fractions, fractions.T)
    np.fill_diagonal(overlap, 1.0)
    return overlap


def _fractions_seen(camera: DepthCamera, points: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """For each block of points, the fraction that the camera sees."""
    blocks = [np.concatenate([[0], np.cumsum(mask)]) for mask in camera.sees(points)]
    inside, known, agree = (block[starts[1:]] - block[starts[:-1]] for block in blocks)
    total = np.diff(starts)
    share = inside / np.maximum(total, 1) * (agree / np.maximum(known, 1))
    return np.where(known >= FEWEST, share, 0.0)


def choose_pairs(matrix: Float[np.ndarray, "f f"], settings: OverlapSettings, scene: str) -> list[tuple[int, int, float]]:
    """Chooses the pairs (row, larger row, overlap) of a scene, sorted. Of more than `max_pairs`, each tenth of overlap is
    drawn from equally often, as far as it has pairs; the scene's name is part of the seed."""
    first, second = np.triu_indices(len(matrix), 1)
    values = matrix[first, second]
    fitting = np.flatnonzero((values >= settings.min_overlap) & (values <= settings.max_overlap))
    if len(fitting) > settings.max_pairs:
        order = rng_for(settings.seed, scene).permutation(fitting)
        bins = np.floor(values[order] / _BINS + 1e-9).astype(int)
        rank = np.empty(len(order), dtype=int)  # how many of its bin come before it
        for number in np.unique(bins):
            rank[bins == number] = np.arange((bins == number).sum())
        fitting = np.sort(order[np.argsort(rank, kind="stable")[: settings.max_pairs]])
    return [(int(first[k]), int(second[k]), float(values[k])) for k in fitting]
