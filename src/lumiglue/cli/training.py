"""`lumiglue train` and `lumiglue compress`."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import make_dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from tyro.conf import OmitArgPrefixes, Positional, arg

from lumiglue.cli.help import explained_fields
from lumiglue.cli.terminal import ProgressBar, err, say
from lumiglue.errors import LumiglueError
from lumiglue.training import config

if TYPE_CHECKING:
    from lumiglue.training.distributed import Processes


def _optional(settings: type) -> type:
    """The same fields without defaults of their own: a flag that is not given is None, and the recipe decides."""
    fields = [(name, hint | None, None) for name, hint in get_type_hints(settings).items()]
    return make_dataclass(settings.__name__, fields, kw_only=True, namespace={"__doc__": settings.__doc__})


def train(
    datasets: Positional[tuple[Path, ...]],
    out: Annotated[Path, arg(aliases=["-o"])],
    sampling_weights: tuple[float, ...] | None = None,
    recipe: Literal["default", "finetune", "student", "standard", "laptop", "comparison", "gpu_30min", "paper"] = "standard",
    *,
    settings: Annotated[Any, OmitArgPrefixes, arg(constructor=explained_fields(_optional(config.TrainSettings)))],
) -> int:
    """Train a matcher on feature datasets, in two stages. Run again to resume after an interruption.

    To use several processes: torchrun --nproc-per-node N -m lumiglue train DATASETS -o RUN. The recipe decides the flags
    that are not given.

    Args:
        datasets: The .h5 files of `lumiglue dataset`, all with the same features.
        out: Folder of the run: metrics.jsonl, curves.png, checkpoint.pt, weights.safetensors, and more.
        sampling_weights: How often each dataset is sampled, one number per dataset; equal by default.
        recipe: standard (about 80 minutes on two CPU cores), default (150,000 pairs, up to 2,048 points: days on a CPU
            core), finetune (an hour on one, for `--start-from`), student (five hours on two, follows the teacher
            `aliked-lightglue`), laptop (43 minutes on one), comparison (a short one, used for every matcher in
            docs/paper.md), gpu_30min, or paper (the paper's).
        settings: Values that differ from the recipe.
    """
    from lumiglue.training.distributed import join_processes

    changes = {name: value for name, value in vars(settings).items() if value is not None}
    here = join_processes()
    try:
        return _train(datasets, out, sampling_weights, config.recipe(recipe, **changes), here)
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
    settings: config.TrainSettings,
    here: "Processes",
) -> int:
    """The run of one process; only the first one prints."""
    from lumiglue.training.figures import draw_learning_curves
    from lumiglue.training.loop import train as run_training
    from lumiglue.visualization import save_figure

    done, finished, note, pairs = 0, True, "", settings.pairs_before(settings.steps)
    with _stop_on_signal(here.count == 1) as stop, ProgressBar("steps", settings.steps) as advance:
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
                err.print(f"{now.pairs} pairs: {line}")  # for log files
    if not here.leads:
        return 0 if finished else 130
    if not finished:
        err.print(f"stopped after step {done} of {settings.steps}; run the same command again to resume")
        return 130
    say(f"trained weights -> {out / 'weights.safetensors'}")
    return 0


def compress(
    weights: Positional[str],
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    width: int = 128,
    pairs: int = 2000,
    features: str | None = None,
    max_keypoints: int = 1024,
    neighbours: int = 6,
    seed: int = 0,
    workers: int = 0,
) -> int:
    """Make a LightGlue narrower with your photos. Resumable.

    Its states are sliced onto their main directions; then the original teaches the result. Prints how much of the
    original's matches it keeps, and how much faster it is, before and after.

    Args:
        weights: The matcher to compress: a name, a .safetensors file, or a released LightGlue checkpoint.
        photos: Folder of folders, each of which has overlapping photos of one scene.
        out: The .safetensors file to write. OUT.run beside it has the dataset and the training run.
        width: Channels of the states; the paper's model has 256.
        pairs: Pairs of photos seen in training; 0 only slices.
        features: Features of the matcher, if its file does not state them (a released checkpoint does not).
        max_keypoints: Largest number of keypoints per photo.
        neighbours: Each photo is paired with this many of the most similar photos of its scene.
        seed: Seed of everything random.
        workers: Number of processes that extract and match; 0 uses one per core.
    """
    from lumiglue.cli.dataset import DatasetFlags
    from lumiglue.io.atomic import write_whole
    from lumiglue.training.compression import compare, sample_pairs
    from lumiglue.training.data.dataset import FeatureDataset
    from lumiglue.training.data.teacher import Teacher
    from lumiglue.training.data.teaching import TaughtPhotos
    from lumiglue.training.distributed import Processes
    from lumiglue.training.slicing import check_width, sliced
    from lumiglue.weights.files import load_weights, read_metadata, save_weights

    teacher = Teacher.named(weights, features, max_keypoints=max_keypoints)
    original = teacher.model()
    check_width(original, width)
    run = out.with_name(out.name + ".run")
    flags = DatasetFlags(features=teacher.features, max_keypoints=max_keypoints, long_side=640, seed=seed, workers=workers)
    source = TaughtPhotos.of_folder(photos, teacher, neighbours=neighbours, long_side=flags.long_side, seed=seed)
    run.mkdir(parents=True, exist_ok=True)
    flags.build(source, run / "taught.h5", "scenes", lacks="have no overlapping pair")
    dataset, points = FeatureDataset(run / "taught.h5"), max_keypoints // 2
    training, start = run / f"training-{width}", run / f"sliced-{width}.safetensors"
    record = {"sliced_from": teacher.plan(), "width": width, "photos_sha256": source.plan()["photos_sha256"]}
    if not start.exists() or any(read_metadata(start)[1].get(key) != value for key, value in record.items()):
        say(f"slicing {original.config.d} channels to {width}")
        save_weights(sliced(original, width, sample_pairs(dataset, original, points, "training")), start, record)
    stages, final = {"sliced": start}, start
    if pairs:
        settings = config.recipe(
            "default", preset="same", start_from=str(start), pairs=pairs, confidence_pairs=max(pairs // 8, 1), batch_size=4,
            lengths=(points, points, points, max_keypoints), learning_rate=5e-4, warmup_pairs=pairs // 10, ema=pairs / 8,
            evaluate_every=max(pairs // 4, 1), checkpoint_every=100, seed=seed,
        )  # fmt: skip
        if (code := _train((run / "taught.h5",), training, None, settings, Processes())) != 0:
            return code
        stages["healed"] = final = training / "weights.safetensors"
    write_whole(out, final.read_bytes())
    small = {name: load_weights(path) for name, path in stages.items()}
    found = compare(original, small, sample_pairs(dataset, original, points, "validation"))
    before = sum(p.numel() for p in original.parameters())
    say(f"{before / 1e6:.1f} M parameters -> {found['sliced'].parameters / 1e6:.1f} M; on held-out pairs:")
    for name, like in found.items():
        shares = f"{like.kept:.0%} of the original's matches, {like.shared:.0%} of its own are the original's"
        say(f"{name}: {shares}, {like.faster:.1f} times as fast")
    say(f"compressed weights -> {out}")
    return 0


@contextmanager
def _stop_on_signal(alone: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the run after the current step; if the process is alone, a second one ends it at once."""
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        if alone:  # torchrun forwards the signal that its processes have received already
            restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, receive)
    try:
        yield lambda: bool(received)
    finally:
        restore()
