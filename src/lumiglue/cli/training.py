"""`lumiglue bank` and `lumiglue train`."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from lumiglue.cli.terminal import Progress, err, say
from lumiglue.errors import InputError, LumiglueError
from lumiglue.matcher.settings import Ablation, Encoding

if TYPE_CHECKING:
    from lumiglue.training.bank import ViewSource
    from lumiglue.training.presets import TrainSettings
    from lumiglue.training.processes import Processes


def bank(
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    features: str = "sift",
    kind: Literal["homographies", "worlds"] = "homographies",
    rolls: Literal["any", "upright"] = "any",
    tilt: float | None = None,
    zoom: tuple[float, float] | None = None,
    spread: float | None = None,
    photometric: float | None = None,
    repeats: float | None = None,
    views: int = 6,
    worlds: int = 1500,
    max_keypoints: int = 512,
    long_side: int = 480,
    seed: int = 0,
    workers: int = 0,
    device: str | None = None,
) -> int:
    """Build a feature bank from a folder of photos: random views with known ground truth, and their features. Resumable.

    Args:
        photos: Folder, searched with its subfolders.
        out: The .h5 file to write.
        features: Local features: sift, aliked, or your own as file.py:Class or module:Class.
        kind: Views of each photo by homographies, or of worlds of planes and boxes that the photos paper.
        rolls: Homographies: in-plane rotations by any angle, or up to 45 degrees.
        tilt: Homographies: largest angle between camera axis and photo normal in degrees (60).
        zoom: Homographies: smallest and largest magnification (0.6 2.4).
        spread: Worlds: standard deviation in degrees of the direction from which a camera looks (18).
        photometric: Strength of the changes of light: 0 for none, 1 strong (homographies 1, worlds 0.7).
        repeats: Share of photos of which a part is made to repeat, as windows and wallpaper do (0).
        views: Views of each photo or world; any two are a training pair.
        worlds: How many worlds.
        max_keypoints: Keypoints kept per view.
        long_side: Long side of the views in pixels.
        seed: Of the random views.
        workers: Processes; 0 takes one per core.
        device: Where pixels and the networks of features are computed: cpu or cuda; by default the GPU if there is one.
    """
    from lumiglue.device import usable_device
    from lumiglue.training.homographies import PhotoViews, view_preset
    from lumiglue.training.worlds import Worlds, WorldSettings

    where = str(usable_device(device))
    of_kind: dict[str, dict[str, Any]] = {"homographies": {"tilt": tilt, "zoom": zoom}, "worlds": {"spread": spread}}
    for name, value in of_kind["worlds" if kind == "homographies" else "homographies"].items():
        if value is not None:
            raise InputError(f"--{name} is not of --kind {kind}; leave it out")
    given = {"photometric": photometric, "repeats": repeats, **of_kind[kind]}
    chosen = {name: value for name, value in given.items() if value is not None}
    if kind == "homographies":
        view = replace(view_preset(rolls), **chosen)
        source = PhotoViews.of_folder(photos, n_views=views, long_side=long_side, seed=seed, settings=view, device=where)
    else:
        size = (long_side, round(0.75 * long_side))
        world = WorldSettings(size=size, **chosen)
        source = Worlds.of_folder(photos, count=worlds, n_views=views, seed=seed, settings=world, device=where)
    unit = "photos" if kind == "homographies" else "worlds"
    return write_bank(source, out, features, max_keypoints, workers, where, unit)


def write_bank(
    source: "ViewSource", out: Path, features: str, max_keypoints: int, workers: int, device: str, unit: str
) -> int:
    """Builds a bank from any source, with a progress bar; `unit` names its items."""
    from lumiglue.extractors import create_extractor
    from lumiglue.training.building import BankSettings, build_bank

    extractor = create_extractor(features, device=device, max_keypoints=round(1.5 * max_keypoints), resize=None)
    settings = BankSettings(max_keypoints=max_keypoints)
    done, skipped = 0, ()
    with Progress(unit, None) as advance:
        for part in build_bank(source, out, extractor, settings, workers=workers):
            advance(part.items_done - done, f"{len(part.skipped)} unreadable", part.items)
            done, skipped = part.items_done, part.skipped
    say(f"{done - len(skipped)} {unit} -> {out}")
    if skipped:
        err.print(f"{len(skipped)} {unit} could not be read and were left out; the first: {skipped[0]}", markup=False)
    return 0


def train(
    banks: Positional[tuple[Path, ...]],
    out: Annotated[Path, arg(aliases=["-o"])],
    shares: tuple[float, ...] | None = None,
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
    negatives: float | None = None,
    ema: float | None = None,
    precision: Literal["auto", "bf16", "fp32"] | None = None,
    compile: bool | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int | None = None,
    draw_every: int | None = None,
    keep_every: int | None = None,
    seed: int | None = None,
) -> int:
    """Train a matcher on feature banks, in two stages. Run again to go on after an interruption.

    Several processes: torchrun --nproc-per-node N -m lumiglue train BANKS -o RUN. Flags that are not given are the recipe's.

    Args:
        banks: The .h5 files of `lumiglue bank`, of one kind of features.
        out: Folder of the run: metrics.jsonl, curves.png, checkpoint.pt, weights.safetensors, and the like.
        shares: How often each bank is drawn from, a number for each; equal by default.
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
        negatives: Share of pairs of two different scenes.
        ema: Half-life, in pairs, of a running mean of the weights, kept if it measures better.
        precision: Of the forward and backward pass; auto measures which is faster on this machine.
        compile: Run the layers through torch.compile.
        evaluate_every: Validate each so many pairs.
        checkpoint_every: Write a checkpoint each so many pairs.
        draw_every: Draw held-out pairs with their matches each so many pairs.
        keep_every: Keep the weights so far in snapshots/ each so many pairs of stage 1.
        seed: Of the initial weights and the order of pairs.
    """
    from lumiglue.training import presets
    from lumiglue.training.processes import join_processes

    given = {name: value for name, value in locals().items() if name in presets.TrainSettings.__dataclass_fields__}
    settings = replace(presets.recipe(recipe), **{name: value for name, value in given.items() if value is not None})
    here = join_processes()
    try:
        return _train(banks, out, shares, settings, here)
    except (LumiglueError, OSError):
        if here.is_first_to_fail():
            raise
        return 2
    finally:
        here.leave()


def _train(
    banks: tuple[Path, ...], out: Path, shares: tuple[float, ...] | None, settings: "TrainSettings", here: "Processes"
) -> int:
    """The run of one process; the first of them speaks."""
    from lumiglue.training.loop import train as run_training
    from lumiglue.visualization import draw_learning_curves, save_figure

    done, finished, note, pairs = 0, True, "", settings.pairs_before(settings.steps)
    with _asked_to_stop(here.count == 1) as stop, Progress("steps", settings.steps) as advance:
        for now in run_training(banks, out, settings, shares=shares, processes=here, stop=stop):
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
