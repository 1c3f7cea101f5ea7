"""How PyTorch's threads wait for each other.

GNU OpenMP's threads spin for milliseconds before they sleep. If another program uses the cores too, a spinning thread blocks
the thread that it waits for, and a layer may take 30 times as long (`benchmarks/speed/busy_cores.py`). The settings of the
user, GOMP_SPINCOUNT and OMP_WAIT_POLICY, have priority over everything here. This module does not import PyTorch.
"""

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SPINS = "1000"  # microseconds, as many as an idle machine profits from
_shortened = threading.Event()  # PyTorch was loaded with short spins


def shorten_spins() -> None:
    """Sets the variable for this process and its children; it must run before PyTorch is loaded."""
    if not _chosen_by_user():
        os.environ["GOMP_SPINCOUNT"] = _SPINS


@contextmanager
def short_spins() -> Iterator[None]:
    """If PyTorch is loaded for the first time inside, its threads spin for microseconds. The environment is restored."""
    if "torch" in sys.modules or _chosen_by_user():
        yield
        return
    shorten_spins()
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]
        if "torch" in sys.modules:
            _shortened.set()


@functools.cache
def shorten_spins_at_run_time() -> None:
    """Does the same where PyTorch has been loaded before; the first pipeline calls this.

    The variable has no effect any more. However, GNU OpenMP shortens its spins to 100 while a process has more OpenMP
    threads than cores (see GOMP_SPINCOUNT in its manual). So this adds threads that sleep: the workers of a thread which
    computes once and then waits for the end of the process.
    """
    if sys.platform != "linux" or _shortened.is_set() or _chosen_by_user():
        return
    import torch

    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    openmp = ctypes.CDLL(None)
    if threads == 1 or not hasattr(openmp, "omp_set_num_threads"):
        return
    started = threading.Event()

    def add_threads() -> None:
        torch.get_num_threads()  # gives this thread PyTorch's number, which the next line replaces for this thread alone
        openmp.omp_set_num_threads(max(2, cores - threads + 2))
        torch.zeros(2**17).add_(1)
        started.set()
        threading.Event().wait()

    threading.Thread(target=add_threads, name="lumiglue-openmp", daemon=True).start()
    started.wait(10)


def _chosen_by_user() -> bool:
    return bool({"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys())
