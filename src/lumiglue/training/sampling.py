"""Training batches from a bank. A batch is a pure function of (seed, step): a resumed run sees the same pairs."""

from dataclasses import dataclass

import numpy as np
import torch

from lumiglue.errors import BankError
from lumiglue.matcher.lightglue import LightGlueConfig, pack
from lumiglue.matcher.packed import PackedPairs
from lumiglue.training.bank import Bank
from lumiglue.training.labels import Labels, labels_from_homographies
from lumiglue.types import Features


@dataclass(frozen=True, eq=False)
class Batch:
    """P pairs of `points` keypoints each side, with their keypoints (P, points, 2) and the homographies between them."""

    pairs: PackedPairs
    keypoints0: torch.Tensor
    keypoints1: torch.Tensor
    image1_from_image0: torch.Tensor
    related: torch.Tensor

    def labels(self) -> Labels:
        return labels_from_homographies(self.keypoints0, self.keypoints1, self.image1_from_image0, self.related)


class PairSampler:
    """Draws pairs of views of one photo (and, with chance `negatives`, of two photos) from one split of a bank.

    split: "training" or "validation"; a twentieth of the photos, at most 128, are held out for validation, the same ones
    whatever the seed, so that runs on one bank can be compared.
    """

    def __init__(self, bank: Bank, config: LightGlueConfig, *, split: str, seed: int, negatives: float) -> None:
        self.bank, self.config, self.seed, self.negatives = bank, config, seed, negatives
        photos = np.unique(bank.view_photos)
        order = np.random.default_rng(0).permutation(photos)
        held_out = min(max(1, len(order) // 20), 128)
        mine = set((order[:held_out] if split == "validation" else order[held_out:]).tolist())
        self.views = {photo: np.flatnonzero(bank.view_photos == photo) for photo in sorted(mine)}
        self.scale_free = config.encoding == "xy"

    def batch(self, step: int, size: int, points: int) -> Batch:
        """The batch of this step. Raises BankError where no photo has two views of `points` keypoints."""
        rng = np.random.default_rng([self.seed, step])
        usable = self._usable(points)
        chosen: list[tuple[int, int]] = []
        related: list[bool] = []
        for _ in range(size):
            first, other = rng.choice(len(usable), 2, replace=False) if len(usable) > 1 else (0, 0)
            negative = len(usable) > 1 and rng.random() < self.negatives
            a, b = rng.choice(usable[first], 2, replace=False)
            chosen.append((int(a), int(rng.choice(usable[other]) if negative else b)))
            related.append(not negative)
        return self._assemble(chosen, related, points, rng)

    def _usable(self, points: int) -> list[np.ndarray]:
        rich = [views[self.bank.counts[views] >= points] for views in self.views.values()]
        usable = [views for views in rich if len(views) >= 2]
        if not usable:
            raise BankError(f"no photo of {self.bank.path} has two views of {points} keypoints; train with fewer points")
        return usable

    def _assemble(self, chosen: list[tuple[int, int]], related: list[bool], points: int, rng: np.random.Generator) -> Batch:
        pairs = [(self._features(a, points, rng), self._features(b, points, rng)) for a, b in chosen]
        homographies = [self.bank.homographies[b] @ np.linalg.inv(self.bank.homographies[a]) for a, b in chosen]
        stacked = torch.from_numpy(np.stack([h / h[2, 2] for h in homographies])).float()
        keypoints0, keypoints1 = (torch.stack([pair[side].keypoints for pair in pairs]) for side in (0, 1))
        return Batch(pack(pairs, self.config), keypoints0, keypoints1, stacked, torch.tensor(related))

    def _features(self, view: int, points: int, rng: np.random.Generator) -> Features:
        """`points` of the view's keypoints in random order: mostly the strongest, but never twice the same set."""
        count = int(self.bank.counts[view])
        rank = np.arange(count) / points
        choice = np.argsort(rank + rng.exponential(0.25, count))[:points]
        rows = self.bank.rows(view, rng.permutation(choice))
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in rows.items()}
        if self.scale_free:
            del tensors["scales"], tensors["orientations"]
        width, height = self.bank.view_sizes[view].tolist()
        return Features(**tensors, image_size=(width, height), extractor=self.config.extractor)
