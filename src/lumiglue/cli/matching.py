"""`lumiglue match` and `lumiglue sample`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from lumiglue.cli.flags import HDF5, PipelineFlags, check_writable
from lumiglue.cli.geometry import (
    cameras_of,
    check_registration,
    given_cameras,
    match_folder,
    save_registration,
    say_pose,
)
from lumiglue.cli.terminal import err, say
from lumiglue.demo.limits import Limits
from lumiglue.errors import InputError
from lumiglue.system.extras import EXTRAS, require

if TYPE_CHECKING:
    import numpy as np

    from lumiglue.pipeline.result import MatchResult
    from lumiglue.types import Camera, Geometry


GeometryChoice = Literal["fundamental", "homography", "essential", "none"]
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")


def match(
    inputs: Positional[tuple[Path, ...]],
    flags: Annotated[PipelineFlags, arg(name="")],
    out: Annotated[Path | None, arg(aliases=["-o"])] = None,
    root: Path = Path(),
    geometry: GeometryChoice = "fundamental",
    focal: float | None = None,
    camera: tuple[str, ...] = (),
    warp: Path | None = None,
    checkerboard: Path | None = None,
    adaptivity: Path | None = None,
    workers: int | None = None,
    rotation: Literal["none", "search"] = "none",
    masks: tuple[Path, Path] | None = None,
) -> int:
    """Match two photos, a photo with a folder, or every pair of a list. A list can be interrupted and resumed.

    Args:
        inputs: Two image files; an image file and a folder, whose photos are ranked by inliers; or one text file with a pair
            of image paths on each line.
        flags: Features, weights, adaptivity.
        out: Two photos: .png/.jpg/.pdf/.svg for a picture, .npz/.json for the matches (default: A_B_matches.png in the
            working directory). A folder: .csv or .json for the full ranking. A list: the .h5 file to write.
        root: A list: folder that its paths are relative to.
        geometry: Model that separates inliers from outliers: fundamental, homography (for a plane, or a camera that only
            rotated), or essential (for the relative pose of known cameras).
        focal: For essential: focal length of both photos in pixels. By default it is read from EXIF, or guessed.
        camera: For essential, instead of --focal: MODEL,PARAMETERS with COLMAP's names, such as
            SIMPLE_RADIAL,1200,640,480,-0.1; one for both photos, or one for each.
        warp: For homography: save the second photo warped onto the first (.png, .tif, .webp: transparent where it has no
            pixels; .jpg: drawn over the first), or an animation that alternates between the two (.gif).
        checkerboard: For homography: save a checkerboard of the first photo and the warped second photo.
        adaptivity: Two photos: also save a picture of where the matcher stopped and which points it pruned.
        rotation: Two photos: search tries all four quarter turns of the second photo. Use it for features or weights that
            were trained on upright photos only.
        masks: Two photos: an image of the same size for each, black where nothing should be matched.
        workers: For a folder or a list: threads; by default one per core.
    """
    paths = list(inputs)
    folder = len(paths) == 2 and paths[1].is_dir() and not paths[0].is_dir()
    if len(paths) == 2 and not folder:
        known = given_cameras(focal, camera, geometry)
        check_registration(warp, checkerboard, geometry)
        return _match_two(
            paths[0], paths[1], flags, out, geometry, focal, known, warp, checkerboard, adaptivity, rotation, masks
        )
    only_two = {
        "--masks": masks, "--adaptivity": adaptivity, "--rotation search": rotation == "search" or None, "--warp": warp,
        "--checkerboard": checkerboard, "--focal": focal, "--camera": camera or None,
    }  # fmt: skip
    if (folder or len(paths) == 1) and (
        given := next((flag for flag, value in only_two.items() if value is not None), None)
    ):
        raise InputError(f"{given} is for two photos; leave it out for a {'folder' if folder else 'list'}")
    if folder:
        return match_folder(paths[0], paths[1], flags, out, geometry, workers)
    if len(paths) == 1:
        return _match_list(paths[0], root, flags, out, workers)
    raise InputError(f"{len(paths)} inputs were given; give two photos, a photo and a folder, or one list of pairs")


def _match_two(
    a: Path,
    b: Path,
    flags: PipelineFlags,
    target: Path | None,
    kind: GeometryChoice,
    focal: float | None,
    known: "tuple[Camera, ...]",
    warp: Path | None,
    checkerboard: Path | None,
    adaptivity: Path | None,
    rotation: Literal["none", "search"],
    masks: tuple[Path, Path] | None,
) -> int:
    from lumiglue.images import read_image
    from lumiglue.pipeline.result import DATA_SUFFIXES, save_result

    target = target or Path(f"{a.stem}_{b.stem}_matches.png")
    if target.suffix.lower() not in (*PICTURE_SUFFIXES, *DATA_SUFFIXES):
        raise InputError(f"--out {target} has no known suffix; use one of {[*PICTURE_SUFFIXES, *DATA_SUFFIXES]}")
    files = {"--out": target, "--adaptivity": adaptivity, "--warp": warp, "--checkerboard": checkerboard}
    writers: dict[Path, str] = {}
    for flag, file in files.items():
        if file is None:
            continue
        check_writable(file)
        if file.resolve() in (a.resolve(), b.resolve()):
            raise InputError(f"{file} is one of the photos; give another file to write")
        if (other := writers.setdefault(file.resolve(), flag)) != flag:
            raise InputError(f"{other} and {flag} both name {file}; give two files")
    images = read_image(a, stretch=flags.stretch), read_image(b, stretch=flags.stretch)
    pipeline = flags.pipeline("auto")
    mask0, mask1 = masks or (None, None)
    result = pipeline.match(*images, rotation=rotation, mask0=mask0, mask1=mask1)
    geometry = None
    if kind != "none":
        sizes = [result.features0.image_size, result.features1.image_size]
        cameras = cameras_of((a, b), sizes, focal, known) if kind == "essential" else None
        geometry = result.geometry(kind, cameras=cameras)
    summary = _summary(result, geometry, pipeline.matcher.config.n_layers)
    if target.suffix.lower() in DATA_SUFFIXES:
        save_result(target, result, geometry)
    else:
        _save_picture(target, images, result, geometry, f"{a.name} and {b.name}: {summary}")
    if adaptivity is not None:
        from lumiglue.visualization import draw_adaptivity, save_figure

        layers = pipeline.matcher.config.n_layers
        save_figure(draw_adaptivity(*images, result.features0, result.features1, result.matches, layers), adaptivity)
    _print_summary(summary, result, [path for path in (target, adaptivity) if path], masked=masks is not None)
    if geometry is not None and kind == "essential":
        say_pose(geometry)
    if geometry is not None:
        for file in save_registration(images, geometry, warp, checkerboard):
            say(f"saved {file}")
    return 0


def _match_list(list_file: Path, root: Path, flags: PipelineFlags, target: Path | None, workers: int | None) -> int:
    from lumiglue.cli.collections import _Display, _report_failures
    from lumiglue.collection import match_photos

    pairs = _read_list(list_file)
    if target is None:
        raise InputError("a list of pairs is written to an .h5 file; give --out matches.h5")
    check_writable(target, *HDF5)
    with _Display() as progress:
        match_photos(pairs, target, flags.pipeline(), root=root, workers=workers, progress=progress)
    say(f"{progress.succeeded} pairs -> {target}")
    return _report_failures("pair", progress)


def sample(
    flags: Annotated[PipelineFlags, arg(name="")],
    out: Annotated[Path, arg(aliases=["-o"])] = Path("demo.png"),
    photos: Path | None = None,
) -> int:
    """Match a sample pair with known ground truth, made from scikit-image's photographs.

    Args:
        flags: Features, weights, adaptivity.
        out: Picture to save.
        photos: Also save the two sample photos in this folder.
    """
    require("skimage")
    from PIL import Image

    from lumiglue.samples import sample_pair

    check_writable(out)

    pair = sample_pair()
    if photos is not None:
        photos.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate((pair.image0, pair.image1)):
            Image.fromarray(image).save(photos / f"sample{number}.jpg", quality=92)
    pipeline = flags.pipeline("auto")
    result = pipeline.match(pair.image0, pair.image1)
    geometry = result.geometry("fundamental")
    right = pair.is_right(result.points0, result.points1)
    share = 100 * right.mean() if len(right) else 0.0
    summary = _summary(result, geometry, pipeline.matcher.config.n_layers)
    summary += f", {int(right.sum())} correct ({share:.0f} %)"
    _save_picture(out, (pair.image0, pair.image1), result, geometry, summary)
    _print_summary(summary, result, [out])
    return 0


def _read_list(path: Path) -> list[tuple[str, str]]:
    """Pairs of paths, one on each line; blank lines and lines that begin with # are ignored."""
    from lumiglue.collection.pairs import names_in
    from lumiglue.io.text import read_text

    if path.is_dir():
        raise InputError(f"{path} is a folder; give two photos, or one list of pairs (for a folder: lumiglue sfm)")
    text = read_text(path, "give two photos, or one list of pairs")
    names = []
    for number, line in enumerate(text.split("\n"), start=1):
        words = names_in(line)
        if not words:
            continue
        if len(words) != 2:
            remedy = "give two, with a tab between them if one has a space"
            raise InputError(f"{path} line {number} has {len(words)} path{'s' * (len(words) > 1)}; {remedy}")
        names.append((words[0], words[1]))
    if not names:
        raise InputError(f"{path} has no pairs; give two image paths on each line")
    return names


def _summary(result: "MatchResult", geometry: "Geometry | None", layers: int) -> str:
    parts = [f"{len(result.features0)} and {len(result.features1)} keypoints", f"{len(result)} matches"]
    if geometry is not None:
        parts.append(f"{int(geometry.inliers.sum())} inliers ({geometry.kind})")
    if result.matches.stop_layer:
        parts.append(f"stopped after layer {result.matches.stop_layer} of {layers}")
    return ", ".join(parts)


def _print_summary(summary: str, result: "MatchResult", files: list[Path], *, masked: bool = False) -> None:
    say(summary)
    say(", ".join(f"{step} {1000 * seconds:.0f} ms" for step, seconds in result.seconds.items()))
    for image, features in (("first", result.features0), ("second", result.features1)):
        if not len(features):
            reason = f"{'its mask excludes all, or ' if masked else ''}it is blank, has low contrast, or is under 8 pixels"
            remedy = "try --stretch always, or a lower --detector-threshold"
            err.print(f"note: the {image} image has no keypoints ({reason}); {remedy}", markup=False)
    for file in files:
        say(f"saved {file}")


def _save_picture(
    target: Path, images: "tuple[np.ndarray, np.ndarray]", result: "MatchResult", geometry: "Geometry | None", title: str
) -> None:
    from lumiglue.pictures import RASTER_SUFFIXES, picture_of_matches, save_picture

    drawn = *images, result.features0, result.features1, result.matches, geometry, title
    if target.suffix.lower() in RASTER_SUFFIXES:
        save_picture(picture_of_matches(*drawn), target)
        return
    from lumiglue.visualization import draw_matches, save_figure  # matplotlib, which takes a second

    save_figure(draw_matches(*drawn), target)


def demo(limits: Annotated[Limits, arg(name="")], host: str = "127.0.0.1", port: int = 7860) -> int:
    """Serve a web page and an HTTP route that match two photos. Needs `pip install "lumiglue[demo]"`.

    Args:
        limits: Limits of a request.
        host: Address to listen on; the default serves this machine only, 0.0.0.0 other machines too.
        port: Port to listen on; 0 chooses a free one.
    """
    require(*(package for package, extras in EXTRAS.items() if "demo" in extras), "skimage")
    from lumiglue.demo.server import serve

    serve(host, port, limits, lambda address: say(f"the demo is at {address}"))
    return 0
