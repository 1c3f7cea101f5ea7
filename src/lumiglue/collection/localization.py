"""Localisation: the poses of query photos in a model, from matches with similar images of the model."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lumiglue.collection.cameras import pycolmap
from lumiglue.collection.database import COLMAP_SHIFT
from lumiglue.collection.features import Failures, Progress, run_to_end
from lumiglue.collection.hloc import FeaturesFile, write_features
from lumiglue.collection.localizer import Localized, Localizer, QueryPose
from lumiglue.collection.query_cameras import QueryCameras
from lumiglue.collection.sparse_model import SparseModel, check_new_model, extend_features
from lumiglue.errors import InputError, LumiglueError
from lumiglue.images import image_names
from lumiglue.io.atomic import write_whole
from lumiglue.io.download import file_sha256
from lumiglue.io.hdf5 import GrowingFile
from lumiglue.io.text import differences
from lumiglue.pipeline.pipeline import Pipeline

QUERIES_IN_A_PART = 16
MOST_NEIGHBOURS = 100
THRESHOLD = 4.0
_SURROGATES = re.compile(r"[\ud800-\udfff]")  # of names that are not UTF-8


@dataclass(frozen=True)
class Localization:
    """The result of `localize`.

    Attributes:
        poses: The queries with a pose.
        left_out: (name, reason) of the queries without, and of those that could not be added to a model.
    """

    poses: tuple[QueryPose, ...]
    left_out: Failures


def localize(
    queries: str | Path | Sequence[str | Path],
    *,
    model: str | Path,
    features: str | Path | None = None,
    out: str | Path | None = None,
    pipeline: Pipeline | None = None,
    camera: str | Path | None = None,
    focal: float | None = None,
    neighbours: int = 10,
    threshold: float = THRESHOLD,
    min_inliers: int = 12,
    add_to: str | Path | None = None,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Localization:
    """Finds the poses of photos in a model. If it was interrupted, or queries were added, call it again.

    Args:
        queries: A photo, a folder of photos, or several of both.
        model: Folder that `reconstruct` wrote, or of a model in COLMAP's format.
        features: HDF5 file of the features that the model was made from; None takes features.h5 beside the model.
        out: Folder to write: queries.h5 (features and results), poses.json, and poses.txt with hloc's lines
            "NAME qw qx qy qz tx ty tz". None writes nothing.
        pipeline: Features and matcher; None takes the features that `features` was made with, and their default weights.
        camera: Camera of the queries, see `QueryCameras`; None guesses the focal length from EXIF, or estimates it.
        focal: Focal length of the queries in pixels.
        neighbours: Number of similar images to match each query with.
        threshold: Largest reprojection error of an inlier in pixels, for photos with a long side of up to 1,024 pixels. It
            grows in proportion with larger photos.
        min_inliers: A query with fewer has no pose.
        add_to: Folder to write a model with the localised queries to, and the features of both.
        workers: Threads; None takes as many as PyTorch uses.
        progress: Called after each part.

    Returns:
        The poses, and the queries without one.

    Raises:
        InputError: the model or the features cannot be used, do not belong together, or `out` has results of others.
    """
    if not 1 <= neighbours <= MOST_NEIGHBOURS or min_inliers < 4 or not threshold > 0:
        raise InputError(f"give 1 to {MOST_NEIGHBOURS} neighbours, at least 4 inliers and a threshold above 0")
    paths, scene = query_files(queries), SparseModel.read(model)
    with ExitStack() as stack:
        file = stack.enter_context(FeaturesFile(scene.features_file() if features is None else features))
        if add_to is not None:
            check_new_model(Path(add_to), scene, file)
        pipeline = pipeline or _pipeline_of(file)
        _check_extractor(file, pipeline)
        cameras = QueryCameras(camera, focal, scene.reconstruction)
        localizer = Localizer(scene, file, pipeline, cameras, neighbours, threshold, min_inliers, workers)
        record = {
            "model": scene.digest, "features": file.made or file.record, "extractor": _extractor_record(pipeline),
            "limits": _limits(pipeline), "matching": str(pipeline.settings),
            "weights": pipeline.fingerprint(), "precision": pipeline.precision, "camera": cameras.text,
            "neighbours": neighbours, "threshold": threshold, "min_inliers": min_inliers,
        }  # fmt: skip
        folder = Path(stack.enter_context(TemporaryDirectory()) if out is None else out)
        folder.mkdir(parents=True, exist_ok=True)
        with GrowingFile(folder / "queries.h5", json.dumps(record, sort_keys=True)) as growing:
            reasons = dict(run_to_end(_in_parts(growing, paths, localizer), progress))
            results = {name: _result_of(text) for name, text in growing.notes("result").items() if text}
            growing.finish()
        write_poses(folder, [results[name] for name in sorted(results)])
        poses = tuple(results[name] for name in paths if name in results and not results[name].reason)
        if add_to is not None:
            reasons |= _add_queries(scene, file, folder / "queries.h5", poses, Path(add_to))
    return Localization(poses, tuple(reasons.items()))


def query_files(queries: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """The files of queries by name: the path in a folder, or the file name.

    Raises:
        InputError: a folder has no photos, there are no queries, or two have one name.
    """
    paths: dict[str, Path] = {}
    for query in [queries] if isinstance(queries, str | Path) else queries:
        query = Path(query)
        files = {name: query / name for name in image_names(query)} if query.is_dir() else {query.name: query}
        for name, path in files.items():
            if paths.setdefault(name, path) != path:
                raise InputError(f"two queries have the name {name}: {paths[name]} and {path}; localise them separately")
    if not paths:
        raise InputError("no queries were given; give photos or a folder")
    return paths


def extraction_of(file: FeaturesFile) -> dict[str, Any]:
    """How to extract features like those of a file that Lumiglue wrote.

    Returns:
        Arguments of `Pipeline.pretrained`, as far as they are known; `resize` is 0 for the full size.

    Raises:
        InputError: The file does not say.
    """
    try:
        record = json.loads(file.record)
        name, note = str(record["extractor"]["name"]), str(record["note"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{file.path} does not record how its features were made; give their pipeline (--extractor NAME)"
        ) from None
    patterns: dict[str, tuple[str, Callable[[str], Any]]] = {
        "max_keypoints": (r"(\d+) keypoints", int), "resize": (r"long side (\d+)", int), "tile": (r"tiles of (\d+)", int),
        "detector_threshold": (r"(?:contrast|detection)_threshold ([^ ,]+)", float),
        "stretch": (r"stretch (\w+)", str),
    }  # fmt: skip
    values = {key: convert(value[1]) for key, (pattern, convert) in patterns.items() if (value := re.search(pattern, note))}
    return {"features": name, **values}


def _pipeline_of(file: FeaturesFile) -> Pipeline:
    settings = extraction_of(file)
    settings["resize"] = settings.get("resize", 1024) or None
    return Pipeline.pretrained(**settings, precision="fp32")


def write_poses(folder: Path, results: Sequence[QueryPose]) -> None:
    """Writes poses.json and poses.txt."""
    content = [{key: value for key, value in asdict(result).items() if value is not None} for result in results]
    entries = ",\n".join(json.dumps(entry) for entry in content)
    write_whole(folder / "poses.json", f"[\n{entries}\n]\n".encode())
    lines = [" ".join([r.name, *map(repr, (*r.qvec, *r.tvec))]) for r in results if r.qvec and r.tvec]
    write_whole(folder / "poses.txt", "".join(line + "\n" for line in lines).encode())


def _extractor_record(pipeline: Pipeline) -> dict[str, Any]:
    return {**pipeline.extractor.config(), "name": pipeline.extractor.name}


def _limits(pipeline: Pipeline) -> list[Any]:
    """What features depend on beside `extractor.config()`."""
    names = ("max_keypoints", "resize", "tile", "contrast_threshold", "detection_threshold")
    return [*(getattr(pipeline.extractor, name, None) for name in names), pipeline.stretch]


def _check_extractor(file: FeaturesFile, pipeline: Pipeline) -> None:
    """Raises InputError where the features of the model are of another extractor, as far as the file says."""
    ours = json.loads(json.dumps(_extractor_record(pipeline)))
    try:
        theirs = json.loads(file.record)["extractor"]
    except (ValueError, KeyError, TypeError):
        name = next(iter(file.names()), None)
        theirs = {**ours, "name": (file.read(name).extractor if name else "") or ours["name"]}
    if theirs != ours:
        raise InputError(
            f"{file.path} was made with other features than the pipeline extracts{differences(theirs, ours)}; give the "
            "extractor that it was made with"
        )


def _in_parts(growing: GrowingFile, paths: Mapping[str, Path], localizer: Localizer) -> Iterator[Progress]:
    names = [name for name in paths if not _SURROGATES.search(name)]
    unnamed = tuple(
        (name.encode("utf-8", "backslashreplace").decode(), "its name is not in UTF-8; rename the file")
        for name in paths
        if _SURROGATES.search(name)
    )
    todo = growing.missing(names)
    digests, results = growing.notes("photo"), growing.notes("result")
    done = [name for name in names if name not in set(todo)]
    for name in done:
        if paths[name].is_file() and digests[name] != file_sha256(paths[name]):
            raise InputError(f"{growing.path} has the result of another photo {name}; delete it, or choose another folder")
    reasons = [(name, _result_of(results[name]).reason) for name in done]
    failed = unnamed + tuple((name, reason) for name, reason in reasons if reason)
    yield Progress("queries", len(paths) - len(todo), len(paths), failed)
    part: list[Localized] = []
    try:
        for count, name in enumerate(todo, start=len(paths) - len(todo) + 1):
            try:
                part.append(localizer(name, paths[name]))
                why = part[-1].result.reason
            except (LumiglueError, OSError) as error:
                why = str(error)
            if len(part) == QUERIES_IN_A_PART:
                _write(growing, part)
            yield Progress("queries", count, len(paths), ((name, why),) if why else ())
    finally:  # also after Ctrl-C
        _write(growing, part)


def _write(growing: GrowingFile, part: list[Localized]) -> None:
    if part:
        with growing.part() as group:
            for query in part:
                place = group(query.result.name)
                write_features(place, query.features, query.orientation)
                place.create_dataset("observations", data=query.observations)
                place.attrs["photo"], place.attrs["result"] = query.digest, json.dumps(asdict(query.result))
        part.clear()


def _result_of(text: str) -> QueryPose:
    values: dict[str, Any] = json.loads(text)
    if values["covariance"]:
        values["covariance"] = [tuple(row) for row in values["covariance"]]
    values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return QueryPose(**values)


def _add_queries(
    scene: SparseModel, file: FeaturesFile, localized: Path, poses: Sequence[QueryPose], out: Path
) -> dict[str, str]:
    """Writes the model with the localised queries, and the features of both. Returns why a query was not added."""
    added, reasons = {}, {}
    with FeaturesFile(localized) as queries:
        for pose in poses:
            if pose.name in scene.images or pose.name in file:
                reasons[pose.name] = "not added to the model, which has an image of this name; rename the query"
            elif pose.camera and pose.qvec and pose.tvec:
                w, *xyz = pose.qvec
                cam_from_world = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([*xyz, w])), np.array(pose.tvec))
                points2d = queries.read(pose.name, stored=True).keypoints.double().numpy() + COLMAP_SHIFT
                observations = queries.numbers(pose.name, "observations")
                scene.add(pose.name, pycolmap.Camera(**pose.camera), cam_from_world, points2d, observations)
                added[pose.name] = queries.read(pose.name), queries.orientation(pose.name)
    scene.write(out)
    extend_features(file, added, out / "features.h5")
    return reasons
