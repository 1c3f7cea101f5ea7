"""When dropping points pays: the cost of taking points out of the tensors against what the next layer saves.

    python benchmarks/speed/pruning.py [--preset compact] [--points 1024]

A pair's layer runs on all points, and on those that remain after dropping a share of them; medians, in turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lumiglue.evaluation.speed import random_job
from lumiglue.matcher.inputs import pack

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    model, random_pairs, _ = random_job(options.preset, options.points)
    pairs, n = pack(random_pairs, model.config), options.points
    with torch.inference_mode():
        x, rotation = model.begin(pairs)
        tensors = (x, *rotation, torch.arange(2 * n))

        def layer(share: float) -> Callable[[], object]:
            left = int(n * (1 - share))
            rows = torch.cat([torch.arange(left), torch.arange(n, n + left)])

            def run() -> object:
                if share == 0.0:
                    return model.layers[1](x, rotation, [(n, n)])
                states, cosine, sine, _ = (t[rows] for t in tensors)
                return model.layers[1](states, (cosine, sine), [(left, left)])

            return run

        def drop() -> object:
            rows = (torch.arange(2 * n) % 20 != 0).nonzero()[:, 0]
            return [t[rows] for t in tensors]

        jobs = {f"layer after dropping {100 * s:g} %": layer(s) for s in SHARES} | {"dropping 5 % alone": drop}
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for number in range(options.rounds + 1):
            for name, job in jobs.items():
                start = time.perf_counter()
                job()
                if number:
                    times[name].append(1000 * (time.perf_counter() - start))
    whole = times["layer after dropping 0 %"]
    print("| what | ms | share of a whole layer |\n|---|---|---|")
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, whole, strict=True))
        print(f"| {name} | {statistics.median(values):.2f} | {100 * ratio:.1f} % |")


if __name__ == "__main__":
    main()
