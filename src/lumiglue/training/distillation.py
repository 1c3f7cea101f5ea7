"""Distillation: each layer of a student learns a teacher's assignment.

A label is 1 or 0. A teacher also gives its confidence, and the candidates it hesitates between. The loss is LightGlue's
negative log-likelihood (Equation 10) weighted by the teacher's probabilities. For a teacher with probabilities of 1 and 0 it
is `correspondence_loss`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lumiglue.training.data.taught import SparseAssignment
from lumiglue.training.scores import LayerScores


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """A teacher's assignments of some of B pairs of m and n points.

    Attributes:
        entries: (pair, row in the first image, row in the second).
        weights: The teacher's P of each entry.
        unmatchable0: Probability that a point of the first image has no match; 0 in pairs without a teacher.
        unmatchable1: The same for the second image.
        pairs: Number of pairs with a teacher's assignment.
    """

    entries: Int[Tensor, "k 3"]
    weights: Float[Tensor, " k"]
    unmatchable0: Float[Tensor, "b m"]
    unmatchable1: Float[Tensor, "b n"]
    pairs: int

    @classmethod
    def of_pairs(
        cls, numbered: Sequence[tuple[int, SparseAssignment]], shape: tuple[int, int, int], device: torch.device | str
    ) -> "SoftLabels":
        """Collects assignments, each with the number of its pair in the batch. shape: B, m, n."""
        entries = [np.zeros((0, 3), np.int64)]
        weights, sides = [np.zeros(0, np.float32)], (np.zeros(shape[:2], np.float32), np.zeros(shape[::2], np.float32))
        for number, assignment in numbered:
            entries.append(np.column_stack([np.full(len(assignment.entries), number), assignment.entries]))
            weights.append(np.exp(assignment.log_p.astype(np.float32)))
            sides[0][number], sides[1][number] = 1 - assignment.matchability0, 1 - assignment.matchability1
        arrays = (np.concatenate(entries), np.concatenate(weights), *sides)
        return cls(*(torch.from_numpy(array).to(device) for array in arrays), pairs=len(numbered))


def distillation_loss(scores: LayerScores, soft: SoftLabels) -> Float[Tensor, ""]:
    """One layer's cross-entropy against the teacher, averaged over the pairs with an assignment.

    With P of the teacher and u its unmatchable probabilities, per pair: -(sum P log P_ij / sum P + 1/2 sum u_i log(1 -
    sigma_i) / sum u_i + 1/2 sum u_j log(1 - sigma_j) / sum u_j). The student has the scores.
    """
    pair = soft.entries[:, 0]
    mass = torch.zeros(len(scores.logits0), device=pair.device).index_add(0, pair, soft.weights).clamp_min(1e-6)
    matched = (scores.log_p(soft.entries) * soft.weights / mass[pair]).sum()
    sides = ((scores.logits0, soft.unmatchable0), (scores.logits1, soft.unmatchable1))
    unmatched = sum((F.logsigmoid(-x) * u).sum(1) / u.sum(1).clamp_min(1e-6) for x, u in sides)
    assert isinstance(unmatched, Tensor)
    return -(matched + unmatched.sum() / 2) / max(soft.pairs, 1)
