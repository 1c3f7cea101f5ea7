"""From a folder of photos to a sparse model in one call: features, pairs, matches, verified geometry, mapping."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lumiglue.collection import By
from lumiglue.collection.features import Failures, Progress, extract_in_parts, run_to_end
from lumiglue.collection.hloc import FeaturesFile
from lumiglue.collection.matching import match_pairs
from lumiglue.collection.pairs import choose_pairs, write_pairs
from lumiglue.errors import InputError
from lumiglue.images import image_names
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.system.extras import require
from lumiglue.visualization import save_figure

# Larger collections are matched by retrieval, unless `by` is given.
MOST_EXHAUSTIVE = 60


@dataclass(frozen=True)
class Model:
    """A sparse model.

    Attributes:
        folder: Cameras, images and points in COLMAP's format.
        images: Registered images.
        points: 3D points.
        track_length: Mean number of images that see a point.
        reprojection_error: Mean, in pixels.
        reconstruction: The model as pycolmap's object.
    """

    folder: Path
    images: int
    points: int
    track_length: float
    reprojection_error: float
    reconstruction: Any


@dataclass(frozen=True)
class Reconstruction:
    """What `reconstruct` made.

    Attributes:
        models: Sparse models, the largest first; more than one if the photos do not connect.
        images: How many photos have features.
        pairs: How many pairs were chosen.
        verified: How many pairs have a consistent geometry.
        database: COLMAP's database.
        left_out: (name, reason) of photos and pairs that could not be used.
    """

    models: tuple[Model, ...]
    images: int
    pairs: int
    verified: int
    database: Path
    left_out: Failures


def reconstruct(
    photos: str | Path,
    out: str | Path,
    pipeline: Pipeline | None = None,
    *,
    by: By | None = None,
    neighbours: int = 20,
    overlap: int = 10,
    metres: float = 100.0,
    single_camera: bool = False,
    camera_model: str = "SIMPLE_RADIAL",
    masks: str | Path | None = None,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Reconstruction:
    """Reconstructs a folder of photos. If it was interrupted, or photos were added, call it again.

    Args:
        photos: Folder, searched with all its subfolders.
        out: Folder to write: features.h5, pairs.txt, matches.h5, database.db, 0/ (the model, in COLMAP's format), model.png.
        pipeline: Features and matcher; None uses `Pipeline.pretrained()` in fp32.
        by: How pairs are chosen, see `choose_pairs`. None is exhaustive for up to 60 photos, else retrieval.
        neighbours: See `choose_pairs`.
        overlap: See `choose_pairs`.
        metres: See `choose_pairs`.
        single_camera: All photos were taken by one camera at one zoom.
        camera_model: COLMAP's name of the camera model.
        masks: Folder of masks, see `collection.features.mask_file`.
        workers: Threads; None takes as many as PyTorch uses.
        progress: Called after each part of each stage: images, pairs, images placed.

    Returns:
        The models and counts.

    Raises:
        InputError: the folders cannot be used, nothing could be reconstructed, or pycolmap is not installed.
    """
    from lumiglue.collection import colmap

    photos, out = Path(photos), Path(out)
    colmap.check_camera_model(camera_model)
    _check_output(photos, out)
    report = progress or (lambda _: None)
    names, unusable = _usable_photos(photos, out)
    if unusable:
        report(Progress("images", 0, len(names), unusable))
    if len(names) < 3:
        raise InputError(f"{photos} holds {len(names)} photos to use; a reconstruction needs at least 3")
    if by == "retrieval" or (by is None and len(names) > MOST_EXHAUSTIVE):
        require("faiss")  # before the work
    pipeline = pipeline or Pipeline.pretrained(precision="fp32")
    out.mkdir(parents=True, exist_ok=True)
    features, matches, database = out / "features.h5", out / "matches.h5", out / "database.db"
    steps = extract_in_parts(
        photos, names, pipeline.extractor, features, masks=masks, stretch=pipeline.stretch, workers=workers
    )
    left_out = unusable + run_to_end(steps, progress)
    with FeaturesFile(features) as file:
        names = file.names()
    by = by or default_by(len(names))
    pairs = choose_pairs(features, by, neighbours=neighbours, overlap=overlap, photos=photos, metres=metres)
    write_pairs(out / "pairs.txt", pairs)
    left_out += match_pairs(features, pairs, matches, pipeline, workers=workers, progress=progress)
    verified = colmap.write_database(
        photos, names, features, matches, pairs, database, single_camera=single_camera, camera_model=camera_model
    )
    placed = 2  # mapping starts from a pair

    def next_image() -> None:
        nonlocal placed
        placed += 1
        report(Progress("images placed", placed, len(names)))

    report(Progress("images placed", placed, len(names)))
    models = colmap.map_scene(database, photos, out, progress=next_image)
    save_figure(colmap.draw_model(models[0]), out / "model.png")
    return Reconstruction(tuple(models), len(names), len(pairs), verified, database, left_out)


def default_by(images: int) -> Literal["exhaustive", "retrieval"]:
    """How pairs of so many images are chosen, unless it is given."""
    return "exhaustive" if images <= MOST_EXHAUSTIVE else "retrieval"


def _check_output(photos: Path, out: Path) -> None:
    """Raises InputError where something would be replaced that an earlier run did not write."""
    from lumiglue.collection.colmap import earlier_models

    if out.resolve() == photos.resolve():
        raise InputError(f"{out} is the folder of the photos; give another folder to write, such as {out / 'sfm'}")
    for file in (*earlier_models(out), out / "database.db", out / "pairs.txt"):
        if file.exists() and not (out / "features.h5").exists():
            raise InputError(f"{file} is not of an earlier run, and would be replaced; choose another folder")


def _usable_photos(photos: Path, out: Path) -> tuple[list[str], Failures]:
    """The photos outside `out` that COLMAP can read, and (name, reason) of those that it cannot."""
    from lumiglue.collection.colmap import unreadable

    names = image_names(photos)
    if photos.resolve() in out.resolve().parents:
        names = [name for name in names if out.resolve() not in (photos / name).resolve().parents]
    dropped = unreadable(photos, names)
    reason = "this COLMAP reads no WebP; convert it to JPEG or PNG"
    return [name for name in names if name not in set(dropped)], tuple((name, reason) for name in dropped)
