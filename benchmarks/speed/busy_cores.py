"""The time of a pair while other programs use the cores too, by how PyTorch's threads wait for each other.

    python benchmarks/speed/busy_cores.py [--points 1024] [--rounds 5]

The matcher runs alone, or beside as many busy loops as there are cores. Each figure is the median over processes, which take
turns, of the median time of a layer of `compact` with that many points in each image.
"""

import argparse
import os
import statistics
import subprocess
import sys

from lumiglue.evaluation.speed import busy_programs

WAITS = {
    "default": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
_MATCH = """
import sys, time, torch
from lumiglue.evaluation.speed import random_matcher
from lumiglue.matcher.packed import PackedPairs
n = int(sys.argv[1])
model = random_matcher("compact")
pairs = PackedPairs(torch.randn(2 * n, 128), torch.rand(2 * n, 2), ((n, n),))
seconds, began = [], time.monotonic()
with torch.no_grad():
    x, rotation = model.begin(pairs)
    while len(seconds) < 12 and time.monotonic() - began < 10 or len(seconds) < 3:
        start = time.perf_counter()
        model.layers[0](x, rotation, pairs.lengths)
        seconds.append(time.perf_counter() - start)
print(sorted(seconds[1:])[len(seconds[1:]) // 2])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| threads wait | milliseconds a layer, idle machine | every core busy |\n|---|---|---|")
    times: dict[tuple[str, bool], list[float]] = {}
    for _ in range(options.rounds):
        for busy in (False, True):
            with busy_programs(os.cpu_count() or 1 if busy else 0):
                for name in WAITS:
                    times.setdefault((name, busy), []).append(_milliseconds(name, options.points))
    for name in WAITS:
        columns = [_spread(times[name, busy]) for busy in (False, True)]
        print(f"| {name} | {' | '.join(columns)} |")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _milliseconds(name: str, points: int) -> float:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    run = subprocess.run(
        [sys.executable, "-c", _MATCH, str(points)],
        env={**environment, **WAITS[name]},
        capture_output=True,
        text=True,
        check=True,
    )
    return 1000 * float(run.stdout)


if __name__ == "__main__":
    main()
