"""Where a match's time goes: one thread's processor time at full depth, and the share of each operation.

python benchmarks/speed/profile_match.py [--preset compact] [--points 1024] [--precision fp32]
"""

import argparse
import time

import torch
from torch.profiler import ProfilerActivity, profile

from lumiglue.matcher.execution import execution_layers
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.models import preset
from lumiglue.matcher.settings import MatchSettings
from lumiglue.types import Features

FULL = MatchSettings(exit_ratio=None, prune_below=None)


def features(n: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        keypoints=torch.rand(n, 2, generator=generator) * 479,
        descriptors=torch.nn.functional.normalize(torch.randn(n, 128, generator=generator), dim=1),
        image_size=(480, 480),
        scales=torch.rand(n, generator=generator) + 1,
        orientations=torch.rand(n, generator=generator),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LightGlue(preset(options.preset, "sift", 128, "xy-logscale-angle")).eval()
    layers = execution_layers(model, options.precision)
    pairs = pack([(features(options.points, 0), features(options.points, 1))], model.config)
    times = []
    for _ in range(8):
        start = time.process_time()
        model.match(pairs, FULL, layers=layers)
        times.append(1000 * (time.process_time() - start))
    print(f"{min(times):.0f} ms of processor time (median {sorted(times)[4]:.0f})")
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            model.match(pairs, FULL, layers=layers)
    rows = sorted(profiled.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    for row in rows[:12]:
        print(f"| {row.key} | {100 * row.self_cpu_time_total / total:.1f} % |")


if __name__ == "__main__":
    main()
