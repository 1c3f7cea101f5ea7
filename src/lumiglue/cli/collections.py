"""`lumiglue features`, `lumiglue pairs`, `lumiglue matches` and `lumiglue sfm`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from lumiglue.cli.flags import HDF5, PipelineFlags, check_writable
from lumiglue.cli.terminal import ProgressBar, err, say
from lumiglue.errors import InputError

if TYPE_CHECKING:
    from lumiglue.collection.features import Progress
    from lumiglue.collection.sfm import Failed

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
    from lumiglue.collection.features import describe_collection, list_images

    check_writable(out, *HDF5)
    steps = describe_collection(
        photos, list_images(photos), flags.extractor(), out, note=_note(flags), masks=masks, workers=workers
    )
    failed = _follow("images", steps, out)
    _say_masks(photos, masks)
    return _report_left_out("images", failed)


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
    from lumiglue.collection.hloc import FeaturesFile
    from lumiglue.collection.pairs import write_pairs
    from lumiglue.collection.sfm import choose_pairs

    check_writable(out, ".txt")
    with FeaturesFile(features) as file:
        names = file.names()
    chosen = choose_pairs(features, by, neighbours=neighbours, overlap=overlap, photos=photos, metres=metres)
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
    from lumiglue.collection.hloc import FeaturesFile
    from lumiglue.collection.matching import in_threads, match_collection
    from lumiglue.collection.pairs import read_pairs

    if features.suffix == ".txt" and pairs.suffix in HDF5:
        raise InputError(f"features come first, then pairs: lumiglue matches {pairs} {features}")
    check_writable(out, *HDF5)
    with FeaturesFile(features) as file:
        names = file.names()
    todo = read_pairs(pairs, names)
    if engine == "threads":
        chosen = in_threads(workers)
    else:
        from lumiglue.collection.ray import join, on_ray

        cores = join(address)
        chosen = on_ray(flags.pipeline, workers or cores)
    failed = _follow("pairs", match_collection(features, todo, flags.pipeline(), out, chosen), out)
    return _report_left_out("pairs", failed)


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
    from lumiglue.collection.sfm import reconstruct

    pipeline = flags.pipeline()
    with contextlib.ExitStack() as stack:
        shown: list[Callable[..., None]] = []

        def placed(count: int, total: int) -> None:
            if not shown:
                shown.append(stack.enter_context(ProgressBar("images placed", total)))
                shown[0](count - 1, "")
            shown[0](1, "")

        made = reconstruct(
            photos, out, pipeline, by=by, neighbours=neighbours, overlap=overlap, metres=metres, single_camera=single_camera,
            camera_model=camera_model, masks=masks, workers=workers, note=_note(flags), follow=_follow, placed=placed,
        )  # fmt: skip
    _say_masks(photos, masks)
    say(f"{made.verified} of {made.pairs} pairs have a consistent geometry -> {made.database}")
    best = made.models[0]
    say(
        f"{best.images} of {made.images} images, {best.points} points, mean track {best.track_length:.2f}, "
        f"mean reprojection error {best.reprojection_error:.2f} px -> {best.folder}, {out / 'model.png'}"
    )
    for other in made.models[1:]:
        say(f"apart from it: {other.images} images, {other.points} points -> {other.folder}")
    return _report_left_out("photos and pairs", made.left_out)


def _note(flags: PipelineFlags) -> str:
    return f"{flags.max_keypoints} keypoints, long side {flags.resize}" + (f", tiles of {flags.tile}" if flags.tile else "")


def _say_masks(photos: Path, masks: Path | None) -> None:
    from lumiglue.collection.features import list_images, mask_file

    if masks is not None:
        names = list_images(photos)
        say(f"{sum(mask_file(masks, name) is not None for name in names)} of {len(names)} photos have a mask in {masks}")


def _follow(what: str, steps: "Iterator[Progress]", target: Path) -> "Failed":
    """Shows the steps of a job; returns what failed."""
    failed: list[tuple[str, str]] = []
    with ProgressBar(what, None) as advance:
        done = 0
        for step in steps:
            failed += step.failed
            advance(step.done - done, f"{len(failed)} failed" if failed else "", total=step.total)
            done = step.done
    say(f"{done - len(failed)} {what} -> {target}")
    return tuple(failed)


def _report_left_out(what: str, failed: "Failed") -> int:
    """Lists what failed. 2 where something did."""
    for name, reason in failed[:10]:
        err.print(f"left out: {name}: {reason}", markup=False)
    if failed:
        err.print(f"error: {len(failed)} {what} were left out", markup=False)
    return 2 if failed else 0
