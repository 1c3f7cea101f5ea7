"""A collection under fire: thousands of images matched over retrieval pairs, the process killed (SIGKILL) again and again,
and the result compared with an undisturbed run's.

    python benchmarks/collections/soak.py PHOTOS [--images 2000] \\
        [--kills 20] [--neighbours 4] [--max-keypoints 128] [--long-side 320]
    python benchmarks/collections/soak.py PHOTOS --images 240 \\
        --kills 0 --neighbours 8 --max-keypoints 1024 --long-side 640      # costs alone

The images are random views of photos. Prints times and sizes, how often it was killed, and whether the files are equal.
"""

import argparse
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch

from lumiglue.images import image_names, read_image
from lumiglue.training.data.homographies import ViewSettings, sample_view, warp


def make_images(photos: Path, out: Path, count: int, width: int, seed: int = 0) -> None:
    """Random views of the photos, five of each."""
    rng, names = np.random.default_rng(seed), image_names(photos)
    chosen = rng.permutation(len(names))[: -(-count // 5)]
    settings = ViewSettings(any_roll=0, roll=8, tilt=30, zoom=(0.8, 1.3), shift=0.1)
    for number in range(count):
        photo = read_image(photos / names[int(chosen[number // 5])])
        height = max(2, round(width * photo.shape[0] / photo.shape[1]))
        small = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
        view = warp(torch.from_numpy(small), sample_view(rng, (width, height), settings)).numpy()
        cv2.imwrite(str(out / f"{number:05d}.jpg"), view[..., ::-1])


def lumiglue(*words: object) -> list[str]:
    return [sys.executable, "-m", "lumiglue", *map(str, words)]


def equal(a: Path, b: Path) -> bool:
    """Whether two files have the same data sets with the same bits."""
    with h5py.File(a) as one, h5py.File(b) as other:
        names: list[str] = []
        one.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        count = [0]
        other.visititems(lambda _, item: count.__setitem__(0, count[0] + isinstance(item, h5py.Dataset)))
        return count[0] == len(names) and all(np.array_equal(one[n][()], other[n][()]) for n in names)  # pyright: ignore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--neighbours", type=int, default=4)
    parser.add_argument("--max-keypoints", type=int, default=128)
    parser.add_argument("--long-side", type=int, default=320)
    options = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images").mkdir()
        make_images(options.photos, root / "images", options.images, options.long_side)
        features, pairs, whole, killed = (root / name for name in ("f.h5", "p.txt", "whole.h5", "killed.h5"))
        keypoints = ("--max-keypoints", options.max_keypoints)
        times = {}
        for name, command in {
            "features": lumiglue("features", root / "images", "-o", features, *keypoints),
            "pairs": lumiglue("pairs", features, "-o", pairs, "--neighbours", options.neighbours),
            "matches": lumiglue("matches", features, pairs, "-o", whole, *keypoints),
        }.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name] = time.perf_counter() - start
        count = len(pairs.read_text().splitlines())
        print(f"{options.images} images, {count} pairs; seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in times.items()))
        print(
            f"{1000 * times['features'] / options.images:.0f} ms an image, {1000 * times['matches'] / count:.1f} ms a pair"
        )
        each = f"{features.stat().st_size / options.images:.0f} bytes of features an image"
        print(
            f"{1000 * times['pairs'] / options.images:.1f} ms an image to choose pairs; {each}, "
            f"{whole.stat().st_size / count:.0f} of matches a pair"
        )
        if not options.kills:
            return
        kills, start = 0, time.perf_counter()
        while not killed.exists():
            process = subprocess.Popen(
                lumiglue("matches", features, pairs, "-o", killed, *keypoints),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                process.wait(5 + rng.uniform(0, 2.2 * times["matches"] / options.kills) if kills < options.kills else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        print(f"{kills} kills, {time.perf_counter() - start:.0f} s; equal to the undisturbed run: {equal(whole, killed)}")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        sizes = f"{features.stat().st_size / 1e6:.0f} MB of features, {whole.stat().st_size / 1e6:.1f} MB of matches"
        print(f"largest resident memory of a process: {peak:.0f} MiB; files: {sizes}")


if __name__ == "__main__":
    main()
