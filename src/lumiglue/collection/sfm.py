"""From a folder of photos to a sparse model in one call: features, pairs, matches, verified geometry, mapping."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lumiglue.collection import pairs as choose
from lumiglue.collection.colmap import (
    Model,
    check_camera_model,
    draw_model,
    earlier_models,
    map_scene,
    unreadable,
    write_database,
)
from lumiglue.collection.features import Progress, describe_collection, list_images
from lumiglue.collection.hloc import FeaturesFile
from lumiglue.collection.matching import in_threads, match_collection
from lumiglue.collection.pairs import Pair, write_pairs
from lumiglue.errors import InputError
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.visualization import save_figure

By = Literal["exhaustive", "sequential", "retrieval", "position"]
Failed = tuple[tuple[str, str], ...]
# Runs the steps of a job: what it counts, the steps, the file that they write. Returns what failed.
Follow = Callable[[str, Iterator[Progress], Path], Failed]
# Larger collections are not matched exhaustively unless that is asked for.
MOST_EXHAUSTIVE = 60
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reconstruction:
    """models: the largest first. images: with features. pairs, verified: chosen ones, and those with a consistent geometry.
    left_out: (name, reason) of photos and pairs that could not be used."""

    models: tuple[Model, ...]
    images: int
    pairs: int
    verified: int
    database: Path
    left_out: Failed


def drain(_what: str, steps: Iterator[Progress], _target: Path) -> Failed:
    """Runs the steps in silence."""
    return tuple(failure for step in steps for failure in step.failed)


def choose_pairs(
    features: str | Path,
    by: By = "retrieval",
    *,
    neighbours: int = 20,
    overlap: int = 10,
    photos: str | Path | None = None,
    metres: float = 100.0,
) -> list[Pair]:
    """Which pairs of a collection to match.

    Args:
        features: HDF5 file in hloc's layout.
        by: exhaustive, sequential (with retrieval to close loops), retrieval (VLAD over the features) or position (GPS).
        neighbours: Pairs an image, of retrieval and position.
        overlap: Of sequential: so many next images.
        photos: Folder of the photos, whose EXIF has the positions.
        metres: Largest distance, of position.

    Raises:
        InputError: positions are asked for and missing.
    """
    with FeaturesFile(features) as file:
        names = file.names()
        if by == "exhaustive":
            return choose.exhaustive(names)
        if by == "position":
            return _near(names, photos, neighbours, metres)
        from lumiglue.collection.retrieval import by_retrieval

        def descriptors(name: str):
            return file.read(name).descriptors.numpy()

        if by == "retrieval":
            return by_retrieval(descriptors, names, neighbours)
        near = choose.sequential(names, overlap)
        return choose.unique([*near, *by_retrieval(descriptors, names, max(2, neighbours // 4))])


def _near(names: Sequence[str], photos: str | Path | None, neighbours: int, metres: float) -> list[Pair]:
    if photos is None:
        raise InputError("pairs by position need the photos' EXIF; give --photos FOLDER")
    read = {name: choose.read_position(Path(photos) / name) for name in names}
    known = {name: position for name, position in read.items() if position is not None}
    if len(known) < 2:
        raise InputError(f"{len(known)} of {len(names)} photos in {photos} have a GPS position; choose another --by")
    if len(known) < len(names):
        _log.warning("%d photos have no GPS position and are in no pair", len(names) - len(known))
    return choose.by_position(known, neighbours, metres)


def reconstruct(
    photos: str | Path,
    out: str | Path,
    pipeline: Pipeline,
    *,
    by: By | None = None,
    neighbours: int = 20,
    overlap: int = 10,
    metres: float = 100.0,
    single_camera: bool = False,
    camera_model: str = "SIMPLE_RADIAL",
    masks: str | Path | None = None,
    workers: int | None = None,
    note: str = "",
    follow: Follow = drain,
    placed: Callable[[int, int], None] | None = None,
) -> Reconstruction:
    """Reconstructs a folder of photos. Resumable: run again, it does what is missing.

    Args:
        photos: Folder, searched with all its folders.
        out: Folder to write: features.h5, pairs.txt, matches.h5, database.db, 0/ (the model, in COLMAP's format), model.png.
        pipeline: Features and matcher.
        by: See `choose_pairs`; None is exhaustive up to 60 photos, then retrieval.
        neighbours, overlap, metres: See `choose_pairs`.
        single_camera: All photos were taken by one camera at one zoom.
        camera_model: COLMAP's name of the camera model.
        masks: Folder of masks, see `mask_file`.
        workers: Threads; None takes as many as PyTorch uses.
        note: What features depend on beside the extractor's own record.
        follow: Runs the steps of extraction and matching, to show progress.
        placed: Called with the images placed so far and their number.

    Raises:
        InputError: the folders cannot be used, or nothing could be reconstructed.
    """
    photos, out = Path(photos), Path(out)
    check_camera_model(camera_model)
    names, dropped = _usable(photos, out)
    out.mkdir(parents=True, exist_ok=True)
    described, database = out / "features.h5", out / "database.db"
    left_out = [(name, "this COLMAP reads no WebP; convert it to JPEG or PNG") for name in dropped]
    steps = describe_collection(photos, names, pipeline.extractor, described, note=note, masks=masks, workers=workers)
    left_out += follow("images", steps, described)
    with FeaturesFile(described) as file:
        names = file.names()
    by = by or ("exhaustive" if len(names) <= MOST_EXHAUSTIVE else "retrieval")
    chosen = choose_pairs(described, by, neighbours=neighbours, overlap=overlap, photos=photos, metres=metres)
    write_pairs(out / "pairs.txt", chosen)
    steps = match_collection(described, chosen, pipeline, out / "matches.h5", in_threads(workers))
    left_out += follow("pairs", steps, out / "matches.h5")
    verified = write_database(
        photos, names, described, out / "matches.h5", chosen, database,
        single_camera=single_camera, camera_model=camera_model,
    )  # fmt: skip
    count = 2  # the pair that it starts from

    def next_image() -> None:
        nonlocal count
        count += 1
        if placed is not None:
            placed(count, len(names))

    if placed is not None:
        placed(count, len(names))
    models = map_scene(database, photos, out, progress=next_image)
    save_figure(draw_model(models[0]), out / "model.png")
    return Reconstruction(tuple(models), len(names), len(chosen), verified, database, tuple(left_out))


def _usable(photos: Path, out: Path) -> tuple[list[str], list[str]]:
    """Names of the photos to use, and of those that COLMAP cannot read. Raises InputError where the folders will not do."""
    if out.resolve() == photos.resolve():
        raise InputError(f"{out} is the folder of the photos; give another folder to write, such as {out / 'sfm'}")
    for file in (*earlier_models(out), out / "database.db", out / "pairs.txt"):
        if file.exists() and not (out / "features.h5").exists():
            raise InputError(f"{file} is not of an earlier run, and would be replaced; choose another folder")
    names = list_images(photos)
    if photos.resolve() in out.resolve().parents:
        names = [name for name in names if out.resolve() not in (photos / name).resolve().parents]
    dropped = unreadable(photos, names)
    names = [name for name in names if name not in set(dropped)]
    if len(names) < 3:
        raise InputError(f"{photos} holds {len(names)} photos to use; a reconstruction needs at least 3")
    return names, dropped
