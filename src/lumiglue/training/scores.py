"""What a layer says of pairs in training: the log-probabilities of labelled pairs, without the matrix of all pairs.

A loss needs P_ij at its labels, the sums over rows and columns of exp(S), and their gradients. S itself, and what PyTorch's
operations keep of it, would take much of the memory of a step, and with 2,048 points half of its time. So S is computed in
blocks that stay in the processor's cache, in the forward pass and again in the backward pass.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lumiglue.matcher.assignment import MatchAssignment, log_assignment

# Similarities at a time on a CPU: half a megabyte.
BLOCK = 2**17


@dataclass(frozen=True, eq=False)
class LayerScores:
    """One layer's scores of B pairs of m and n points, in float32.

    Attributes:
        features0: The projected states of the first images; their products with those of the second are the similarity S.
        features1: The same of the second images.
        logits0: Matchability logits of the first images.
        logits1: The same of the second images.
    """

    features0: Float[Tensor, "b m d"]
    features1: Float[Tensor, "b n d"]
    logits0: Float[Tensor, "b m"]
    logits1: Float[Tensor, "b n"]

    def log_p(self, entries: Int[Tensor, "k 3"]) -> Float[Tensor, " k"]:
        """log P (Equation 8) of k entries: pair, row in the first image, row in the second."""
        pair, i, j = entries.unbind(1)
        similarity = (self.features0[pair, i] * self.features1[pair, j]).sum(1)
        rows, columns = self.log_sums
        matchable = F.logsigmoid(self.logits0)[pair, i] + F.logsigmoid(self.logits1)[pair, j]
        return 2 * similarity - rows[pair, i] - columns[pair, j] + matchable

    @functools.cached_property
    def log_sums(self) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b n"]]:
        """log sum_j exp(S_ij) of the rows, log sum_i exp(S_ij) of the columns; computed once for all losses."""
        return _LogSums.apply(self.features0, self.features1)

    def log_assignment(self) -> Float[Tensor, "b m n"]:
        """log P of all entries."""
        with torch.autocast(self.features0.device.type, enabled=False):
            return log_assignment(self.features0 @ self.features1.mT, self.logits0, self.logits1)


def layer_scores(head: MatchAssignment, x: Float[Tensor, "t d"], n_pairs: int) -> LayerScores:
    """Scores of one layer for P pairs of segments of equal length, from the states of all points."""
    with torch.autocast(x.device.type, enabled=False):
        features = head.features(x.float()).unflatten(0, (n_pairs, 2, -1))
        logits = head.matchability_logits(x.float()).unflatten(0, (n_pairs, 2, -1))
    return LayerScores(features[:, 0], features[:, 1], logits[:, 0], logits[:, 1])


class _LogSums(torch.autograd.Function):
    """`LayerScores.log_sums`."""

    @staticmethod
    def forward(ctx: Any, a: Float[Tensor, "b m d"], b: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor]:
        rows, columns = a.new_empty(a.shape[:2]), b.new_full(b.shape[:2], -torch.inf)
        with torch.autocast(a.device.type, enabled=False):
            for pairs, block in _blocks(a, b):
                similarity = a[pairs, block] @ b[pairs].mT
                rows[pairs, block] = similarity.logsumexp(2)
                columns[pairs] = torch.logaddexp(columns[pairs], similarity.logsumexp(1))
        ctx.save_for_backward(a, b, rows, columns)
        return rows, columns

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, b, rows, columns = ctx.saved_tensors
        of_rows, of_columns = grad_outputs
        gradient_a, gradient_b = torch.empty_like(a), torch.zeros_like(b)
        with torch.autocast(a.device.type, enabled=False):
            for pairs, block in _blocks(a, b):
                similarity = a[pairs, block] @ b[pairs].mT
                slope = (similarity - rows[pairs, block, None]).exp_().mul_(of_rows[pairs, block, None])
                slope += similarity.sub_(columns[pairs, None]).exp_().mul_(of_columns[pairs, None])
                gradient_a[pairs, block] = slope @ b[pairs]
                gradient_b[pairs].baddbmm_(slope.mT, a[pairs, block])
        return gradient_a, gradient_b


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[slice, slice]]:
    """Pairs and rows that are computed at once: all on a GPU, on a CPU those of one pair that fit in the cache."""
    if not a.is_cpu:
        yield slice(None), slice(None)
        return
    rows = max(BLOCK // max(b.shape[1], 1), 1)
    for pair in range(len(a)):
        for first in range(0, a.shape[1], rows):
            yield slice(pair, pair + 1), slice(first, first + rows)
