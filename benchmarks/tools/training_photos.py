"""Sorts the photos of SHARED that training may see into the folders that the recipes name.

    python benchmarks/tools/training_photos.py SHARED -o PHOTOS

PHOTOS/places has a folder of up to eight photos for every place that several photos show, for `lumiglue dataset teach`;
PHOTOS/facades the photos of Urban100; PHOTOS/singles all others, every tenth in each of ten folders. Photos of the
yardstick's scenes (yardstick-scenes.json) are left out. Photos are copied: `dataset` reads folders.
"""

import argparse
import json
import random
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

HELD_OUT = Path(__file__).parents[1] / "accuracy" / "yardstick-scenes.json"
FACADES = "urban100"
MOST = 8  # photos of a folder
PARTS = 10  # folders of single photos

# The part of a file's path that names its place, in the sets of photos.jsonl that have several photos of a place and no
# `scene`. The names of the other sets say nothing of places.
PLACES = re.compile(
    r"""(?: (?P<whole>southbuilding|sceaux|monstree|lund|seneca|lewis|caliterra|brighton|banana|copr|snowpeak)/
          | (?P<pair>tlliao/TwoImage_Images_\d+)_
          | (?P<example>vggsfm/examples_[a-z_]+)_images
          | (?P<video>liberty/images_video\d)_
          | (?P<tourists>liberty)/images_\d
          | (?P<drive>camvid/CamVid_[a-z]+_[A-Za-z0-9]+)_
          | (?P<boof>boofcv/example_(?:sfm|stitch|triple|structure|denseflow|recognition_scene)[a-z_0-9]*?)_?\d+\.
        )""",
    re.VERBOSE,
)


def place_of(row: dict[str, str]) -> str | None:
    """The place of a line of photos.jsonl, or None where only this photo shows it."""
    if "scene" in row:
        return row["scene"]
    found = PLACES.match(row["file"])
    return next(name for name in found.groups() if name) if found else None


def held_out(row: dict[str, str], scenes: dict[str, list[str]]) -> bool:
    """Whether the yardstick shows this photo, or another crop of it."""
    return row["file"] in scenes["photos"] or row.get("scene") in {*scenes["scenes"], *scenes["dut_pairs"]}


def folders_of_place(files: Iterable[str], most: int, rng: random.Random) -> list[list[str]]:
    """At most `most` photos a folder. Names follow the camera, so a folder takes a random half of up to 2 * `most`
    neighbours: near enough to overlap, far enough for wide baselines."""
    files = sorted(files)
    if len(files) <= most:
        return [files]
    parts = -(-len(files) // (2 * most))
    folders = []
    for k in range(parts):
        window = files[k * len(files) // parts : (k + 1) * len(files) // parts]
        rng.shuffle(window)
        cuts = -(-len(window) // most)
        folders += [sorted(window[c::cuts]) for c in range(cuts)]
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    photos, scenes, rng = args.shared / "photos", json.loads(HELD_OUT.read_text()), random.Random(0)

    places: dict[str, list[str]] = defaultdict(list)
    folders: dict[str, list[str]] = defaultdict(list)
    for line in (photos / "photos.jsonl").read_text().splitlines():
        row = json.loads(line)
        if held_out(row, scenes):
            continue
        place = place_of(row)
        if place is not None:
            places[place].append(row["file"])
        elif row["file"].startswith(FACADES + "/"):
            folders["facades"].append(row["file"])
        else:
            folders["singles"].append(row["file"])
    singles = sorted(folders.pop("singles"))
    folders |= {f"singles/{k}": singles[k::PARTS] for k in range(PARTS)}
    for place, files in sorted(places.items()):
        for k, part in enumerate(folders_of_place(files, MOST, rng)):
            if len(part) > 1:
                folders[f"places/{place.replace('/', '-')}-{k}"] = part
    for folder, files in folders.items():
        to = args.out / folder
        to.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(photos / file, to / file.replace("/", "-"))
    taught = [files for folder, files in folders.items() if folder.startswith("places/")]
    print(f"{len(taught)} folders of places, {sum(map(len, taught))} photos; {len(folders['facades'])} facades; "
          f"{len(singles)} single photos")  # fmt: skip


if __name__ == "__main__":
    main()
