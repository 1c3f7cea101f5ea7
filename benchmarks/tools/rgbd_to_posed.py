"""Writes the plain posed format (docs/posed-data.md) for a folder with rgb/, depth/ and meta.json; no pixel is copied.

    python benchmarks/tools/rgbd_to_posed.py ../shared/rgbd/hololens -o /work/runs/posed/hololens

There, depth[y, x] belongs to rgb[2y, 2x] exactly, so the depth map has intrinsics of its own (`depth_K`): half of K.
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    folder = args.folder.resolve()
    meta = json.loads((folder / "meta.json").read_text())
    half = [[value / 2 for value in row] for row in meta["K"][:2]] + [[0, 0, 1]]
    frames = [
        {
            "image": str(folder / "rgb" / f"{frame['id']}.jpg"),
            "depth": str(folder / "depth" / f"{frame['id']}.png"),
            "world_from_camera": frame["T_wc"],
        }
        for frame in meta["frames"]
    ]
    out = {"format": "lumiglue-posed", "version": 1, "scene": folder.name, "depth_scale": 1000}
    out |= {"K": meta["K"], "depth_K": half, "frames": frames}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cameras.json").write_text(json.dumps(out))


if __name__ == "__main__":
    main()
