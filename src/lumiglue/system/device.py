"""Devices, processor cores, threads and memory."""

import functools
import os
import platform
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import cv2
import torch

from lumiglue.errors import InputError

# Devices whose process crashes where two threads use them at once (pytorch/pytorch#197805).
ONE_THREAD = {"mps"}
_turn = threading.RLock()
# glibc adapts its threshold to the blocks that are freed, up to this size.
_LARGEST_LEARNT = 32 * 2**20


def usable_cores() -> int:
    """The number of cores that this process may use; in a container or under taskset, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes; 0 on Windows."""
    if sys.platform == "linux":  # getrusage would count the memory of the process that started this one
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def usable_device(device: torch.device | str | None) -> torch.device | str:
    """Checks a device.

    Args:
        device: "cpu", "cuda", "mps" (Apple) or another of PyTorch's; None takes the CUDA GPU if there is one, else the CPU.

    Returns:
        The device to use.

    Raises:
        InputError: This machine or this build of PyTorch does not support it.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0].partition(". ")[0]  # what follows lists everything that PyTorch has
        here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        choices = " or ".join(repr(name) for name, usable in here.items() if usable)
        raise InputError(f"device {str(chosen)!r} cannot be used ({reason}); choose {choices}") from None
    return chosen


def one_thread_at_a_time(device: torch.device | str) -> AbstractContextManager[object]:
    """Waits until no other thread uses the device, if it is one that several threads must not use at once."""
    return _turn if torch.device(device).type in ONE_THREAD else nullcontext()


@functools.cache
def compute_on_one_thread_in_forks() -> None:
    """Makes forked processes compute on one thread.

    A forked process has none of its parent's OpenMP threads and would wait for them forever. The first pipeline calls
    this, because importing must change nothing. PyTorch's DataLoader does the same in its workers.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: (torch.set_num_threads(1), cv2.setNumThreads(0)))


def machine() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    known = (fields.get(name, "") for name in ("model name", "cpu family", "model", "flags"))
    return " ".join(known) or platform.machine()


@functools.cache
def keep_scratch_memory() -> None:
    """Lets glibc keep up to 64 MiB of freed memory for the next operation; call it before matching on a CPU.

    Each operation of a layer allocates some megabytes and frees them soon after. glibc returns such blocks to the system,
    which then clears and maps the same pages for the next operation: thousands of page faults per layer. However, glibc
    keeps blocks up to the size of the largest one freed so far (at most 32 MiB), and twice that in total. So this allocates
    one block of that size, never touches it, and frees it.
    """
    torch.empty(_LARGEST_LEARNT - 2**16, dtype=torch.uint8)
