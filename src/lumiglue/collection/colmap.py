"""From matches to a COLMAP database and a sparse model, through pycolmap."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lumiglue.collection.hloc import FeaturesFile, MatchesReader
from lumiglue.collection.pairs import Pair
from lumiglue.errors import InputError
from lumiglue.images import as_stored

try:
    import pycolmap
except ImportError:
    raise InputError("reconstruction needs the package pycolmap; pip install 'lumiglue[sfm]'") from None

# COLMAP counts from the corner of the top-left pixel, Lumiglue from its centre.
COLMAP_SHIFT = 0.5
MIN_MATCHES = 15
_MODEL_FILES = {
    "project.ini",
    *(f"{what}.{suffix}" for what in ("cameras", "images", "points3D", "frames", "rigs") for suffix in ("bin", "txt")),
}


@dataclass(frozen=True)
class Model:
    """A sparse model. folder: cameras, images and points in COLMAP's format. reprojection_error in pixels, mean."""

    folder: Path
    images: int
    points: int
    track_length: float
    reprojection_error: float
    reconstruction: "pycolmap.Reconstruction"


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
    """Writes images with cameras guessed from EXIF, keypoints and matches to a new COLMAP database, and verifies each pair's
    geometry. Returns how many pairs have verified matches. Raises InputError where no pair has, or where the matches are not
    of these features.

    features: of upright photos, as `lumiglue features` writes them. The database has the keypoints where they lie in the
    stored photo, as COLMAP does not turn photos by their EXIF orientation. single_camera: all photos were taken by one
    camera at one zoom.
    """
    database, photos = Path(database), Path(photos)
    check_camera_model(camera_model)
    database.unlink(missing_ok=True)
    with FeaturesFile(features) as file, MatchesReader(matches) as found:
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
                described = file.read(name)
                stored = as_stored(photos / name, described.keypoints.numpy(), described.image_size)
                opened.write_keypoints(ids[name], stored + COLMAP_SHIFT)
                counts[name] = len(described)
        matched = []
        for a, b in pairs:
            if a in ids and b in ids and ((a, b) in found or (b, a) in found):
                rows = found.read(a, b)
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
    """Raises InputError for what is no camera model of COLMAP's."""
    known = sorted(set(pycolmap.CameraModelId.__members__) - {"INVALID"})
    if name not in known:
        raise InputError(f"unknown camera model {name!r}; choose from {known}")


def unreadable(photos: str | Path, names: Sequence[str]) -> list[str]:
    """Those of the photos whose format COLMAP may not read, and does not: WebP, in most of its builds."""
    doubtful = [name for name in names if name.lower().endswith(".webp")]
    with _quiet(3):
        return [name for name in doubtful if pycolmap.Bitmap.read(Path(photos) / name, as_rgb=True) is None]


def _verify(database: Path, pairs: Sequence[tuple[int, int]]) -> int:
    """Finds each pair's geometry; returns how many have one. COLMAP reads the pairs from a list, apart by spaces, so images
    are called by their numbers meanwhile: a name may hold a space."""
    opened = pycolmap.Database.open(database)
    images = {image.image_id: image for image in opened.read_all_images()}
    names = {number: image.name for number, image in images.items()}

    def rename(called: Callable[[int], str]) -> None:
        for number, image in images.items():
            image.name = called(number)
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
    """Without COLMAP's log of each step; errors are still told at level 2."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = level
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before


def map_scene(
    database: str | Path, photos: str | Path, out: str | Path, *, seed: int = 0, progress: Callable[[], None] | None = None
) -> list[Model]:
    """Incremental mapping into OUT/0, OUT/1, ... (parts that do not connect), the one with most images first.

    Models of an earlier run are replaced when the new ones are whole. Raises InputError where nothing could be
    reconstructed, or a folder of that name holds anything else than a model.
    """
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size, options.random_seed = 3, seed
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    before = earlier_models(out)
    with tempfile.TemporaryDirectory(prefix="mapping-", dir=out) as unfinished:
        with _quiet():
            found = pycolmap.incremental_mapping(
                Path(database), Path(photos), unfinished, options, next_image_callback=progress or (lambda: None)
            )
        if not found:
            raise InputError(
                "nothing could be reconstructed: no pair of photos gave a start; take more photos, closer together"
            )
        for old in before:
            shutil.rmtree(old)
        for number in found:
            Path(unfinished, str(number)).replace(out / str(number))
    models = [
        Model(
            out / str(number), model.num_reg_images(), model.num_points3D(), model.compute_mean_track_length(),
            model.compute_mean_reprojection_error(), model,
        )
        for number, model in found.items()
    ]  # fmt: skip
    return sorted(models, key=lambda model: -model.images)


def earlier_models(out: Path) -> list[Path]:
    """The folders OUT/0, OUT/1, ... Raises InputError where one of them is no model: photos by the year, for instance."""
    folders = sorted(path for path in out.iterdir() if path.is_dir() and path.name.isdigit()) if out.is_dir() else []
    for folder in folders:
        if any(path.is_dir() or path.name not in _MODEL_FILES for path in folder.iterdir()):
            raise InputError(f"{folder} holds other things than a model, whose place it is; choose another folder")
    return folders


def draw_model(model: Model) -> Figure:
    """The sparse points and cameras from above and from the side, in axes fitted to them."""
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
