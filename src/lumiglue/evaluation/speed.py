"""Speed of matchers, which take turns in one process, and their memory.

In each round every contender matches the same input, in an order that rotates. A ratio is the median over the rounds of the
two times in the same round, so that a machine that slows down slows both. All contenders have the same weights.
"""

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Literal

import torch

from lumiglue.backends.autotune import random_features
from lumiglue.errors import InputError
from lumiglue.evaluation.contenders import Job, Pairs, contenders, matches_of
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.models import PRESETS
from lumiglue.matcher.settings import MatchSettings
from lumiglue.system.device import peak_memory
from lumiglue.types import Features

FULL = MatchSettings(exit_ratio=0, prune_below=0)
DESCRIPTOR_DIM = 128
PRODUCT = 2048  # side of the square matrices whose product is timed
Clock = Literal["wall", "processor"]
# A matcher, what it is to match, and that in words.
MatchingJob = tuple[LightGlue, list[tuple[Features, Features]], str]


@dataclass(frozen=True)
class Timing:
    """One contender at one size.

    Attributes:
        name: The contender.
        milliseconds: Time of each round, for the whole batch.
        ratio: Its time over Lumiglue's: median, lowest and highest of the rounds. Above 1 it is slower.
    """

    name: str
    milliseconds: list[float]
    ratio: tuple[float, float, float]

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)


def operations(config: LightGlueConfig, n: int, m: int | None = None, *, folded: bool = False) -> float:
    """Counts the floating-point operations of a pair at full depth, two for each multiplication of a product.

    A layer has linear maps of 19 d^2 per point (q, k, v, out, MLP; one key, v, out, MLP) and attention of 4 d (n^2 + m^2)
    inside the images and 6 d n m between them; then there is the last head.

    Args:
        config: The matcher's size.
        n: Keypoints of image 0.
        m: Keypoints of image 1; by default as many.
        folded: Without the projections of the messages, 2 d^2 per point, which can be multiplied into the MLP
            (`matcher.execution.fold_message`).

    Returns:
        The number of operations.
    """
    m = n if m is None else m
    d, linear = config.d, 2 * (n + m)
    layer = linear * (17 if folded else 19) * d * d + 4 * d * (n * n + m * m) + 6 * d * n * m
    return config.n_layers * layer + linear * (d * d + config.descriptor_dim * d) + 2 * d * n * m


def matmul_peak(dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """Operations per second of a large matrix product: the best of 5 rounds, or of fewer where one takes long, as bfloat16
    does on processors without it."""
    size = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        _finish()
        start = time.perf_counter()
        torch.mm(a, b)
        _finish()
        times.append(time.perf_counter() - start)
        if len(times) > 1 and sum(times) > 1:
            break
    return 2 * size**3 / min(times[1:])


def check_device(device: str) -> None:
    """Raises InputError if PyTorch cannot compute on the device."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ImportError):
        raise InputError(f"there is no device {device!r} here; leave it out, or install PyTorch for it") from None


def _finish() -> None:
    """Waits until the GPU is idle."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def random_matcher(preset: str, seed: int = 0) -> LightGlue:
    """A matcher of a preset's size with random weights; the cost of full depth does not depend on them. Raises InputError if
    there is no such preset."""
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}; choose from {sorted(PRESETS)}")
    size = PRESETS[preset]
    torch.manual_seed(seed)
    config = LightGlueConfig(
        descriptor_dim=DESCRIPTOR_DIM, project_input=size.d != DESCRIPTOR_DIM, d=size.d, heads=size.heads,
        n_layers=size.n_layers,
    )  # fmt: skip
    return LightGlue(config).eval()


def random_job(preset: str, n: int, batch: int = 1, device: str = "cpu") -> MatchingJob:
    """A random matcher, `batch` pairs to match, and a description. Each image has n keypoints, or with several pairs n / 2
    to n."""
    sizes = [n] if batch == 1 else [n // 2 + (n - n // 2) * k // (2 * batch - 1) for k in range(2 * batch)]
    images = [random_features(sizes[k % len(sizes)], DESCRIPTOR_DIM, k).to(device) for k in range(2 * batch)]
    pairs = list(zip(images[0::2], images[1::2], strict=True))
    points = f"{n} x {n} points" if batch == 1 else f"{batch} pairs of {n // 2} to {n} points"
    return random_matcher(preset).to(device), pairs, f"{preset}, full depth, {points}"


def trained_job(weights: str, n: int, device: str = "cpu") -> MatchingJob:
    """Trained weights for SIFT, the sample photos with at most n keypoints each, and a description. Raises InputError if the
    weights are for other features."""
    from lumiglue.pipeline.pipeline import Pipeline
    from lumiglue.samples import sample_pair

    pipeline = Pipeline.pretrained("sift", max_keypoints=n, resize=None, weights=weights, device=device, precision="fp32")
    sample = sample_pair()
    pair = pipeline.extract(sample.image0).to(device), pipeline.extract(sample.image1).to(device)
    model = pipeline.matcher
    if not isinstance(model, LightGlue):
        raise InputError(f"{weights!r} is not a LightGlue for SIFT")
    layers = f"{model.match(pack([pair], model.config))[0].stop_layer} of {model.config.n_layers} layers"
    return model, [pair], f"{weights}, adaptive, {len(pair[0])} x {len(pair[1])} points, {layers}"


def race(jobs: Mapping[str, Job], rounds: int, clock: Clock = "wall") -> list[Timing]:
    """Times jobs in turns, after one round that does not count. Ratios are to the first job. clock: of the wall, or the time
    of the processor in all threads of this process, which other programs disturb less."""
    now = time.perf_counter if clock == "wall" else time.process_time
    names = list(jobs)
    times: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                _finish()
                start = now()
                jobs[name]()
                _finish()
                times[name].append(1000 * (now() - start))
    counted = {name: values[1:] for name, values in times.items()}
    timings = []
    for name in names:
        ratios = sorted(mine / ours for mine, ours in zip(counted[name], counted[names[0]], strict=True))
        timings.append(Timing(name, counted[name], (statistics.median(ratios), ratios[0], ratios[-1])))
    return timings


@dataclass(frozen=True)
class Row:
    """One contender under one condition, as `lumiglue bench -o` writes it.

    Attributes:
        condition: What was matched: weights, depth, size.
        points: Keypoints of each image that were asked for.
        busy: Busy programs beside it.
        contender: The contender.
        milliseconds: Time of each round, for all pairs.
        ratio: Its time over the first contender's: median, lowest and highest of the rounds. Above 1 it is slower.
        pairs: Number of pairs.
        matches: Matches of all pairs; None if the pairs are random points.
        same: Matches in common with the first contender, as a share of those that either has.
        inliers: Matches that agree with a fundamental matrix, of all pairs, end to end.
        products: Share of the rate of a large float32 product of the same round; None if adaptive.
    """

    condition: str
    points: int
    busy: int
    contender: str
    milliseconds: list[float]
    ratio: tuple[float, float, float]
    pairs: int
    matches: int | None = None
    same: float | None = None
    inliers: int | None = None
    products: float | None = None


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """Inside, so many programs use a core each."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def compare(
    jobs: Mapping[str, Job], config: LightGlueConfig, pairs: Pairs, condition: str, points: int, rounds: int, *,
    full: bool, random: bool = False, busy: int = 0, clock: Clock = "wall",
) -> list[Row]:  # fmt: skip
    """Times matchers in turns with each other and with a large product.

    Args:
        jobs: Matchers by name, of `contenders`; the first is compared with.
        config: Size of the matcher.
        pairs: What they match.
        condition: For the rows, like `points`.
        points: Keypoints of each image.
        rounds: How often each is timed.
        full: Whether they run all layers with all points, so that the operations are known.
        random: Whether the points are random, so that matches mean nothing.
        busy: Busy programs beside it.
        clock: See `race`.

    Returns:
        A row for each job.
    """
    device = pairs[0][0].keypoints.device
    size = PRODUCT if device.type == "cpu" else 4 * PRODUCT
    a = torch.randn(size, size, device=device)
    with torch.inference_mode():
        found = {} if random else {name: matches_of(job()) for name, job in jobs.items()}
    with busy_programs(busy):
        timings = race({**jobs, "": lambda: a @ a}, rounds, clock)
    work = sum(operations(config, len(x), len(y), folded=True) for x, y in pairs)
    rows = []
    for timing in timings[:-1]:
        shares = [work / mine / (2 * size**3 / product) for mine, product in
                  zip(timing.milliseconds, timings[-1].milliseconds, strict=True)]  # fmt: skip
        mine, first = (found.get(name, set()) for name in (timing.name, timings[0].name))
        rows.append(
            Row(condition, points, busy, timing.name, timing.milliseconds, timing.ratio, len(pairs),
                matches=None if random else len(mine),
                same=None if random else len(mine & first) / max(len(mine | first), 1),
                products=statistics.median(shares) if full else None)
        )  # fmt: skip
    return rows


def memory_of_a_match(name: str, preset: str, n: int, device: str = "cpu") -> float:
    """MiB that a match of n keypoints each at full depth adds to a process of its own, or to the GPU, at its peak."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_memory_of_a_match, name, preset, n, device).result()


def _memory_of_a_match(name: str, preset: str, n: int, device: str) -> float:
    model = random_matcher(preset).to(device)
    small, large = (random_job(preset, size, device=device)[1] for size in (64, n))
    with torch.inference_mode():
        contenders([name], model, small, FULL)[name]()
        job = contenders([name], model, large, FULL)[name]
        gc.collect()
        before = _highest_memory(device)
        job()
        return (_highest_memory(device) - before) / 2**20


def _highest_memory(device: str) -> int:
    """Bytes."""
    return peak_memory() if device == "cpu" else torch.cuda.max_memory_allocated(device)
