"""Parts of a layer in bfloat16 on a processor with AMX, by `kernel.c`: attention takes half of PyTorch's time there.

The C compiler of the machine compiles it once, in a second or two, into the cache folder. Without AMX, a compiler or Linux,
and with `LUMIGLUE_KERNEL=0`, PyTorch computes the same.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lumiglue.errors import InputError
from lumiglue.system.cache import cache_folder

SWITCH = "LUMIGLUE_KERNEL"
_SOURCE = Path(__file__).with_name("kernel.c")
_FLAGS = (
    "-O3", "-fno-strict-aliasing", "-shared", "-fPIC", "-fopenmp",
    "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16",
    "-mamx-tile", "-mamx-bf16",
)  # fmt: skip
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
        q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), q.stride(0), k.stride(0), v.stride(0),
        n, len(k), heads, channels, channels**-0.5, torch.get_num_threads(),
    )  # fmt: skip
    return None if status else out  # a row that its one offset cannot serve, or no memory


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
    """The compiled kernel, or the reason why there is none."""
    compiled = _library()
    _log.info("layers in bfloat16: %s", f"PyTorch's ({compiled})" if isinstance(compiled, str) else _SOURCE.name)
    return compiled


def compiler() -> str | None:
    """Path of the C compiler of this machine; None without one."""
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def _library() -> "ctypes.CDLL | str":
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    if missing := _INSTRUCTIONS - _instructions():
        return "no AMX" if "amx_bf16" in missing else f"no {min(missing)}"
    path = compiler()
    if path is None:
        return "no C compiler"
    try:
        loaded = _loaded(path)
    except (OSError, InputError, subprocess.SubprocessError) as error:
        return f"{path}: {error}"
    if loaded.lumiglue_init() != 0:
        return "the system grants no tiles"
    pointer, number, real, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    loaded.lumiglue_attention.argtypes = [*[pointer] * 4, *[number] * 7, real, count]
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


def _loaded(compiler: str) -> ctypes.CDLL:
    """The cached library of this source and these flags; compiled if it is missing, damaged or another user's."""
    digest = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()
    file = cache_folder() / "kernels" / f"kernel-{digest[:16]}.so"
    if file.is_file() and file.stat().st_uid == os.getuid():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as unfinished:
        output = Path(unfinished) / file.name
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(output), "-lm"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if run.returncode:
            raise OSError(f"cannot compile {_SOURCE.name}: {(run.stderr.strip() or 'no message').splitlines()[0]}")
        output.replace(file)
    return ctypes.CDLL(str(file))
