"""One exponential for two softmaxes.

softmax over rows and softmax over columns of the same S are exp(S - c) over its row sums and over its column sums, for any
one c: the maximum of each row and column need not be subtracted while float32 can hold the range. That halves the
exponentials of LightGlue's bidirectional cross-attention and of its assignment.
"""

import torch
from jaxtyping import Float
from torch import Tensor

# exp(60) = 1e26: sums over 10^9 entries, and products with values, stay far from the largest float32, 3e38.
LARGEST_EXPONENT = 60.0
# Smaller sums may have lost digits to subnormal numbers; then the maxima are subtracted after all.
MIN_SUM = 1e-30


def exponent_offset(a: Float[Tensor, "*b n c"], b: Float[Tensor, "*b m c"]) -> float | None:
    """c, so that exp(<a_i, b_j> - c) never overflows; 0 where nothing need be subtracted (most layers). None on a GPU, where
    reading the bound would cost more than it saves.

    Bounded by |a_i| |b_j|, which is close: points that match have nearly parallel vectors.
    """
    if a.is_cuda or not a.numel() or not b.numel():
        return None
    bound = float((a.norm(dim=-1).amax(-1) * b.norm(dim=-1).amax(-1)).max())
    return max(0.0, bound - LARGEST_EXPONENT) if torch.isfinite(torch.tensor(bound)) else None
