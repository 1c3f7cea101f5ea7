"""Cameras that are shared by a folder, known or fisheye: how many photos are placed, and how well the focal length is found.

    python benchmarks/collections/cameras.py EVAL [--groups strecha] [--max-keypoints 1024]

EVAL has the photos and a pairs.json with K and metric relative poses. The photos are used as they are; with every other one
made smaller, in a second folder; and as an equidistant fisheye with distortion sees them. Camera centres are distances to
the truth after the best similarity, in percent of the extent of the cameras, median (largest).
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
from sfm import centre_errors, true_centres

from lumiglue import Pipeline, reconstruct
from lumiglue.evaluation.pairs import PosePair, read_pairs
from lumiglue.images import read_image

SMALLER = 0.7
# Of a fisheye: distortion, and the focal length relative to that of the photos, so that it sees nothing beside them.
DISTORTION, LONGER = (-0.05, 0.01, 0.0, 0.0), 1.12
# Known only roughly, before it is refined.
ROUGH = 1.05


def write(folder: Path, images: dict[str, np.ndarray]) -> Path:
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return folder


def in_two_folders(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every other photo made smaller, in the folder "b"."""
    placed = {}
    for number, (name, image) in enumerate(images.items()):
        smaller = cv2.resize(image, None, fx=SMALLER, fy=SMALLER, interpolation=cv2.INTER_AREA)
        placed[f"{'ab'[number % 2]}/{name}"] = smaller if number % 2 else image
    return placed


def fisheye_of(intrinsics: np.ndarray, size: tuple[int, int]) -> Any:
    """COLMAP's fisheye camera that sees photos of these intrinsics."""
    focal = LONGER * np.diag(intrinsics)[:2]
    centre = intrinsics[:2, 2] + 0.5
    return pycolmap.Camera(model="OPENCV_FISHEYE", width=size[0], height=size[1], params=[*focal, *centre, *DISTORTION])


def seen_by(fisheye: Any, images: dict[str, np.ndarray], intrinsics: np.ndarray) -> dict[str, np.ndarray]:
    """The photos as the fisheye sees them."""
    width, height = fisheye.width, fisheye.height
    rays = fisheye.cam_from_img(np.mgrid[:width, :height].reshape(2, -1).T + 0.5)
    pixels = rays * np.diag(intrinsics)[:2] + intrinsics[:2, 2]
    maps = pixels.reshape(width, height, 2).transpose(1, 0, 2).astype(np.float32)
    return {name: cv2.remap(image, maps, np.empty(0), cv2.INTER_CUBIC) for name, image in images.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--groups", nargs="+", default=["strecha"])
    parser.add_argument("--max-keypoints", type=int, default=1024)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    options = parser.parse_args()
    pipeline = Pipeline.pretrained("sift", max_keypoints=options.max_keypoints, resize=None, precision="fp32")
    by_group: dict[str, list[PosePair]] = defaultdict(list)
    for pair in read_pairs(options.folder):
        if isinstance(pair, PosePair) and pair.group.startswith(tuple(options.groups)):
            by_group[pair.group].append(pair)
    sys.stdout.write("| set | cameras | placed | focal error | camera centres | reprojection, px |\n|" + "---|" * 6 + "\n")
    for group, pairs in by_group.items():
        with tempfile.TemporaryDirectory() as folder:
            for cells in measured(options.folder, pairs, Path(folder), pipeline, options.only):
                sys.stdout.write("| " + " | ".join((group, *cells)) + " |\n")
                sys.stdout.flush()


def measured(root: Path, pairs: list[PosePair], folder: Path, pipeline: Pipeline, only: str) -> Iterator[Sequence[str]]:
    """The cells of each row whose name has `only` in it."""
    true = true_centres(pairs)
    extent = np.linalg.norm(np.ptp(np.array(list(true.values())), axis=0))
    intrinsics = np.asarray(pairs[0].intrinsics_a)
    images = {Path(file).name: read_image(root / file)[..., ::-1] for file in sorted({n for p in pairs for n in (p.a, p.b)})}
    height, width = next(iter(images.values())).shape[:2]
    fisheye = fisheye_of(intrinsics, (width, height))
    as_they_are, folders = write(folder / "plain", images), write(folder / "folders", in_two_folders(images))
    bent = write(folder / "fisheye", seen_by(fisheye, images, intrinsics))
    rough = [ROUGH * value for value in fisheye.params[:2]] + fisheye.params[2:].tolist()

    def row(what: str, photos: Path, focal_of: Callable[[Any], float], **cameras: Any) -> Sequence[str]:
        made = reconstruct(photos, folder / f"{photos.name}-out", pipeline, by="exhaustive", **cameras)
        model = made.models[0]
        for image in model.reconstruction.images.values():
            image.name = Path(image.name).name
        errors = 100 * centre_errors(model, true) / extent
        focal = [
            100 * abs(camera.mean_focal_length() / focal_of(camera) - 1) for camera in model.reconstruction.cameras.values()
        ]
        return (
            what, f"{model.images} of {len(images)}", " and ".join(f"{error:.2f} %" for error in focal),
            f"{np.median(errors):.2f} % ({errors.max():.2f} %)", f"{model.reprojection_error:.2f}",
        )  # fmt: skip

    mean = float(np.diag(intrinsics)[:2].mean())
    known = {"camera_model": "OPENCV_FISHEYE", "single_camera": True}
    refined = {"camera_params": rough, "refine_cameras": "all"}
    rows: list[tuple[str, Path, Callable[[Any], float], dict[str, Any]]] = [
        ("one for all", as_they_are, lambda _: mean, {"single_camera": True}),
        ("one per folder, two sizes", folders, lambda camera: mean * camera.width / width, {"camera_mode": "folder"}),
        ("fisheye, known, fixed", bent, lambda _: LONGER * mean, {"camera_params": fisheye.params.tolist()} | known),
        ("fisheye, 5 % off, refined", bent, lambda _: LONGER * mean, refined | known),
        ("fisheye, taken for SIMPLE_RADIAL", bent, lambda _: LONGER * mean, {"single_camera": True}),
    ]
    for what, photos, focal_of, cameras in rows:
        if only in what:
            yield row(what, photos, focal_of, **cameras)


if __name__ == "__main__":
    main()
