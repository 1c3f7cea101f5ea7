"""From features and matches to COLMAP's database; the choice of photos and cameras, which a reconstruction shares."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumiglue.collection import CameraMode
from lumiglue.collection.cameras import CameraGroup, CameraSettings, group_photos, read_model
from lumiglue.collection.database import Database, add_matches, import_model, import_photos, with_poses_of
from lumiglue.collection.features import Failures
from lumiglue.collection.hloc import FeaturesFile, MatchesReader, Pair
from lumiglue.collection.pairs import read_names, read_pairs, unique
from lumiglue.errors import InputError
from lumiglue.images import image_names


@dataclass(frozen=True)
class Export:
    """What `export_colmap` wrote.

    Attributes:
        images: How many photos.
        pairs: How many pairs were chosen.
        verified: How many pairs have a consistent geometry.
        left_out: (name, reason) of photos that could not be used.
    """

    images: int
    pairs: int
    verified: int
    left_out: Failures


def export_colmap(
    photos: str | Path,
    features: str | Path,
    matches: str | Path,
    database: str | Path,
    *,
    pairs: str | Path | Sequence[Pair] | None = None,
    images: str | Path | Sequence[str] | None = None,
    poses: str | Path | None = None,
    single_camera: bool = False,
    camera_mode: CameraMode = "image",
    camera_model: str = "SIMPLE_RADIAL",
    camera_params: Sequence[float] | None = None,
    cameras: str | Path | None = None,
) -> Export:
    """Writes a COLMAP database with photos, cameras, keypoints, matches and verified geometry.

    Args:
        photos: Folder of the photos, searched with all its subfolders.
        features: HDF5 file of features, of `lumiglue features` or hloc.
        matches: HDF5 file of matches of these features, of `lumiglue matches` or hloc.
        database: File to write.
        pairs: Pairs to write, or a file with two names on each line; None takes all that are in `matches`.
        images: Names of the photos to use, or a file with one on each line; None uses all.
        poses: Folder with a model of COLMAP: the database gets its cameras and the numbers of its images.
        single_camera: As for `reconstruct`.
        camera_mode: As for `reconstruct`.
        camera_model: As for `reconstruct`.
        camera_params: As for `reconstruct`.
        cameras: As for `reconstruct`.

    Returns:
        Counts, and what was left out.

    Raises:
        InputError: a file cannot be used, the database exists, or no pair has a consistent geometry.
    """
    photos, database = Path(photos), Path(database)
    if database.exists():
        raise InputError(f"{database} exists; delete it, or choose another name")
    selection = Selection.of(
        photos, image_names(photos), images=images, poses=poses, single_camera=single_camera, camera_mode=camera_mode,
        camera_model=camera_model, camera_params=camera_params, cameras=cameras,
    )  # fmt: skip
    given = None if pairs is None else selection.read_pairs(pairs)
    written, lost = selection.write_database(features, database)
    try:
        with MatchesReader(matches) as file:
            chosen = file.pairs(written.images) if given is None else given
        verified = selection.add_matches(written, features, matches, chosen)
    except BaseException:
        database.unlink(missing_ok=True)
        raise
    return Export(len(written.images), len(chosen), verified, selection.left_out + lost)


@dataclass(frozen=True)
class Selection:
    """The photos of a job and their cameras.

    Attributes:
        photos: The folder.
        listed: All photos in it.
        names: Those to use.
        left_out: (name, reason) of those that cannot be used.
        settings: What is known about the cameras.
        groups: The photos to use, by camera.
        scene: A `pycolmap.Reconstruction` with their known poses, or None.
        whole: Whether all photos of the folder were asked for.
    """

    photos: Path
    listed: tuple[str, ...]
    names: tuple[str, ...]
    left_out: Failures
    settings: CameraSettings
    groups: tuple[CameraGroup, ...]
    scene: Any
    whole: bool

    @classmethod
    def of(
        cls,
        photos: Path,
        listed: Sequence[str],
        *,
        images: str | Path | Sequence[str] | None = None,
        poses: str | Path | None = None,
        single_camera: bool = False,
        camera_mode: CameraMode = "image",
        camera_model: str = "SIMPLE_RADIAL",
        camera_params: Sequence[float] | None = None,
        cameras: str | Path | None = None,
    ) -> "Selection":
        """Chooses the photos, see `collection.sfm.reconstruct`.

        Raises:
            InputError: an argument cannot be used.
        """
        if single_camera and camera_mode not in ("image", "single"):
            raise InputError(f"single_camera and the camera mode {camera_mode!r} were given; give one of them")
        settings = CameraSettings(
            mode="single" if single_camera else camera_mode, model=camera_model, params=camera_params, file=cameras
        )  # fmt: skip
        names = _chosen(images, listed, photos)
        left_out: Failures = ()
        model = None
        if poses is not None:
            if settings != CameraSettings():
                raise InputError("the model with the poses already has the cameras; give no others")
            settings, model = CameraSettings(file=poses), read_model(poses)
            posed = {image.name for image in model.images.values() if image.has_pose}
            if not posed & set(names):
                raise InputError(f"{poses} has no pose of any photo; its names are like {min(posed, default='')!r}")
            left_out = tuple((name, f"{poses} has no pose for it") for name in names if name not in posed)
            names = [name for name in names if name in posed]
        groups, unusable = group_photos(photos, names, settings)
        usable = {name for group in groups for name in group.names}
        names = tuple(name for name in names if name in usable)
        return cls(photos, tuple(listed), names, left_out + unusable, settings, groups, model, images is None)

    def check_enough(self, names: Collection[str]) -> None:
        """Raises InputError for fewer photos than a model needs."""
        least = 3 if self.scene is None else 2
        if len(names) < least:
            raise InputError(f"{self.photos} has {len(names)} usable photos; a reconstruction needs at least {least}")

    def read_pairs(self, pairs: str | Path | Sequence[Pair]) -> list[Pair]:
        """Reads given pairs. Raises InputError if one is not of photos in the folder."""
        if isinstance(pairs, str | Path):
            return read_pairs(pairs, self.listed)
        _check_names({name for pair in pairs for name in pair}, self.listed, self.photos)
        return unique(pairs)

    def write_database(self, features: str | Path, path: Path, reported: Collection[str] = ()) -> tuple[Database, Failures]:
        """Writes the photos that have features to a new database.

        Args:
            features: HDF5 file of features.
            path: File to write; an existing one is replaced.
            reported: Photos that need no other reason to be left out.

        Returns:
            The database, and (name, reason) of photos that are not in it.

        Raises:
            InputError: the file of features cannot be used.
        """
        with FeaturesFile(features) as file:
            described = set(file.names())
        left_out = [(name, f"{features} has no features for it") for name in self.names if name not in described]
        if self.whole:
            gone = sorted(described - set(self.listed))
            left_out += [(name, f"{features} has features of it, but the photo is not in {self.photos}") for name in gone]
        names = [name for name in self.names if name in described]
        if self.scene is not None:
            database = import_model(with_poses_of(self.scene, names), path)
        else:
            fitting = (tuple(name for name in group.names if name in described) for group in self.groups)
            groups = [CameraGroup(names, group.camera) for names, group in zip(fitting, self.groups, strict=True) if names]
            database = import_photos(self.photos, groups, path, self.settings.model)
        left_out += database.left_out
        return database, tuple(failure for failure in left_out if failure[0] not in reported)

    def add_matches(self, database: Database, features: str | Path, matches: str | Path, pairs: Sequence[Pair]) -> int:
        """Adds keypoints and matches, see `collection.database.add_matches`."""
        return add_matches(database, features, matches, pairs)


def _chosen(images: str | Path | Sequence[str] | None, listed: Sequence[str], photos: Path) -> Sequence[str]:
    if images is None:
        return listed
    if isinstance(images, str | Path):
        return read_names(images, listed)
    _check_names(images, listed, photos)
    return list(dict.fromkeys(images))


def _check_names(names: Collection[str], listed: Sequence[str], photos: Path) -> None:
    unknown = sorted({*names} - {*listed})
    if unknown:
        raise InputError(f"{unknown[0]!r} is not among the photos of {photos}")
