"""What the bench compares: each way of running the same weights, as a job without arguments."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from lumiglue.backends.cuda_graphs import replayed_layers
from lumiglue.errors import InputError, LumiglueError
from lumiglue.evaluation import ports
from lumiglue.evaluation.ports import Port
from lumiglue.matcher.execution import Layers, execution_layers, folded_layers
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.settings import MatchSettings, Precision
from lumiglue.pipeline.prefetch import FeatureCache, match_in_threads, pool
from lumiglue.system.extras import require
from lumiglue.types import Features, Matches

OURS = "lumiglue"
T = TypeVar("T")
Job = Callable[[], object]
Pairs = Sequence[tuple[Features, Features]]
_ON_A_CPU = {"in threads", "bf16 in threads", "onnxruntime", "int8", "openvino", "openvino bf16"}
_NOT_ON_A_CPU = {"kornia half", "graphs", "bf16 graphs"}


def contenders(
    names: Sequence[str], model: LightGlue, pairs: Sequence[tuple[Features, Features]], settings: MatchSettings
) -> dict[str, Job]:
    """Makes a job for each contender that matches all pairs, on the model's device.

    Names: "lumiglue", "lumiglue bf16", "without kernels" (layers by PyTorch), "one by one" (without batches), "in threads"
    (one thread for each pair, as `Pipeline.match_many` does on a CPU), "bf16 in threads", "compiled" (layers by
    torch.compile), "bf16 compiled", "graphs" and "bf16 graphs" (CUDA graphs of single pairs, on a GPU), "onnxruntime",
    "openvino", "openvino bf16", "int8" (ONNX Runtime), "original" (an installed original LightGlue), "kornia", "kornia half"
    (its mixed precision, on a GPU), "transformers".

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
        "without kernels": lambda: _ours(model, pairs, settings, folded_layers(model, "fp32")),
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
        "original": lambda: _ported(ports.original(model, settings), pairs),
        "kornia": lambda: _ported(ports.kornia(model, settings), pairs),
        "kornia half": lambda: _ported(ports.kornia(model, settings, half=True), pairs),
        "transformers": lambda: _ported(ports.transformers(model, settings), pairs),
    }
    if unknown := [name for name in names if name not in makers]:
        raise InputError(f"unknown contender {unknown[0]!r}; choose from {list(makers)}")
    for name in names:
        if name in (_NOT_ON_A_CPU if _device(model).type == "cpu" else _ON_A_CPU):
            raise InputError(f"{name!r} does not run on a {_device(model).type}; leave it out")
    return {name: makers[name]() for name in names}


def possible(makers: Mapping[str, Callable[[], T]]) -> tuple[dict[str, T], dict[str, str]]:
    """The contenders that can be made here, and for each other name the reason why not."""
    jobs, left_out = {}, {}
    for name, make in makers.items():
        try:
            jobs[name] = make()
        except LumiglueError as error:
            left_out[name] = str(error)
    return jobs, left_out


def matches_of(result: Any) -> set[tuple[int, int, int]]:
    """(pair, row of image 0, row of image 1) of what a job returned."""
    found = set()
    for number, one in enumerate(result):
        one = one[0] if isinstance(one, list) else one
        rows = one.pairs if isinstance(one, Matches) else one["matches"][0]
        found |= {(number, i, j) for i, j in rows.tolist()}
    return found


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


def _ported(port: Port, pairs: Pairs) -> Job:
    return lambda: [port(pair) for pair in pairs]
