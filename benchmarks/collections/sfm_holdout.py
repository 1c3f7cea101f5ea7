"""How far interpolated depths of a COLMAP model may be trusted: points left out, predicted from the others.

    python benchmarks/collections/sfm_holdout.py /work/runs/sfm/southbuilding/0

A fifth of the trusted points is left out of the depth maps. Where a map has a depth at such a point, its pixel is carried by
that depth into the other photos of the point's track; the error is the distance to where the point itself projects there.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from lumiglue.training.data.from_colmap import SfmSettings, interpolate_depth, read_model, trusted_points
from lumiglue.training.data.posed import depth_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--max-edge", type=float, nargs="*", default=[0.02, 0.05, 0.1])
    parser.add_argument("--max-ratio", type=float, nargs="*", default=[1.1])
    args = parser.parse_args()
    for max_edge in args.max_edge:
        for max_ratio in args.max_ratio:
            errors, known = holdout(args.model, SfmSettings(max_edge=max_edge, max_ratio=max_ratio))
            sys.stdout.write(
                f"{args.model}: edges up to {max_edge:.0%}, depth ratio {max_ratio}: depth on {known:.0%} of the pixels; "
                f"{len(errors)} left-out observations, median {np.median(errors):.2f} px, within 3 px "
                f"{np.mean(errors <= 3):.1%}, 5 px {np.mean(errors <= 5):.1%}\n"
            )


def holdout(model: Path, settings: SfmSettings) -> tuple[np.ndarray, float]:
    """Errors in pixels of all left-out observations in all other photos of their tracks, and the share of known depth."""
    reconstruction = read_model(model)
    trusted = trusted_points(reconstruction, settings)
    left_out = set(np.random.default_rng(0).permutation(sorted(trusted))[: len(trusted) // 5].tolist())
    cameras: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for number in reconstruction.reg_image_ids():
        image = reconstruction.image(number)
        camera = reconstruction.camera(image.camera_id)
        focal = camera.mean_focal_length()  # distortion hardly matters to a difference of two near places
        intrinsics = np.array([[focal, 0, camera.width / 2 - 0.5], [0, focal, camera.height / 2 - 0.5], [0, 0, 1]])
        cameras[number] = intrinsics, np.asarray(image.cam_from_world().matrix())
    errors: list[float] = []
    known: list[float] = []
    for number, (intrinsics, pose) in cameras.items():
        image = reconstruction.image(number)
        camera = reconstruction.camera(image.camera_id)
        seen = {p.point3D_id for p in image.points2D if p.has_point3D()} & trusted.keys()
        remaining = np.array([trusted[n] for n in sorted(seen - left_out)]).reshape(-1, 3) @ pose[:, :3].T + pose[:, 3]
        depth = interpolate_depth(remaining, intrinsics, (camera.height, camera.width), settings)
        known.append(float((depth > 0).mean()))
        depth[depth == 0] = np.nan
        for point in sorted(seen & left_out):
            ray = intrinsics @ (pose[:, :3] @ trusted[point] + pose[:, 3])
            guess = depth_at(depth, (ray[:2] / ray[2])[None])[0]
            if np.isfinite(guess):
                moved = (pose[:, :3] @ trusted[point] + pose[:, 3]) * guess / ray[2]
                world = pose[:, :3].T @ (moved - pose[:, 3])
                others = {element.image_id for element in reconstruction.point3D(point).track.elements} - {number}
                errors += [_distance(world, trusted[point], *cameras[other]) for other in others]
    return np.array(errors), float(np.mean(known))


def _distance(a: np.ndarray, b: np.ndarray, intrinsics: np.ndarray, pose: np.ndarray) -> float:
    pixels = [intrinsics @ (pose[:, :3] @ world + pose[:, 3]) for world in (a, b)]
    return float(np.linalg.norm(pixels[0][:2] / pixels[0][2] - pixels[1][:2] / pixels[1][2]))


if __name__ == "__main__":
    main()
