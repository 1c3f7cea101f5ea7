"""How fast matchers are, in turns in one process, and how much memory each takes.

Every contender of a round matches the same input; the order turns from round to round. A ratio is the median over the rounds
of their times in the same round, so that a machine that slows down slows both. Ours, kornia's and the exports have the same
weights; transformers' model has random ones of the same size, which cost the same at full depth.
"""

import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch import nn

from lumiglue.errors import InputError
from lumiglue.many import FeatureCache, match_in_threads, pool
from lumiglue.matcher.graphs import replay_layers
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.precision import set_precision
from lumiglue.matcher.presets import PRESETS
from lumiglue.matcher.settings import MatchSettings
from lumiglue.types import Features, Matches

FULL = MatchSettings(exit_ratio=None, prune_below=None)
OURS = "lumiglue"
DESCRIPTOR_DIM = 128
Job = Callable[[], object]
# A matcher, what it is to match, and that in words.
MatchingJob = tuple[LightGlue, list[tuple[Features, Features]], str]
_ON_A_CPU = {"in threads", "bf16 in threads", "onnxruntime", "int8", "openvino", "openvino bf16"}
_NOT_ON_A_CPU = {"kornia half", "graphs", "bf16 graphs"}


@dataclass(frozen=True)
class Timing:
    """One contender at one size. milliseconds: of each round, for the whole batch. ratio: its time over ours, median, and
    lowest and highest of the rounds; above 1 it is slower."""

    name: str
    milliseconds: list[float]
    ratio: tuple[float, float, float]

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)


def operations(config: LightGlueConfig, n: int) -> float:
    """Floating-point operations of a pair of n points each at full depth: 2 for each multiplication of a product.

    A layer has linear maps of 19 d^2 a point (q, k, v, out, MLP; one key, v, out, MLP) and attention of 14 d n^2 (self 4 for
    each image, bidirectional cross 6); then there is the last head.
    """
    d, linear = config.d, 2 * (2 * n)
    layer = linear * 19 * d * d + 14 * d * n * n
    return config.n_layers * layer + linear * (d * d + config.descriptor_dim * d) + 2 * d * n * n


def matmul_peak(dtype: torch.dtype = torch.float32, device: str = "cpu", rounds: int = 5) -> float:
    """Operations a second of a large matrix product there, the best of some rounds: of fewer where one takes long,
    as bfloat16 does on processors that lack it."""
    size = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(rounds + 1):
        _finish()
        start = time.perf_counter()
        torch.mm(a, b)
        _finish()
        times.append(time.perf_counter() - start)
        if len(times) > 1 and sum(times) > 1:
            break
    return 2 * size**3 / min(times[1:])


def check_device(device: str) -> None:
    """Raises InputError where this PyTorch cannot compute on the device."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ImportError):
        raise InputError(f"there is no device {device!r} here; leave it out, or install PyTorch for it") from None


def _finish() -> None:
    """Waits for what the GPU was asked for."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def random_features(n: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        keypoints=torch.rand(n, 2, generator=generator) * 479,
        descriptors=nn.functional.normalize(torch.randn(n, DESCRIPTOR_DIM, generator=generator), dim=1),
        image_size=(480, 480),
        scores=torch.rand(n, generator=generator),
    )


def random_matcher(preset: str, seed: int = 0) -> LightGlue:
    """The preset with random weights; what full depth costs does not depend on them."""
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
    """A random matcher and what it is to match; several pairs have unequal numbers of points, half of n to n."""
    sizes = [n] if batch == 1 else [n // 2 + (n - n // 2) * k // (2 * batch - 1) for k in range(2 * batch)]
    images = [random_features(sizes[k % len(sizes)], k).to(device) for k in range(2 * batch)]
    pairs = list(zip(images[0::2], images[1::2], strict=True))
    points = f"{n} x {n} points" if batch == 1 else f"{batch} pairs of {n // 2} to {n} points"
    return random_matcher(preset).to(device), pairs, f"{preset}, full depth, {points}"


def trained_job(weights: str, n: int, device: str = "cpu") -> MatchingJob:
    """Trained weights and the sample photos, n points at most each. Raises InputError where the weights are not for SIFT."""
    from lumiglue.pipeline import Pipeline
    from lumiglue.samples import sample_pair

    pipeline = Pipeline.pretrained("sift", max_keypoints=n, resize=None, weights=weights, device=device, precision="fp32")
    sample = sample_pair()
    pair = pipeline.extract(sample.image0).to(device), pipeline.extract(sample.image1).to(device)
    model = pipeline.matcher
    if not isinstance(model, LightGlue):
        raise InputError(f"{weights!r} is not a LightGlue for SIFT")
    found = model.match(pack([pair], model.config))[0]
    note = (
        f"{weights}, adaptive, {len(pair[0])} x {len(pair[1])} points, {found.stop_layer} of {model.config.n_layers} layers"
    )
    return model, [pair], note


def contenders(
    names: Sequence[str], model: LightGlue, pairs: Sequence[tuple[Features, Features]], settings: MatchSettings
) -> dict[str, Job]:
    """Jobs that match all pairs where the model is, ours in one batch, the others one by one as they offer it.

    Names: "lumiglue", "lumiglue bf16", "one by one" (ours without batches), "in threads" (each pair in a thread of its own,
    as `Pipeline.match_many` does on a CPU), "bf16 in threads", "compiled" (layers by torch.compile), "bf16 compiled",
    "graphs" and "bf16 graphs" (CUDA graphs of single pairs, on a GPU), "onnxruntime", "openvino", "openvino bf16", "int8"
    (ONNX Runtime), "kornia", "kornia half" (its mixed precision, on a GPU), "transformers". Raises InputError for an unknown
    name, for one that the device has not, and for a missing package.
    """
    makers: dict[str, Callable[[], Job]] = {
        OURS: lambda: _ours(model, pairs, settings),
        "lumiglue bf16": lambda: _ours(_in_bf16(model), pairs, settings),
        "one by one": lambda: _one_by_one(model, pairs, settings),
        "compiled": lambda: _compiled(_copied(model), pairs, settings),
        "bf16 compiled": lambda: _compiled(_in_bf16(model), pairs, settings),
        "graphs": lambda: _replayed(_copied(model), pairs, settings),
        "bf16 graphs": lambda: _replayed(_in_bf16(model), pairs, settings),
        "in threads": lambda: _in_threads(model, pairs, settings),
        "bf16 in threads": lambda: _in_threads(_in_bf16(model), pairs, settings),
        "onnxruntime": lambda: _exported(model, pairs, settings, "onnxruntime"),
        "int8": lambda: _exported(model, pairs, settings, "onnxruntime", int8=True),
        "openvino": lambda: _exported(model, pairs, settings, "openvino"),
        "openvino bf16": lambda: _exported(model, pairs, settings, "openvino", bf16=True),
        "kornia": lambda: _kornia(model, pairs, settings),
        "kornia half": lambda: _kornia(model, pairs, settings, half=True),
        "transformers": lambda: _transformers(model, pairs, settings),
    }
    if unknown := [name for name in names if name not in makers]:
        raise InputError(f"unknown contender {unknown[0]!r}; choose from {list(makers)}")
    for name in names:
        if name in (_NOT_ON_A_CPU if _device(model).type == "cpu" else _ON_A_CPU):
            raise InputError(f"{name!r} does not run on a {_device(model).type}; leave it out")
    return {name: makers[name]() for name in names}


def race(jobs: Mapping[str, Job], rounds: int) -> list[Timing]:
    """Times the jobs in turns, after one round that does not count. The first is what the ratios are to."""
    names = list(jobs)
    times: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                _finish()
                start = time.perf_counter()
                jobs[name]()
                _finish()
                times[name].append(1000 * (time.perf_counter() - start))
    counted = {name: values[1:] for name, values in times.items()}
    found = []
    for name in names:
        ratios = sorted(mine / ours for mine, ours in zip(counted[name], counted[names[0]], strict=True))
        found.append(Timing(name, counted[name], (statistics.median(ratios), ratios[0], ratios[-1])))
    return found


def peak_memory(name: str, preset: str, n: int, device: str = "cpu") -> float:
    """MiB that one match of n x n points at full depth adds to a process of its own, or to the GPU, at its highest."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak_memory, name, preset, n, device).result()


def _peak_memory(name: str, preset: str, n: int, device: str) -> float:
    model = random_matcher(preset).to(device)
    small, large = ([(random_features(size, 0).to(device), random_features(size, 1).to(device))] for size in (64, n))
    with torch.inference_mode():
        contenders([name], model, small, FULL)[name]()
        job = contenders([name], model, large, FULL)[name]
        gc.collect()
        before = _highest_memory(device)
        job()
        return (_highest_memory(device) - before) / 2**20


def _highest_memory(device: str) -> int:
    """Bytes."""
    if device == "cpu":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return torch.cuda.max_memory_allocated(device)


def _ours(model: LightGlue, pairs: Sequence[tuple[Features, Features]], settings: MatchSettings) -> Job:
    return lambda: model.match(pack(pairs, model.config), settings)


def _one_by_one(model: LightGlue, pairs: Sequence[tuple[Features, Features]], settings: MatchSettings) -> Job:
    return lambda: [model.match(pack([pair], model.config), settings) for pair in pairs]


def _replayed(model: LightGlue, pairs: Sequence[tuple[Features, Features]], settings: MatchSettings) -> Job:
    replay_layers(model)
    return _one_by_one(model, pairs, settings)


def _in_threads(model: LightGlue, pairs: Sequence[tuple[Features, Features]], settings: MatchSettings) -> Job:
    def match(some: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return model.match(pack(some, model.config), settings)

    def job() -> list[Matches]:
        workers = torch.get_num_threads()
        with pool(workers, one_thread_each=workers > 1) as threads:
            cache = FeatureCache[Features](lambda features: features, threads, 2, lambda _: None)
            found = match_in_threads(pairs, cache, match, None, workers)
            return [matched.matches for matched in found if matched is not None]

    return job


def _compiled(copy: LightGlue, pairs: Sequence[tuple[Features, Features]], settings: MatchSettings) -> Job:
    for layer in copy.layers:
        layer.compile(dynamic=True)
    copy.match(pack(pairs, copy.config), settings)  # compiled before the clock runs
    return _ours(copy, pairs, settings)


def _in_bf16(model: LightGlue) -> LightGlue:
    copy = _copied(model)
    set_precision(copy, "bf16")
    return copy


def _copied(model: LightGlue) -> LightGlue:
    copy = LightGlue(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.eval().to(_device(model))


def _device(model: LightGlue) -> torch.device:
    return next(model.parameters()).device


def _exported(
    model: LightGlue,
    pairs: Sequence[tuple[Features, Features]],
    settings: MatchSettings,
    runtime: str,
    *,
    bf16: bool = False,
    int8: bool = False,
) -> Job:
    from lumiglue.extras import require

    require("onnx_ir", runtime)
    from lumiglue.onnx.runtime import OnnxMatcher

    matcher = OnnxMatcher(
        model,
        "openvino" if runtime == "openvino" else "onnxruntime",
        precision="bf16" if bf16 else "fp32",
        quantized=int8,
    )
    matcher.match_features(pairs[:1], settings)  # exported and compiled before the clock runs
    return lambda: matcher.match_features(pairs, settings)


def _kornia(
    model: LightGlue, pairs: Sequence[tuple[Features, Features]], settings: MatchSettings, *, half: bool = False
) -> Job:
    """kornia's LightGlue with our weights, under the released names."""
    try:
        from kornia.feature import LightGlue as Kornia
    except ImportError:
        raise InputError("this needs kornia; pip install 'lumiglue[eval]'") from None
    from lumiglue.released import released_names

    config = model.config
    theirs = Kornia(
        None,  # pyright: ignore[reportArgumentType]  (features of one's own)
        input_dim=config.descriptor_dim, descriptor_dim=config.d, n_layers=config.n_layers, num_heads=config.heads,
        add_scale_ori=config.encoding == "xy-scale-orientation", flash=True, mp=half,
        depth_confidence=-1 if settings.exit_ratio is None else settings.exit_ratio,
        width_confidence=-1 if settings.prune_below is None else 1 - settings.prune_below,
    ).eval()  # fmt: skip
    loaded = theirs.load_state_dict(released_names(model), strict=False)  # what it derives is not in our file
    if loaded.unexpected_keys:
        raise InputError(f"this kornia does not take {loaded.unexpected_keys[0]!r}; install the pinned version")

    device = _device(model)
    theirs.to(device)

    def images() -> Iterator[dict]:
        for pair in pairs:
            yield {
                f"image{side}": {
                    "keypoints": f.keypoints[None],
                    "descriptors": f.descriptors[None],
                    "image_size": torch.tensor([f.image_size], device=device).float(),
                }
                for side, f in enumerate(pair)
            }

    return lambda: [theirs(pair) for pair in images()]


def _transformers(model: LightGlue, pairs: Sequence[tuple[Features, Features]], settings: MatchSettings) -> Job:
    """transformers' LightGlue of the same size with random weights; its detector is replaced by one that hands it the
    points, so that the time is the matching's."""
    try:
        from transformers import LightGlueConfig as Config
        from transformers import LightGlueForKeypointMatching
        from transformers.models.superpoint.modeling_superpoint import SuperPointKeypointDescriptionOutput as Found
    except ImportError:
        raise InputError("this needs transformers; pip install transformers") from None
    config = model.config
    theirs: Any = LightGlueForKeypointMatching(
        Config(
            descriptor_dim=config.d, num_hidden_layers=config.n_layers, num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            depth_confidence=-1.0 if settings.exit_ratio is None else settings.exit_ratio,
            width_confidence=-1.0 if settings.prune_below is None else 1 - settings.prune_below,
        )  # pyright: ignore[reportCallIssue]
    ).eval()  # fmt: skip

    class Given(nn.Module):
        def forward(self, *_: object, **__: object) -> Found:
            return self.found

        found: Found

    theirs.keypoint_detector = Given()
    theirs.to(_device(model))

    device = _device(model)
    images = torch.zeros(1, 2, 3, 480, 480, device=device)

    def points(n: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        found = {
            "keypoints": torch.rand(2, n, 2, generator=generator),
            "scores": torch.rand(2, n, generator=generator),
            "descriptors": nn.functional.normalize(torch.randn(2, n, 256, generator=generator), dim=-1),
            "mask": torch.ones(2, n, dtype=torch.int32),
        }
        return {name: value.to(device) for name, value in found.items()}

    given = [Found(**points(max(map(len, pair)))) for pair in pairs]

    def match(found: Found) -> None:
        theirs.keypoint_detector.found = found
        theirs(images)

    return lambda: [match(found) for found in given]
