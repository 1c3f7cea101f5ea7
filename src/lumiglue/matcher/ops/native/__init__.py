"""Kernels in C++, built with the package (`hatch_build.py`): one shared library for each instruction set.

The processor chooses. `LUMIGLUE_KERNEL` names another one (avx512, avx2, neon), or 0 for PyTorch alone. A library is plain
C to its callers, who pass pointers; it needs neither PyTorch's headers nor Python's.
"""

import ctypes
import functools
import logging
import os
import platform
from pathlib import Path

import torch

from lumiglue.errors import InputError

SWITCH = "LUMIGLUE_KERNEL"
FOLDER = Path(__file__).parent
_log = logging.getLogger(__name__)


def instruction_sets() -> list[str]:
    """The instruction sets with kernels for float32 that this processor has, best first.

    As PyTorch reports them: `ATEN_CPU_CAPABILITY` lowers both.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return ["neon"]
    best = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": ["avx512", "avx2"], "AVX2": ["avx2"]}.get(best, [])


def file_of(name: str) -> Path:
    """Where the library of an instruction set is, if it was built."""
    return FOLDER / f"{name}.so"


@functools.cache
def library() -> tuple[str, ctypes.CDLL] | str:
    """Name and library of the kernels for float32, or the reason why PyTorch computes alone.

    Raises:
        InputError: `LUMIGLUE_KERNEL` names kernels that this processor or this installation lacks.
    """
    forced = os.environ.get(SWITCH, "")
    found = f"{SWITCH} is 0" if forced == "0" else _library(forced)
    if forced not in ("", "0") and isinstance(found, str):
        raise InputError(f"{SWITCH} is {forced!r}, but {found}; leave it out, or choose 0")
    _log.info("layers in float32: %s", f"PyTorch's ({found})" if isinstance(found, str) else found[0])
    return found


def _library(forced: str) -> tuple[str, ctypes.CDLL] | str:
    names = instruction_sets()
    if forced:
        names = [name for name in names if name == forced]
    if not names:
        return f"the processor has no {forced or 'AVX2'}"
    for name in names:
        if file_of(name).exists():
            try:
                return name, _declared(ctypes.CDLL(str(file_of(name))))
            except (OSError, AttributeError) as error:
                return f"{file_of(name).name} cannot be loaded: {error}"
    return "this installation was built without a C++ compiler"


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.lumiglue_panel.restype = library.lumiglue_workspace.restype = ctypes.c_int64
    library.lumiglue_workspace.argtypes = [ctypes.c_void_p]
    library.lumiglue_layer.argtypes = [ctypes.c_void_p] * 3
    library.lumiglue_layer.restype = None
    return library
