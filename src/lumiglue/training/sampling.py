"""Training batches from feature datasets.

A batch is a pure function of (seed, step), so a resumed run sees the same pairs, and so does each of several processes that
share a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lumiglue.errors import DatasetError
from lumiglue.matcher.inputs import MatcherConfig, normalize_positions
from lumiglue.matcher.packed import PackedPairs
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.data.taught import PairLabels
from lumiglue.training.distillation import SoftLabels
from lumiglue.training.labels import Labels, labels_from_depths, labels_from_homographies

LEAST_OVERLAP = 0.1  # pairs with less are not drawn, unless a teacher matched them


@dataclass(frozen=True, eq=False)
class Side:
    """One image of each of P pairs, with n keypoints each, and its ground-truth geometry.

    Attributes:
        keypoints: Pixels (x, y).
        depths: z in the camera at each keypoint, NaN where unknown.
        sizes: (width, height) in pixels.
        view_from_scene: Homographies of planar scenes.
        intrinsics: Camera matrices in pixels.
        camera_from_world: Rigid transforms.
    """

    keypoints: Float[Tensor, "p n 2"]
    depths: Float[Tensor, "p n"]
    sizes: Float[Tensor, "p 2"]
    view_from_scene: Float[Tensor, "p 3 3"]
    intrinsics: Float[Tensor, "p 3 3"]
    camera_from_world: Float[Tensor, "p 4 4"]


@dataclass(frozen=True, eq=False)
class Batch:
    """P pairs with n keypoints per image.

    Attributes:
        pairs: The matcher's input.
        side0: Ground truth of the first images.
        side1: Ground truth of the second images.
        planar: Whether a homography relates the two images; otherwise depths do.
        related: Whether both images show the same scene.
        taught: Labels of the pairs that a teacher labelled, by their number in the batch. These pairs are neither planar nor
            do they have depths.
    """

    pairs: PackedPairs
    side0: Side
    side1: Side
    planar: Bool[Tensor, " p"]
    related: Bool[Tensor, " p"]
    taught: Mapping[int, PairLabels] = field(default_factory=dict)

    @property
    def keypoints0(self) -> Float[Tensor, "p n 2"]:
        return self.side0.keypoints

    @property
    def keypoints1(self) -> Float[Tensor, "p n 2"]:
        return self.side1.keypoints

    def labels(self) -> Labels:
        """Ground-truth labels of all pairs, each from its own kind of ground truth."""
        p, n = self.side0.depths.shape
        device = self.planar.device
        matches = []
        unmatchable = torch.ones(2, p, n, dtype=torch.bool, device=device)  # final for unrelated pairs
        geometric = self.related.clone()
        for number, labels in self.taught.items():
            geometric[number] = False
            taught = torch.from_numpy(labels.matches()).to(device)
            matches.append(torch.cat([torch.full_like(taught[:, :1], number), taught], dim=1))
            for side, mask in enumerate(labels.unmatchable()):
                unmatchable[side, number] = torch.from_numpy(mask).to(device)
        for kind in (self.planar & geometric, ~self.planar & geometric):
            rows = kind.nonzero()[:, 0]
            if not len(rows):
                continue
            labels = self._planar_labels(rows) if bool(self.planar[rows[0]]) else self._depth_labels(rows)
            matches.append(torch.cat([rows[labels.matches[:, :1]], labels.matches[:, 1:]], dim=1))
            unmatchable[0, rows], unmatchable[1, rows] = labels.unmatchable0, labels.unmatchable1
        joined = torch.cat(matches) if matches else torch.zeros(0, 3, dtype=torch.int64, device=device)
        return Labels(joined, *unmatchable.unbind())

    def soft_labels(self) -> SoftLabels | None:
        """The teacher's assignments; None if no pair has one."""
        numbered = [(number, labels.assignment) for number, labels in self.taught.items() if labels.assignment is not None]
        if not numbered:
            return None
        p, n = self.side0.depths.shape
        return SoftLabels.of_pairs(numbered, (p, n, n), self.planar.device)

    def _planar_labels(self, rows: Tensor) -> Labels:
        # Both homographies give points in front of the camera positive depths, and so does their product. It is not rescaled
        # by its last entry: that is the depth of a corner pixel, which may be behind the camera.
        homographies = self.side1.view_from_scene[rows] @ torch.linalg.inv(self.side0.view_from_scene[rows])
        related = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        return labels_from_homographies(self.keypoints0[rows], self.keypoints1[rows], homographies, related)

    def _depth_labels(self, rows: Tensor) -> Labels:
        a, b = self.side0, self.side1
        camera1_from_camera0 = b.camera_from_world[rows] @ torch.linalg.inv(a.camera_from_world[rows])
        matrices = (a.intrinsics[rows], b.intrinsics[rows], camera1_from_camera0)
        points = (a.keypoints[rows], b.keypoints[rows], a.depths[rows], b.depths[rows])
        return labels_from_depths(*points, *matrices)


@dataclass(frozen=True)
class _Drawn:
    """One drawn pair: (dataset, view) and keypoint rows of each image, and the number of a related pair in its dataset."""

    views: tuple[tuple[int, int], tuple[int, int]]
    rows: tuple[np.ndarray, np.ndarray]
    related: bool
    number: int


@dataclass(frozen=True)
class _Pool:
    """Pairs to draw from (Q x 2 views), their numbers in the dataset, and the cumulative sum of their weights."""

    pairs: np.ndarray
    numbers: np.ndarray
    running: np.ndarray

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        return self.pairs[self.draw_row(rng)]

    def draw_row(self, rng: np.random.Generator) -> int:
        row = int(np.searchsorted(self.running, rng.random() * self.running[-1], side="right"))
        return min(row, len(self.pairs) - 1)


class PairSampler:
    """Draws pairs of views from one split of some datasets.

    Within a dataset, a scene of n pairs is drawn with a weight of sqrt(n), so that a scene of thousands of frames does not
    dominate. One scene in 20, at most 128, is held out for validation; in a dataset of fewer than 20 scenes, one pair in 20.
    The split does not depend on the seed, so runs on one dataset are comparable.

    The two scenes of a negative pair are from different folders if the dataset has several, because photos in one folder
    may show the same place. They are never synthetic scenes, because two of these share some of their photos.

    Args:
        datasets: Where to draw from.
        config: Config of the matcher, which sets the encoding of positions.
        split: "training" or "validation".
        seed: Seed of the draws.
        negative_pair_ratio: Probability of a negative pair: two views of different scenes.
        sampling_weights: How often each dataset is drawn from; equal by default.

    Raises:
        DatasetError: If the number of sampling weights is wrong, or one is negative, or all are 0.
    """

    def __init__(
        self,
        datasets: Sequence[FeatureDataset],
        config: MatcherConfig,
        *,
        split: str,
        seed: int,
        negative_pair_ratio: float,
        sampling_weights: Sequence[float] | None = None,
    ) -> None:
        self.datasets, self.config, self.split, self.seed = list(datasets), config, split, seed
        self.negative_pair_ratio = negative_pair_ratio
        chances = np.asarray(sampling_weights if sampling_weights is not None else np.ones(len(datasets)), dtype=np.float64)
        if len(chances) != len(datasets) or chances.min() < 0 or not chances.sum() > 0:
            raise DatasetError(
                f"{len(datasets)} datasets need {len(datasets)} sampling weights, none negative; got {chances.tolist()}"
            )
        self.chances = chances / chances.sum()
        self.numbers = [
            np.flatnonzero(_in_split(dataset, split) & ((dataset.overlaps >= LEAST_OVERLAP) | (dataset.kind == "taught")))
            for dataset in self.datasets
        ]
        self.folders = [_folders(dataset) for dataset in self.datasets]
        self.has_orientation = all(dataset.has_orientation for dataset in self.datasets)
        self._usable: dict[int, list[_Pool]] = {}

    @property
    def pairs(self) -> list[np.ndarray]:
        """For each dataset its pairs of views in this split, Q x 2."""
        return [dataset.pairs[numbers] for dataset, numbers in zip(self.datasets, self.numbers, strict=True)]

    def check(self, needed: Mapping[int, str]) -> None:
        """Checks, before a run and not in the middle of it, that enough views have enough keypoints.

        Raises DatasetError if no pair of this split has one of the needed numbers of keypoints in both views. The message
        names the setting that the number comes from.
        """
        for points, setting in needed.items():
            self._pairs_of(points, setting)

    def batch(
        self, step: int, size: int, points: int, part: slice | None = None, device: torch.device | str = "cpu"
    ) -> Batch:
        """The batch of a step: `size` pairs, of which `part` is returned, with `points` keypoints per image.

        Raises DatasetError if no pair has that many keypoints in both views.
        """
        usable = self._pairs_of(points)
        chances = self.chances * [len(pool.pairs) > 0 for pool in usable]
        numbers = range(size)[part or slice(None)]
        chances /= chances.sum()
        drawn = [self._draw(np.random.default_rng([self.seed, step, k]), usable, chances, points) for k in numbers]
        return self._assemble(drawn, points, device)

    def _pairs_of(self, points: int, setting: str = "points") -> list["_Pool"]:
        """For each dataset its pairs of views with enough keypoints."""
        if points not in self._usable:
            pools = []
            for dataset, numbers in zip(self.datasets, self.numbers, strict=True):
                numbers = numbers[(dataset.counts >= points)[dataset.pairs[numbers]].all(1)]
                pairs = dataset.pairs[numbers]
                _, scenes, counts = np.unique(dataset.view_scenes[pairs[:, 0]], return_inverse=True, return_counts=True)
                pools.append(_Pool(pairs, numbers, np.cumsum(counts[scenes] ** -0.5)))
            self._usable[points] = pools
        usable = self._usable[points]
        if not sum(weight * len(pool.pairs) for weight, pool in zip(self.chances, usable, strict=True)):
            raise DatasetError(self._why_none(points, setting))
        return usable

    def _why_none(self, points: int, setting: str) -> str:
        """Why no pair has that many keypoints, and what to do."""
        drawn = [number for number, weight in enumerate(self.chances) if weight]
        names = ", ".join(str(self.datasets[number].path) for number in drawn)
        counts = np.concatenate([self.datasets[number].counts[self.pairs[number]].min(1) for number in drawn])
        if not len(counts):
            total = sum(len(self.datasets[number].pairs) for number in drawn)
            return f"none of the {total} pairs of views in {names} can be used for {self.split}; build it from more photos"
        common = int(np.quantile(counts, 0.5, method="lower"))
        return (
            f"no {self.split} pair of {names} has {points} keypoints in both views; half of them have at least {common}: "
            f"set --{setting.replace('_', '-')} to {common} or less"
        )

    def _draw(self, rng: np.random.Generator, usable: list["_Pool"], chances: np.ndarray, points: int) -> _Drawn:
        which = int(rng.choice(len(self.datasets), p=chances))
        row = usable[which].draw_row(rng)
        a, b = rng.permutation(usable[which].pairs[row]).tolist()
        views = ((which, a), (which, b))
        related = True
        if rng.random() < self.negative_pair_ratio and (negatives := self._negatives(rng, usable, chances)):
            views, related = negatives, False
        rows = (self._rows(*views[0], points, rng), self._rows(*views[1], points, rng))
        return _Drawn(views, rows, related, int(usable[which].numbers[row]))

    def _taught(self, drawn: _Drawn) -> PairLabels | None:
        """The teacher's labels of a pair's keypoints; None if there are none."""
        (which, first), _ = drawn.views
        dataset = self.datasets[which]
        if dataset.taught is None or not drawn.related:
            return None
        labels = dataset.taught.labels(drawn.number)
        if first != dataset.pairs[drawn.number, 0]:
            labels = labels.reversed()
        starts = (dataset.offsets[view] for _, view in drawn.views)
        return labels.select(*(rows - start for rows, start in zip(drawn.rows, starts, strict=True)))

    def _negatives(
        self, rng: np.random.Generator, usable: list["_Pool"], chances: np.ndarray
    ) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Two views of different scenes, if a few draws find some."""
        chances = chances * [dataset.plan["settings"].get("source") != "worlds" for dataset in self.datasets]
        if not chances.sum():
            return None
        chances /= chances.sum()
        for _ in range(8):
            a, b = (
                (which, int(rng.choice(usable[which].draw(rng))))
                for which in rng.choice(len(chances), 2, p=chances).tolist()
            )
            if self.folders[a[0]][a[1]] != self.folders[b[0]][b[1]]:
                return a, b
        return None

    def _rows(self, which: int, view: int, points: int, rng: np.random.Generator) -> np.ndarray:
        """`points` of the view's keypoints in random order: mostly the strongest, but a different set each time."""
        dataset = self.datasets[which]
        count = int(dataset.counts[view])
        rank = np.arange(count) / points
        return dataset.offsets[view] + rng.permutation(np.argsort(rank + rng.exponential(0.25, count))[:points])

    def _assemble(self, drawn: list[_Drawn], points: int, device: torch.device | str) -> Batch:
        p = len(drawn)
        images = [(view, rows) for pair in drawn for view, rows in zip(pair.views, pair.rows, strict=True)]
        gathered = self._gather(images, points, device)
        sizes = self._of_views("view_sizes", images, device).float()
        scales, orientations = (gathered[name] if self.has_orientation else None for name in ("scales", "orientations"))
        positions = normalize_positions(
            gathered["keypoints"],
            sizes.repeat_interleave(points, 0),
            self.config.encoding,
            scales=scales,
            orientations=orientations,
            scores=gathered["scores"],
        )
        matrices = [self._of_views(name, images, device) for name in ("homographies", "intrinsics", "cameras")]
        per_point = [gathered[name].unflatten(0, (2 * p, points)) for name in ("keypoints", "depths")]
        planar = torch.tensor([self.datasets[pair.views[0][0]].kind == "plane" for pair in drawn], device=device)
        related = torch.tensor([pair.related for pair in drawn], device=device)
        packed = PackedPairs(gathered["descriptors"], positions, ((points, points),) * p)
        side0, side1 = (Side(*(table[offset::2] for table in (*per_point, sizes, *matrices))) for offset in (0, 1))
        taught = {number: labels for number, pair in enumerate(drawn) if (labels := self._taught(pair)) is not None}
        return Batch(packed, side0, side1, planar, related, taught)

    def _gather(
        self, images: list[tuple[tuple[int, int], np.ndarray]], points: int, device: torch.device | str
    ) -> dict[str, Tensor]:
        """Keypoint arrays of all images, in order, read dataset by dataset."""
        gathered: dict[str, Tensor] = {}
        for which, dataset in enumerate(self.datasets):
            own = [number for number, ((owner, _), _) in enumerate(images) if owner == which]
            if not own:
                continue
            index = (torch.tensor(own)[:, None] * points + torch.arange(points)).flatten().to(device)
            for name, array in dataset.gather(np.concatenate([images[number][1] for number in own])).items():
                if name not in gathered:
                    gathered[name] = array.new_empty(len(images) * points, *array.shape[1:], device=device)
                gathered[name][index] = array.to(device)  # blocking: an asynchronous copy could be read too early
        return gathered

    def _of_views(self, name: str, images: list[tuple[tuple[int, int], np.ndarray]], device: torch.device | str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(self.datasets[which], name)[view] for (which, view), _ in images])).to(
            device
        )


def _in_split(dataset: FeatureDataset, split: str) -> np.ndarray:
    """For each of the dataset's pairs, whether it belongs to that split."""
    rng = np.random.default_rng(0)
    if len(dataset.scenes) >= 20:
        scenes = rng.permutation(len(dataset.scenes))
        if len(scenes) < 100:  # only a few are held out: not the ones with hardly any keypoints
            total = np.bincount(dataset.view_scenes, weights=dataset.counts, minlength=len(scenes))[scenes]
            scenes = scenes[total >= np.median(total)]
        held_out = scenes[: min(len(dataset.scenes) // 20, 128)]
        validation = np.isin(dataset.view_scenes[dataset.pairs[:, 0]], held_out)
    else:
        validation = np.isin(
            np.arange(len(dataset.pairs)), rng.permutation(len(dataset.pairs))[: max(1, len(dataset.pairs) // 20)]
        )
    return validation if split == "validation" else ~validation


def _folders(dataset: FeatureDataset) -> np.ndarray:
    """The folder of each view's scene; its scene if all scenes are in one folder."""
    parents = [str(PurePosixPath(name).parent) for name in dataset.scenes]
    return np.array(parents if len(set(parents)) > 1 else dataset.scenes)[dataset.view_scenes]
