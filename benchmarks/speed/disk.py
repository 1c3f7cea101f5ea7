"""DISK's network beside kornia's, in turns: the time of a photo, and whether both find the same keypoints.

    python benchmarks/speed/disk.py PHOTO [--rounds 4] [--threads 1]

The weights are those of `lumiglue --features disk` (`LUMIGLUE_DISK` or a download).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from kornia.feature import DISK

from lumiglue.extractors.disk_network import DiskNetwork
from lumiglue.images import read_image
from lumiglue.io.state_dicts import load_into
from lumiglue.weights.registry import network_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours, kornias = DiskNetwork().eval(), DISK().eval()
    load_into(ours, network_file("disk", None), "disk", "")
    kornias.load_state_dict(ours.state_dict())
    image = torch.tensor(read_image(options.photo)).permute(2, 0, 1)[None] / 255
    sides: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: ours(image, 2048, 0.0)[0],
        "kornia": lambda: kornias(image, n=2048, pad_if_not_divisible=True)[0].keypoints,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    points: dict[str, set[tuple[float, ...]]] = {}
    with torch.inference_mode():
        for _ in range(options.rounds):
            for name, detect in sides.items():
                start = time.perf_counter()
                found = detect()
                seconds[name].append(time.perf_counter() - start)
                points[name] = {tuple(point) for point in found.tolist()}
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["kornia"], strict=True)]
    print({name: f"{statistics.median(values):.2f} s" for name, values in seconds.items()})
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"{len(points['ours'] & points['kornia'])} of {len(points['ours'] | points['kornia'])} keypoints in both")


if __name__ == "__main__":
    main()
