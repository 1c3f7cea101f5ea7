"""Speed of matchers, which take turns in one process, and their memory.

In each round every contender matches the same input, in an order that rotates. A ratio is the median over the rounds of the
two times in the same round, so that a machine that slows down slows both. Lumiglue, kornia and the exports have the same
weights; transformers' model has random weights of the same size, which cost the same at full depth.
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

from lumiglue.backends.autotune import random_features
from lumiglue.backends.cuda_graphs import replayed_layers
from lumiglue.errors import InputError
from lumiglue.matcher.execution import Layers, execution_layers, folded_layers
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.models import PRESETS
from lumiglue.matcher.settings import MatchSettings, Precision
from lumiglue.pipeline.prefetch import FeatureCache, match_in_threads, pool
from lumiglue.system.extras import require
from lumiglue.types import Features, Matches

FULL = MatchSettings(exit_ratio=None, prune_below=None)
OURS = "lumiglue"
DESCRIPTOR_DIM = 128
Job = Callable[[], object]
Pairs = Sequence[tuple[Features, Features]]
# A matcher, what it is to match, and that in words.
MatchingJob = tuple[LightGlue, list[tuple[Features, Features]], str]
_ON_A_CPU = {"in threads", "bf16 in threads", "onnxruntime", "int8", "openvino", "openvino bf16"}
_NOT_ON_A_CPU = {"kornia half", "graphs", "bf16 graphs"}


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


def operations(config: LightGlueConfig, n: int) -> float:
    """Counts the floating-point operations of a pair of n keypoints each at full depth, two for each multiplication of a
    product.

    A layer has linear maps of 19 d^2 per point (q, k, v, out, MLP; one key, v, out, MLP) and attention of 14 d n^2 (self 4
    for each image, bidirectional cross 6); then there is the last head.
    """
    d, linear = config.d, 2 * (2 * n)
    layer = linear * 19 * d * d + 14 * d * n * n
    return config.n_layers * layer + linear * (d * d + config.descriptor_dim * d) + 2 * d * n * n


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


def contenders(
    names: Sequence[str], model: LightGlue, pairs: Sequence[tuple[Features, Features]], settings: MatchSettings
) -> dict[str, Job]:
    """Makes a job for each contender that matches all pairs, on the model's device.

    Names: "lumiglue", "lumiglue bf16", "one by one" (without batches), "in threads" (one thread for each pair, as
    `Pipeline.match_many` does on a CPU), "bf16 in threads", "compiled" (layers by torch.compile), "bf16 compiled", "graphs"
    and "bf16 graphs" (CUDA graphs of single pairs, on a GPU), "onnxruntime", "openvino", "openvino bf16", "int8" (ONNX
    Runtime), "kornia", "kornia half" (its mixed precision, on a GPU), "transformers".

    Args:
        names: The contenders.
        model: The matcher whose weights they have.
        pairs: Features to match.
        settings: Early exit and pruning.

    Returns:
        Jobs by name.

    Raises:
        InputError: a name is unknown, does not run on the device, or needs a package that is missing.
    """
    makers: dict[str, Callable[[], Job]] = {
        OURS: lambda: _ours(model, pairs, settings),
        "lumiglue bf16": lambda: _ours(model, pairs, settings, execution_layers(model, "bf16")),
        "one by one": lambda: _one_by_one(model, pairs, settings),
        "compiled": lambda: _compiled(model, pairs, settings, "fp32"),
        "bf16 compiled": lambda: _compiled(model, pairs, settings, "bf16"),
        "graphs": lambda: _replayed(model, pairs, settings),
        "bf16 graphs": lambda: _replayed(model, pairs, settings, execution_layers(model, "bf16")),
        "in threads": lambda: _in_threads(model, pairs, settings),
        "bf16 in threads": lambda: _in_threads(model, pairs, settings, execution_layers(model, "bf16")),
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
    """Times jobs in turns, after one round that does not count. Ratios are to the first job."""
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
    timings = []
    for name in names:
        ratios = sorted(mine / ours for mine, ours in zip(counted[name], counted[names[0]], strict=True))
        timings.append(Timing(name, counted[name], (statistics.median(ratios), ratios[0], ratios[-1])))
    return timings


def peak_memory(name: str, preset: str, n: int, device: str = "cpu") -> float:
    """MiB that a match of n keypoints each at full depth adds to a process of its own, or to the GPU, at its peak."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak_memory, name, preset, n, device).result()


def _peak_memory(name: str, preset: str, n: int, device: str) -> float:
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
    if device == "cpu":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return torch.cuda.max_memory_allocated(device)


def _ours(model: LightGlue, pairs: Pairs, settings: MatchSettings, layers: Layers | None = None) -> Job:
    return lambda: model.match(pack(pairs, model.config), settings, layers=layers)


def _one_by_one(model: LightGlue, pairs: Pairs, settings: MatchSettings, layers: Layers | None = None) -> Job:
    return lambda: [model.match(pack([pair], model.config), settings, layers=layers) for pair in pairs]


def _replayed(model: LightGlue, pairs: Pairs, settings: MatchSettings, layers: Layers | None = None) -> Job:
    return _one_by_one(model, pairs, settings, replayed_layers(model, layers))


def _in_threads(model: LightGlue, pairs: Pairs, settings: MatchSettings, layers: Layers | None = None) -> Job:
    def match(some: Pairs) -> list[Matches]:
        return model.match(pack(some, model.config), settings, layers=layers)

    def job() -> list[Matches]:
        workers = torch.get_num_threads()
        with pool(workers, one_thread_each=workers > 1) as threads:
            cache = FeatureCache[Features](lambda features: features, threads, 2, lambda _: None)
            results = match_in_threads(pairs, cache, match, None, workers)
            return [matched.matches for matched in results if matched is not None]

    return job


def _compiled(model: LightGlue, pairs: Pairs, settings: MatchSettings, precision: Precision) -> Job:
    layers = folded_layers(model, precision)
    for layer in layers:
        layer.compile(dynamic=True)
    job = _ours(model, pairs, settings, layers)
    job()  # compiled before the clock runs
    return job


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
    require("kornia")
    try:
        from kornia.feature import LightGlue as Kornia
    except ImportError:
        raise InputError("this needs kornia; pip install 'lumiglue[eval]'") from None
    from lumiglue.weights.released import released_names

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
    """transformers' LightGlue of the same size with random weights; its detector is replaced by one that returns the
    points, so that only matching is timed."""
    require("transformers")
    try:
        from transformers import LightGlueConfig as Config
        from transformers import LightGlueForKeypointMatching
        from transformers.models.superpoint.modeling_superpoint import SuperPointKeypointDescriptionOutput as Output
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

    class FixedDetector(nn.Module):
        def forward(self, *_: object, **__: object) -> Output:
            return self.output

        output: Output

    theirs.keypoint_detector = FixedDetector()
    theirs.to(_device(model))

    device = _device(model)
    images = torch.zeros(1, 2, 3, 480, 480, device=device)

    def points(n: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        tensors = {
            "keypoints": torch.rand(2, n, 2, generator=generator),
            "scores": torch.rand(2, n, generator=generator),
            "descriptors": nn.functional.normalize(torch.randn(2, n, 256, generator=generator), dim=-1),
            "mask": torch.ones(2, n, dtype=torch.int32),
        }
        return {name: value.to(device) for name, value in tensors.items()}

    outputs = [Output(**points(max(map(len, pair)))) for pair in pairs]

    def match(output: Output) -> None:
        theirs.keypoint_detector.output = output
        theirs(images)

    return lambda: [match(output) for output in outputs]
