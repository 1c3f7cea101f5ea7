"""`lumiglue train`."""

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
    recipe: Literal["default", "standard", "laptop", "comparison", "gpu_30min", "paper"] = "standard",
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
            core), laptop (43 minutes on one), comparison (a short one, used for every matcher in
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
