"""A COLMAP model beside the features that it was made from: which keypoint sees which point, and queries added to it."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Float64, Int64

from lumiglue.collection.cameras import find_model, has_model, pycolmap, read_model
from lumiglue.collection.hloc import FeaturesFile, write_features
from lumiglue.errors import InputError
from lumiglue.io.download import file_sha256
from lumiglue.io.hdf5 import GrowingFile
from lumiglue.types import Features

_FILES = tuple(f"{what}.{suffix}" for suffix in ("bin", "txt") for what in ("cameras", "images", "points3D"))
_SAME_PIXEL = 0.1


class SparseModel:
    """A model, and the points that the keypoints of its images see.

    Attributes:
        reconstruction: The model as pycolmap's object.
        folder: Where it was read.
        digest: SHA-256 of its files.
        images: The images with a pose, by name.
    """

    def __init__(self, reconstruction: pycolmap.Reconstruction, folder: Path, digest: str = "") -> None:
        self.reconstruction, self.folder, self.digest = reconstruction, folder, digest
        posed = (reconstruction.image(number) for number in reconstruction.reg_image_ids())
        self.images: Mapping[str, pycolmap.Image] = {image.name: image for image in posed}
        self._seen: dict[str, Int64[np.ndarray, " n"]] = {}

    @classmethod
    def read(cls, folder: str | Path) -> "SparseModel":
        """Reads a model.

        Args:
            folder: A model in COLMAP's format, or the folder with 0/ that `reconstruct` wrote.

        Returns:
            The model.

        Raises:
            InputError: There is no model, or it is damaged.
        """
        place = find_model(folder)
        reconstruction = read_model(place)
        digests = "".join(file_sha256(place / name) for name in _FILES if (place / name).is_file())
        return cls(reconstruction, place, hashlib.sha256(digests.encode()).hexdigest())

    def features_file(self) -> Path:
        """The features that `reconstruct` wrote beside the model."""
        places = (self.folder / "features.h5", self.folder.parent / "features.h5")
        return next((path for path in places if path.is_file()), places[0])

    def points_seen(self, name: str, features: Features) -> Int64[np.ndarray, " n"]:
        """Finds the point that each keypoint of an image sees.

        Args:
            name: The image.
            features: Its features.

        Returns:
            Numbers of points of the model; -1 where a keypoint sees none.

        Raises:
            InputError: The model was made from other features.
        """
        if name not in self._seen:
            points = self.images[name].points2D
            # Lengths between successive keypoints do not depend on half a pixel or on the EXIF orientation.
            lengths = [
                np.linalg.norm(np.diff(rows, axis=0), axis=1)
                for rows in (np.array([p.xy for p in points]).reshape(-1, 2), features.keypoints.double().numpy())
            ]
            if len(points) != len(features) or not np.allclose(*lengths, rtol=0, atol=_SAME_PIXEL):
                raise InputError(
                    f"the features are not those of the model: {name} has other keypoints; give the .h5 file that the model "
                    "was made from"
                )
            self._seen[name] = np.array([p.point3D_id if p.has_point3D() else -1 for p in points], np.int64)
        return self._seen[name]

    def positions(self, points: Int64[np.ndarray, " k"]) -> Float64[np.ndarray, "k 3"]:
        """The positions of points in the world."""
        return np.array([self.reconstruction.point3D(int(point)).xyz for point in points], np.float64).reshape(-1, 3)

    def add(
        self,
        name: str,
        camera: pycolmap.Camera,
        pose: pycolmap.Rigid3d,
        points2d: Float64[np.ndarray, "n 2"],
        observations: Int64[np.ndarray, "k 2"],
    ) -> None:
        """Adds an image with a pose to the reconstruction. It shares an equal camera of the model.

        Args:
            name: Of the image; it must be new.
            camera: Its camera.
            pose: World to camera.
            points2d: Its keypoints, in COLMAP's pixels.
            observations: (keypoint, number of a point). The first counts where a keypoint or a point recurs.
        """
        model = self.reconstruction
        number = 1 + max((*model.cameras, *model.images, *model.frames, *model.rigs), default=0)
        alone = {rig.ref_sensor_id.id: rig for rig in model.rigs.values() if rig.num_sensors() == 1}
        equal = (one for key, one in model.cameras.items() if key in alone and _same_camera(one, camera))
        if (shared := next(equal, None)) is not None:
            camera, rig = shared, alone[shared.camera_id]
        else:
            camera.camera_id = number
            rig = pycolmap.Rig(rig_id=number)
            rig.add_ref_sensor(camera.sensor_id)
            model.add_camera(camera)
            model.add_rig(rig)
        image = pycolmap.Image(name=name, keypoints=points2d, camera_id=camera.camera_id, image_id=number)
        frame = pycolmap.Frame(frame_id=number, rig_id=rig.rig_id)
        image.frame_id = number
        frame.add_data_id(image.data_id)
        frame.rig_from_world = pose
        model.add_frame(frame)
        model.add_image(image)
        model.register_frame(number)
        rows, points = set(), set()
        for row, point in observations.tolist():
            if row not in rows and point not in points:
                model.add_observation(point, pycolmap.TrackElement(number, row))
                rows.add(row)
                points.add(point)
        self.images = {**self.images, name: model.image(number)}

    def write(self, folder: Path) -> None:
        """Writes the model; its files are replaced once all are complete."""
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="model-", dir=folder) as unfinished:
            self.reconstruction.write(unfinished)
            for file in Path(unfinished).iterdir():
                file.replace(folder / file.name)


def check_new_model(folder: Path, model: SparseModel, file: FeaturesFile) -> None:
    """Raises InputError where the folder of a new model is that of the model or of its features."""
    if folder.resolve() in (model.folder.resolve(), model.folder.resolve().parent, file.path.resolve().parent):
        raise InputError(f"{folder} has the model or its features; give another folder for the model with the queries")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not has_model(folder))):
        raise InputError(f"{folder} has other files than a model; choose another folder")


def extend_features(file: FeaturesFile, added: Mapping[str, tuple[Features, int]], out: Path) -> None:
    """Copies a file of features and adds further images, (features, EXIF orientation). An existing file is replaced."""
    unfinished = out.with_name("features.unfinished.h5")
    shutil.copyfile(file.path, unfinished)
    with GrowingFile(unfinished, file.record) as growing:
        with growing.part() as group:
            for name, (features, orientation) in added.items():
                write_features(group(name), features, orientation)
        growing.finish()
    unfinished.replace(out)


def _same_camera(a: pycolmap.Camera, b: pycolmap.Camera) -> bool:
    return (a.model, a.width, a.height, [*a.params]) == (b.model, b.width, b.height, [*b.params])
