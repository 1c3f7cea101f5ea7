"""Backends other than PyTorch, and which backend is fastest on this machine."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch

from lumiglue.backends.autotune import Match, about_matching, autotune
from lumiglue.errors import InputError
from lumiglue.matcher.execution import execution_layers
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.models import model_name
from lumiglue.matcher.settings import Backend, MatchSettings, Precision
from lumiglue.system.extras import available, require
from lumiglue.weights.files import load_weights

if TYPE_CHECKING:
    from lumiglue.onnx.runtime import OnnxMatcher


def onnx_matcher(file: Path, backend: Backend, precision: Precision) -> "OnnxMatcher":
    """A matcher for weights or an .onnx file that runs on ONNX Runtime or OpenVINO.

    Raises InputError if the backend, the precision or the model is another one, or a package is missing.
    """
    if backend not in get_args(Backend):
        raise InputError(f"unknown backend {backend!r}; choose from {list(get_args(Backend))}")
    if precision == "bf16":  # OpenVINO rounds positions, scores and rows too: 72 % of the matches remain
        raise InputError(f"{backend} loses matches in bf16; choose fp32, or the backend torch")
    if backend in ("torch", "cudagraphs"):
        raise InputError(f"{file} runs on onnxruntime or openvino, not on {backend}; choose one, or give .safetensors")
    require("onnx_ir", backend)
    from lumiglue.onnx.runtime import OnnxMatcher

    if file.suffix == ".onnx":
        return OnnxMatcher(file, backend, precision=precision)
    model = load_weights(file)
    if not isinstance(model, LightGlue):
        raise InputError(f"only LightGlue runs on {backend}; {file} is {model_name(model.config)}")
    return OnnxMatcher(model, backend, precision=precision)


def fastest_backend(file: Path, settings: MatchSettings, precision: Precision, device: torch.device) -> Backend:
    """The fastest of the installed backends that support the precision, for weights or an .onnx file. On a GPU it is
    PyTorch."""
    makers: dict[Backend, Callable[[], Match]] = {}
    runtimes: tuple[Backend, ...] = () if precision == "bf16" else ("onnxruntime", "openvino")
    for backend in runtimes:
        if available("onnx_ir") and available(backend):
            makers[backend] = partial(_opened, file, backend, precision, settings)
    if file.suffix == ".onnx":
        if not makers:
            return "onnxruntime"  # its error names what to install
        matcher = onnx_matcher(file, next(iter(makers)), precision)
        if matcher.batched:
            return "onnxruntime"
        config = matcher.config
    else:
        model = load_weights(file)
        if not isinstance(model, LightGlue) or device.type != "cpu":
            return "torch"
        layers = execution_layers(model, precision)
        makers["torch"] = lambda: lambda pairs: model.match(pack(list(pairs), model.config), settings, layers=layers)
        config = model.config
    assert isinstance(config, LightGlueConfig)
    return autotune(makers, config, about_matching(settings, precision))


def _opened(file: Path, backend: Backend, precision: Precision, settings: MatchSettings) -> Match:
    matcher = onnx_matcher(file, backend, precision)
    return lambda pairs: matcher.match_features(pairs, matcher.fixed or settings)
