"""COLMAP's database: cameras and photos, keypoints and matches, verified geometry, through pycolmap."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lumiglue.collection.cameras import CameraGroup, pycolmap, quiet
from lumiglue.collection.features import Failures
from lumiglue.collection.hloc import FeaturesFile, MatchesReader
from lumiglue.collection.pairs import Pair
from lumiglue.errors import InputError

# COLMAP counts from the corner of the top-left pixel, Lumiglue from its centre.
COLMAP_SHIFT = 0.5
MIN_MATCHES = 15


@dataclass(frozen=True)
class Database:
    """A COLMAP database with cameras and images, to which matches are added.

    Attributes:
        path: The file.
        images: COLMAP's number of each photo.
        known: Numbers of the cameras that were given.
        left_out: (name, reason) of each photo that COLMAP could not import.
    """

    path: Path
    images: Mapping[str, int]
    known: frozenset[int] = frozenset()
    left_out: Failures = ()


def import_photos(photos: Path, groups: Sequence[CameraGroup], path: Path, camera_model: str) -> Database:
    """Writes a new database with the photos and their cameras. What is not known about a camera is guessed from EXIF.

    Args:
        photos: Folder of the photos.
        groups: Photos by camera.
        path: File to write; an existing one is replaced.
        camera_model: COLMAP's name of the model of unknown cameras.

    Returns:
        The database.
    """
    path.unlink(missing_ok=True)
    alone = [group.names[0] for group in groups if len(group.names) == 1]
    shared = [list(group.names) for group in groups if len(group.names) > 1]
    options = pycolmap.ImageReaderOptions()
    options.camera_model = camera_model
    pycolmap.Database.open(path).close()
    with quiet(3):  # photos that it does not import are reported by name
        for mode, names in ((pycolmap.CameraMode.PER_IMAGE, alone), *((pycolmap.CameraMode.SINGLE, s) for s in shared)):
            if names:  # an empty list is the whole folder
                pycolmap.import_images(path, photos, mode, names, options)
    with closing(pycolmap.Database.open(path)) as opened:
        images = {image.name: image for image in opened.read_all_images()}
        known = set()
        for group in groups:
            ids = {images[name].camera_id for name in group.names if name in images}
            for camera_id in ids if group.camera is not None else ():
                camera: Any = copy.copy(group.camera)
                camera.camera_id = camera_id
                opened.update_camera(camera)
                known.add(camera_id)
    lost = [name for group in groups for name in group.names if name not in images]
    left_out = tuple((name, "COLMAP cannot read it; convert it to JPEG or PNG") for name in lost)
    ids = {name: image.image_id for name, image in images.items()}
    return Database(path, ids, frozenset(known), left_out)


def import_model(model: Any, path: Path) -> Database:
    """Writes a new database with the images, cameras and poses of a model.

    Args:
        model: The `pycolmap.Reconstruction`, see `with_poses_of`.
        path: File to write; an existing one is replaced.

    Returns:
        The database.
    """
    path.unlink(missing_ok=True)
    with closing(pycolmap.Database.open(path)) as opened:
        for camera in model.cameras.values():
            opened.write_camera(camera, use_camera_id=True)
        for rig in model.rigs.values():
            opened.write_rig(rig, use_rig_id=True)
        for frame in model.frames.values():
            opened.write_frame(frame, use_frame_id=True)
        for image in model.images.values():
            opened.write_image(image, use_image_id=True)
    return Database(path, {image.name: number for number, image in model.images.items()}, frozenset(model.cameras))


def with_poses_of(model: Any, names: Sequence[str]) -> Any:
    """The cameras and poses of some photos of a model, without points; an image of a rig gets its own pose."""
    posed = {image.name: image for image in model.images.values() if image.has_pose}
    scene = pycolmap.Reconstruction()
    for name in names:
        image = posed[name]
        add_posed_image(scene, model.cameras[image.camera_id], name, image.image_id, image.cam_from_world())
    return scene


def add_posed_image(scene: Any, camera: Any, name: str, number: int, camera_from_world: Any) -> None:
    """Adds an image with its pose, and its camera if need be, to a `pycolmap.Reconstruction`."""
    if camera.camera_id not in scene.cameras:
        scene.add_camera(camera)
        rig = pycolmap.Rig(rig_id=camera.camera_id)  # of one camera, as for every image that is in no rig
        rig.add_ref_sensor(camera.sensor_id)
        scene.add_rig(rig)
    image = pycolmap.Image(name=name, camera_id=camera.camera_id, image_id=number, frame_id=number)
    frame = pycolmap.Frame(frame_id=number, rig_id=camera.camera_id, rig_from_world=camera_from_world)
    frame.add_data_id(image.data_id)
    scene.add_frame(frame)
    scene.add_image(image)
    scene.register_frame(number)


def add_matches(database: Database, features: str | Path, matches: str | Path, pairs: Sequence[Pair]) -> int:
    """Adds keypoints and matches to a database, and verifies the geometry of each pair.

    Args:
        database: The database.
        features: HDF5 file of features, in pixels of the photos as stored.
        matches: HDF5 file of matches of these features.
        pairs: Pairs to write.

    Returns:
        How many pairs have a consistent geometry.

    Raises:
        InputError: no pair has one, or the matches are of other features.
    """
    ids, counts, matched = database.images, {}, []
    with (
        FeaturesFile(features) as file,
        MatchesReader(matches) as matches_file,
        closing(pycolmap.Database.open(database.path)) as opened,
    ):
        for name, number in ids.items():
            image_features = file.read(name, stored=True)
            opened.write_keypoints(number, image_features.keypoints.numpy() + COLMAP_SHIFT)
            counts[name] = len(image_features)
        for a, b in pairs:
            if a in ids and b in ids and ((a, b) in matches_file or (b, a) in matches_file):
                rows = matches_file.read(a, b)
                if (rows >= (counts[a], counts[b])).any():
                    raise InputError(
                        f"{matches}: the matches of {a} and {b} belong to other features; delete the file to match again"
                    )
                if len(rows) >= MIN_MATCHES:
                    opened.write_matches(ids[a], ids[b], rows.astype(np.uint32))
                    matched.append((a, b))
    if not matched:
        raise InputError(f"no pair has {MIN_MATCHES} matches; do these photos show the same place?")
    verified = _verify(database.path, [(ids[a], ids[b]) for a, b in matched])
    if not verified:
        raise InputError(
            f"none of {len(matched)} matched pairs has a consistent geometry; do these photos show the same place?"
        )
    return verified


def _verify(database: Path, pairs: Sequence[tuple[int, int]]) -> int:
    """Finds the geometry of each pair; returns how many have one. COLMAP reads a list of names separated by spaces, and a
    name may have a space, so the images are renamed to their numbers meanwhile. Its random samples are seeded: the same
    matches give the same pairs."""
    opened = pycolmap.Database.open(database)
    images = {image.image_id: image for image in opened.read_all_images()}
    names = {number: image.name for number, image in images.items()}

    def rename(name_of: Callable[[int], str]) -> None:
        for number, image in images.items():
            image.name = name_of(number)
            opened.update_image(image)

    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = 0
    list_file = database.with_suffix(".pairs.txt")
    list_file.write_text("".join(f"{a} {b}\n" for a, b in pairs))
    rename(str)
    opened.close()
    with quiet():
        pycolmap.verify_matches(database, list_file, options)
    list_file.unlink()
    opened = pycolmap.Database.open(database)
    rename(names.__getitem__)
    verified = opened.num_verified_image_pairs()
    opened.close()
    return verified
