"""How true a folder of posed images is: pictures of pairs with their correspondences, and errors in pixels.

    python benchmarks/tools/look_at_posed.py /work/runs/posed/hololens -o /tmp/hololens

Two errors over a random choice of pairs, each in pixels of the photos shrunk to --long-side:
  round trip   a pixel goes to the other photo by its own depth and back by the depth found there
  SIFT         a mutual nearest neighbour that passes the ratio test, against where depth and pose put it
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from lumiglue import Sift
from lumiglue.geometry.projective import transfer
from lumiglue.images import read_image, resize_long_side
from lumiglue.training.data.dataset import View
from lumiglue.training.data.posed import PosedFrames
from lumiglue.training.data.posed_formats import read_posed


def move(points: np.ndarray, depths: np.ndarray, a: View, b: View) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels of view a are in view b, and their depths there."""
    assert a.camera_from_world is not None
    assert b.camera_from_world is not None
    b_from_a = b.camera_from_world @ np.linalg.inv(a.camera_from_world)
    arrays = (points, depths, a.intrinsics, b.intrinsics, b_from_a)
    seen, z = transfer(*(torch.from_numpy(np.asarray(array, dtype=np.float64)) for array in arrays))
    return seen.numpy(), z.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=60, help="pairs to measure")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--long-side", type=int, default=480)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    data = read_posed(args.folder)
    source = PosedFrames(frames=data.frames, overlaps=data.overlaps, long_side=args.long_side, photometric=0.0)
    pairs = source.pairs()
    chosen = np.random.default_rng(0).permutation(len(pairs))[: args.pairs]
    sift = Sift(max_keypoints=1024, resize=None)
    views = {item: source.views(item, sift, 1024)[0] for k in chosen for item in pairs[k][:2]}
    overlaps = [pair[2] for pair in pairs]
    sys.stdout.write(
        f"{args.folder.name}: {len(data.frames)} frames, {len(pairs)} pairs of overlap {source.pairing.min_overlap} to "
        f"{source.pairing.max_overlap}, in tenths {np.histogram(overlaps, np.linspace(0, 1, 11))[0].tolist()}\n"
    )
    depth_known = np.mean([np.isfinite(view.depths).mean() for view in views.values() if view.depths is not None])
    round_trips: list[np.ndarray] = []
    agreeing: list[float] = []
    residuals: list[np.ndarray] = []
    for number, k in enumerate(chosen):
        a, b, overlap = pairs[k]
        error, agree = round_trip(source, a, b, views)
        round_trips.append(error)
        agreeing.append(agree)
        residuals.append(sift_residuals(views[a], views[b]))
        if number < args.pictures:
            picture = draw(source, a, b, views)
            cv2.imwrite(str(args.out / f"{number}-overlap-{overlap:.2f}.jpg"), picture[..., ::-1])
    trips, matched = np.concatenate(round_trips), np.concatenate(residuals)
    sys.stdout.write(
        f"  keypoints with depth {depth_known:.0%}; of pixels that land on known depth {np.nanmean(agreeing):.0%} agree "
        f"within 5 %; round trip median {np.median(trips):.2f} px, 90 % below {np.percentile(trips, 90):.2f}\n"
        f"  SIFT: {len(matched)} matches, median {np.median(matched):.2f} px, within 3 px {np.mean(matched <= 3):.0%}, "
        f"median of those within 10 px {np.median(matched[matched < 10]):.2f}\n"
    )


def round_trip(source: PosedFrames, a: int, b: int, views: dict[int, View]) -> tuple[np.ndarray, float]:
    """Errors of a grid of pixels there and back again where depths agree, and the share that agree."""
    width, height = views[a].features.image_size
    x, y = np.meshgrid(np.arange(2.0, width, 5), np.arange(2.0, height, 5))
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    there, z = move(points, depths_of(source, a, views[a], points), views[a], views[b])
    usable = np.isfinite(there).all(1) & (np.abs(there) < 1e5).all(1)
    points, there, z = points[usable], there[usable], z[usable]
    depths_there = depths_of(source, b, views[b], there)
    known = np.isfinite(depths_there)
    agree = known & (np.abs(depths_there / z - 1) < 0.05)
    back, _ = move(there[agree], depths_there[agree], views[b], views[a])
    return np.linalg.norm(back - points[agree], axis=1), float(agree.sum() / known.sum()) if known.any() else np.nan


def depths_of(source: PosedFrames, item: int, view: View, points: np.ndarray) -> np.ndarray:
    """Depths at pixels of the shrunk view."""
    frame = source.frames[item]
    stored = read_image(frame.image)
    factors = np.array(view.features.image_size) / stored.shape[1::-1]
    return frame.depths_at((points + 0.5) / factors - 0.5, stored.shape[1::-1])


def sift_residuals(a: View, b: View) -> np.ndarray:
    """Distances between SIFT matches and the place that depth and pose give them, where it is not hidden."""
    similarity = (a.features.descriptors @ b.features.descriptors.mT).numpy()
    best = similarity.argmax(1)
    distance = np.sqrt(np.maximum(2 - 2 * np.sort(similarity, axis=1)[:, -2:], 0))
    mutual = (similarity.argmax(0)[best] == np.arange(len(best))) & (distance[:, 1] < 0.8 * distance[:, 0])
    rows, others = np.flatnonzero(mutual), best[mutual]
    assert a.depths is not None
    assert b.depths is not None
    seen, z = move(a.features.keypoints.numpy()[rows], a.depths[rows], a, b)
    visible = np.isfinite(seen).all(1) & (np.abs(b.depths[others] / z - 1) < 0.05)
    return np.linalg.norm(seen[visible] - b.features.keypoints.numpy()[others[visible]], axis=1)


def draw(source: PosedFrames, a: int, b: int, views: dict[int, View]) -> np.ndarray:
    """Both photos; lines join keypoints of a to where depth and pose put them in b, where b's depth agrees."""
    photos = [resize_long_side(read_image(source.frames[item].image), source.long_side) for item in (a, b)]
    height = max(photo.shape[0] for photo in photos)
    canvas = np.concatenate(
        [cv2.copyMakeBorder(p, 0, height - p.shape[0], 0, 0, cv2.BORDER_CONSTANT) for p in photos], axis=1
    )
    points, depths = views[a].features.keypoints.numpy(), views[a].depths
    assert depths is not None
    seen, z = move(points, depths, views[a], views[b])
    usable = np.isfinite(seen).all(1) & (np.abs(seen) < 1e5).all(1)
    points, seen, z = points[usable], seen[usable], z[usable]
    agree = np.flatnonzero(np.abs(depths_of(source, b, views[b], seen) / z - 1) < 0.05)
    rng = np.random.default_rng(0)
    for row in rng.permutation(agree)[:40]:
        colour = tuple(int(c) for c in rng.integers(80, 256, 3))
        start, end = points[row], seen[row] + [photos[0].shape[1], 0]
        ends = [np.rint(point * 8).astype(int).tolist() for point in (start, end)]  # eighths of a pixel
        cv2.line(canvas, ends[0], ends[1], colour, 1, cv2.LINE_AA, 3)
        for point in ends:
            cv2.circle(canvas, point, 3 * 8, colour, 1, cv2.LINE_AA, 3)
    return canvas


if __name__ == "__main__":
    main()
