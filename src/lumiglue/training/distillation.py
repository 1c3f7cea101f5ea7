"""Distillation: a student learns a teacher's assignment, row by row and column by column, at each of its layers.

A label says 1 or 0; a teacher says how sure it is, and between which candidates it hesitates. The loss is LightGlue's
negative log-likelihood (Equation 10) with the teacher's probabilities as weights: with a teacher that is always sure it is
`correspondence_loss`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lumiglue.training.data.taught import SparseAssignment


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """A teacher's assignments of some of B pairs of m and n points.

    entries: k x 3 (pair, row in A, row in B). weights: k, the teacher's P. unmatchable0, unmatchable1: the probability that
    a point has no match; 0 for pairs that no teacher assigned. pairs: how many it assigned.
    """

    entries: Int[Tensor, "k 3"]
    weights: Float[Tensor, " k"]
    unmatchable0: Float[Tensor, "b m"]
    unmatchable1: Float[Tensor, "b n"]
    pairs: int

    @classmethod
    def of_pairs(
        cls, given: Sequence[tuple[int, SparseAssignment]], shape: tuple[int, int, int], device: torch.device | str
    ) -> "SoftLabels":
        """From (number in the batch, assignment); shape: B, m, n."""
        entries = [np.zeros((0, 3), np.int64)]
        weights, sides = [np.zeros(0, np.float32)], (np.zeros(shape[:2], np.float32), np.zeros(shape[::2], np.float32))
        for number, assignment in given:
            entries.append(np.column_stack([np.full(len(assignment.entries), number), assignment.entries]))
            weights.append(np.exp(assignment.log_p.astype(np.float32)))
            sides[0][number], sides[1][number] = 1 - assignment.matchability0, 1 - assignment.matchability1
        arrays = (np.concatenate(entries), np.concatenate(weights), *sides)
        return cls(*(torch.from_numpy(array).to(device) for array in arrays), pairs=len(given))


def distillation_loss(
    similarity: Float[Tensor, "b m n"], logits0: Float[Tensor, "b m"], logits1: Float[Tensor, "b n"], soft: SoftLabels
) -> Float[Tensor, ""]:
    """One layer's cross-entropy against the teacher, averaged over the pairs that it assigned.

    sum P log P_ij / sum P + 1/2 of the same mean of log(1 - sigma) over each side's unmatchable probabilities.
    """
    pair, i, j = soft.entries.unbind(1)
    log_p = (
        2 * similarity[pair, i, j]
        - similarity.logsumexp(2)[pair, i]
        - similarity.logsumexp(1)[pair, j]
        + F.logsigmoid(logits0)[pair, i]
        + F.logsigmoid(logits1)[pair, j]
    )
    mass = torch.zeros(len(similarity), device=similarity.device).index_add(0, pair, soft.weights).clamp_min(1e-6)
    matched = (log_p * soft.weights / mass[pair]).sum()
    sides = ((logits0, soft.unmatchable0), (logits1, soft.unmatchable1))
    unmatched = sum((F.logsigmoid(-x) * u).sum(1) / u.sum(1).clamp_min(1e-6) for x, u in sides)
    assert isinstance(unmatched, Tensor)
    return -(matched + unmatched.sum() / 2) / max(soft.pairs, 1)
