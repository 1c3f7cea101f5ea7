"""From matches to a COLMAP database and a sparse model, through pycolmap."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lumiglue.collection.hloc import FeaturesFile, MatchesReader
from lumiglue.collection.pairs import Pair
from lumiglue.collection.sfm import Model
from lumiglue.errors import InputError
from lumiglue.images import as_stored
from lumiglue.system.extras import require

try:
    import pycolmap
except ImportError:
    raise InputError("reconstruction needs the package pycolmap; pip install 'lumiglue[sfm]'") from None
require("pycolmap")

# COLMAP counts from the corner of the top-left pixel, Lumiglue from its centre.
COLMAP_SHIFT = 0.5
MIN_MATCHES = 15
_MODEL_FILES = {
    "project.ini",
    *(f"{what}.{suffix}" for what in ("cameras", "images", "points3D", "frames", "rigs") for suffix in ("bin", "txt")),
}


def write_database(
    photos: str | Path,
    names: Sequence[str],
    features: str | Path,
    matches: str | Path,
    pairs: Sequence[Pair],
    database: str | Path,
    *,
    single_camera: bool = False,
    camera_model: str = "SIMPLE_RADIAL",
) -> int:
    """Writes a new COLMAP database with images, cameras (initialised from EXIF), keypoints and matches, and verifies the
    geometry of each pair.

    COLMAP does not apply EXIF orientations, so keypoints are written in the photo as stored.

    Args:
        photos: Folder of the photos.
        names: Photos to write; those without features are left out.
        features: HDF5 file of features of upright photos, as `lumiglue features` writes it.
        matches: HDF5 file of matches of these features.
        pairs: Pairs to write.
        database: File to write; an existing one is replaced.
        single_camera: All photos were taken by one camera at one zoom.
        camera_model: COLMAP's name of the camera model.

    Returns:
        How many pairs have a consistent geometry.

    Raises:
        InputError: no pair has one, or the matches are of other features.
    """
    database, photos = Path(database), Path(photos)
    check_camera_model(camera_model)
    database.unlink(missing_ok=True)
    with FeaturesFile(features) as file, MatchesReader(matches) as matches_file:
        known = [name for name in names if name in file]
        options = pycolmap.ImageReaderOptions()
        options.camera_model = camera_model
        mode = pycolmap.CameraMode.SINGLE if single_camera else pycolmap.CameraMode.PER_IMAGE
        pycolmap.Database.open(database).close()
        pycolmap.import_images(database, photos, mode, known, options)
        opened = pycolmap.Database.open(database)
        ids = {image.name: image.image_id for image in opened.read_all_images()}
        counts = {}
        for name in known:
            if name in ids:
                image_features = file.read(name)
                stored = as_stored(photos / name, image_features.keypoints.numpy(), image_features.image_size)
                opened.write_keypoints(ids[name], stored + COLMAP_SHIFT)
                counts[name] = len(image_features)
        matched = []
        for a, b in pairs:
            if a in ids and b in ids and ((a, b) in matches_file or (b, a) in matches_file):
                rows = matches_file.read(a, b)
                if (rows >= (counts[a], counts[b])).any():
                    raise InputError(
                        f"{matches}: the matches of {a} and {b} are of other features; delete it to match again"
                    )
                if len(rows) >= MIN_MATCHES:
                    opened.write_matches(ids[a], ids[b], rows.astype(np.uint32))
                    matched.append((a, b))
        opened.close()
    if not matched:
        raise InputError(f"no pair has {MIN_MATCHES} matches; are these photos of one place?")
    verified = _verify(database, [(ids[a], ids[b]) for a, b in matched])
    if not verified:
        raise InputError(f"none of {len(matched)} matched pairs has a consistent geometry; are these photos of one place?")
    return verified


def check_camera_model(name: str) -> None:
    """Raises InputError unless COLMAP has this camera model."""
    known = sorted(set(pycolmap.CameraModelId.__members__) - {"INVALID"})
    if name not in known:
        raise InputError(f"unknown camera model {name!r}; choose from {known}")


def unreadable(photos: str | Path, names: Sequence[str]) -> list[str]:
    """Finds photos that this build of COLMAP cannot read: WebP, in most builds.

    Args:
        photos: Folder of the photos.
        names: Photos to test.

    Returns:
        The names of those that cannot be read.
    """
    doubtful = [name for name in names if name.lower().endswith(".webp")]
    with _quiet(3):
        return [name for name in doubtful if pycolmap.Bitmap.read(Path(photos) / name, as_rgb=True) is None]


def _verify(database: Path, pairs: Sequence[tuple[int, int]]) -> int:
    """Finds the geometry of each pair; returns how many have one. COLMAP reads a list of names separated by spaces, and a
    name may have a space, so the images are renamed to their numbers meanwhile."""
    opened = pycolmap.Database.open(database)
    images = {image.image_id: image for image in opened.read_all_images()}
    names = {number: image.name for number, image in images.items()}

    def rename(name_of: Callable[[int], str]) -> None:
        for number, image in images.items():
            image.name = name_of(number)
            opened.update_image(image)

    list_file = database.with_suffix(".pairs.txt")
    list_file.write_text("".join(f"{a} {b}\n" for a, b in pairs))
    rename(str)
    opened.close()
    with _quiet():
        pycolmap.verify_matches(database, list_file)
    list_file.unlink()
    opened = pycolmap.Database.open(database)
    rename(names.__getitem__)
    verified = opened.num_verified_image_pairs()
    opened.close()
    return verified


@contextmanager
def _quiet(level: int = 2) -> Iterator[None]:
    """Silences COLMAP's log below `level`; 2 shows errors."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = level
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before


def map_scene(
    database: str | Path, photos: str | Path, out: str | Path, *, seed: int = 0, progress: Callable[[], None] | None = None
) -> list[Model]:
    """Runs COLMAP's incremental mapping.

    Args:
        database: COLMAP's database, with verified pairs.
        photos: Folder of the photos, for the colours of the points.
        out: Folder for the models 0/, 1/, ... Models of an earlier run are replaced once the new ones are complete.
        seed: Random seed.
        progress: Called for each image after the first two.

    Returns:
        The models, the one with most images first.

    Raises:
        InputError: nothing could be reconstructed, or a folder that would be replaced is no model.
    """
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size, options.random_seed = 3, seed
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    before = earlier_models(out)
    with tempfile.TemporaryDirectory(prefix="mapping-", dir=out) as unfinished:
        with _quiet():
            mapped = pycolmap.incremental_mapping(
                Path(database), Path(photos), unfinished, options, next_image_callback=progress or (lambda: None)
            )
        if not mapped:
            raise InputError(
                "nothing could be reconstructed: no pair of photos could start it; take more photos, closer together"
            )
        for old in before:
            shutil.rmtree(old)
        for number in mapped:
            Path(unfinished, str(number)).replace(out / str(number))
    models = [
        Model(
            out / str(number), model.num_reg_images(), model.num_points3D(), model.compute_mean_track_length(),
            model.compute_mean_reprojection_error(), model,
        )
        for number, model in mapped.items()
    ]  # fmt: skip
    return sorted(models, key=lambda model: -model.images)


def earlier_models(out: Path) -> list[Path]:
    """Lists the folders OUT/0, OUT/1, ... of an earlier run. Raises InputError if one of them is not a model."""
    folders = sorted(path for path in out.iterdir() if path.is_dir() and path.name.isdigit()) if out.is_dir() else []
    for folder in folders:
        if any(path.is_dir() or path.name not in _MODEL_FILES for path in folder.iterdir()):
            raise InputError(f"{folder} holds other things than a model, and would be replaced; choose another folder")
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
