"""Parts of a layer in bfloat16 on a processor with AMX, by `native/amx.c`: attention takes half of PyTorch's time there.
Attention in training, with its gradients, by `native/amx_backward.c`.

Without AMX or Linux, and with `LUMIGLUE_KERNEL=0`, PyTorch computes the same.
"""

import ctypes
import functools
import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lumiglue.matcher.ops.native import SWITCH, file_of

_INSTRUCTIONS = {"amx_tile", "amx_bf16", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"}
# Channels of a head that the kernel supports.
_WIDTHS = (32, 64, 96, 128)
_WIDEST = 1024  # row of a LayerNorm
_log = logging.getLogger(__name__)


def fused_attention(
    q: Float[Tensor, "n h c"], k: Float[Tensor, "m h c"], v: Float[Tensor, "m h c"]
) -> Float[Tensor, "n h c"] | None:
    """softmax(q k^T / sqrt(c)) v of each head.

    Args:
        q: Queries.
        k: Keys.
        v: Values.

    Returns:
        The messages; None if PyTorch has to compute them.
    """
    if not _fits(q, k, v) or isinstance(compiled := library(), str):
        return None
    n, heads, channels = q.shape
    out = torch.empty(n, heads, channels, dtype=q.dtype)
    status = compiled.lumiglue_attention(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), None, q.stride(0), k.stride(0), v.stride(0),
        n, len(k), heads, channels, channels**-0.5, torch.get_num_threads(),
    )  # fmt: skip
    return None if status else out  # a row that its one offset cannot serve, or no memory


def attention_with_gradients(
    q: Float[Tensor, "t h c"],
    k: Float[Tensor, "t h c"],
    v: Float[Tensor, "t h c"],
    segments: Sequence[int],
    *,
    partners: bool,
) -> Float[Tensor, "t h c"] | None:
    """softmax(q k^T / sqrt(c)) v of each head and segment, for training: gradients flow to q, k and v.

    Args:
        q: Queries, in bfloat16 or under autocast to it.
        k: Keys.
        v: Values.
        segments: Tokens of each segment, those of a pair's images one after the other.
        partners: Whether keys and values are those of the pair's other image; else those of the same.

    Returns:
        The messages, zero where there are no keys; None if PyTorch has to compute them.
    """
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16 and q.device.type == "cpu":
        q, k, v = (x.bfloat16() for x in (q, k, v))
    if any(x.dtype != torch.bfloat16 or x.device.type != "cpu" for x in (q, k, v)) or torch.compiler.is_compiling():
        return None
    if not len(q) or q.shape[2] not in _WIDTHS or isinstance(library(), str):
        return None
    q, k, v = (x if _contiguous_by_rows(x) else x.contiguous() for x in (q, k, v))
    return _Attention.apply(q, k, v, tuple(segments), partners)


class _Attention(torch.autograd.Function):
    """`attention_with_gradients`; its forward pass gives None, and nothing is saved, where PyTorch has to compute."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: tuple[int, ...], partners: bool) -> Tensor | None:
        compiled = library()
        assert not isinstance(compiled, str)
        heads, channels = q.shape[1:]
        out, logs = q.new_zeros(q.shape), torch.zeros(len(q) * heads)
        starts = [0, *itertools.accumulate(segments)]
        for segment, n in enumerate(segments):
            other = segment ^ 1 if partners else segment
            if not n or not segments[other]:
                continue
            rows, columns = slice(starts[segment], None), slice(starts[other], None)
            if compiled.lumiglue_attention(
                q[rows].data_ptr(), k[columns].data_ptr(), v[columns].data_ptr(), out[rows].data_ptr(),
                logs[starts[segment] * heads :].data_ptr(), q.stride(0), k.stride(0), v.stride(0),
                n, segments[other], heads, channels, channels**-0.5, torch.get_num_threads(),
            ):  # fmt: skip
                return None
        ctx.segments, ctx.partners = segments, partners
        ctx.save_for_backward(q, k, v, out, logs)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        compiled = library()
        assert not isinstance(compiled, str)
        q, k, v, out, logs = ctx.saved_tensors
        heads, channels = q.shape[1:]
        gradient = grad_outputs[0].contiguous()
        sizes = (ctypes.c_int64 * len(ctx.segments))(*ctx.segments)
        gradients = [torch.empty(q.shape, dtype=q.dtype) for _ in range(3)]
        if compiled.lumiglue_attention_backward(
            *(x.data_ptr() for x in (q, k, v, out, gradient, logs, *gradients)), q.stride(0), k.stride(0), v.stride(0),
            ctypes.addressof(sizes), len(sizes), heads, channels, channels**-0.5, ctx.partners, torch.get_num_threads(),
        ):  # fmt: skip
            raise MemoryError("no memory for the gradients of attention")
        return *gradients, None, None


def rotated(
    x: Float[Tensor, "t h c"], cosine: Float[Tensor, "t q"], sine: Float[Tensor, "t q"]
) -> Float[Tensor, "t h c"] | None:
    """Rotates plane k, the channels (k, k + c/2), of each head by its token's angle.

    Args:
        x: Queries or keys.
        cosine: Of the angle of each token's q = c / 2 planes.
        sine: See `cosine`.

    Returns:
        The rotated x; None if PyTorch has to compute it.
    """
    if not _of_layers(x) or not _contiguous_by_rows(x) or x.shape[2] % 32 or cosine.dtype != torch.float32:
        return None
    if isinstance(compiled := library(), str):
        return None
    n, heads, channels = x.shape
    out, cosine, sine = torch.empty(n, heads, channels, dtype=x.dtype), cosine.contiguous(), sine.contiguous()
    compiled.lumiglue_rotate(
        x.data_ptr(), x.stride(0), cosine.data_ptr(), sine.data_ptr(), out.data_ptr(), n, heads, channels,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def norm_gelu_(x: Float[Tensor, "t d"], norm: nn.LayerNorm) -> bool:
    """Overwrites x with GELU(LayerNorm(x)); returns False, and does nothing, if PyTorch has to."""
    if not _of_layers(x) or not x.is_contiguous() or x.shape[1] % 16 or x.shape[1] > _WIDEST:
        return False
    if norm.weight.dtype != x.dtype or isinstance(compiled := library(), str):
        return False
    compiled.lumiglue_norm_gelu(
        x.data_ptr(), norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps, *x.shape, torch.get_num_threads()
    )
    return True


def _fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if not _of_layers(q) or not len(k) or q.shape[2] not in _WIDTHS:
        return False
    return _contiguous_by_rows(q) and _contiguous_by_rows(k) and _contiguous_by_rows(v)


def _of_layers(x: Tensor) -> bool:
    """Whether these are bfloat16 states on a CPU that need no gradient."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu" or not len(x):
        return False
    return not torch.compiler.is_compiling() and not (torch.is_grad_enabled() and x.requires_grad)


def _contiguous_by_rows(x: Tensor) -> bool:
    """Whether the channels of a head are contiguous, and so are the heads of a token."""
    return x.stride()[1:] == (x.shape[2], 1)


@functools.cache
def library() -> "ctypes.CDLL | str":
    """The library of the kernel, or the reason why there is none."""
    found = _library()
    _log.info("layers in bfloat16: %s", f"PyTorch's ({found})" if isinstance(found, str) else "amx")
    return found


def _library() -> "ctypes.CDLL | str":
    if (forced := os.environ.get(SWITCH, "")) not in ("", "amx"):
        return f"{SWITCH} is {forced}"
    if missing := _INSTRUCTIONS - _instructions():
        return "no AMX" if "amx_bf16" in missing else f"no {min(missing)}"
    if not file_of("amx").exists():
        return "this installation was built without a C compiler"
    try:
        _share_openmp()
        loaded = ctypes.CDLL(str(file_of("amx")))
    except OSError as error:
        return f"amx.so cannot be loaded: {error}"
    if loaded.lumiglue_init() != 0:
        return "the system does not permit AMX tiles"
    pointer, number, real, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    loaded.lumiglue_attention.argtypes = [*[pointer] * 5, *[number] * 7, real, count]
    loaded.lumiglue_attention_backward.argtypes = [
        *[pointer] * 9, *[number] * 3, pointer, *[number] * 3, real, count, count,
    ]  # fmt: skip
    loaded.lumiglue_rotate.argtypes = [pointer, number, *[pointer] * 3, *[number] * 3, count]
    loaded.lumiglue_norm_gelu.argtypes = [*[pointer] * 3, real, *[number] * 2, count]
    return loaded


def _instructions() -> set[str]:
    """The instruction sets of the processor, as Linux names them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def _share_openmp() -> None:
    """Lets the kernel use PyTorch's OpenMP threads, which spin between the products. It is linked with none."""
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    ctypes.CDLL(str(bundled[0]) if bundled else "libgomp.so.1", ctypes.RTLD_GLOBAL)
