"""Memory over many pairs: `python benchmarks/speed/memory.py --pairs 10000`. Prints the resident memory ten times.

It must not grow. Pairs pass one by one through `match_features`, then in threads through `match_extracted`, with new
features each time.
"""

import argparse
import gc
import time
from pathlib import Path

import torch

import lumiglue
from lumiglue import Features


def resident() -> float:
    """MB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def features(n: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    descriptors = torch.rand(n, 128, generator=generator)
    return Features(
        keypoints=torch.rand(n, 2, generator=generator) * 400,
        descriptors=torch.nn.functional.normalize(descriptors, dim=1),
        image_size=(400, 400),
        scores=torch.rand(n, generator=generator),
        scales=torch.rand(n, generator=generator) + 1,
        orientations=torch.rand(n, generator=generator),
        extractor="sift",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=48)
    options = parser.parse_args()
    pipeline = lumiglue.Pipeline.pretrained("sift", precision="fp32")
    sizes = [options.points // 2 + k % options.points for k in range(options.pairs)]
    every, start = max(1, options.pairs // 10), time.perf_counter()

    def note(way: str, done: int) -> None:
        if done % every == 0:
            gc.collect()
            print(f"{way:9} {done:6} pairs {resident():8.1f} MB {time.perf_counter() - start:6.0f} s", flush=True)

    for done, n in enumerate(sizes, start=1):
        pipeline.match_features([(features(n, done), features(n + 3, done + 1))])
        note("one by one", done)
    todo = [(str(k), str(k + 1)) for k in range(options.pairs)]
    results = pipeline.match_extracted(todo, lambda name: features(sizes[int(name) % len(sizes)], int(name)), workers=2)
    for done, _ in enumerate(results, start=1):
        note("threads", done)


if __name__ == "__main__":
    main()
