"""Where to compute, and with how many threads."""

import functools
import os

import cv2
import torch

from lumiglue.errors import InputError


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
