"""From similarity and matchability to a partial assignment (Section 3.2 of the paper).

    log P_ij = log_softmax_over_i(S)_ij + log_softmax_over_j(S)_ij + log sigma_i + log sigma_j
             = 2 S_ij - row_lse_i - column_lse_j + log sigma_i + log sigma_j

A pair is a match where P_ij > tau is the maximum of its row and of its column. Matches need only the log-sum-exp and
the best entry of each row and column, so large S is streamed in blocks of rows and never held.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# S of up to this many entries (64 MiB in float32) is held whole.
MAX_ENTRIES = 2**24


def log_assignment(
    similarity: Float[Tensor, "*b m n"], matchability0: Float[Tensor, "*b m"], matchability1: Float[Tensor, "*b n"]
) -> Float[Tensor, "*b m n"]:
    """log P of the paper's Equation 8; matchabilities are logits."""
    rows = similarity.logsumexp(-1) - F.logsigmoid(matchability0)
    columns = similarity.logsumexp(-2) - F.logsigmoid(matchability1)
    return 2 * similarity - rows.unsqueeze(-1) - columns.unsqueeze(-2)


def assign(
    features0: Float[Tensor, "m d"],
    features1: Float[Tensor, "n d"],
    matchability0: Float[Tensor, " m"],
    matchability1: Float[Tensor, " n"],
    threshold: float,
    max_entries: int = MAX_ENTRIES,
) -> tuple[Int[Tensor, "k 2"], Float[Tensor, " k"]]:
    """Matches (rows in 0 and 1, in order of the first) and their scores P_ij > threshold.

    similarity is features0 @ features1^T, computed in float32 in at most `max_entries` entries at a time.
    """
    features0, features1 = features0.float(), features1.float()
    matchability0, matchability1 = matchability0.float(), matchability1.float()
    m, n = len(features0), len(features1)
    if m == 0 or n == 0:
        return torch.zeros(0, 2, dtype=torch.int64, device=features0.device), features0.new_zeros(0)
    if m * n <= max_entries:
        log_p = log_assignment(features0 @ features1.mT, matchability0, matchability1)
        (row_best, row_arg), column_arg = log_p.max(1), log_p.argmax(0)
    else:
        row_best, row_arg, column_arg = _stream(features0, features1, matchability0, matchability1, max_entries)
    rows = torch.arange(m, device=features0.device)
    scores = row_best.exp()
    kept = ((column_arg[row_arg] == rows) & (scores > threshold)).nonzero()[:, 0]
    return torch.stack([kept, row_arg[kept]], dim=1), scores[kept]


def _stream(
    features0: Tensor, features1: Tensor, matchability0: Tensor, matchability1: Tensor, max_entries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Best value and column of each row, best row of each column, in two passes over blocks of rows."""
    n = len(features1)
    block = max(1, max_entries // n)
    row_lse = []
    column_lse = features1.new_full((n,), -torch.inf)
    for part in features0.split(block):
        similarity = part @ features1.mT
        row_lse.append(similarity.logsumexp(1))
        column_lse = torch.logaddexp(column_lse, similarity.logsumexp(0))
    rows = torch.cat(row_lse) - F.logsigmoid(matchability0)
    columns = column_lse - F.logsigmoid(matchability1)

    row_best, row_arg = [], []
    column_best, column_arg = torch.full_like(columns, -torch.inf), torch.zeros_like(columns, dtype=torch.int64)
    start = 0
    for part, part_rows in zip(features0.split(block), rows.split(block), strict=True):
        log_p = 2 * (part @ features1.mT) - part_rows[:, None] - columns
        best, arg = log_p.max(1)
        row_best.append(best)
        row_arg.append(arg)
        best, arg = log_p.max(0)
        better = best > column_best  # strictly: on a tie the first row stays, as in the dense form
        column_best = torch.where(better, best, column_best)
        column_arg = torch.where(better, arg + start, column_arg)
        start += len(part)
    return torch.cat(row_best), torch.cat(row_arg), column_arg
