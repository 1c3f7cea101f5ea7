"""Poses and tracks of a scene's photos from a teacher's matches, by COLMAP's incremental mapping.

Two photos of a wall that repeats cannot tell the right geometry from a wrong one; three or more can. Needs pycolmap
(`pip install lumiglue[sfm]`).
"""

import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from lumiglue.collection.cameras import pycolmap, quiet
from lumiglue.collection.database import COLMAP_SHIFT

FEWEST_PHOTOS = 3
_FOCAL = 1.2  # the first guess, relative to the long side, as COLMAP's
_MAX_ERROR = 2.0  # largest mean reprojection error of a track, in pixels


@dataclass(frozen=True, eq=False)
class SceneModel:
    """Photos of one scene with poses.

    Attributes:
        projections: Projection matrix of each photo, from the model's coordinates to pixels.
        tracks: For each photo, the track of each keypoint; -1 where it has none.
    """

    projections: Mapping[str, Float[np.ndarray, "3 4"]]
    tracks: Mapping[str, Integer[np.ndarray, " n"]]

    def fundamental(self, a: str, b: str) -> Float[np.ndarray, "3 3"]:
        """The fundamental matrix of two of the photos: x_b^T F x_a = 0."""
        first, second = self.projections[a], self.projections[b]
        centre = np.append(-np.linalg.solve(first[:, :3], first[:, 3]), 1.0)
        x, y, z = second @ centre  # the epipole in photo b
        return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ second @ np.linalg.pinv(first)

    def revise(self, a: str, b: str, matches: Integer[np.ndarray, "k 2"]) -> Integer[np.ndarray, "l 2"]:
        """Matches of two of the photos: the tracks that both have, and of `matches` those whose ends are in no track."""
        track0, track1 = self.tracks[a], self.tracks[b]
        free = (track0[matches[:, 0]] < 0) & (track1[matches[:, 1]] < 0)
        known0, known1 = np.flatnonzero(track0 >= 0), np.flatnonzero(track1 >= 0)
        _, at0, at1 = np.intersect1d(track0[known0], track1[known1], return_indices=True)
        shared = np.column_stack([known0[at0], known1[at1]])
        return np.concatenate([shared, matches[free]])


def map_matches(
    keypoints: Mapping[str, Float[np.ndarray, "_ 2"]],
    sizes: Mapping[str, tuple[int, int]],
    pairs: Mapping[tuple[str, str], Integer[np.ndarray, "_ 2"]],
    seed: int = 0,
) -> list[SceneModel]:
    """Reconstructs a scene from matches. The photos have cameras of their own, without distortion.

    Args:
        keypoints: Pixels of each photo's keypoints.
        sizes: Width and height of each photo in pixels.
        pairs: Rows of the matched keypoints of each pair of photos.
        seed: Random seed.

    Returns:
        Models of at least three photos, the one with most photos first; none if the matches do not give any.
    """
    names = sorted({name for pair in pairs for name in pair})
    if len(names) < FEWEST_PHOTOS:
        return []
    number_of = {name: number for number, name in enumerate(names, start=1)}
    geometry, mapping = pycolmap.TwoViewGeometryOptions(), pycolmap.IncrementalPipelineOptions()
    geometry.ransac.random_seed = mapping.random_seed = seed
    mapping.min_model_size, mapping.extract_colors, mapping.num_threads = FEWEST_PHOTOS, False, 1
    with tempfile.TemporaryDirectory() as name, quiet(3):  # no model is no error here
        folder = Path(name)
        with closing(pycolmap.Database.open(folder / "database.db")) as database:
            for photo, number in number_of.items():
                _write_photo(database, number, sizes[photo])
                database.write_keypoints(number, keypoints[photo].astype(np.float32) + COLMAP_SHIFT)
            for (a, b), matches in pairs.items():
                database.write_matches(number_of[a], number_of[b], matches.astype(np.uint32))
        (folder / "pairs.txt").write_text("".join(f"{number_of[a]} {number_of[b]}\n" for a, b in pairs))
        pycolmap.verify_matches(folder / "database.db", folder / "pairs.txt", geometry)
        found = pycolmap.incremental_mapping(folder / "database.db", folder, folder, mapping)
    models = sorted(found.values(), key=lambda model: -model.num_reg_images())
    return [_scene_model(model, names, keypoints) for model in models]


def _write_photo(database: Any, number: int, size: tuple[int, int]) -> None:
    """Adds a photo with a camera of its own."""
    width, height = size
    params = [_FOCAL * max(size), width / 2, height / 2]
    camera = pycolmap.Camera(camera_id=number, model="SIMPLE_PINHOLE", width=width, height=height, params=params)
    database.write_camera(camera, use_camera_id=True)
    rig = pycolmap.Rig(rig_id=number)
    rig.add_ref_sensor(camera.sensor_id)
    database.write_rig(rig, use_rig_id=True)
    image = pycolmap.Image(name=str(number), camera_id=number, image_id=number, frame_id=number)
    frame = pycolmap.Frame(frame_id=number, rig_id=number)
    frame.add_data_id(image.data_id)
    database.write_frame(frame, use_frame_id=True)
    database.write_image(image, use_image_id=True)


def _scene_model(model: Any, names: list[str], keypoints: Mapping[str, np.ndarray]) -> SceneModel:
    """What is needed of COLMAP's model: tracks of at least three photos that fit."""
    model.update_point_3d_errors()
    trusted = {
        number: point for number, point in model.points3D.items()
        if point.track.length() >= FEWEST_PHOTOS and point.error <= _MAX_ERROR
    }  # fmt: skip
    projections, tracks = {}, {}
    for number in model.reg_image_ids():
        image, name = model.image(number), names[number - 1]
        intrinsics = model.camera(image.camera_id).calibration_matrix()
        intrinsics[:2, 2] -= COLMAP_SHIFT
        projections[name] = intrinsics @ image.cam_from_world().matrix()
        tracks[name] = np.full(len(keypoints[name]), -1)
    for track, point in trusted.items():
        for element in point.track.elements:
            tracks[names[element.image_id - 1]][element.point2D_idx] = track
    return SceneModel(projections, tracks)
