"""The pose of one query: similar images of a model, their matches, 2D-3D matches, an absolute pose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lumiglue.collection.absolute_pose import AbsolutePose, estimate_absolute_pose
from lumiglue.collection.cameras import pycolmap
from lumiglue.collection.database import COLMAP_SHIFT
from lumiglue.collection.hloc import FeaturesFile
from lumiglue.collection.orientation import stored_features
from lumiglue.collection.query_cameras import QueryCameras, camera_record
from lumiglue.collection.retrieval import SimilarImages
from lumiglue.collection.sparse_model import SparseModel
from lumiglue.errors import InputError
from lumiglue.images import exif_orientation
from lumiglue.io.download import file_sha256
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.types import Features

# The threshold grows in proportion with photos whose long side is longer, in pixels.
_REFERENCE_SIDE = 1024


@dataclass(frozen=True)
class QueryPose:
    """The pose of a query, in COLMAP's conventions: world to camera, in the photo as stored.

    Attributes:
        name: The query: its path in the folder of queries, or its file name.
        reason: Why it has no pose; "" if it has one. Without a pose, what follows up to `covariance` is None.
        qvec: Rotation as a quaternion (w, x, y, z).
        tvec: Translation, in units of the model.
        centre: The camera centre in the world.
        camera: COLMAP's model, width, height and params. The focal length is refined if it was not given.
        error: Mean reprojection error of the inliers in pixels.
        covariance: 6 x 6, of the rotation vector in radians about the camera's axes, then of the centre.
        camera_from: "given", "model", "exif" or "estimated".
        neighbours: The similar images of the model, the most similar first.
        matches: Number of 2D-3D matches.
        inliers: Number of keypoints that agree with the pose.
        seconds: To extract, match and estimate.
    """

    name: str
    reason: str = ""
    qvec: tuple[float, ...] | None = None
    tvec: tuple[float, ...] | None = None
    centre: tuple[float, ...] | None = None
    camera: Mapping[str, Any] | None = None
    error: float | None = None
    covariance: tuple[tuple[float, ...], ...] | None = None
    camera_from: str = ""
    neighbours: tuple[str, ...] = ()
    matches: int = 0
    inliers: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Localized:
    """A localised query, or one without a pose.

    Attributes:
        result: What users read.
        digest: SHA-256 of the photo.
        features: Of the query, upright.
        orientation: EXIF orientation of the photo.
        observations: k x 2, (keypoint, number of a point) of the inliers.
    """

    result: QueryPose
    digest: str
    features: Features
    orientation: int
    observations: np.ndarray


@dataclass
class Localizer:
    """Localises queries one by one. For the arguments see `localize`.

    Raises:
        InputError: The model's images have no features in the file, or others.
    """

    scene: SparseModel
    file: FeaturesFile
    pipeline: Pipeline
    cameras: QueryCameras
    neighbours: int
    threshold: float
    min_inliers: int
    workers: int | None

    def __post_init__(self) -> None:
        self._names = sorted(name for name in self.scene.images if name in self.file)
        if not self._names:
            raise InputError(
                f"{self.file.path} has no features for the model's {len(self.scene.images)} images; give the .h5 file that "
                "the model was made from"
            )
        self.scene.points_seen(self._names[0], self.file.read(self._names[0]))

    @cached_property
    def images(self) -> SimilarImages:
        """The images of the model that have features; their vectors are computed for the first query."""
        return SimilarImages(lambda name: self.file.read(name).descriptors.numpy(), self._names)

    def __call__(self, name: str, path: Path) -> Localized:
        """Localises a query.

        Args:
            name: Of the query.
            path: The photo.

        Returns:
            The result.

        Raises:
            LumiglueError: The photo cannot be read, or its camera is not in the list.
        """
        images, start = self.images, perf_counter()
        features, digest = self.pipeline.extract(path), file_sha256(path)
        orientation = exif_orientation(path)
        stored = stored_features(features, orientation)
        points2d, size = stored.keypoints.double().numpy() + COLMAP_SHIFT, stored.image_size
        camera, source = self.cameras.of(name, path, *size)
        similar = images.nearest(images.vlad(features.descriptors.numpy())[None], self.neighbours)[0]
        matches = self._match(features, similar) if len(features) else np.zeros((0, 2), np.int64)
        pose = estimate_absolute_pose(
            points2d[matches[:, 0]], self.scene.positions(matches[:, 1]), camera, source,
            threshold=self.threshold * max(1, max(size) / _REFERENCE_SIDE),
        )  # fmt: skip
        inliers = 0 if pose is None else len(np.unique(matches[pose.inliers, 0]))
        unposed = QueryPose(
            name, camera_from=source, neighbours=tuple(similar), matches=len(matches), inliers=inliers,
            seconds=perf_counter() - start,
        )  # fmt: skip
        if pose is None or inliers < self.min_inliers:
            result = replace(unposed, reason=self._reason(features, matches, unposed))
            return Localized(result, digest, features, orientation, matches[:0])
        return Localized(_with_pose(unposed, pose), digest, features, orientation, matches[pose.inliers])

    def _match(self, features: Features, similar: Sequence[str]) -> np.ndarray:
        """k x 2, (keypoint, number of a point), each once."""
        pairs = [("", name) for name in similar]
        matched = self.pipeline.match_extracted(
            pairs, lambda name: self.file.read(name) if name else features, workers=self.workers
        )
        parts = [np.zeros((0, 2), np.int64)]
        for name, pair in zip(similar, matched, strict=True):
            if pair is not None:
                rows = pair.matches.pairs.numpy()
                points = self.scene.points_seen(name, pair.features1)[rows[:, 1]]
                parts.append(np.stack([rows[:, 0], points], axis=1)[points >= 0])
        return np.unique(np.concatenate(parts), axis=0)

    def _reason(self, features: Features, matches: np.ndarray, unposed: QueryPose) -> str:
        if not len(features):
            return "it has no keypoints (blank, or under 8 pixels)"
        reason = f"{unposed.inliers} inliers of {len(matches)} 2D-3D matches, fewer than {self.min_inliers}"
        if not len(matches):
            reason = f"no point of the {len(unposed.neighbours)} most similar images occurs in it"
        return f"{reason}; does it show this place?"


def _with_pose(unposed: QueryPose, pose: AbsolutePose) -> QueryPose:
    x, y, z, w = pycolmap.Rotation3d(pose.rotation).quat.tolist()
    return replace(
        unposed, qvec=(w, x, y, z), tvec=tuple(pose.translation.tolist()), centre=tuple(pose.centre.tolist()),
        camera=camera_record(pose.camera), error=pose.error, covariance=tuple(map(tuple, pose.covariance.tolist())),
    )  # fmt: skip
