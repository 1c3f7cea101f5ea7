"""From a folder of photos to a sparse model in one call: features, pairs, matches, verified geometry, mapping."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lumiglue.collection import By, CameraMode, RefineCameras
from lumiglue.collection.features import Failures, Progress, extract_in_parts, run_to_end
from lumiglue.collection.hloc import MatchesReader, Pair
from lumiglue.collection.matching import match_pairs
from lumiglue.collection.pairs import choose_pairs, write_pairs
from lumiglue.errors import InputError
from lumiglue.images import image_names
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.system.extras import require
from lumiglue.visualization import save_figure

# Larger collections are matched by retrieval, unless `by` is given.
MOST_EXHAUSTIVE = 60
# In a folder that an earlier run wrote.
_MARK = ".lumiglue"


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
        images: How many photos were used.
        pairs: How many pairs were chosen.
        verified: How many pairs have a consistent geometry.
        database: COLMAP's database.
        left_out: (name, reason) of photos and pairs that could not be used.
        unplaced: Photos that were used, but are in none of the models.
    """

    models: tuple[Model, ...]
    images: int
    pairs: int
    verified: int
    database: Path
    left_out: Failures
    unplaced: tuple[str, ...] = ()


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
    camera_mode: CameraMode = "image",
    camera_model: str = "SIMPLE_RADIAL",
    camera_params: Sequence[float] | None = None,
    cameras: str | Path | None = None,
    refine_cameras: RefineCameras = "none",
    poses: str | Path | None = None,
    images: str | Path | Sequence[str] | None = None,
    features: str | Path | None = None,
    pairs: str | Path | Sequence[Pair] | None = None,
    matches: str | Path | None = None,
    masks: str | Path | None = None,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Reconstruction:
    """Reconstructs a folder of photos. If it was interrupted, or photos were added or changed, call it again.

    Args:
        photos: Folder, searched with all its subfolders.
        out: Folder to write: features.h5, pairs.txt, matches.h5, database.db, 0/ (the model, in COLMAP's format), model.png.
        pipeline: Features and matcher; None uses `Pipeline.pretrained()` in fp32.
        by: How pairs are chosen, see `choose_pairs`. None is exhaustive for up to 60 photos, else retrieval.
        neighbours: See `choose_pairs`.
        overlap: See `choose_pairs`.
        metres: See `choose_pairs`.
        single_camera: Short for the camera mode "single".
        camera_mode: Which photos share a camera: "image" (none), "folder" (those of a folder), "exif" (those of one make,
            model, size and focal length in EXIF) or "single" (all).
        camera_model: COLMAP's name of the camera model.
        camera_params: Known parameters of the model, in COLMAP's order and pixels (the centre of the top-left pixel is
            (0.5, 0.5)). None estimates them.
        cameras: Known cameras: a list as COLMAP's cameras.txt, with the name of a photo or folder or a number first, or a
            folder with a model of COLMAP, whose photos have its cameras.
        refine_cameras: What of known cameras is refined once all photos are placed: "none", the "focal" length, or "all",
            also the distortion, which few photos of a fisheye do not determine. Other cameras are always refined.
        poses: Folder with a model of COLMAP. Points are triangulated from its cameras and poses, which stay as they are.
        images: Names of the photos to use, or a file with one on each line; None uses all.
        features: HDF5 file of features to use, of `lumiglue features` or hloc; None extracts them.
        pairs: Pairs to match, or a file with two names on each line; None chooses them.
        matches: HDF5 file of matches of `features` to use, of `lumiglue matches` or hloc; None matches the pairs.
        masks: Folder of masks, see `collection.features.mask_file`.
        workers: Threads; None takes as many as PyTorch uses.
        progress: Called after each part of each stage: images, pairs, images placed.

    Returns:
        The models and counts.

    Raises:
        InputError: arguments or folders cannot be used, nothing could be reconstructed, or pycolmap is not installed.
    """
    from lumiglue.collection import colmap
    from lumiglue.collection.export import Selection

    photos, out, report = Path(photos), Path(out), progress or (lambda _: None)
    _check_output(photos, out)
    selection = Selection.of(
        photos, _outside(photos, out), images=images, poses=poses, single_camera=single_camera, camera_mode=camera_mode,
        camera_model=camera_model, camera_params=camera_params, cameras=cameras,
    )  # fmt: skip
    given = None if pairs is None else selection.read_pairs(pairs)
    left_out = selection.left_out
    if left_out:
        report(Progress("images", 0, len(selection.names), left_out))
    selection.check_enough(selection.names)
    if pairs is None and (by == "retrieval" or (by is None and len(selection.names) > MOST_EXHAUSTIVE)):
        require("faiss")  # before the work
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).touch()
    if pipeline is None and (features is None or matches is None):
        pipeline = Pipeline.pretrained(precision="fp32")
    if features is None:
        assert pipeline is not None
        features = out / "features.h5"
        steps = extract_in_parts(
            photos, selection.names, pipeline.extractor, features, masks=masks, stretch=pipeline.stretch, workers=workers
        )
        left_out += run_to_end(steps, progress)
    database, lost = selection.write_database(features, out / "database.db", {name for name, _ in left_out})
    names = [name for name in selection.names if name in database.images]
    left_out += lost
    if lost:
        report(Progress("images", len(names), len(selection.names), lost))
    selection.check_enough(names)
    if given is not None:
        chosen = [pair for pair in given if {*pair} <= database.images.keys()]
    elif matches is not None:
        with MatchesReader(matches) as file:
            chosen = file.pairs(names)
    else:
        by = by or default_by(len(names))
        chosen = choose_pairs(
            features, by, neighbours=neighbours, overlap=overlap, photos=photos, metres=metres, names=names
        )
    if pairs is None or not isinstance(pairs, str | Path) or Path(pairs).resolve() != (out / "pairs.txt").resolve():
        write_pairs(out / "pairs.txt", chosen)
    if matches is None:
        matches = out / "matches.h5"
        left_out += match_pairs(features, chosen, matches, pipeline, workers=workers, progress=progress)
    verified = selection.add_matches(database, features, matches, chosen)
    placed = 2  # mapping starts from a pair

    def next_image() -> None:
        nonlocal placed
        placed += 1
        report(Progress("images placed", placed, len(names)))

    report(Progress("images placed", placed, len(names)))
    if selection.scene is None:
        models = colmap.map_scene(database, photos, out, refine_known=refine_cameras, progress=next_image)
    else:
        models = [colmap.triangulate(database, selection.scene, photos, out)]
    save_figure(colmap.draw_model(models[0]), out / "model.png")
    placed_in = {image.name for model in models for image in model.reconstruction.images.values() if image.num_points3D}
    unplaced = tuple(name for name in names if name not in placed_in)
    return Reconstruction(tuple(models), len(names), len(chosen), verified, database.path, left_out, unplaced)


def default_by(images: int) -> Literal["exhaustive", "retrieval"]:
    """How pairs of so many images are chosen, unless it is given."""
    return "exhaustive" if images <= MOST_EXHAUSTIVE else "retrieval"


def _check_output(photos: Path, out: Path) -> None:
    """Raises InputError where something would be replaced that an earlier run did not write."""
    from lumiglue.collection.colmap import earlier_models

    if out.resolve() == photos.resolve():
        raise InputError(f"{out} is the folder of the photos; give another folder to write, such as {out / 'sfm'}")
    for file in (*earlier_models(out), out / "database.db", out / "pairs.txt"):
        if file.exists() and not ((out / "features.h5").exists() or (out / _MARK).exists()):
            raise InputError(f"{file} is not from an earlier run and would be replaced; choose another folder")


def _outside(photos: Path, out: Path) -> list[str]:
    """The photos that are not in `out`."""
    names = image_names(photos)
    if photos.resolve() not in out.resolve().parents:
        return names
    return [name for name in names if out.resolve() not in (photos / name).resolve().parents]
