"""`lumiglue dataset`: feature datasets from photos, synthetic scenes, posed photos and a teacher."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from lumiglue.cli.terminal import ProgressBar, err, say
from lumiglue.errors import InputError
from lumiglue.matcher.settings import Precision
from lumiglue.system.extras import require

if TYPE_CHECKING:
    from lumiglue.training.data.dataset import ViewSource


@dataclass(frozen=True, kw_only=True)
class DatasetFlags:
    """Flags of every feature dataset."""

    features: str = "sift"
    """Local features: sift, aliked, disk, xfeat, superpoint, or your own as file.py:Class or module:Class."""
    max_keypoints: int = 512
    """Largest number of keypoints per view."""
    long_side: int = 480
    """Long side of the views in pixels."""
    seed: int = 0
    """Seed of everything random."""
    workers: int = 0
    """Number of processes; 0 uses one per core."""
    device: str | None = None
    """What renders views and runs feature networks: cpu or cuda; by default the GPU if there is one."""

    @cached_property
    def usable_device(self) -> str:
        """The device, checked."""
        from lumiglue.system.device import usable_device

        return str(usable_device(self.device))

    def build(self, source: "ViewSource", out: Path, unit: str, lacks: str = "could not be read") -> int:
        """Builds a dataset with a progress bar. unit: what an item is. lacks: why items are skipped."""
        from lumiglue.extractors import create_extractor
        from lumiglue.training.data.build import DatasetSettings, build_dataset
        from lumiglue.training.data.dataset import LabelledSource

        labelled = isinstance(source, LabelledSource)  # every keypoint can be labelled, and an item is a whole scene
        detected = self.max_keypoints if labelled else round(1.5 * self.max_keypoints)
        extractor = create_extractor(self.features, device=self.usable_device, max_keypoints=detected, resize=None)
        settings = DatasetSettings(max_keypoints=self.max_keypoints, items_per_part=1 if labelled else 16)
        done, skipped = 0, ()
        with ProgressBar(unit, None) as advance:
            for part in build_dataset(source, out, extractor, settings, workers=self.workers):
                advance(part.items_done - done, f"{len(part.skipped)} skipped", part.items)
                done, skipped = part.items_done, part.skipped
        say(f"{done - len(skipped)} {unit} -> {out}")
        if skipped:
            err.print(f"{len(skipped)} {unit} {lacks} and were skipped; the first: {skipped[0]}", markup=False)
        return 0


TAUGHT = DatasetFlags(max_keypoints=2048, long_side=640)


def dataset_homographies(
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    flags: Annotated[DatasetFlags, arg(name="")],
    rolls: Literal["any", "upright"] = "any",
    tilt: float | None = None,
    zoom: tuple[float, float] | None = None,
    photometric: float | None = None,
    repeats: float | None = None,
    views: int = 6,
) -> int:
    """Build a feature dataset from photos: random homographies of each photo, and their features. Resumable.

    Args:
        photos: Folder, searched with its subfolders.
        out: The .h5 file to write.
        flags: Features, sizes, seed and processes.
        rolls: In-plane rotations: any angle, or upright (up to 45 degrees).
        tilt: Largest angle between camera axis and photo normal, in degrees (60).
        zoom: Smallest and largest magnification (0.6 2.4).
        photometric: Strength of the photometric augmentation: 0 for none, 1 strong (1).
        repeats: Fraction of photos in which a part is repeated, like windows and wallpaper (0).
        views: Views of each photo; any two are a training pair.
    """
    from lumiglue.training.data.homographies import PhotoViews, view_preset

    changes = {"tilt": tilt, "zoom": zoom, "photometric": photometric, "repeats": repeats}
    settings = replace(view_preset(rolls), **{name: value for name, value in changes.items() if value is not None})
    source = PhotoViews.of_folder(
        photos, n_views=views, long_side=flags.long_side, seed=flags.seed, settings=settings, device=flags.usable_device
    )
    return flags.build(source, out, "photos")


def dataset_scenes(
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    flags: Annotated[DatasetFlags, arg(name="")],
    spread: float = 18.0,
    photometric: float = 0.7,
    repeats: float = 0.0,
    views: int = 6,
    scenes: int = 1500,
) -> int:
    """Build a feature dataset from synthetic scenes: planes and boxes textured with your photos. Resumable.

    Args:
        photos: Folder, searched with its subfolders.
        out: The .h5 file to write.
        flags: Features, sizes, seed and processes.
        spread: Standard deviation of the cameras' viewing direction, in degrees.
        photometric: Strength of the photometric augmentation: 0 for none, 1 strong.
        repeats: Fraction of photos in which a part is repeated, like windows and wallpaper.
        views: Views of each scene; any two are a training pair.
        scenes: Number of scenes.
    """
    from lumiglue.training.data.synthetic_scenes import SceneSettings, SyntheticScenes

    size = (flags.long_side, round(0.75 * flags.long_side))
    settings = SceneSettings(size=size, spread=spread, photometric=photometric, repeats=repeats)
    source = SyntheticScenes.of_folder(
        photos, count=scenes, n_views=views, seed=flags.seed, settings=settings, device=flags.usable_device
    )
    return flags.build(source, out, "scenes")


def dataset_posed(
    folder: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    flags: Annotated[DatasetFlags, arg(name="")],
    format: Literal["auto", "plain", "megadepth", "tum"] = "auto",
    images: Path | None = None,
    intrinsics: tuple[float, float, float, float] | None = None,
    every: int = 1,
    min_overlap: float = 0.1,
    max_overlap: float = 0.9,
    max_pairs: int = 5000,
    photometric: float = 0.5,
) -> int:
    """Build a feature dataset from photos with known cameras and depth maps (docs/posed-data.md). Resumable.

    Args:
        folder: Folder of posed images, or of such folders.
        out: The .h5 file to write.
        flags: Features, sizes, seed and processes.
        format: Format of the folder: plain, MegaDepth's scene_info, or a TUM RGB-D sequence; auto detects it.
        images: Root of the image and depth paths, if they are not relative to the folder.
        intrinsics: fx fy cx cy of a TUM sequence without calibration.txt.
        every: Use every N-th frame of a scene (try 5 for video).
        min_overlap: Smallest overlap of a pair.
        max_overlap: Largest overlap of a pair.
        max_pairs: Largest number of pairs per scene; low overlaps are as frequent as high ones.
        photometric: Strength of the photometric augmentation, 0 for none.
    """
    from lumiglue.training.data.overlap import OverlapSettings
    from lumiglue.training.data.posed import PosedFrames
    from lumiglue.training.data.posed_formats import read_posed

    data = read_posed(folder, images, format=format, intrinsics=intrinsics).every(every)
    pairing = OverlapSettings(min_overlap=min_overlap, max_overlap=max_overlap, max_pairs=max_pairs, seed=flags.seed)
    source = PosedFrames(
        frames=data.frames, overlaps=data.overlaps, long_side=flags.long_side, photometric=photometric,
        device=flags.usable_device, seed=flags.seed, pairing=pairing,
    )  # fmt: skip
    return flags.build(source, out, "frames")


def dataset_from_colmap(
    model: Positional[Path],
    images: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    min_track: int = 3,
    max_error: float = 2.0,
    min_angle: float = 2.0,
    max_edge: float = 0.05,
) -> int:
    """Convert a COLMAP model and its photos to undistorted photos with poses and depth maps.

    Args:
        model: Folder with cameras, images and points3D, .bin or .txt.
        images: The photos of the model.
        out: Folder to write; `lumiglue dataset posed` reads it.
        min_track: Smallest number of photos that observe a point.
        max_error: Largest mean reprojection error of a point, in pixels.
        min_angle: Smallest triangulation angle of a point, in degrees.
        max_edge: Longest edge of a triangle that is filled, relative to the photo's long side.
    """
    try:
        from lumiglue.training.data.from_colmap import SfmSettings, posed_from_sfm
    except ModuleNotFoundError as error:
        raise InputError(f"dataset from-colmap needs {error.name}; install it with `pip install lumiglue[sfm]`") from None
    require("pycolmap")

    settings = SfmSettings(min_track=min_track, max_error=max_error, min_angle=min_angle, max_edge=max_edge)
    fractions: list[float] = []
    unreadable: list[str] = []
    with ProgressBar("photos", None) as advance:
        for step in posed_from_sfm(model, images, out, settings):
            if step.known is None:
                unreadable.append(step.name)
            else:
                fractions.append(step.known)
            advance(1, f"{len(unreadable)} unreadable", step.photos)
    say(f"{len(fractions)} photos, depth at {sum(fractions) / len(fractions):.0%} of their pixels -> {out}")
    if unreadable:
        err.print(f"{len(unreadable)} photos could not be read and were skipped; the first: {unreadable[0]}", markup=False)
    return 0


def teach(
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    teacher: str = "aliked-lightglue",
    teacher_features: str | None = None,
    teacher_keypoints: int = 2048,
    teacher_matches: Path | None = None,
    neighbours: int = 6,
    poses: bool = False,
    assignments: bool = False,
    precision: Precision = "fp32",
    flags: Annotated[DatasetFlags, arg(name="")] = TAUGHT,
) -> int:
    """Build a feature dataset from overlapping photos, which a trained matcher labels for any features. Resumable.

    Args:
        photos: Folder of folders, each of which has overlapping photos of one scene.
        out: The .h5 file to write.
        teacher: The matcher that makes the labels: a name, a .safetensors file, or a released LightGlue checkpoint.
        teacher_features: Features of the teacher, if its file does not state them (a released checkpoint does not).
        teacher_keypoints: Largest number of the teacher's keypoints per photo.
        teacher_matches: Cache folder for the teacher's matches, which datasets of other features reuse.
        neighbours: Each photo is paired with this many of the most similar photos of its scene.
        poses: Reconstruct scenes of three or more photos with COLMAP, and take the epipolar geometry and the tracks of the
            model. Needs pycolmap.
        assignments: Let ALIKED describe the keypoints of your features, and the teacher assign them; training distils this.
            The teacher's own features have its assignments anyway.
        precision: Arithmetic of the teacher. On processors with AMX, bf16 is faster than fp32, and changes a few
            matches in a hundred.
        flags: Features, sizes, seed and processes.
    """
    from lumiglue.training.data.teacher import Teacher
    from lumiglue.training.data.teaching import TaughtPhotos

    matcher = Teacher.named(
        teacher, teacher_features, max_keypoints=teacher_keypoints, device=flags.usable_device, precision=precision,
    )  # fmt: skip
    source = TaughtPhotos.of_folder(
        photos, matcher, neighbours=neighbours, long_side=flags.long_side, seed=flags.seed, matches=teacher_matches,
        poses=poses, assignments=assignments,
    )  # fmt: skip
    return flags.build(source, out, "scenes", lacks="have no overlapping pair")
