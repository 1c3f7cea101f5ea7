"""The released ALIKED matcher by our kernels, by PyTorch and by the original implementation, in turns in one process.

    OMP_NUM_THREADS=2 python benchmarks/speed/released.py [--points 512 1024 2048] [--rounds 9] [--busy 0 1 2]

The pairs are photos of scikit-image. A time is of all pairs once; a ratio is the median over the rounds of two times of one
round. "products": at full depth, the rate of our operations as a share of the rate of one large matrix product, measured in
the same round. --busy: beside so many busy loops. -o writes all
times to a JSON file with the machine. On a shared machine, --clock processor with one thread says more.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from lumiglue import Features, LightGlue, MatchSettings
from lumiglue.evaluation.speed import FULL
from lumiglue.matcher.execution import execution_layers, folded_layers
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.ops.native import library
from lumiglue.system.device import machine
from lumiglue.weights.released import import_released

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
from busy_cores import programs

from released_files import MATCHERS, ask_original, extractor_for, original_matcher, photo_pairs, released_file

SETTINGS = {"adaptive": MatchSettings(), "full": FULL}
NAMES = ("kernels", "PyTorch", "original")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", default="aliked-n16", choices=list(MATCHERS))
    parser.add_argument("--points", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--pairs", type=int, default=2, help="of the four photo pairs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--busy", type=int, nargs="+", default=[0])
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    found = library()
    if isinstance(found, str):
        raise SystemExit(f"there are no kernels here: {found}")
    file = released_file(MATCHERS[options.features])
    assert file is not None
    model = import_released(file, options.features)
    assert isinstance(model, LightGlue)
    rows = []
    print(f"{found[0]}, {torch.get_num_threads()} threads; {machine()[:60]}")
    heads = ("points", "depth", "busy", *(f"{name}, ms" for name in NAMES), *(f"{name} / kernels" for name in NAMES[1:]))
    print("| " + " | ".join((*heads, "products")) + " |\n" + "|---" * (len(heads) + 1) + "|", flush=True)
    for points in options.points:
        extractor = extractor_for(options.features, max_keypoints=points)
        pairs = [(extractor(a), extractor(b)) for a, b in photo_pairs()[: options.pairs]]
        for depth, settings in SETTINGS.items():
            for busy in options.busy:
                with programs(busy):
                    times, rates = race(model, pairs, depth, settings, options)
                row = {"points": points, "depth": depth, "busy": busy, "threads": torch.get_num_threads(), **times}
                rows.append({**row, "products": rates})
                print("| " + " | ".join(cells(rows[-1])) + " |", flush=True)
    if options.output:
        about = {"processor": machine(), "kernels": found[0], "torch": torch.__version__, "features": options.features}
        options.output.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def race(
    model: LightGlue,
    pairs: list[tuple[Features, Features]],
    depth: str,
    settings: MatchSettings,
    options: argparse.Namespace,
) -> tuple[dict[str, list[float]], list[float]]:
    """Milliseconds of each contender, and our share of the products' rate, by round."""
    native, torchs = execution_layers(model, "fp32"), folded_layers(model, "fp32")
    original = original_matcher(options.features, adaptive=depth == "adaptive")
    packed = [pack([pair], model.config) for pair in pairs]

    def ours(layers: object) -> None:
        for one in packed:
            model.match(one, settings, layers=layers)  # pyright: ignore[reportArgumentType]

    jobs: dict[str, Callable[[], object]] = {
        "kernels": partial(ours, native),
        "PyTorch": partial(ours, torchs),
        "original": lambda: [ask_original(original, pair) for pair in pairs],
    }
    work = sum(operations(model, *one.lengths[0]) for one in packed)
    a = torch.randn(2048, 2048)
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    shares = []
    with torch.inference_mode():
        for number in range(options.rounds + 1):
            product = milliseconds(lambda: a @ a, options.clock)
            taken = {name: milliseconds(jobs[name], options.clock) for name in (*NAMES[number % 3 :], *NAMES[: number % 3])}
            product = min(product, milliseconds(lambda: a @ a, options.clock))
            if number:
                for name, value in taken.items():
                    times[name].append(value)
                shares.append(work / taken["kernels"] / (2 * 2048**3 / product))
    return times, shares if depth == "full" else []


def operations(model: LightGlue, n: int, m: int) -> float:
    """Of a pair at full depth, with the projection of the messages folded: two for each multiplication of a product."""
    d = model.config.d
    attention = 2 * 2 * d * (n * n + m * m) + 3 * 2 * d * n * m
    return model.config.n_layers * (2 * (n + m) * 17 * d * d + attention) + 2 * (n + m) * (d * d + 128 * d) + 2 * d * n * m


def milliseconds(job: Callable[[], object], clock: str) -> float:
    now = time.perf_counter if clock == "wall" else time.process_time
    start = now()
    job()
    return 1000 * (now() - start)


def cells(row: dict) -> list[str]:
    """A row of the table."""
    columns = [str(row["points"]), row["depth"], str(row["busy"])]
    columns += [spread(row[name], ".0f") for name in NAMES]
    columns += [spread([a / b for a, b in zip(row[name], row["kernels"], strict=True)], ".2f") for name in NAMES[1:]]
    return [*columns, f"{100 * statistics.median(row['products']):.0f} %" if row["products"] else ""]


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
