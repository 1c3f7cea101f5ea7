"""One exponential for two softmaxes.

softmax over rows and softmax over columns of the same S are exp(S - c) over its row sums and over its column sums, for any
one c. The maximum of each row and column need not be subtracted as long as float32 has the range. That halves the
exponentials of LightGlue's bidirectional cross-attention and of its assignment.
"""

import torch
from jaxtyping import Float
from torch import Tensor

# exp(60) = 1e26: sums over 10^9 entries, and products with values, remain far below the largest float32, 3e38.
LARGEST_EXPONENT = 60.0
# Smaller sums may have lost digits to subnormal numbers; then the maxima are subtracted.
MIN_SUM = 1e-30


def exponent_offset(a: Float[Tensor, "*b n c"], b: Float[Tensor, "*b m c"]) -> float | None:
    """c such that exp(<a_i, b_j> - c) never overflows.

    The bound is |a_i| |b_j|, which is close: points that match have nearly parallel vectors.

    Args:
        a: Vectors of the rows.
        b: Vectors of the columns.

    Returns:
        c; 0 if nothing need be subtracted (most layers). None if there are no vectors or they are not finite, and on a GPU,
        where reading the bound would take longer than it saves.
    """
    if a.is_cuda or not a.numel() or not b.numel():
        return None
    bound = float((a.norm(dim=-1).amax(-1) * b.norm(dim=-1).amax(-1)).max())
    return max(0.0, bound - LARGEST_EXPONENT) if torch.isfinite(torch.tensor(bound)) else None
