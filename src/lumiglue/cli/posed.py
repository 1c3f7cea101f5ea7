"""`lumiglue posed-bank` and `lumiglue posed-from-sfm`."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lumiglue.cli.terminal import Progress, err, say
from lumiglue.cli.training import write_bank
from lumiglue.errors import InputError


def posed_bank(
    folder: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    features: str = "sift",
    format: Literal["auto", "plain", "megadepth", "tum"] = "auto",
    images: Path | None = None,
    intrinsics: tuple[float, float, float, float] | None = None,
    every: int = 1,
    min_overlap: float = 0.1,
    max_overlap: float = 0.9,
    max_pairs: int = 5000,
    max_keypoints: int = 512,
    long_side: int = 480,
    photometric: float = 0.5,
    seed: int = 0,
    workers: int = 0,
    device: str | None = None,
) -> int:
    """Build a feature bank from photos with known cameras and depth maps (docs/posed-data.md). Resumable.

    Args:
        folder: Of posed images, or of such folders.
        out: The .h5 file to write.
        features: Local features: sift, aliked, or your own as file.py:Class or module:Class.
        format: Of the folder: ours, MegaDepth's scene_info, or a TUM RGB-D sequence; auto looks which files there are.
        images: Root of the image and depth paths, where it is not the folder.
        intrinsics: fx fy cx cy of a TUM sequence without calibration.txt.
        every: Take each so many-th frame of a scene; a video needs few.
        min_overlap: Pairs that see less of each other are left out.
        max_overlap: Pairs that see more of each other are left out.
        max_pairs: Of each scene, low overlaps as often as high.
        max_keypoints: Keypoints kept per view.
        long_side: Photos are shrunk to this many pixels.
        photometric: Strength of the changes of light, 0 for none.
        seed: Of light and pairs.
        workers: Processes; 0 takes one per core.
        device: Where light and the networks of features are computed: cpu or cuda; by default the GPU if there is one.
    """
    from lumiglue.device import usable_device
    from lumiglue.training.overlap import OverlapSettings
    from lumiglue.training.posed import PosedFrames
    from lumiglue.training.posed_formats import read_posed

    data = read_posed(folder, images, format=format, intrinsics=intrinsics).every(every)
    pairing = OverlapSettings(min_overlap=min_overlap, max_overlap=max_overlap, max_pairs=max_pairs, seed=seed)
    where = str(usable_device(device))
    source = PosedFrames(
        frames=data.frames,
        overlaps=data.overlaps,
        long_side=long_side,
        photometric=photometric,
        device=where,
        seed=seed,
        pairing=pairing,
    )
    return write_bank(source, out, features, max_keypoints, workers, where, "frames")


def posed_from_sfm(
    model: Positional[Path],
    images: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    min_track: int = 3,
    max_error: float = 2.0,
    min_angle: float = 2.0,
    max_edge: float = 0.05,
) -> int:
    """Turn a COLMAP model and its photos into posed images: undistorted photos, poses, depth maps of the tracked points.

    Args:
        model: Folder with cameras, images and points3D, .bin or .txt.
        images: The photos that the model was made from.
        out: Folder to write; `lumiglue posed-bank` reads it.
        min_track: Points seen in fewer photos are left out.
        max_error: Points with a larger mean reprojection error in pixels are left out.
        min_angle: Points seen under a smaller angle in degrees are left out.
        max_edge: Longest edge of a triangle that is filled, as a share of the photo's long side.
    """
    try:
        from lumiglue.training.sfm import SfmSettings
        from lumiglue.training.sfm import posed_from_sfm as convert
    except ModuleNotFoundError as error:
        raise InputError(f"posed-from-sfm needs {error.name}; install it with `pip install lumiglue[sfm]`") from None

    settings = SfmSettings(min_track=min_track, max_error=max_error, min_angle=min_angle, max_edge=max_edge)
    known: list[float] = []
    missing: list[str] = []
    with Progress("photos", None) as advance:
        for step in convert(model, images, out, settings):
            if step.known is None:
                missing.append(step.name)
            else:
                known.append(step.known)
            advance(1, f"{len(missing)} unreadable", step.photos)
    say(f"{len(known)} photos, depth on {sum(known) / len(known):.0%} of their pixels -> {out}")
    if missing:
        err.print(f"{len(missing)} photos could not be read and were left out; the first: {missing[0]}", markup=False)
    return 0
