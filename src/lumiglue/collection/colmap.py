"""From a COLMAP database to a sparse model, through pycolmap."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lumiglue.collection import RefineCameras
from lumiglue.collection.cameras import pycolmap, quiet
from lumiglue.collection.database import Database, with_poses_of
from lumiglue.collection.sfm import Model
from lumiglue.errors import InputError

_MODEL_FILES = {
    "project.ini",
    *(f"{what}.{suffix}" for what in ("cameras", "images", "points3D", "frames", "rigs") for suffix in ("bin", "txt")),
}


def map_scene(
    database: Database,
    photos: Path,
    out: Path,
    *,
    refine_known: RefineCameras = "none",
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> list[Model]:
    """Runs COLMAP's incremental mapping.

    Known cameras are constant until all photos are placed: a fisheye that is refined from the first few diverges.

    Args:
        database: COLMAP's database, with verified pairs.
        photos: Folder of the photos, for the colours of the points.
        out: Folder for the models 0/, 1/, ... Models of an earlier run are replaced once the new ones are complete.
        refine_known: What of known cameras is refined in the end, with all poses and points.
        seed: Random seed.
        progress: Called for each image after the first two.

    Returns:
        The models, the one with most images first.

    Raises:
        InputError: nothing could be reconstructed, or a folder that would be replaced is no model.
    """
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size, options.random_seed = 3, seed
    options.constant_cameras = set(database.known)
    with _replaced_models(out) as folder:
        with quiet():
            mapped = pycolmap.incremental_mapping(
                database.path, photos, folder, options, next_image_callback=progress or (lambda: None)
            )
        if not mapped:
            raise InputError(
                "nothing could be reconstructed: no pair of photos could start it; take more photos, closer together"
            )
        for number, model in mapped.items() if database.known and refine_known != "none" else ():
            refine(model, distortion=refine_known == "all")
            model.write(folder / str(number))
    return sorted((_model(out / str(number), model) for number, model in mapped.items()), key=lambda model: -model.images)


def refine(model: Any, *, distortion: bool) -> None:
    """Refines cameras, poses and points; `pycolmap.bundle_adjustment` does the same, but prints."""
    options, config = pycolmap.BundleAdjustmentOptions(), pycolmap.BundleAdjustmentConfig()
    options.print_summary, options.refine_extra_params = False, distortion
    for number in model.reg_image_ids():
        config.add_image(number)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    with quiet():
        pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    model.update_point_3d_errors()


def triangulate(database: Database, model: Any, photos: Path, out: Path) -> Model:
    """Triangulates points from known cameras and poses, which stay as they are.

    Args:
        database: COLMAP's database, with verified pairs.
        model: A `pycolmap.Reconstruction` with the cameras and poses.
        photos: Folder of the photos, for the colours of the points.
        out: Folder for the model 0/. Models of an earlier run are replaced once the new one is complete.

    Returns:
        The model.

    Raises:
        InputError: no point could be triangulated, or a folder that would be replaced is no model.
    """
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = 0
    with _replaced_models(out) as folder:
        (folder / "0").mkdir()
        with quiet():
            model = with_poses_of(model, list(database.images))
            model = pycolmap.triangulate_points(model, database.path, photos, folder / "0", options=options)
        if not model.num_points3D():
            raise InputError("no point could be triangulated; do the poses belong to these photos?")
    return _model(out / "0", model)


@contextmanager
def _replaced_models(out: Path) -> Iterator[Path]:
    """A folder for new models, which replace those of an earlier run if the block does not raise."""
    out.mkdir(parents=True, exist_ok=True)
    before = earlier_models(out)
    with tempfile.TemporaryDirectory(prefix="mapping-", dir=out) as unfinished:
        yield Path(unfinished)
        for old in before:
            shutil.rmtree(old)
        for folder in Path(unfinished).iterdir():
            if folder.name.isdigit():
                folder.replace(out / folder.name)


def _model(folder: Path, model: Any) -> Model:
    return Model(
        folder, model.num_reg_images(), model.num_points3D(), model.compute_mean_track_length(),
        model.compute_mean_reprojection_error(), model,
    )  # fmt: skip


def earlier_models(out: Path) -> list[Path]:
    """Lists the folders OUT/0, OUT/1, ... of an earlier run. Raises InputError if one of them is not a model."""
    folders = sorted(path for path in out.iterdir() if path.is_dir() and path.name.isdigit()) if out.is_dir() else []
    for folder in folders:
        if any(path.is_dir() or path.name not in _MODEL_FILES for path in folder.iterdir()):
            raise InputError(f"{folder} has other files than a model, which would be replaced; choose another folder")
    return folders


def draw_model(model: Model) -> Figure:
    """Draws the points and cameras of a model from above and from the side, in axes fitted to them.

    Args:
        model: The model.

    Returns:
        The picture.
    """
    reconstruction = model.reconstruction
    points = [(p.xyz, p.color) for p in reconstruction.points3D.values()]
    xyz, colours = np.array([p for p, _ in points]), np.array([c for _, c in points]) / 255
    cameras = np.array([image.projection_center() for image in reconstruction.images.values() if image.has_pose])
    centre = np.median(xyz, axis=0)
    spread = np.percentile(np.linalg.norm(xyz - centre, axis=1), 90)
    near = np.linalg.norm(xyz - centre, axis=1) < 2 * spread
    _, _, axes = np.linalg.svd((cameras - cameras.mean(0)) if len(cameras) > 3 else xyz[near] - centre)
    points2d, cameras2d = (xyz[near] - centre) @ axes.T, (cameras - centre) @ axes.T
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    for place, (i, j, title) in enumerate(
        ((0, 1, "seen along the normal of the cameras' path"), (0, 2, "seen from the side"))
    ):
        plot = figure.add_subplot(1, 2, place + 1)
        plot.scatter(points2d[:, i], points2d[:, j], s=1.5, c=colours[near], linewidths=0)
        plot.plot(cameras2d[:, i], cameras2d[:, j], "r^", markersize=5)
        plot.set_aspect("equal")
        plot.set_title(title, fontsize=9)
        plot.tick_params(labelsize=7)
    figure.suptitle(
        f"{model.images} images, {model.points} points, mean track {model.track_length:.2f}, "
        f"mean reprojection error {model.reprojection_error:.2f} px"
    )
    return figure
