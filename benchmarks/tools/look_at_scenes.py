"""Pairs of views of synthetic scenes with their labels: true matches as lines, all other keypoints as dots.

python benchmarks/tools/look_at_scenes.py PHOTOS -o scenes.png
python benchmarks/tools/look_at_scenes.py -o scenes.jpg --pairs 1 --first 10  # textured with scikit-image's photos
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage import data

from lumiglue import Features, Matches, Sift
from lumiglue.images import read_image
from lumiglue.training.data.homographies import rng_for
from lumiglue.training.data.photometric import augment_photometric
from lumiglue.training.data.synthetic_scenes import Camera, SyntheticScenes, aim_camera, build_scene, depths_at, render
from lumiglue.training.labels import labels_from_depths
from lumiglue.visualization import draw_matches, save_figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?", help="by default scikit-image's")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = SyntheticScenes.of_folder(
            options.photos or scikit_photos(Path(scratch)), count=options.first + options.pairs
        )
        pictures = [draw_pair(source, options.first + k, Path(scratch) / f"{k}.png") for k in range(options.pairs)]
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    cv2.imwrite(str(options.out), np.vstack(padded)[..., ::-1])


def scikit_photos(folder: Path) -> Path:
    for name in ("astronaut", "coffee", "chelsea", "rocket", "brick", "gravel", "grass", "camera"):
        image = np.asarray(getattr(data, name)())
        cv2.imwrite(str(folder / f"{name}.png"), image[..., ::-1] if image.ndim == 3 else image)
    return folder


def draw_pair(source: SyntheticScenes, number: int, scratch: Path) -> np.ndarray:
    rng = rng_for(source.seed, source.items[number])
    scene = build_scene(rng, source.textures(rng), source.settings)
    views = [view(source, scene, rng) for _ in range(2)]
    (image0, features0, depths0, camera0), (image1, features1, depths1, camera1) = views
    way = camera1.camera_from_world @ np.linalg.inv(camera0.camera_from_world)
    matrices = (camera0.intrinsics, camera1.intrinsics, way)
    depths = [torch.from_numpy(d).float()[None] for d in (depths0, depths1)]
    labels = labels_from_depths(
        features0.keypoints[None], features1.keypoints[None], *depths, *(torch.from_numpy(m).float()[None] for m in matrices)
    )
    true = Matches(labels.matches[:, 1:], torch.ones(len(labels.matches)))
    unmatchable = int(labels.unmatchable0.sum()), int(labels.unmatchable1.sum())
    title = f"scene {number}: {len(true)} true matches, unmatchable {unmatchable[0]} and {unmatchable[1]}"
    save_figure(draw_matches(image0, image1, features0, features1, true, title=title), scratch)
    return read_image(scratch)


def view(source: SyntheticScenes, scene: list, rng: np.random.Generator) -> tuple[np.ndarray, Features, np.ndarray, Camera]:
    camera = aim_camera(rng, source.settings)
    rendering = render(scene, camera)
    image = augment_photometric(rng, torch.from_numpy(rendering.image), source.settings.photometric).numpy()
    features = Sift(max_keypoints=512, resize=None)(image)
    depths = depths_at(rendering, features.keypoints.numpy().astype(np.float64))
    known = torch.from_numpy(np.flatnonzero(np.isfinite(depths)))
    return image, features[known], depths[known.numpy()], camera


if __name__ == "__main__":
    main()
