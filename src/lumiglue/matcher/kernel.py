"""The attention of `attention.c`: bfloat16 on a processor with AMX, about twice as fast as PyTorch's there.

It is compiled once by the C compiler of the machine, in a second or two, and kept in the cache folder. Where there is no
AMX, no compiler or no Linux, and where `LUMIGLUE_KERNEL=0` says so, PyTorch's kernel computes the same.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lumiglue.cache import cache_folder
from lumiglue.errors import InputError
from lumiglue.matcher.precision import multiplies_tiles

SWITCH = "LUMIGLUE_KERNEL"
_SOURCE = Path(__file__).with_name("attention.c")
_FLAGS = (
    "-O3", "-shared", "-fPIC", "-fopenmp", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16",
    "-mamx-tile", "-mamx-bf16",
)  # fmt: skip
# Channels of a head that it takes.
_WIDTHS = (32, 64, 96, 128)
_log = logging.getLogger(__name__)


def fused_attention(
    q: Float[Tensor, "n h c"], k: Float[Tensor, "m h c"], v: Float[Tensor, "m h c"]
) -> Float[Tensor, "n h c"] | None:
    """softmax(q k^T / sqrt(c)) v of each head; None where another kernel has to compute it."""
    if not _fits(q, k, v) or isinstance(compiled := library(), str):
        return None
    n, heads, channels = q.shape
    out = torch.empty(n, heads, channels, dtype=q.dtype)
    failed = compiled.lumiglue_attention(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), q.stride(0), k.stride(0), v.stride(0),
        n, len(k), heads, channels, channels**-0.5, torch.get_num_threads(),
    )  # fmt: skip
    return None if failed else out  # a row that its one offset cannot serve, or no memory


def _fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if q.dtype != torch.bfloat16 or not len(q) or not len(k) or q.shape[2] not in _WIDTHS:
        return False
    if q.device.type != "cpu" or torch.compiler.is_compiling() or (torch.is_grad_enabled() and q.requires_grad):
        return False
    heads = (q.shape[2], 1)  # of one keypoint lie side by side
    return q.stride()[1:] == heads and k.stride()[1:] == heads and v.stride()[1:] == heads


@functools.cache
def library() -> "ctypes.CDLL | str":
    """The compiled kernel, or why there is none."""
    found = _library()
    _log.info("attention in bfloat16: %s", f"PyTorch's ({found})" if isinstance(found, str) else "attention.c")
    return found


def compiler() -> str | None:
    """The C compiler of this machine."""
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def _library() -> "ctypes.CDLL | str":
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    if sys.platform != "linux" or platform.machine() != "x86_64" or not multiplies_tiles():
        return "no AMX"
    found = compiler()
    if found is None:
        return "no C compiler"
    try:
        loaded = _loaded(found)
    except (OSError, InputError, subprocess.SubprocessError) as error:
        return f"{found}: {error}"
    if loaded.lumiglue_attention_init() != 0:
        return "the system grants no tiles"
    loaded.lumiglue_attention.argtypes = [
        *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 7, ctypes.c_float, ctypes.c_int,
    ]  # fmt: skip
    return loaded


def _loaded(compiler: str) -> ctypes.CDLL:
    """What is kept of this source and these flags, compiled again where it is missing, damaged or somebody else's."""
    digest = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()
    file = cache_folder() / "kernels" / f"attention-{digest[:16]}.so"
    if file.is_file() and file.stat().st_uid == os.getuid():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as unfinished:
        made = Path(unfinished) / file.name
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(made), "-lm"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if run.returncode:
            raise OSError(f"cannot compile {_SOURCE.name}: {(run.stderr.strip() or 'no message').splitlines()[0]}")
        made.replace(file)
    return ctypes.CDLL(str(file))
