"""What keeping scratch memory saves (`lumiglue.system.device`): a match of one layer of `base`, with and without, in turns.

    python benchmarks/speed/scratch_memory.py [--points 512 1024 2048] [--rounds 5]

Processor time of one thread and page faults of a match, the first three left out; medians over the processes.
"""

import argparse
import statistics
import subprocess
import sys

_MATCH = """
import resource, sys, time
import torch
from lumiglue.matcher import lightglue
from lumiglue.matcher.execution import execution_layers
from lumiglue.matcher.packed import PackedPairs
how, n, precision = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if how == "without":
    lightglue.keep_scratch_memory = lambda: None
torch.set_num_threads(1)
model = lightglue.LightGlue(lightglue.LightGlueConfig(n_layers=1)).eval()
layers = execution_layers(model, precision)
pairs = PackedPairs(torch.randn(2 * n, 256), torch.rand(2 * n, 2), ((n, n),))
times, faults = [], []
for _ in range(15):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
    model.match(pairs, layers=layers)
    times.append(1000 * (time.process_time() - start))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(times[3:])[6], sorted(faults[3:])[6])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| points | precision | ms without | ms with | faults without | faults with |\n|---|---|---|---|---|---|")
    for n in options.points:
        for precision in ("fp32", "bf16"):
            measured: dict[str, list[tuple[float, ...]]] = {"without": [], "with": []}
            for _ in range(options.rounds):
                for how, values in measured.items():
                    command = [sys.executable, "-c", _MATCH, how, str(n), precision]
                    run = subprocess.run(command, capture_output=True, text=True, check=True)
                    values.append(tuple(map(float, run.stdout.split())))
            columns = [[statistics.median(v[k] for v in measured[how]) for how in measured] for k in (0, 1)]
            (a, b), (c, d) = columns
            print(f"| {n} | {precision} | {a:.1f} | {b:.1f} | {c:.0f} | {d:.0f} |", flush=True)


if __name__ == "__main__":
    main()
