"""Pairs with known poses for `lumiglue eval`, drawn from folders of posed images: to choose between weights on other scenes
than those that the figures are reported on.

    python benchmarks/accuracy/posed_pairs.py /work/runs/posed/* -o /work/runs/choosing --pairs 60
    lumiglue eval /work/runs/choosing --resize 0 --methods lumiglue --weights one.safetensors --out one.csv

Of each scene pairs that see between a tenth and seven tenths of each other, every tenth as often as another; no pixel is
copied.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lumiglue.training.data.overlap import OverlapSettings
from lumiglue.training.data.posed import PosedFrame, PosedFrames, stored_size
from lumiglue.training.data.posed_formats import read_posed


def pair_of(a: PosedFrame, b: PosedFrame) -> dict[str, Any]:
    """The pair as `pairs.json` has it."""
    b_from_a = b.camera_from_world @ np.linalg.inv(a.camera_from_world)
    return {
        "type": "pose",
        "group": a.scene,
        "a": str(a.image.resolve()),
        "b": str(b.image.resolve()),
        "K_a": a.intrinsics.tolist(),
        "K_b": b.intrinsics.tolist(),
        "R": b_from_a[:3, :3].tolist(),
        "t": b_from_a[:3, 3].tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=60, help="largest number of pairs per folder")
    parser.add_argument("--min-overlap", type=float, default=0.1)
    parser.add_argument("--max-overlap", type=float, default=0.7)
    args = parser.parse_args()
    images: dict[str, Any] = {}
    pairs: list[dict[str, Any]] = []
    for folder in args.folders:
        data = read_posed(folder)
        pairing = OverlapSettings(min_overlap=args.min_overlap, max_overlap=args.max_overlap, max_pairs=args.pairs)
        candidates = PosedFrames(frames=data.frames, overlaps=data.overlaps, pairing=pairing).pairs()
        for first, second, _ in candidates:
            a, b = data.frames[first], data.frames[second]
            images |= {str(frame.image.resolve()): {"size": stored_size(frame.image)} for frame in (a, b)}
            pairs.append(pair_of(a, b))
        sys.stdout.write(f"{folder.name}: {len(candidates)} pairs of {len(data.frames)} frames\n")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "pairs.json").write_text(json.dumps({"images": images, "pairs": pairs}))


if __name__ == "__main__":
    main()
