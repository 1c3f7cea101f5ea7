"""Matching does not ask the system for the same memory again and again."""

import platform
import subprocess
import sys

import numpy as np
import pytest

from lumiglue.system.device import peak_memory

# A matcher of full width, 1024 points; page faults of a match after the first two, with scratch memory kept or not.
_COUNT = """
import resource, sys
import torch
from lumiglue.matcher import lightglue
from lumiglue.matcher.packed import PackedPairs
if sys.argv[1] == "without":
    lightglue.keep_scratch_memory = lambda: None
torch.set_num_threads(1)
torch.manual_seed(0)
model = lightglue.LightGlue(lightglue.LightGlueConfig(n_layers=1)).eval()
pairs = PackedPairs(torch.randn(2048, 256), torch.rand(2048, 2) * 2 - 1, ((1024, 1024),))
faults = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model.match(pairs)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(faults[2:])[1])
"""


def _faults(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", _COUNT, how], capture_output=True, text=True, check=True, timeout=300)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc returns freed memory in this way")
def test_a_match_reuses_the_memory_of_the_one_before() -> None:
    """2048 x 512 states are 4 MiB; kept, hardly a page of them is mapped anew."""
    reused = _faults("with")
    returned = max(_faults("without") for _ in range(3))  # some layouts of the heap happen to keep it
    assert returned > 500
    assert reused < returned / 5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_that_of_this_process_alone() -> None:
    """getrusage gives a process at least the memory of the one that started it."""
    large = np.ones(10**8)
    script = "from lumiglue.system.device import peak_memory; print(peak_memory())"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 5 * 10**7 < int(run.stdout) < large.nbytes
    assert peak_memory() > large.nbytes
