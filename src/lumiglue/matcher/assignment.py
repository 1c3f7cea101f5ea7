"""From similarity and matchability to a partial assignment (Section 3.2 of the paper).

    log P_ij = log_softmax_over_i(S)_ij + log_softmax_over_j(S)_ij + log sigma_i + log sigma_j
             = 2 S_ij - row_lse_i - column_lse_j + log sigma_i + log sigma_j

A pair is a match where P_ij > tau is the maximum of its row and of its column. Matches need only the log-sum-exp and
the best entry of each row and column, so S is computed in blocks of rows that fit in the cache; large S is never stored.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lumiglue.matcher.ops.exponent import MIN_SUM, exponent_offset

# S of up to this many entries (64 MiB in float32) is stored between the two passes; a larger one is computed twice.
MAX_ENTRIES = 2**24
# Entries of a block on the CPU: half a megabyte, which fits in a core's cache.
BLOCK_ENTRIES = 2**17


def log_assignment(
    similarity: Float[Tensor, "*b m n"], matchability0: Float[Tensor, "*b m"], matchability1: Float[Tensor, "*b n"]
) -> Float[Tensor, "*b m n"]:
    """log P of the paper's Equation 8.

    Args:
        similarity: S.
        matchability0: Logits of sigma of the rows.
        matchability1: Logits of sigma of the columns.

    Returns:
        log P_ij, without a dustbin.
    """
    rows = similarity.logsumexp(-1) - F.logsigmoid(matchability0)
    columns = similarity.logsumexp(-2) - F.logsigmoid(matchability1)
    return 2 * similarity - rows.unsqueeze(-1) - columns.unsqueeze(-2)


def assign(
    features0: Float[Tensor, "m d"],
    features1: Float[Tensor, "n d"],
    matchability0: Float[Tensor, " m"],
    matchability1: Float[Tensor, " n"],
    threshold: float,
    block: int | None = None,
) -> tuple[Int[Tensor, "k 2"], Float[Tensor, " k"]]:
    """Mutual maxima of P above a threshold. Of equal maxima the first counts.

    Args:
        features0: S is features0 @ features1^T, in float32.
        features1: See `features0`.
        matchability0: Logits of sigma of the points of image 0.
        matchability1: Logits of sigma of the points of image 1.
        threshold: tau; matches have P_ij above it.
        block: Rows of S at a time; None takes what suits the device.

    Returns:
        Matches as rows in image 0 and image 1, in order of the first, and their scores P_ij.
    """
    features0, features1 = features0.float(), features1.float()
    m, n = len(features0), len(features1)
    if m == 0 or n == 0:
        return torch.zeros(0, 2, dtype=torch.int64, device=features0.device), features0.new_zeros(0)
    if block is None:
        block = MAX_ENTRIES // n if features0.is_cuda else max(64, BLOCK_ENTRIES // n)
    blocks = _Blocks(features0, features1, max(block, 1))
    row_lse, column_lse = blocks.log_sum_exps()
    rows = row_lse - F.logsigmoid(matchability0.float())
    columns = column_lse - F.logsigmoid(matchability1.float())
    row_best, partner, column_best = blocks.best(rows, columns)
    scores = row_best.clamp(max=0).exp()  # rounding may lift log P above 0
    rows0 = ((column_best[partner] == row_best) & (scores > threshold)).nonzero()[:, 0]
    first = torch.full((n,), m, device=rows0.device).scatter_reduce(0, partner[rows0], rows0, "amin")
    rows0 = rows0[first[partner[rows0]] == rows0]
    return torch.stack([rows0, partner[rows0]], dim=1), scores[rows0]


class _Blocks:
    """S by blocks of rows."""

    def __init__(self, features0: Tensor, features1: Tensor, rows: int) -> None:
        self.parts, self.features1 = features0.split(rows), features1.mT.contiguous()
        self.features0 = features0
        store = len(features0) * len(features1) <= MAX_ENTRIES
        self.stored = [part @ self.features1 for part in self.parts] if store else None

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.stored if self.stored is not None else (part @ self.features1 for part in self.parts)

    def log_sum_exps(self) -> tuple[Float[Tensor, " m"], Float[Tensor, " n"]]:
        """Of each row and each column: by one exponential for both, or exactly if that would lose the small ones."""
        offset = exponent_offset(self.features0, self.features1.mT)
        if offset is not None:
            row_sums, column_sums = [], self.features1.new_zeros(self.features1.shape[1])
            for similarity in self:
                exponentials = (similarity - offset).exp_() if offset else similarity.exp()
                row_sums.append(exponentials.sum(1))
                column_sums += exponentials.sum(0)
            row_sum = torch.cat(row_sums)
            if min(float(row_sum.min()), float(column_sums.min())) > MIN_SUM:
                return row_sum.log() + offset, column_sums.log() + offset
        row_lse, column_lse = [], self.features1.new_full((self.features1.shape[1],), -torch.inf)
        for similarity in self:
            row_lse.append(similarity.logsumexp(1))
            column_lse = torch.logaddexp(column_lse, similarity.logsumexp(0))
        return torch.cat(row_lse), column_lse

    def best(
        self, rows: Float[Tensor, " m"], columns: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"], Float[Tensor, " n"]]:
        """Of log P = 2 S - rows - columns: best value and column of each row, best value of each column."""
        row_best, row_arg, column_best = [], [], torch.full_like(columns, -torch.inf)
        start = 0
        for similarity in self:
            part = rows[start : start + len(similarity)]
            log_p = torch.add(-columns, similarity, alpha=2).sub_(part[:, None])
            best, arg = log_p.max(1)
            row_best.append(best)
            row_arg.append(arg)
            torch.maximum(column_best, log_p.amax(0), out=column_best)
            start += len(similarity)
        return torch.cat(row_best), torch.cat(row_arg), column_best


class MatchAssignment(nn.Module):
    """Similarity and matchability (Equations 6-7)."""

    def __init__(self, d: int, matchability: bool = True) -> None:
        super().__init__()
        self.projection = nn.Linear(d, d)
        self.matchability = nn.Linear(d, 1) if matchability else None

    def features(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t d"]:
        """The f of S_ij = <f_i, f_j>: the projection of the states times d^-1/4.

        The scaling is in float32, as S has to be: bfloat16 would blur close scores.
        """
        features = self.projection(x)
        features = features.float() if features.dtype.itemsize < 4 else features
        return features * x.shape[-1] ** -0.25

    def matchability_logits(self, x: Float[Tensor, "t d"]) -> Float[Tensor, " t"]:
        """The logits of sigma_i; 1 for all points in the ablation without matchability."""
        if self.matchability is None:
            return torch.full_like(x[:, 0], 30.0)
        return self.matchability(x).squeeze(-1)


class TokenConfidence(nn.Linear):
    """The exit classifier of a layer: a logit for each token, whether its prediction is final (Section 3.3)."""

    def __init__(self, d: int) -> None:
        super().__init__(d, 1)
