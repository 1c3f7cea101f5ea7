"""PyTorch's threads wait without blocking each other, whichever of PyTorch and Lumiglue is imported first."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP")

_TORCH_FIRST = "import torch, lumiglue; lumiglue.Pipeline.pretrained('sift')"
_LUMIGLUE_FIRST = "import lumiglue; lumiglue.Pipeline.pretrained('sift'); import torch"
# Processor seconds of 40 short operations of two threads with pauses in between, when the second thread only waits.
_WASTE = """
import os, threading, time
x = torch.zeros(2**17)
x.add_(1)
start = time.process_time()
for _ in range(40):
    x.add_(1)
    time.sleep(0.004)
waste = time.process_time() - start
numbers = [torch.get_num_threads()]
threading.Thread(target=lambda: numbers.append(torch.get_num_threads())).start()
time.sleep(0.1)
print(waste, *numbers, os.environ.get("GOMP_SPINCOUNT"), sum(t.name == "lumiglue-openmp" for t in threading.enumerate()))
"""


def run(start: str, **variables: str) -> tuple[float, list[str]]:
    """Processor seconds that waiting costs; PyTorch's threads here and in a new thread, the variable, our threads."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", start + _WASTE], env={**clean, "OMP_NUM_THREADS": "2", **variables},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    waste, *rest = done.stdout.split()
    return float(waste), rest


def test_threads_that_wait_sleep_soon() -> None:
    """Both ways give what the variable gives, and change neither the number of threads nor the environment."""
    spinning, _ = run("import torch")
    for start, ours in ((_TORCH_FIRST, "1"), (_LUMIGLUE_FIRST, "0")):
        waste, rest = run(start)
        assert rest == ["2", "2", "None", ours]
        assert waste < spinning / 2


@pytest.mark.parametrize("variables", [{"GOMP_SPINCOUNT": "7"}, {"OMP_NUM_THREADS": "1"}])
def test_the_users_choice_has_priority(variables: dict[str, str]) -> None:
    threads = variables.get("OMP_NUM_THREADS", "2")
    assert run(_TORCH_FIRST, **variables)[1] == [threads, threads, variables.get("GOMP_SPINCOUNT", "None"), "0"]
