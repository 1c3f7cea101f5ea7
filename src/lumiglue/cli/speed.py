"""`lumiglue bench`."""

import platform
from typing import Literal

from rich.console import Console

from lumiglue.cli.terminal import ProgressBar, say, table
from lumiglue.errors import InputError


def bench(
    sizes: tuple[int, ...] = (512, 1024, 2048),
    against: tuple[str, ...] = (),
    preset: Literal["base", "compact"] = "base",
    batch: int = 1,
    adaptive: bool = False,
    weights: str = "sift",
    rounds: int = 7,
    memory: bool = False,
    device: str = "cpu",
) -> int:
    """Compare the speed of matching with other implementations, in turns in one process.

    Names for --against: lumiglue bf16, one by one, in threads, bf16 in threads, compiled, bf16 compiled, onnxruntime, int8,
    openvino, openvino bf16, kornia, transformers; on a GPU also graphs, bf16 graphs, kornia half.

    Args:
        sizes: Keypoints of each image.
        against: What to compare with; ratios are its time over Lumiglue's.
        preset: Size of the matcher, with random weights; ignored with --adaptive.
        batch: Pairs at a time; several have unequal sizes up to the given one.
        adaptive: Match the sample photos with early exit and pruning, instead of random points at full depth.
        weights: Trained weights, for --adaptive.
        rounds: How often each is timed.
        memory: Also measure the peak memory of one match, each in its own process.
        device: cpu or cuda.
    """
    import torch

    from lumiglue.evaluation import speed
    from lumiglue.matcher.settings import MatchSettings

    if rounds < 1 or batch < 1 or min(sizes, default=0) < 1:
        raise InputError("rounds, batch and sizes are at least 1")
    if memory and adaptive:
        raise InputError("memory is measured at full depth, with random weights; leave --adaptive out")
    speed.check_device(device)
    settings = MatchSettings() if adaptive else speed.FULL
    peak, bf16_peak = speed.matmul_peak(device=device), speed.matmul_peak(torch.bfloat16, device)
    cpu = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    say(
        f"{cpu if device == 'cpu' else torch.cuda.get_device_name(device)}, torch {torch.__version__}; "
        f"products {peak / 1e9:.4g} GFLOP/s in float32, {bf16_peak / 1e9:.4g} in bfloat16"
    )
    names = (speed.OURS, *against)
    for size in sizes:
        if adaptive:
            model, pairs, note = speed.trained_job(weights, size, device)
        else:
            model, pairs, note = speed.random_job(preset, size, batch, device)
        jobs = speed.contenders(names, model, pairs, settings)
        with ProgressBar(f"{size} points", 1) as advance:
            timings = speed.race(jobs, rounds)
            advance(1, "")
        columns = ["ms", "lowest to highest", "ratio to ours", "of fp32 products' peak", "pairs/s"] + memory * ["peak MiB"]
        times = table(f"{note}: median ms of {rounds} rounds", "", *columns)
        work = sum(speed.operations(model.config, (len(a) + len(b)) // 2) for a, b in pairs)
        for timing in timings:
            median, (low, middle, high) = timing.median, (timing.ratio[1], timing.ratio[0], timing.ratio[2])
            share = "" if adaptive else f"{100 * work / (median / 1000) / peak:.0f} %"
            cells = [f"{median:.1f}", f"{min(timing.milliseconds):.1f} to {max(timing.milliseconds):.1f}"]
            cells += [f"{middle:.2f} ({low:.2f} to {high:.2f})", share, f"{1000 * len(pairs) / median:.1f}"]
            if memory:
                cells.append(f"{speed.peak_memory(timing.name, preset, size, device):.0f}")
            times.add_row(timing.name, *cells)
        Console(width=150, highlight=False).print(times)
    return 0
