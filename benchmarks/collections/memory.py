"""Memory of a large collection: the largest resident memory of each stage, on synthetic features.

    python benchmarks/collections/memory.py [--images 2000] [--keypoints 2048] [--neighbours 20] [--matched 128]

Writes a file of random SIFT-like features, chooses all pairs by retrieval, and matches only a few: pairs that recur in no
other, so that the cache of features is as full as with all of them. Each stage is a process of its own.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lumiglue.collection.hloc import FeaturesFile, write_features
from lumiglue.collection.pairs import write_pairs
from lumiglue.io.hdf5 import GrowingFile
from lumiglue.types import Features

SIZE = (1024, 768)
STAGE = """
import resource, sys
from lumiglue.cli import main
code = main(sys.argv[1:])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def write_collection(out: Path, images: int, keypoints: int) -> None:
    """Random unit descriptors; each image has some in common with the next ones."""
    rng = np.random.default_rng(0)
    bank = rng.random((16 * keypoints, 128), np.float32) ** 4
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    with GrowingFile(out, "synthetic") as growing:
        for start in range(0, images, 64):
            with growing.part() as group:
                for number in range(start, min(start + 64, images)):
                    rows = rng.integers(0, keypoints, keypoints) + (number // 10 % 16) * keypoints
                    xy = rng.random((keypoints, 2), np.float32) * np.array(SIZE, np.float32)
                    scales, angles, scores = rng.random((3, keypoints), np.float32)
                    features = Features(
                        torch.from_numpy(xy), torch.from_numpy(bank[rows]), SIZE, torch.from_numpy(scores),
                        torch.from_numpy(1 + 5 * scales), torch.from_numpy(6 * angles), "sift",
                    )  # fmt: skip
                    write_features(group(f"{number:06d}.jpg"), features)
        growing.finish()


def stage(*words: object) -> tuple[float, float]:
    """Seconds and MiB of a command."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", STAGE, *map(str, words)], capture_output=True, text=True, check=True)
    code, peak = done.stdout.split()[-2:]
    if code != "0":
        raise SystemExit(done.stderr)
    return time.perf_counter() - start, float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--keypoints", type=int, default=2048)
    parser.add_argument("--neighbours", type=int, default=20)
    parser.add_argument("--matched", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        features, pairs, some = (Path(folder) / name for name in ("features.h5", "pairs.txt", "some.txt"))
        write_collection(features, options.images, options.keypoints)
        print(f"{features.stat().st_size / 1e6:.0f} MB of features; written with", end=" ")
        print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB of memory", flush=True)
        seconds, peak = stage("pairs", features, "-o", pairs, "--neighbours", options.neighbours)
        count = len(pairs.read_text().splitlines())
        print(f"pairs: {seconds:.0f} s, {peak:.0f} MiB; {count} pairs of {options.images} images", flush=True)
        with FeaturesFile(features) as file:
            names = file.names()
        write_pairs(some, list(zip(names[::2], names[1::2], strict=False))[: options.matched])
        seconds, peak = stage("matches", features, some, "-o", Path(folder) / "matches.h5")
        print(f"matches: {seconds:.0f} s for {options.matched} pairs of {2 * options.matched} images, {peak:.0f} MiB")


if __name__ == "__main__":
    main()
