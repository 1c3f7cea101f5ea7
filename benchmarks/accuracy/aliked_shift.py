"""How far beside its structure an extractor puts its keypoints: python benchmarks/accuracy/aliked_shift.py PHOTOS --photos
10

Turned and scaled copies of photos are matched by mutual nearest neighbours. Keypoints that are all shifted by b
from the structure miss their partners by (I - A) b, where A is the linear part of the copy; b is the robust least-squares
answer. The shift that `Aliked` subtracts is left in: the number in extractors/networks.py is printed. SIFT is the control.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from lumiglue.evaluation.baselines import mutual_nearest_neighbours
from lumiglue.extractors import Extractor, create_extractor, networks
from lumiglue.images import list_images, read_image, resize_long_side


def misses(photo: np.ndarray, extractor: Extractor, rng: np.random.Generator, most: float) -> tuple[np.ndarray, np.ndarray]:
    """n x 2 x 2 matrices I - A and n x 2 misses in pixels, of matches that are less than 5 pixels off."""
    height, width = photo.shape[:2]
    angle, scale = rng.uniform(-most, most), 2 ** rng.uniform(-1, 0.3)
    copy_from_photo = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
    smooth = cv2.GaussianBlur(photo, (0, 0), 0.5 / scale) if scale < 0.8 else photo
    features = extractor(photo), extractor(cv2.warpAffine(smooth, copy_from_photo, (width, height)))
    pairs = mutual_nearest_neighbours(*features).pairs.numpy()
    points0, points1 = (features[i].keypoints.numpy()[pairs[:, i]] for i in (0, 1))
    off = points1 - points0 @ copy_from_photo[:, :2].T - copy_from_photo[:, 2]
    off = off[np.abs(off).max(1) < 5]
    return np.repeat((np.eye(2) - copy_from_photo[:, :2])[None], len(off), 0), off


def solve(matrices: np.ndarray, off: np.ndarray) -> np.ndarray:
    """b that makes the sum of |off - M b| least, by reweighting; below 0.3 pixels squares count."""
    weights, shift = np.ones(len(off)), np.zeros(2)
    for _ in range(20):
        normal = np.einsum("nij,nik,n->jk", matrices, matrices, weights)
        shift = np.linalg.solve(normal, np.einsum("nij,ni,n->j", matrices, off, weights))
        rest = np.linalg.norm(off - matrices @ shift, axis=1)
        weights = 1 / np.maximum(rest, 0.3)
    return shift


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=10)
    parser.add_argument("--models", nargs="+", default=["sift", "aliked-n16rot", "aliked-n16", "aliked-t16"])
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    chosen = rng.permutation(np.array(list_images(arguments.folder)))[: arguments.photos]
    photos = [np.ascontiguousarray(resize_long_side(read_image(path), 480)) for path in chosen]
    networks._ALIKED_SHIFTS.clear()
    for model in arguments.models:
        settings = {"max_keypoints": 512, "resize": None}
        extractor = create_extractor(model, **settings)
        most = 180.0 if model in ("sift", "aliked-n16rot") else 45.0  # the others were trained upright
        samples = [misses(photo, extractor, rng, most) for photo in photos for _ in range(2)]
        matrices, off = (np.concatenate(parts) for parts in zip(*samples, strict=True))
        shift = solve(matrices, off)
        before, after = (np.linalg.norm(rest, axis=1) for rest in (off, off - matrices @ shift))
        print(
            f"{model}: shift {shift.round(2).tolist()} px; {len(off)} matches, under 1 px "
            f"{100 * (before < 1).mean():.1f} % -> {100 * (after < 1).mean():.1f} % without it"
        )


if __name__ == "__main__":
    main()
