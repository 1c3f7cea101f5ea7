"""How the cost of a match grows with the points, against its two floors: linear maps and attention at the speed of products.

    python benchmarks/speed/growth.py -o growth.png [--preset compact] [--sizes 256 512 ... 32768]

Full depth, n x n points, random weights; the median of some rounds, fewer for large sizes. The floors are the operations of
`speed.operations` over the measured speed of a 1024 x 1024 product in float32.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from lumiglue.evaluation.speed import FULL, matmul_peak, operations, random_job
from lumiglue.matcher.inputs import pack
from lumiglue.visualization import save_figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2**k for k in range(8, 16)])
    options = parser.parse_args()
    peak, rows = matmul_peak(), []
    print(f"{torch.get_num_threads()} threads, products {peak / 1e9:.0f} GFLOP/s in float32")
    print(
        "| points | ms | floor of linear maps | floor of attention | share of the products' speed |\n|---|---|---|---|---|"
    )
    for n in options.sizes:
        model, pairs, _ = random_job(options.preset, n)
        packed, times = pack(pairs, model.config), []
        for _ in range(1 if n >= 16384 else 2 if n >= 4096 else 6):
            start = time.perf_counter()
            model.match(packed, FULL)
            times.append(1000 * (time.perf_counter() - start))
        took = float(np.median(times[1:] or times))
        d, layers = model.config.d, model.config.n_layers
        attention = 1000 * layers * 14 * d * n * n / peak
        total = 1000 * operations(model.config, n) / peak
        rows.append((n, took, total - attention, attention))
        print(f"| {n} | {took:.0f} | {total - attention:.0f} | {attention:.0f} | {100 * total / took:.0f} % |", flush=True)
    sizes, took, linear, attention = np.array(rows).T
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.loglog(sizes, took, "ko-", label="measured")
    axes.loglog(sizes, linear, "b--", label="floor: linear maps")
    axes.loglog(sizes, attention, "r--", label="floor: attention")
    axes.set_xticks(sizes, [f"{int(n)}" for n in sizes], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("points of each image")
    axes.set_ylabel("ms a pair")
    axes.set_title(f"{options.preset}, full depth, {torch.get_num_threads()} threads", fontsize=10)
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    save_figure(figure, options.out)


if __name__ == "__main__":
    main()
