"""What `lumiglue match` does with the geometry of two photos: poses, registration, and the ranking of a folder."""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lumiglue.cli.flags import PipelineFlags, check_writable
from lumiglue.cli.terminal import ProgressBar, err, say
from lumiglue.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from lumiglue.types import Camera, Geometry, GeometryKind

SHOWN = 20  # photos of a ranking that are printed
FEW_INLIERS = 15  # as COLMAP: fewer also occur between photos of different places


def given_cameras(focal: float | None, camera: tuple[str, ...], kind: str) -> "tuple[Camera, ...]":
    """Checks and reads --camera. Raises InputError where it or --focal cannot be used."""
    from lumiglue.types import Camera

    if focal is None and not camera:
        return ()
    if kind != "essential":
        raise InputError("--focal and --camera are for --geometry essential; add it")
    if focal is not None and camera:
        raise InputError("both --focal and --camera were given; give one of them")
    if focal is not None and not 0 < focal < float("inf"):
        raise InputError(f"--focal is {focal}; give a number of pixels above 0")
    if len(camera) > 2:
        raise InputError(f"--camera has {len(camera)} cameras; give one for both photos, or two")
    return tuple(Camera.parse(text) for text in camera)


def cameras_of(
    paths: tuple[Path, Path], sizes: list[tuple[int, int]], focal: float | None, given: "tuple[Camera, ...]"
) -> "tuple[Camera, Camera]":
    """The cameras of both photos; says where a focal length comes from."""
    from lumiglue.pipeline.cameras import photo_camera
    from lumiglue.types import Camera

    if given:
        return given[0], given[-1]
    if focal is not None:
        return Camera.from_focal(focal, sizes[0]), Camera.from_focal(focal, sizes[1])
    cameras = []
    for path, size in zip(paths, sizes, strict=True):
        camera, source = photo_camera(path, size)
        where = "from EXIF" if source == "exif" else "a guess, because EXIF has none; give --focal for a reliable pose"
        err.print(f"note: {path.name}: focal length {camera.focal[0]:.0f} pixels, {where}", markup=False)
        cameras.append(camera)
    return cameras[0], cameras[1]


def say_pose(geometry: "Geometry") -> None:
    """Prints a relative pose."""
    import torch

    from lumiglue.geometry.projective import rotation_angle

    if geometry.rotation is None or geometry.translation is None:
        say("no relative pose was found")
        return
    centre = -geometry.rotation.T @ geometry.translation
    angle = rotation_angle(geometry.rotation.double(), torch.eye(3, dtype=torch.float64))
    say(f"R = {_rounded(geometry.rotation.tolist())}, t = {_rounded(geometry.translation.tolist())} (unit length)")
    x, y, z = centre.tolist()
    say(f"seen from the first camera, the second is rotated by {angle:.2f} degrees and is at ({x:.3f}, {y:.3f}, {z:.3f})")


def _rounded(values: list) -> str:
    return json.dumps([_round(value) for value in values])


def _round(value: float | list) -> float | list:
    return [_round(v) for v in value] if isinstance(value, list) else round(value, 5) + 0.0


def check_registration(warp: Path | None, checkerboard: Path | None, kind: str) -> None:
    """Checks --warp and --checkerboard before the work."""
    from lumiglue.pipeline.registration import WARP_SUFFIXES

    for flag, file, suffixes in (("--warp", warp, WARP_SUFFIXES), ("--checkerboard", checkerboard, WARP_SUFFIXES[:-1])):
        if file is None:
            continue
        if kind != "homography":
            raise InputError(f"{flag} needs --geometry homography; add it")
        if file.suffix.lower() not in suffixes:
            raise InputError(f"{flag} {file} has the suffix {file.suffix!r}; give one of {list(suffixes)}")


def save_registration(
    images: "tuple[np.ndarray, np.ndarray]", geometry: "Geometry", warp: Path | None, checkerboard: Path | None
) -> list[Path]:
    """Writes the second photo in the pixels of the first. Returns the files."""
    from lumiglue.pipeline import registration

    if warp is None and checkerboard is None:
        return []
    if geometry.matrix is None:
        raise InputError("no homography was found, so there is nothing to warp; are these photos of one plane?")
    if (inliers := int(geometry.inliers.sum())) < FEW_INLIERS:
        err.print(f"note: {inliers} inliers are few; check the picture")
    height, width = images[0].shape[:2]
    warped = registration.warp_onto(images[1], geometry.matrix.numpy(), (width, height))
    if warp is not None:
        registration.save_warp(warp, images[0], warped)
    if checkerboard is not None:
        registration.save_image(checkerboard, registration.checkerboard(images[0], warped))
    return [file for file in (warp, checkerboard) if file is not None]


def match_folder(
    photo: Path, folder: Path, flags: PipelineFlags, target: Path | None, kind: str, workers: int | None
) -> int:
    """Ranks the photos of a folder."""
    from lumiglue.images import list_images
    from lumiglue.pipeline.ranking import rank_images

    if target is not None:
        check_writable(target, ".csv", ".json")
    if kind not in ("fundamental", "homography"):
        raise InputError(f"--geometry {kind} cannot rank a folder; choose fundamental or homography")
    chosen: GeometryKind = "homography" if kind == "homography" else "fundamental"
    paths = [path for path in list_images(folder) if path.resolve() != photo.resolve()]
    pipeline = flags.pipeline("auto")
    with ProgressBar("photos", len(paths)) as advance:
        ranked = rank_images(pipeline, photo, paths, chosen, workers=workers, progress=lambda _: advance(1))
    good = [entry for entry in ranked if not entry.error]
    say(f"{'inliers':>8}{'matches':>8}  photo")
    for entry in good[:SHOWN]:
        say(f"{entry.inliers:>8}{entry.matches:>8}  {entry.path}")
    if len(good) > SHOWN:
        say(f"and {len(good) - SHOWN} more{'' if target else '; --out ranking.csv lists them all'}")
    if good and good[0].inliers < FEW_INLIERS:
        err.print(f"note: fewer than {FEW_INLIERS} inliers also occur between photos of different places")
    if target is not None:
        rows = [{**asdict(entry), "path": str(entry.path)} for entry in ranked]
        _write_table(target, rows)
        say(f"saved {target}")
    failed = ranked[len(good) :]
    for entry in failed[:10]:
        err.print(f"left out: {entry.path}: {entry.error}", markup=False)
    if failed:
        err.print(f"error: {len(failed)} of {len(ranked)} photos were left out", markup=False)
    return 2 if failed else 0


def _write_table(path: Path, rows: list[dict]) -> None:
    from lumiglue.io.atomic import write_whole

    text = json.dumps(rows, indent=1)
    if path.suffix.lower() == ".csv":
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, ["path", "inliers", "matches", "keypoints", "error"])
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    write_whole(path, text.encode())
