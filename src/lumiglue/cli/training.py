"""`lumiglue dataset` and `lumiglue train`."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from lumiglue.cli.terminal import ProgressBar, err, say
from lumiglue.errors import InputError, LumiglueError
from lumiglue.matcher.settings import Ablation, Encoding

if TYPE_CHECKING:
    from lumiglue.training.config import TrainSettings
    from lumiglue.training.data.dataset import ViewSource
    from lumiglue.training.distributed import Processes


def dataset_homographies(
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    features: str = "sift",
    rolls: Literal["any", "upright"] = "any",
    tilt: float | None = None,
    zoom: tuple[float, float] | None = None,
    photometric: float | None = None,
    repeats: float | None = None,
    views: int = 6,
    max_keypoints: int = 512,
    long_side: int = 480,
    seed: int = 0,
    workers: int = 0,
    device: str | None = None,
) -> int:
    """Build a feature dataset from a folder of photos: random homographies of each photo, and their features. Resumable.

    Args:
        photos: Folder, searched with its subfolders.
        out: The .h5 file to write.
        features: Local features: sift, aliked, or your own as file.py:Class or module:Class.
        rolls: In-plane rotations by any angle, or up to 45 degrees.
        tilt: Largest angle between camera axis and photo normal, in degrees (60).
        zoom: Smallest and largest magnification (0.6 2.4).
        photometric: Strength of the photometric augmentation: 0 for none, 1 strong (1).
        repeats: Share of photos of which a part is made to repeat, as windows and wallpaper do (0).
        views: Views of each photo; any two are a training pair.
        max_keypoints: Keypoints kept per view.
        long_side: Long side of the views in pixels.
        seed: Of the random views.
        workers: Processes; 0 takes one per core.
        device: Where pixels and the networks of features are computed: cpu or cuda; by default the GPU if there is one.
    """
    from lumiglue.system.device import usable_device
    from lumiglue.training.data.homographies import PhotoViews, view_preset

    where = str(usable_device(device))
    given = {"tilt": tilt, "zoom": zoom, "photometric": photometric, "repeats": repeats}
    settings = replace(view_preset(rolls), **{name: value for name, value in given.items() if value is not None})
    source = PhotoViews.of_folder(photos, n_views=views, long_side=long_side, seed=seed, settings=settings, device=where)
    return write_dataset(source, out, features, max_keypoints, workers, where, "photos")


def dataset_scenes(
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    features: str = "sift",
    spread: float = 18.0,
    photometric: float = 0.7,
    repeats: float = 0.0,
    views: int = 6,
    scenes: int = 1500,
    max_keypoints: int = 512,
    long_side: int = 480,
    seed: int = 0,
    workers: int = 0,
    device: str | None = None,
) -> int:
    """Build a feature dataset from synthetic scenes: planes and boxes that your photos texture. Resumable.

    Args:
        photos: Folder, searched with its subfolders.
        out: The .h5 file to write.
        features: Local features: sift, aliked, or your own as file.py:Class or module:Class.
        spread: Standard deviation in degrees of the direction from which a camera looks.
        photometric: Strength of the photometric augmentation: 0 for none, 1 strong.
        repeats: Share of photos of which a part is made to repeat, as windows and wallpaper do.
        views: Views of each scene; any two are a training pair.
        scenes: How many scenes.
        max_keypoints: Keypoints kept per view.
        long_side: Long side of the views in pixels.
        seed: Of the random scenes and views.
        workers: Processes; 0 takes one per core.
        device: Where pixels and the networks of features are computed: cpu or cuda; by default the GPU if there is one.
    """
    from lumiglue.system.device import usable_device
    from lumiglue.training.data.synthetic_scenes import SceneSettings, SyntheticScenes

    where = str(usable_device(device))
    settings = SceneSettings(
        size=(long_side, round(0.75 * long_side)), spread=spread, photometric=photometric, repeats=repeats
    )
    source = SyntheticScenes.of_folder(photos, count=scenes, n_views=views, seed=seed, settings=settings, device=where)
    return write_dataset(source, out, features, max_keypoints, workers, where, "scenes")


def write_dataset(
    source: "ViewSource", out: Path, features: str, max_keypoints: int, workers: int, device: str, unit: str
) -> int:
    """Builds a dataset from any source, with a progress bar; `unit` names its items."""
    from lumiglue.extractors import create_extractor
    from lumiglue.training.data.build import DatasetSettings, build_dataset

    extractor = create_extractor(features, device=device, max_keypoints=round(1.5 * max_keypoints), resize=None)
    settings = DatasetSettings(max_keypoints=max_keypoints)
    done, skipped = 0, ()
    with ProgressBar(unit, None) as advance:
        for part in build_dataset(source, out, extractor, settings, workers=workers):
            advance(part.items_done - done, f"{len(part.skipped)} unreadable", part.items)
            done, skipped = part.items_done, part.skipped
    say(f"{done - len(skipped)} {unit} -> {out}")
    if skipped:
        err.print(f"{len(skipped)} {unit} could not be read and were left out; the first: {skipped[0]}", markup=False)
    return 0


def train(
    datasets: Positional[tuple[Path, ...]],
    out: Annotated[Path, arg(aliases=["-o"])],
    sampling_weights: tuple[float, ...] | None = None,
    recipe: Literal["default", "standard", "laptop", "comparison", "gpu_30min", "paper"] = "standard",
    model: Literal["lightglue", "superglue"] | None = None,
    ablation: Ablation | None = None,
    deep_supervision: bool | None = None,
    preset: str | None = None,
    encoding: Encoding | None = None,
    start_from: str | None = None,
    pairs: int | None = None,
    confidence_pairs: int | None = None,
    batch_size: int | None = None,
    points: int | None = None,
    long_points: int | None = None,
    long_share: float | None = None,
    lengths: tuple[int, ...] | None = None,
    distillation: float | None = None,
    schedule: Literal["cosine", "paper"] | None = None,
    learning_rate: float | None = None,
    confidence_learning_rate: float | None = None,
    warmup_pairs: int | None = None,
    weight_decay: float | None = None,
    clip: float | None = None,
    negative_pair_ratio: float | None = None,
    ema: float | None = None,
    precision: Literal["auto", "bf16", "fp32"] | None = None,
    compile: bool | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int | None = None,
    draw_every: int | None = None,
    keep_every: int | None = None,
    seed: int | None = None,
) -> int:
    """Train a matcher on feature datasets, in two stages. Run again to go on after an interruption.

    Several processes: torchrun --nproc-per-node N -m lumiglue train DATASETS -o RUN. Flags that are not given are the
    recipe's.

    Args:
        datasets: The .h5 files of `lumiglue dataset homographies`, of one kind of features.
        out: Folder of the run: metrics.jsonl, curves.png, checkpoint.pt, weights.safetensors, and the like.
        sampling_weights: How often each dataset is drawn from, a number for each; equal by default.
        recipe: default (that of the matchers in this package: days of a CPU core), standard (about 80 minutes on two CPU
            cores), laptop (43 minutes on one), comparison (a short one that
            every matcher of docs/paper.md had), gpu_30min, or the paper's.
        model: LightGlue, or SuperGlue to compare it with.
        ablation: Of LightGlue, what to leave out, as in the paper's ablations.
        deep_supervision: Of LightGlue: every layer learns from the labels, or the last alone.
        preset: Size of the matcher: base, compact, or deep (narrow as compact, with the 9 layers of base). Weights of fewer
            layers are deepened.
        encoding: What the rotary encoding sees; by default log scale and angle where the features have them, else xy.
        start_from: Weights to fine-tune: a .safetensors file or the name of built-in ones.
        pairs: Pairs seen in stage 1 (correspondences).
        confidence_pairs: Pairs seen in stage 2 (exit classifier).
        batch_size: Pairs per step, of all processes together.
        points: Keypoints per image.
        long_points: Keypoints per image in the last part of stage 1 and in stage 2.
        long_share: How large that last part is (0.2).
        lengths: In place of both: numbers of keypoints per image, one step after another, again and again. A step of more
            keypoints has fewer pairs; batch_size is of the first number.
        distillation: Weight of the teacher's assignments of taught pairs, against their labels.
        schedule: Of the learning rate: cosine, or the paper's constant, then exponential.
        learning_rate: Its peak in stage 1.
        confidence_learning_rate: Its peak in stage 2.
        warmup_pairs: Pairs over which it rises to its peak in stage 1.
        weight_decay: Of AdamW, in stage 1.
        clip: Largest norm of a step's gradient.
        negative_pair_ratio: Share of negative pairs, of two different scenes.
        ema: Half-life, in pairs, of a running mean of the weights, kept if it measures better.
        precision: Of the forward and backward pass; auto measures which is faster on this machine.
        compile: Run the layers through torch.compile.
        evaluate_every: Validate each so many pairs.
        checkpoint_every: Write a checkpoint each so many pairs.
        draw_every: Draw held-out pairs with their matches each so many pairs.
        keep_every: Keep the weights so far in snapshots/ each so many pairs of stage 1.
        seed: Of the initial weights and the order of pairs.
    """
    from lumiglue.training import config
    from lumiglue.training.distributed import join_processes

    given = {name: value for name, value in locals().items() if name in config.TrainSettings.__dataclass_fields__}
    settings = replace(config.recipe(recipe), **{name: value for name, value in given.items() if value is not None})
    here = join_processes()
    try:
        return _train(datasets, out, sampling_weights, settings, here)
    except (LumiglueError, OSError):
        if here.is_first_to_fail():
            raise
        return 2
    finally:
        here.leave()


def _train(
    datasets: tuple[Path, ...],
    out: Path,
    sampling_weights: tuple[float, ...] | None,
    settings: "TrainSettings",
    here: "Processes",
) -> int:
    """The run of one process; the first of them speaks."""
    from lumiglue.training.figures import draw_learning_curves
    from lumiglue.training.loop import train as run_training
    from lumiglue.visualization import save_figure

    done, finished, note, pairs = 0, True, "", settings.pairs_before(settings.steps)
    with _asked_to_stop(here.count == 1) as stop, ProgressBar("steps", settings.steps) as advance:
        for now in run_training(datasets, out, settings, sampling_weights=sampling_weights, processes=here, stop=stop):
            finished = now.step == now.steps
            if not here.leads:
                continue
            if now.layers:
                last = now.layers[-1]
                note = f"recall {last['recall']:.1f} precision {last['precision']:.1f}"
                save_figure(draw_learning_curves(out / "metrics.jsonl"), out / "curves.png")
            left = timedelta(seconds=round((pairs - now.pairs) / now.pairs_per_second))
            line = f"loss {now.loss:.3f}  {now.pairs_per_second:.1f} pairs/s  {left} left  {note}"
            advance(now.step - done, line)
            done = now.step
            if now.layers and not err.is_terminal:
                err.print(f"{now.pairs} pairs: {line}")  # a line now and then for a log file
    if not here.leads:
        return 0 if finished else 130
    if not finished:
        err.print(f"stopped after step {done} of {settings.steps}; run the same command again to go on from there")
        return 130
    say(f"trained weights -> {out / 'weights.safetensors'}")
    return 0


@contextmanager
def _asked_to_stop(alone: bool) -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM ask to stop after the step; where the process is alone, a second one stops at once."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        asked.append(number)
        if alone:  # torchrun passes on the signal that its processes got already
            for known, handler in before.items():
                signal.signal(known, handler)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def dataset_posed(
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
    """Build a feature dataset from photos with known cameras and depth maps (docs/posed-data.md). Resumable.

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
    from lumiglue.system.device import usable_device
    from lumiglue.training.data.overlap import OverlapSettings
    from lumiglue.training.data.posed import PosedFrames
    from lumiglue.training.data.posed_formats import read_posed

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
    return write_dataset(source, out, features, max_keypoints, workers, where, "frames")


def dataset_from_colmap(
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
        out: Folder to write; `lumiglue dataset posed` reads it.
        min_track: Points seen in fewer photos are left out.
        max_error: Points with a larger mean reprojection error in pixels are left out.
        min_angle: Points seen under a smaller angle in degrees are left out.
        max_edge: Longest edge of a triangle that is filled, as a share of the photo's long side.
    """
    try:
        from lumiglue.training.data.from_colmap import SfmSettings, posed_from_sfm
    except ModuleNotFoundError as error:
        raise InputError(f"dataset from-colmap needs {error.name}; install it with `pip install lumiglue[sfm]`") from None

    settings = SfmSettings(min_track=min_track, max_error=max_error, min_angle=min_angle, max_edge=max_edge)
    known: list[float] = []
    missing: list[str] = []
    with ProgressBar("photos", None) as advance:
        for step in posed_from_sfm(model, images, out, settings):
            if step.known is None:
                missing.append(step.name)
            else:
                known.append(step.known)
            advance(1, f"{len(missing)} unreadable", step.photos)
    say(f"{len(known)} photos, depth on {sum(known) / len(known):.0%} of their pixels -> {out}")
    if missing:
        err.print(f"{len(missing)} photos could not be read and were left out; the first: {missing[0]}", markup=False)
    return 0
