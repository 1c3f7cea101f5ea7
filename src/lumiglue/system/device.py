"""Where to compute, and with how many threads."""

import functools
import os
import platform
from pathlib import Path

import cv2
import torch

from lumiglue.errors import InputError

# glibc learns from the blocks that it sees freed, but from none larger.
_LARGEST_LEARNT = 32 * 2**20


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has, in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_device(device: torch.device | str | None) -> torch.device | str:
    """The device, or for None the GPU if there is one, else the CPU. Raises InputError for one that cannot be used here."""
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(chosen)!r} cannot be used ({reason}); choose 'cpu' or 'cuda'") from None
    return chosen


@functools.cache
def compute_on_one_thread_in_forks() -> None:
    """A forked process has none of its parent's OpenMP threads, yet waits for them for ever; one thread needs no others.

    Registered with the first pipeline, as importing changes nothing. What PyTorch's DataLoader does in its workers.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: (torch.set_num_threads(1), cv2.setNumThreads(0)))


def machine() -> str:
    """The processor, by name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    known = (fields.get(name, "") for name in ("model name", "cpu family", "model", "flags"))
    return " ".join(known) or platform.machine()


@functools.cache
def keep_scratch_memory() -> None:
    """Before matching on a CPU: lets glibc keep up to 64 MiB of freed memory for the next operation.

    Each operation of a layer asks for some megabytes and frees them a little later. glibc returns such blocks to the
    system, which then clears and maps the same pages again for the next one: thousands of page faults a layer. But it
    keeps blocks as large as the largest that was freed so far (up to 32 MiB), and twice as much in all; so one block of that
    size is asked for, never touched, and freed.
    """
    torch.empty(_LARGEST_LEARNT - 2**16, dtype=torch.uint8)
