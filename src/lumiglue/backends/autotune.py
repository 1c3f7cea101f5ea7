"""Which backend and precision match fastest on this machine: measured once, then read from the cache folder."""

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch

from lumiglue.io.atomic import replacing
from lumiglue.matcher.lightglue import LightGlueConfig
from lumiglue.matcher.precision import faster_precision, multiplies_tiles
from lumiglue.matcher.settings import MatchSettings, Precision
from lumiglue.system.cache import cache_folder
from lumiglue.system.device import machine
from lumiglue.types import Features, Matches

Match = Callable[[Sequence[tuple[Features, Features]]], list[Matches]]
Name = TypeVar("Name", bound=str)
_log = logging.getLogger(__name__)
_POINTS, _ROUNDS = 1024, 5


def autotune(makers: Mapping[Name, Callable[[], Match]], config: LightGlueConfig, about: Sequence[object]) -> Name:
    """Finds the matcher that takes the least time for a pair of 1,024 points each.

    Args:
        makers: For each name a function that opens a matcher. The matchers run in turns, a few seconds in all.
        config: The config of the matcher.
        about: JSON values on which the answer depends besides the processor, PyTorch's threads, versions and `config`. The
            answer is cached under all of these.

    Returns:
        The name of the fastest matcher.
    """
    if len(makers) == 1:
        return next(iter(makers))
    everything = [config.__class__.__name__, asdict(config), *about, sorted(makers)]
    file, key = cache_folder() / "backends.json", _key(everything, torch.get_num_threads())
    cached = _read(file)
    for name in makers:
        if name == cached.get(key):
            return name
    seconds = _race({name: make() for name, make in makers.items()}, config)
    best = min(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {1000 * taken:.0f} ms" for name, taken in seconds.items())
    _log.info("a pair of %d points: %s; %s is used from now on (%s)", _POINTS, times, best, file)
    _write(file, {**cached, key: best})
    return best


def default_precision(device: torch.device) -> Precision:
    """bf16 if the device multiplies it faster (`faster_precision`), else fp32.

    A machine is measured once, on one thread, and the answer is cached, so that its matches are the same each time, with any
    number of threads.
    """
    if device.type != "cpu" or multiplies_tiles():
        return faster_precision(device)
    file, key = cache_folder() / "backends.json", _key(["precision"], threads=None)
    cached = _read(file)
    for precision in get_args(Precision):
        if precision == cached.get(key):
            return precision
    faster = faster_precision(device)
    _write(file, {**cached, key: faster})
    return faster


def about_matching(settings: MatchSettings, precision: Precision) -> list[object]:
    """What the time of a backend depends on besides the model."""
    return [asdict(settings), precision]


def _race(matchers: Mapping[Name, Match], config: LightGlueConfig) -> dict[Name, float]:
    first, second = (random_features(_POINTS, config.descriptor_dim, seed, config.extractor) for seed in (0, 1))
    seconds: dict[Name, list[float]] = {name: [] for name in matchers}
    for _ in range(_ROUNDS + 1):
        for name, match in matchers.items():
            start = time.perf_counter()
            match([(first, second)])
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def random_features(n: int, channels: int, seed: int, extractor: str = "") -> Features:
    """n random keypoints with unit descriptors in an image of 480 x 480 pixels."""
    generator = torch.Generator().manual_seed(seed)
    descriptors = torch.randn(n, channels, generator=generator)
    return Features(
        keypoints=torch.rand(n, 2, generator=generator) * 479,
        descriptors=torch.nn.functional.normalize(descriptors, dim=1),
        image_size=(480, 480),
        scales=1 + torch.rand(n, generator=generator),
        orientations=torch.rand(n, generator=generator),
        scores=torch.rand(n, generator=generator),
        extractor=extractor,
    )


def _key(about: Sequence[object], threads: int | None) -> str:
    versions = [_version(name) for name in ("torch", "onnxruntime", "openvino", "lumiglue")]
    everything: list[Any] = [machine(), threads, versions, *about]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _read(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(file: Path, content: Mapping[str, str]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, shared=True) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1))
    except OSError as error:
        _log.warning("%s cannot be written (%s), so backends are measured again next time", file, error.strerror)
