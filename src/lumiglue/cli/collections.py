"""`lumiglue features`, `lumiglue pairs`, `lumiglue matches` and `lumiglue sfm`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from lumiglue.cli.flags import HDF5, PipelineFlags, check_writable
from lumiglue.cli.terminal import Progress, err, say
from lumiglue.errors import InputError

if TYPE_CHECKING:
    from lumiglue.bulk.features import Step
    from lumiglue.bulk.pairs import Pair
    from lumiglue.extractors import Extractor

By = Literal["exhaustive", "sequential", "retrieval", "position"]


def features(
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    flags: Annotated[PipelineFlags, arg(name="")],
    masks: Path | None = None,
    workers: int | None = None,
) -> int:
    """Write the features of a folder of photos to one .h5 file, in hloc's layout. Resumable.

    Args:
        photos: Folder, searched with all its folders.
        out: The .h5 file to write.
        flags: Features, how many, and the size.
        masks: Folder with an image of the same size for each photo, black where nothing is to be found, named a/b.jpg.png
            (as for COLMAP) or a/b.png for the photo a/b.jpg. Photos without one are used whole.
        workers: Threads; by default as many as there are cores.
    """
    from lumiglue.bulk.features import list_images

    check_writable(out, *HDF5)
    return _describe(photos, list_images(photos), out, flags, flags.extractor(), masks, workers)


def pairs(
    features: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    by: By = "retrieval",
    neighbours: int = 20,
    overlap: int = 10,
    photos: Path | None = None,
    metres: float = 100.0,
) -> int:
    """Choose which pairs of a collection to match, and write them as lines of two names.

    Args:
        features: The .h5 file of `lumiglue features`.
        out: The .txt file to write.
        by: exhaustive, sequential (neighbours in the order of names, and similar ones to close loops), retrieval (similar
            ones, by VLAD over the features), or position (near ones, by the GPS of the photos' EXIF).
        neighbours: Pairs an image, of retrieval and position.
        overlap: Of sequential: so many next images.
        photos: Folder of the photos, whose EXIF has the positions.
        metres: Largest distance, of position.
    """
    from lumiglue.bulk.features import FeaturesFile
    from lumiglue.bulk.pairs import write_pairs

    check_writable(out, ".txt")
    with FeaturesFile(features) as file:
        names = file.names()
    chosen = _choose(features, names, by, neighbours, overlap, photos, metres)
    write_pairs(out, chosen)
    say(f"{len(names)} images, {len(chosen)} pairs ({by}) -> {out}")
    return 0


def matches(
    features: Positional[Path],
    pairs: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    flags: Annotated[PipelineFlags, arg(name="")],
    workers: int | None = None,
    engine: Literal["threads", "ray"] = "threads",
    address: str | None = None,
) -> int:
    """Match the pairs of a collection into one .h5 file, in hloc's layout. Resumable.

    Args:
        features: The .h5 file of `lumiglue features`.
        pairs: Two names a line.
        out: The .h5 file to write.
        flags: Weights and adaptivity, and what the features are.
        workers: Threads, or processes of the cluster; by default as many as there are cores.
        engine: This machine's threads, or a Ray cluster.
        address: Of the cluster, as for ray.init (auto: the one that runs here); by default a cluster of this machine alone.
    """
    from lumiglue.bulk.features import FeaturesFile
    from lumiglue.bulk.matching import in_threads, match_collection
    from lumiglue.bulk.pairs import read_pairs

    if features.suffix == ".txt" and pairs.suffix in HDF5:
        raise InputError(f"features come first, then pairs: lumiglue matches {pairs} {features}")
    check_writable(out, *HDF5)
    with FeaturesFile(features) as file:
        names = file.names()
    todo = read_pairs(pairs, names)
    if engine == "threads":
        chosen = in_threads(workers)
    else:
        from lumiglue.bulk.cluster import join, on_ray

        cores = join(address)
        chosen = on_ray(flags.pipeline, workers or cores)
    return _follow("pairs", match_collection(features, todo, flags.pipeline(), out, chosen), out)


def sfm(
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    flags: Annotated[PipelineFlags, arg(name="")],
    by: By | None = None,
    neighbours: int = 20,
    overlap: int = 10,
    metres: float = 100.0,
    single_camera: bool = False,
    camera_model: str = "SIMPLE_RADIAL",
    masks: Path | None = None,
    workers: int | None = None,
) -> int:
    """Reconstruct a folder of photos: features, pairs, matches, verified geometry, a sparse model. Resumable.

    Args:
        photos: Folder, searched with all its folders.
        out: Folder to write: features.h5, pairs.txt, matches.h5, database.db, 0/ (the model, in COLMAP's format), model.png.
            Not the folder of the photos; what lies in it is not taken for photos.
        flags: Features, weights and adaptivity.
        by: exhaustive, sequential, retrieval or position (see `lumiglue pairs`); by default exhaustive up to 60 photos, then
            retrieval.
        neighbours: Pairs an image, of retrieval and position.
        overlap: Of sequential: so many next images.
        metres: Largest distance, of position.
        single_camera: All photos were taken by one camera at one zoom.
        camera_model: COLMAP's name of the camera model.
        masks: Folder of masks, see `lumiglue features`.
        workers: Threads; by default as many as there are cores.
    """
    from lumiglue.bulk.features import FeaturesFile, list_images
    from lumiglue.bulk.matching import in_threads, match_collection
    from lumiglue.bulk.pairs import write_pairs
    from lumiglue.bulk.reconstruction import (
        check_camera_model,
        draw_model,
        earlier_models,
        map_scene,
        unreadable,
        write_database,
    )
    from lumiglue.visualization import save_figure

    check_camera_model(camera_model)
    if out.resolve() == photos.resolve():
        raise InputError(f"{out} is the folder of the photos; give another folder to write, such as {out / 'sfm'}")
    for file in (*earlier_models(out), out / "database.db", out / "pairs.txt"):
        if file.exists() and not (out / "features.h5").exists():
            raise InputError(f"{file} is not of an earlier run, and would be replaced; choose another folder")
    names = list_images(photos)
    if photos.resolve() in out.resolve().parents:
        names = [name for name in names if out.resolve() not in (photos / name).resolve().parents]
    dropped = unreadable(photos, names)
    for name in dropped:
        err.print(f"left out: {name}: this COLMAP reads no WebP; convert it to JPEG or PNG", markup=False)
    names = [name for name in names if name not in set(dropped)]
    if len(names) < 3:
        raise InputError(f"{photos} holds {len(names)} photos to use; a reconstruction needs at least 3")
    out.mkdir(parents=True, exist_ok=True)
    pipeline = flags.pipeline()
    described = out / "features.h5"
    left_out = max(2 if dropped else 0, _describe(photos, names, described, flags, pipeline.extractor, masks, workers))
    with FeaturesFile(described) as file:
        names = file.names()
    by = by or ("exhaustive" if len(names) <= 60 else "retrieval")
    chosen = _choose(described, names, by, neighbours, overlap, photos, metres)
    write_pairs(out / "pairs.txt", chosen)
    steps = match_collection(described, chosen, pipeline, out / "matches.h5", in_threads(workers))
    left_out = max(left_out, _follow("pairs", steps, out / "matches.h5"))
    database = out / "database.db"
    verified = write_database(
        photos,
        names,
        described,
        out / "matches.h5",
        chosen,
        database,
        single_camera=single_camera,
        camera_model=camera_model,
    )
    say(f"{verified} of {len(chosen)} pairs have a consistent geometry -> {database}")
    with Progress("images placed", len(names)) as advance:
        advance(2, "")  # the pair that it starts from
        models = map_scene(database, photos, out, progress=lambda: advance(1, ""))
    best = models[0]
    save_figure(draw_model(best), out / "model.png")
    say(
        f"{best.images} of {len(names)} images, {best.points} points, mean track {best.track_length:.2f}, mean reprojection "
        f"error {best.reprojection_error:.2f} px -> {best.folder}, {out / 'model.png'}"
    )
    for other in models[1:]:
        say(f"apart from it: {other.images} images, {other.points} points -> {other.folder}")
    return left_out


def _describe(
    photos: Path,
    names: list[str],
    out: Path,
    flags: PipelineFlags,
    extractor: "Extractor",
    masks: Path | None,
    workers: int | None,
) -> int:
    from lumiglue.bulk.features import describe_collection, mask_file

    note = f"{flags.max_keypoints} keypoints, long side {flags.resize}" + (f", tiles of {flags.tile}" if flags.tile else "")
    steps = describe_collection(photos, names, extractor, out, note=note, masks=masks, workers=workers)
    left_out = _follow("images", steps, out)
    if masks is not None:
        say(f"{sum(mask_file(masks, name) is not None for name in names)} of {len(names)} photos have a mask in {masks}")
    return left_out


def _choose(
    features: Path, names: list[str], by: By, neighbours: int, overlap: int, photos: Path | None, metres: float
) -> "list[Pair]":
    from lumiglue.bulk import pairs as choose
    from lumiglue.bulk.features import FeaturesFile

    if by == "exhaustive":
        return choose.exhaustive(names)
    if by == "position":
        if photos is None:
            raise InputError("pairs by position need the photos' EXIF; give --photos FOLDER")
        read = {name: choose.read_position(photos / name) for name in names}
        known = {name: position for name, position in read.items() if position is not None}
        if len(known) < 2:
            raise InputError(f"{len(known)} of {len(names)} photos in {photos} have a GPS position; choose another --by")
        if len(known) < len(names):
            err.print(f"{len(names) - len(known)} photos have no GPS position and are in no pair", markup=False)
        return choose.by_position(known, neighbours, metres)
    from lumiglue.bulk.retrieval import by_retrieval

    with FeaturesFile(features) as file:

        def descriptors(name: str):
            return file.read(name).descriptors.numpy()

        if by == "retrieval":
            return by_retrieval(descriptors, names, neighbours)
        near = choose.sequential(names, overlap)
        return choose.unique([*near, *by_retrieval(descriptors, names, max(2, neighbours // 4))])


def _follow(what: str, steps: "Iterator[Step]", target: Path) -> int:
    """Shows the steps of a job, and lists what failed. 2 where something did."""
    failed: list[tuple[str, str]] = []
    with Progress(what, None) as advance:
        done = 0
        for step in steps:
            failed += step.failed
            advance(step.done - done, f"{len(failed)} failed" if failed else "", total=step.total)
            done = step.done
    say(f"{done - len(failed)} {what} -> {target}")
    for name, reason in failed[:10]:
        err.print(f"left out: {name}: {reason}", markup=False)
    if failed:
        err.print(f"error: {len(failed)} of {done} {what} were left out", markup=False)
    return 2 if failed else 0
