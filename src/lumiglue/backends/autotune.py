"""Which backend and precision match fastest on this machine: measured once, then remembered."""

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
    """The name of the matcher that takes least for a pair of 1024 points.

    makers: what opens each matcher; they are run in turns, a few seconds in all. about: what the answer depends on beside
    the processor, PyTorch's threads, versions and `config`; the answer is kept under all of that in the cache folder.
    """
    if len(makers) == 1:
        return next(iter(makers))
    file, key = cache_folder() / "backends.json", _key([config.__class__.__name__, asdict(config), *about, sorted(makers)])
    known = _read(file)
    for name in makers:
        if name == known.get(key):
            return name
    seconds = _race({name: make() for name, make in makers.items()}, config)
    best = min(seconds, key=lambda name: seconds[name])
    shown = ", ".join(f"{name} {1000 * took:.0f} ms" for name, took in seconds.items())
    _log.info("a pair of %d points: %s; %s is used here from now on (%s)", _POINTS, shown, best, file)
    _write(file, {**known, key: best})
    return best


def default_precision(device: torch.device) -> Precision:
    """bf16 where the device multiplies it faster (`faster_precision`), else fp32. What must be measured is measured once a
    machine, so that its matches are the same each time."""
    if device.type != "cpu" or multiplies_tiles():
        return faster_precision(device)
    file, key = cache_folder() / "backends.json", _key(["precision"])
    known = _read(file)
    for precision in get_args(Precision):
        if precision == known.get(key):
            return precision
    chosen = faster_precision(device)
    _write(file, {**known, key: chosen})
    return chosen


def about_matching(settings: MatchSettings, precision: Precision) -> list[object]:
    """What a backend's time depends on beside the model."""
    return [asdict(settings), precision]


def _race(matchers: Mapping[Name, Match], config: LightGlueConfig) -> dict[Name, float]:
    pair = (_random_features(0, config), _random_features(1, config))
    seconds: dict[Name, list[float]] = {name: [] for name in matchers}
    for _ in range(_ROUNDS + 1):
        for name, match in matchers.items():
            start = time.perf_counter()
            match([pair])
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def _random_features(seed: int, config: LightGlueConfig) -> Features:
    generator = torch.Generator().manual_seed(seed)
    descriptors = torch.randn(_POINTS, config.descriptor_dim, generator=generator)
    return Features(
        keypoints=torch.rand(_POINTS, 2, generator=generator) * 479,
        descriptors=torch.nn.functional.normalize(descriptors, dim=1),
        image_size=(480, 480),
        scales=1 + torch.rand(_POINTS, generator=generator),
        orientations=torch.rand(_POINTS, generator=generator),
        extractor=config.extractor,
    )


def _key(about: Sequence[object]) -> str:
    versions = [_version(name) for name in ("torch", "onnxruntime", "openvino", "lumiglue")]
    everything: list[Any] = [machine(), torch.get_num_threads(), versions, *about]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _read(file: Path) -> dict[str, str]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(file: Path, known: Mapping[str, str]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, shared=True) as unfinished:
            unfinished.write_text(json.dumps(known, indent=1))
    except OSError as error:
        _log.warning("%s cannot be written (%s), so this is measured again next time", file, error.strerror)
