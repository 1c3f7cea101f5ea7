"""Which number format a device multiplies matrices in fastest."""

import functools
import statistics
import time

import torch
from torch import Tensor

from lumiglue.matcher.settings import Precision

# Tokens of a batch and channels of a layer: what most of the matcher's time goes into.
_TOKENS, _CHANNELS, _ROUNDS = 4096, 256, 7


def lowered(x: Tensor, weights: Tensor) -> Tensor:
    """x in the precision of the weights that it is multiplied by, where theirs is the lower one."""
    return x.to(weights.dtype) if weights.dtype.itemsize < x.dtype.itemsize else x


def faster_precision(device: torch.device) -> Precision:
    """The format that the device multiplies matrices faster in.

    bf16 on a CPU with AMX, which is made for it. Measured on another, in a few milliseconds: processors that know bfloat16
    instructions may run them at half the rate of float32 (a 2-core Xeon with AVX512-BF16: 83 against 150 GFLOP/s a core) or
    at twice (an EPYC). It must take less than three quarters of the time, as numbers are converted on the way. A GPU is
    asked whether it has them.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    if multiplies_tiles():
        return "bf16"
    bf16, fp32 = product_seconds(torch.bfloat16), product_seconds(torch.float32)
    return "bf16" if bf16 < 0.75 * fp32 else "fp32"


def product_rate(dtype: torch.dtype) -> float:
    """Operations a second on the CPU of the product that `product_seconds` times."""
    return 2 * _TOKENS * _CHANNELS * _CHANNELS / product_seconds(dtype)


def product_seconds(dtype: torch.dtype) -> float:
    """Median time on the CPU of one product, 4096 x 256 by 256 x 256."""
    a, b = torch.ones(_TOKENS, _CHANNELS, dtype=dtype), torch.ones(_CHANNELS, _CHANNELS, dtype=dtype)
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@functools.cache
def multiplies_tiles() -> bool:
    """Whether this CPU has AMX, whose bfloat16 products the fused attention kernel uses."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private, and missing in older PyTorch
    return bool(probe()) if probe is not None else False
