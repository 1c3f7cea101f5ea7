"""The extractor and the matcher that a pipeline is made of, from the names of features and weights or from a folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lumiglue.backends.autotune import default_precision
from lumiglue.backends.select import fastest_backend, onnx_matcher
from lumiglue.errors import InputError
from lumiglue.extractors import EXTRACTORS, Extractor, check_package, create_extractor, tiled_extractor
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.models import MatcherModel
from lumiglue.matcher.settings import Backend, MatchSettings, Precision
from lumiglue.weights.files import load_weights, read_metadata
from lumiglue.weights.folder import read_model_folder
from lumiglue.weights.registry import default_weights, needed_files, resolve

if TYPE_CHECKING:
    from lumiglue.onnx.runtime import OnnxMatcher


@dataclass(frozen=True)
class Parts:
    """What a pipeline is made of.

    Attributes:
        extractor: Computes the features.
        matcher: A PyTorch model, or an ONNX matcher.
        device: Where a PyTorch matcher runs.
        precision: Its arithmetic.
        settings: Those saved with the weights; None if there are none.
        metadata: Training record of the matcher.
        cuda_graphs: Whether the layers of single pairs are launched at once.
    """

    extractor: Extractor
    matcher: "MatcherModel | OnnxMatcher"
    device: torch.device
    precision: Precision
    settings: MatchSettings | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    cuda_graphs: bool = False


def parts_by_name(
    features: str | None,
    weights: str | Path | None,
    settings: MatchSettings,
    device: torch.device,
    precision: Precision | Literal["auto"],
    backend: Backend | Literal["auto"] | None,
    limits: Mapping[str, Any],
) -> Parts:
    """See `Pipeline.pretrained`, also for the errors.

    Args:
        features: The extractor's name, or None.
        weights: A name, a file or a URL; None takes the best for the features.
        settings: How the matcher will match, for the choice of the backend.
        device: Where a PyTorch matcher runs.
        precision: Arithmetic of a PyTorch matcher.
        backend: See there.
        limits: Arguments of `tiled_extractor`.
    """
    if features is not None:  # fails before a download if there is no such extractor
        tiled_extractor(features, **limits)
    for published in needed_files(features, str(weights) if weights else None):
        check_package(published.features)
    file = resolve(default_weights(features or "sift") if weights is None else weights)
    onnx = file.suffix == ".onnx"
    if precision == "auto":
        in_torch = not onnx and backend in (None, "torch", "cudagraphs", "auto")
        is_lightglue = in_torch and isinstance(read_metadata(file)[0], LightGlueConfig)
        precision = default_precision(device) if is_lightglue else "fp32"
    if backend == "auto":
        backend = fastest_backend(file, settings, precision, device)
    with_torch = not onnx and backend in (None, "torch", "cudagraphs")
    matcher = load_weights(file) if with_torch else onnx_matcher(file, backend or "onnxruntime", precision)
    name = _features_of(matcher.config.extractor, features)
    extractor = tiled_extractor(name, device=str(device), **limits)
    metadata = read_metadata(file)[1] if with_torch else {}
    return Parts(extractor, matcher, device, precision, metadata=metadata, cuda_graphs=backend == "cudagraphs")


def parts_of_folder(
    folder: Path,
    source: str,
    features: str | None,
    device: torch.device,
    precision: Precision | Literal["auto"],
    limits: Mapping[str, Any],
) -> Parts:
    """See `Pipeline.from_pretrained`, also for the errors.

    Args:
        folder: What `save_pretrained` wrote.
        source: Where it came from, for messages.
        features: The extractor's name; None takes the one in the folder.
        device: Where the matcher runs.
        precision: Its arithmetic.
        limits: Arguments of `create_extractor`.
    """
    content = read_model_folder(folder)
    name = features or content.features
    if features is None and name not in EXTRACTORS:  # never a path to code that the repository names
        raise InputError(f"{source} is for {name or 'any'!r} features; name an extractor for them with features=")
    extractor = create_extractor(name, device=str(device), **limits)
    model = load_weights(content.weights)
    if precision == "auto":
        precision = default_precision(device) if isinstance(model, LightGlue) else "fp32"
    return Parts(extractor, model, device, precision, content.settings, content.metadata)


def _features_of(trained_for: str, requested: str | None) -> str:
    """The extractor's name: the requested one, or the member of that family (such as aliked) that the weights are for."""
    if requested is not None and not trained_for.startswith(f"{requested}-"):
        return requested
    if trained_for not in EXTRACTORS:  # never a path to code that a file names
        raise InputError(f"the weights are for {trained_for or 'any'!r} features; name an extractor for them with features=")
    return trained_for
