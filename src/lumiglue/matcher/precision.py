"""The number format in which a device multiplies matrices fastest."""

import functools
import time

import torch
from torch import Tensor

from lumiglue.matcher.settings import Precision

# Tokens of a batch and channels of a layer; most of a matcher's time goes into such products.
_TOKENS, _CHANNELS, _ROUNDS = 4096, 256, 7


def lowered(x: Tensor, weights: Tensor) -> Tensor:
    """x in the precision of the weights that it is multiplied by, if that is lower."""
    return x.to(weights.dtype) if weights.dtype.itemsize < x.dtype.itemsize else x


def faster_precision(device: torch.device) -> Precision:
    """The format in which the device multiplies matrices faster.

    bf16 on a CPU with AMX. Other CPUs are measured, in a few milliseconds: bfloat16 instructions may run at half the rate
    of float32 (a 2-core Xeon with AVX512-BF16: 83 against 150 GFLOP/s a core) or at twice the rate (an EPYC). bf16
    has to take less than three quarters of the time, because numbers are converted on the way. A GPU reports whether it has
    bfloat16.

    Args:
        device: Where the matcher is to run.

    Returns:
        "bf16" or "fp32".
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    if multiplies_tiles():
        return "bf16"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the answer must not depend on their number, because matches depend on the answer
    try:
        bf16, fp32 = product_seconds(torch.bfloat16), product_seconds(torch.float32)
    finally:
        torch.set_num_threads(threads)
    return "bf16" if bf16 < 0.75 * fp32 else "fp32"


def product_rate(dtype: torch.dtype) -> float:
    """Floating-point operations per second on the CPU of the product that `product_seconds` measures."""
    return 2 * _TOKENS * _CHANNELS * _CHANNELS / product_seconds(dtype)


def product_seconds(dtype: torch.dtype) -> float:
    """Shortest time on the CPU of one product, 4096 x 256 by 256 x 256; other programs only make it longer."""
    a, b = torch.ones(_TOKENS, _CHANNELS, dtype=dtype), torch.ones(_CHANNELS, _CHANNELS, dtype=dtype)
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@functools.cache
def multiplies_tiles() -> bool:
    """Whether this CPU has AMX, whose bfloat16 products the fused attention kernel uses."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private, and missing in older PyTorch
    return bool(probe()) if probe is not None else False
