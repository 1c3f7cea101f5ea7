"""`lumiglue features`, `pairs`, `matches`, `sfm`, `export colmap` and `localize`."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from lumiglue import collection
from lumiglue.cli.flags import HDF5, PipelineFlags, check_writable
from lumiglue.cli.terminal import ProgressBar, err, say
from lumiglue.collection import By, CameraMode, RefineCameras
from lumiglue.errors import InputError
from lumiglue.system.extras import require

if TYPE_CHECKING:
    from lumiglue.collection.features import Failures, Progress
    from lumiglue.pipeline.pipeline import Pipeline

MOST_NAMED = 10  # failures that are listed


def features(
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    flags: Annotated[PipelineFlags, arg(name="")],
    masks: Path | None = None,
    workers: int | None = None,
) -> int:
    """Extract the features of a folder of photos into one .h5 file, in hloc's layout. Resumable.

    Args:
        photos: Folder, searched with all its subfolders.
        out: The .h5 file to write.
        flags: Features, their number, and the size of photos.
        masks: Folder with an image of the same size for each photo, black where nothing should be detected, named
            a/b.jpg.png (as for COLMAP) or a/b.png for the photo a/b.jpg. Photos without a mask are not masked.
        workers: Threads; by default one per core.
    """
    check_writable(out, *HDF5)
    with _Display() as progress:
        collection.extract_features(
            photos, out, flags.extractor(), masks=masks, stretch=flags.stretch, workers=workers, progress=progress
        )
    say(f"{progress.succeeded} images -> {out}")
    _say_masks(photos, masks)
    return _report_failures("image", progress)


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
        by: exhaustive, sequential (the next images by name, and similar ones to close loops), retrieval (similar images, by
            VLAD of the features), or position (nearby images, by GPS in EXIF).
        neighbours: Pairs per image, for retrieval and position.
        overlap: How many following images each image is paired with, for sequential.
        photos: Folder of the photos, for the positions in their EXIF.
        metres: Largest distance, for position.
    """
    check_writable(out, ".txt")
    with collection.FeaturesFile(features) as file:
        images = len(file.names())
    chosen = collection.choose_pairs(features, by, neighbours=neighbours, overlap=overlap, photos=photos, metres=metres)
    collection.write_pairs(out, chosen)
    say(f"{images} images, {len(chosen)} pairs ({by}) -> {out}")
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
        pairs: Text file with two names on each line.
        out: The .h5 file to write.
        flags: Weights, adaptivity, and the name of the features.
        workers: Threads, or processes of the cluster; by default one per core.
        engine: This machine's threads, or a Ray cluster.
        address: Address of the Ray cluster, as for ray.init (auto: the one on this machine); by default a new one starts.
    """
    if features.suffix == ".txt" and pairs.suffix in HDF5:
        raise InputError(f"features come before pairs: lumiglue matches {pairs} {features}")
    check_writable(out, *HDF5)
    with collection.FeaturesFile(features) as file:
        chosen = collection.read_pairs(pairs, file.names())
    ray_engine = None
    if engine == "ray":
        from lumiglue.collection.ray import join, on_ray

        cores = join(address)
        ray_engine = on_ray(flags.pipeline, workers or cores)
    with _Display() as progress:
        collection.match_pairs(
            features, chosen, out, flags.pipeline(), workers=workers, engine=ray_engine, progress=progress
        )
    say(f"{progress.succeeded} pairs -> {out}")
    return _report_failures("pair", progress)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraFlags:
    """The cameras. Parameters are in COLMAP's order and pixels: the centre of the top-left pixel is (0.5, 0.5)."""

    single_camera: bool = False
    """One camera took all photos at one zoom; short for --camera-mode single."""
    camera_mode: CameraMode = "image"
    """Which photos share a camera: image (none), folder (those of a folder), exif (those of one make, model, size and focal
    length in EXIF) or single (all)."""
    camera_model: str = "SIMPLE_RADIAL"
    """COLMAP's name of the camera model, such as PINHOLE, OPENCV or OPENCV_FISHEYE."""
    camera_params: str | None = None
    """Known parameters of the model, separated by commas: 520,240,180,0. By default they are estimated, from EXIF if
    possible."""
    cameras: Path | None = None
    """Known cameras: a text file like COLMAP's cameras.txt, with the name of a photo or folder instead of the number if
    several cameras have the same size; or a folder with a COLMAP model of the photos."""

    def arguments(self) -> dict[str, Any]:
        """The arguments of the functions of `lumiglue.collection`."""
        given = dataclasses.asdict(self)
        if self.camera_params is not None:
            try:
                given["camera_params"] = [float(value) for value in self.camera_params.split(",")]
            except ValueError:
                raise InputError(f"--camera-params {self.camera_params} are not numbers; give 520,240,180,0") from None
        return given


def sfm(
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    flags: Annotated[PipelineFlags, arg(name="")],
    cameras: Annotated[CameraFlags, arg(name="")],
    refine_cameras: RefineCameras = "none",
    poses: Path | None = None,
    images: Path | None = None,
    pairs: Path | None = None,
    matches: Path | None = None,
    by: By | None = None,
    neighbours: int = 20,
    overlap: int = 10,
    metres: float = 100.0,
    masks: Path | None = None,
    workers: int | None = None,
    dry_run: bool = False,
) -> int:
    """Reconstruct a folder of photos: features, pairs, matches, verified geometry, a sparse model. Resumable.

    Args:
        photos: Folder, searched with all its subfolders.
        out: Folder to write: features.h5, pairs.txt, matches.h5, database.db, 0/ (the model, in COLMAP's format), model.png.
            It must not be the folder of the photos. Images in it are ignored.
        flags: Features, weights and adaptivity. --features may also be an .h5 file of features to use.
        cameras: The cameras.
        refine_cameras: What to refine of known cameras once all photos are placed: none, focal (the focal length), or all
            (the distortion too, which a few photos of a fisheye do not determine). Other cameras are always refined.
        poses: Folder with a COLMAP model: points are triangulated from its cameras and poses, which are kept fixed.
        images: Text file with the names of the photos to use, one on each line.
        pairs: Text file of the pairs to match, two names on each line.
        matches: An .h5 file of matches to use; it needs the features of these matches as --features FILE.h5.
        by: exhaustive, sequential, retrieval or position (see `lumiglue pairs`); by default exhaustive up to 60 photos, then
            retrieval.
        neighbours: Pairs per image, for retrieval and position.
        overlap: How many following images each image is paired with, for sequential.
        metres: Largest distance, for position.
        masks: Folder of masks, see `lumiglue features`.
        workers: Threads; by default one per core.
        dry_run: Write nothing: measure the costs on a few of the photos, and print the projected costs of all.
    """
    require("pycolmap")
    if dry_run:
        return _dry_run(photos, flags.pipeline(), by, neighbours, overlap, workers)
    features = Path(flags.features) if flags.features and flags.features.endswith(HDF5) else None
    if matches is not None and features is None:
        raise InputError("--matches needs the features of these matches; give --features FILE.h5")
    if features is not None:
        flags = dataclasses.replace(flags, features=_extractor_of(features))
    pipeline = None if matches is not None else flags.pipeline()
    progress = _Display()
    try:
        with progress:
            made = collection.reconstruct(
                photos, out, pipeline, by=by, neighbours=neighbours, overlap=overlap, metres=metres,
                refine_cameras=refine_cameras, poses=poses, images=images, features=features, pairs=pairs, matches=matches,
                masks=masks, workers=workers, progress=progress, **cameras.arguments(),
            )  # fmt: skip
        _say_masks(photos, masks)
        say(f"{made.verified} of {made.pairs} pairs have a consistent geometry -> {made.database}")
        best = made.models[0]
        say(
            f"{best.images} of {made.images} images, {best.points} points, mean track {best.track_length:.2f}, "
            f"mean reprojection error {best.reprojection_error:.2f} px -> {best.folder}, {out / 'model.png'}"
        )
        for other in made.models[1:]:
            say(f"a separate part: {other.images} images, {other.points} points -> {other.folder}")
        if made.unplaced:
            more = f" and {len(made.unplaced) - MOST_NAMED} more" if len(made.unplaced) > MOST_NAMED else ""
            err.print(f"note: not placed in the model: {', '.join(made.unplaced[:MOST_NAMED])}{more}", markup=False)
    finally:
        code = _report_failures("photo or pair", progress)
    return code


def _dry_run(photos: Path, pipeline: "Pipeline", by: By | None, neighbours: int, overlap: int, workers: int | None) -> int:
    from lumiglue.collection.costs import project_costs
    from lumiglue.collection.sfm import default_by
    from lumiglue.images import image_names

    by = by or default_by(len(image_names(photos)))
    if by == "position":
        raise InputError("a dry run cannot project the pairs by position; try --by retrieval")
    costs = project_costs(photos, pipeline, by=by, neighbours=neighbours, overlap=overlap, workers=workers)
    say(f"{costs.images} photos, about {costs.pairs} pairs ({by}); costs of {costs.measured} of the photos, projected:")
    for name, seconds in costs.seconds.items():
        hours, minutes = seconds / 3600, seconds / 60
        say(f"{name}: {f'{hours:.1f} h' if hours >= 1 else f'{minutes:.1f} min' if minutes >= 1 else f'{seconds:.0f} s'}")
    say(f"disk: {costs.disk / 1e9:.2g} GB, memory: {costs.memory / 1e9:.2g} GB; COLMAP's mapping is not included")
    return 0


def localize(
    queries: Positional[tuple[Path, ...]],
    model: Path,
    out: Annotated[Path, arg(aliases=["-o"])],
    features: Path | None = None,
    camera: str | None = None,
    focal: float | None = None,
    neighbours: int = 10,
    threshold: float = 4.0,
    min_inliers: int = 12,
    add_to: Path | None = None,
    extractor: str | None = None,
    weights: str | None = None,
    device: str | None = None,
    workers: int | None = None,
) -> int:
    """Find the poses of photos in a model that `lumiglue sfm` made. Resumable.

    Args:
        queries: Photos, or folders of photos.
        model: Folder that `lumiglue sfm` wrote, or folder of a model in COLMAP's format.
        out: Folder to write: poses.json, poses.txt (hloc's lines NAME qw qx qy qz tx ty tz), queries.h5.
        features: The .h5 file of the features that the model was made from; by default features.h5 beside the model.
        camera: Camera of the photos: MODEL,PARAMETERS with COLMAP's names, such as PINHOLE,1200,1200,960,540; or a .txt file
            with a line NAME MODEL WIDTH HEIGHT PARAMETERS for each photo, or COLMAP's cameras.txt (by size of the photo); or
            model for the model's only camera. By default the focal length comes from EXIF, or is estimated.
        focal: Focal length of all photos, in pixels.
        neighbours: Similar images of the model to match each photo with.
        threshold: Largest reprojection error of an inlier in pixels, for photos of up to 1,024 pixels; for larger photos it
            grows in proportion.
        min_inliers: A photo with fewer inliers gets no pose.
        add_to: Folder for a model that includes the localised photos, with the features of both.
        extractor: Features of the photos, as --features of `lumiglue features`; by default those in the .h5 file.
        weights: See `lumiglue match`; by default the best for the features.
        device: cpu or cuda; by default the GPU if there is one.
        workers: Threads; by default one per core.
    """
    from lumiglue.collection.localization import extraction_of
    from lumiglue.collection.sparse_model import SparseModel

    features = features or SparseModel.read(model).features_file()
    flags = PipelineFlags(features=extractor, weights=weights, device=device)
    if extractor is None:
        with collection.FeaturesFile(features) as file:
            flags = dataclasses.replace(flags, **extraction_of(file))
    pipeline = flags.pipeline()
    with _Display() as progress:
        localization = collection.localize(
            queries, model=model, features=features, out=out, pipeline=pipeline, camera=camera, focal=focal,
            neighbours=neighbours, threshold=threshold, min_inliers=min_inliers, add_to=add_to, workers=workers,
            progress=progress,
        )  # fmt: skip
    for pose in localization.poses[:10]:
        focal = pose.camera["params"][0] if pose.camera else 0
        say(
            f"{pose.name}: {pose.inliers} inliers of {pose.matches} 2D-3D matches, error {pose.error:.2f} px, focal length "
            f"{focal:.0f} px ({pose.camera_from})"
        )
    targets = [out / "poses.json", out / "poses.txt", *([add_to] if add_to else [])]
    say(f"{len(localization.poses)} of {progress.done} photos localised -> {', '.join(map(str, targets))}")
    progress.name(tuple(failure for failure in localization.left_out if failure not in progress.failed))
    return _report_failures("photo", progress)


def export_colmap(
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    features: Path,
    matches: Path,
    cameras: Annotated[CameraFlags, arg(name="")],
    pairs: Path | None = None,
    images: Path | None = None,
    poses: Path | None = None,
) -> int:
    """Write features and matches to a COLMAP database, with cameras and verified geometry.

    Args:
        photos: Folder of the photos, searched with all its subfolders.
        out: The database to write, such as database.db.
        features: The .h5 file of features, from `lumiglue features` or hloc.
        matches: The .h5 file of matches, from `lumiglue matches` or hloc.
        cameras: The cameras.
        pairs: Text file of the pairs to write, two names on each line; by default all pairs in --matches.
        images: Text file with the names of the photos to use, one on each line.
        poses: Folder with a COLMAP model: the database gets its cameras and the ids of its images.
    """
    check_writable(out)
    written = collection.export_colmap(
        photos, features, matches, out, pairs=pairs, images=images, poses=poses, **cameras.arguments()
    )
    say(f"{written.images} images, {written.verified} of {written.pairs} pairs have a consistent geometry -> {out}")
    progress = _Display()
    with progress:
        progress.name(written.left_out)
    return _report_failures("photo", progress)


def _extractor_of(features: Path) -> str | None:
    """The name of the features in a file; None if it does not say, as hloc's."""
    with collection.FeaturesFile(features) as file:
        names = file.names()
        return (file.read(names[0]).extractor or None) if names else None


def _say_masks(photos: Path, masks: Path | None) -> None:
    from lumiglue.collection.features import mask_file
    from lumiglue.images import image_names

    if masks is not None:
        names = image_names(photos)
        say(f"{sum(mask_file(masks, name) is not None for name in names)} of {len(names)} photos have a mask in {masks}")


class _Display:
    """Shows the progress of a job, a bar for each stage, names what failed as soon as it does, and keeps it."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, str]] = []
        self.done, self._stage, self._failed_before = 0, "", 0
        self._bar = contextlib.ExitStack()
        self._advance: Callable[..., None] = lambda *_, **__: None

    def __enter__(self) -> "_Display":
        return self

    def __call__(self, step: "Progress") -> None:
        if step.stage != self._stage:
            self._bar.close()
            self._advance = self._bar.enter_context(ProgressBar(step.stage, step.total))
            self._stage, self.done, self._failed_before = step.stage, 0, len(self.failed)
        self.name(step.failed)
        failures = len(self.failed) - self._failed_before
        self._advance(step.done - self.done, f"{failures} failed" if failures else "", total=step.total)
        self.done = step.done

    def name(self, failed: "Failures") -> None:
        """Names what failed, up to a number, and keeps it."""
        for name, reason in failed[: max(0, MOST_NAMED - len(self.failed))]:
            err.print(f"left out: {name}: {reason}", markup=False)
        self.failed += failed

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @property
    def succeeded(self) -> int:
        """Of the last stage."""
        return self.done - (len(self.failed) - self._failed_before)


def _report_failures(what: str, progress: _Display) -> int:
    """Counts what failed; `what` is "photo", or "photo or pair". Returns 2 if something did, else 0."""
    if count := len(progress.failed):
        were = f"{what} was" if count == 1 else f"{what.replace(' or ', 's or ')}s were"
        unnamed = f", {count - MOST_NAMED} of them not listed here" if count > MOST_NAMED else ""
        err.print(f"error: {count} {were} left out{unnamed}", markup=False)
    return 2 if progress.failed else 0
