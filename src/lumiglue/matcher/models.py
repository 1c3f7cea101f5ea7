"""Matchers and presets by name."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from lumiglue.errors import InputError
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.settings import Encoding
from lumiglue.matcher.superglue import SuperGlue, SuperGlueConfig

MatcherModel = LightGlue | SuperGlue
ModelConfig = LightGlueConfig | SuperGlueConfig

CONFIGS: dict[str, type[LightGlueConfig] | type[SuperGlueConfig]] = {
    "lightglue": LightGlueConfig,
    "superglue": SuperGlueConfig,
}

_LARGEST = 2**16  # of a number in a config


def model_name(config: ModelConfig) -> str:
    """ "lightglue" or "superglue"."""
    return "lightglue" if isinstance(config, LightGlueConfig) else "superglue"


def build(config: ModelConfig) -> MatcherModel:
    """A new matcher of that shape; its weights depend on PyTorch's random state."""
    return LightGlue(config) if isinstance(config, LightGlueConfig) else SuperGlue(config)


def config_from(name: str, values: object) -> ModelConfig:
    """The config of a matcher from the values in a file.

    Args:
        name: "lightglue" or "superglue".
        values: What the file has: fields and their values.

    Returns:
        The config.

    Raises:
        ValueError: There is no such matcher, or the values are not a config of it.
    """
    if name not in CONFIGS:
        raise ValueError(f"unknown matcher {name!r}; choose from {sorted(CONFIGS)}")
    if not isinstance(values, dict):
        raise ValueError("it has no names and values")
    defaults = CONFIGS[name]()
    given: dict[str, Any] = {str(key): tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    known = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{key!r} is unknown")
        of_kind = type(value) is type(known[key]) or (known[key] is None and isinstance(value, str | None))
        numbers = value if isinstance(value, tuple) else (value,)
        if not of_kind or (
            isinstance(value, int | tuple) and not all(isinstance(n, int) and n <= _LARGEST for n in numbers)
        ):
            raise ValueError(f"{key} is {value!r}")
    return CONFIGS[name](**given)


def build_for(config: ModelConfig, tensors: Mapping[str, Tensor]) -> MatcherModel:
    """A matcher in evaluation mode with these tensors.

    Shapes are compared before memory is allocated, because a small file may claim a huge matcher.

    Args:
        config: The shape of the matcher.
        tensors: Its state, by name.

    Returns:
        The matcher.

    Raises:
        ValueError: A tensor is missing, unknown, of another shape, or not finite.
    """
    if config.n_layers > len(tensors):
        raise ValueError(f"it has {len(tensors)} tensors, too few for {config.n_layers} layers")
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            shapes = {key: tensor.shape for key, tensor in build(config).state_dict().items()}
        if wrong := sorted(shapes.keys() ^ tensors.keys()):
            raise ValueError(f"{wrong[0]} is {'missing' if wrong[0] in shapes else 'not of this matcher'}")
        for key, shape in shapes.items():
            if tensors[key].shape != shape:
                raise ValueError(f"{key} has shape {tuple(tensors[key].shape)}, not {tuple(shape)}")
            if tensors[key].is_complex() or not bool(torch.isfinite(tensors[key]).all()):
                raise ValueError(f"{key} contains NaN, infinity or complex numbers")
        model = build(config)
    model.load_state_dict(dict(tensors))
    return model.eval()


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of the names and float32 values of a model's tensors; it does not depend on the device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Size:
    """The size of a preset.

    Attributes:
        d: Width of the states.
        heads: Attention heads.
        n_layers: Layers; of SuperGlue, pairs of a self- and a cross-attention layer.
    """

    d: int
    heads: int
    n_layers: int


PRESETS: dict[str, Size] = {
    "base": Size(256, 4, 9),  # the papers' size: LightGlue has 11.9 M parameters
    "compact": Size(128, 4, 5),  # for CPUs: LightGlue has 1.7 M, and 14 times fewer operations than `base`
    "deep": Size(128, 4, 9),  # as narrow, with the layers of `base`, of which adaptivity runs as many as a pair needs: 3.0 M
}


def preset(name: str, extractor: str, descriptor_dim: int, encoding: Encoding) -> LightGlueConfig:
    """The config of LightGlue in a preset.

    Args:
        name: A key of `PRESETS`.
        extractor: Name of the features.
        descriptor_dim: Channels of a descriptor.
        encoding: What the rotary encoding sees.

    Returns:
        The config.

    Raises:
        InputError: There is no such preset.
    """
    size = _size(name)
    return LightGlueConfig(
        extractor=extractor, descriptor_dim=descriptor_dim, project_input=True, encoding=encoding,
        d=size.d, heads=size.heads, n_layers=size.n_layers,
    )  # fmt: skip


def superglue_preset(name: str, extractor: str, descriptor_dim: int) -> SuperGlueConfig:
    """The config of SuperGlue in a preset.

    Args:
        name: A key of `PRESETS`.
        extractor: Name of the features.
        descriptor_dim: Channels of a descriptor.

    Returns:
        The config.

    Raises:
        InputError: There is no such preset.
    """
    size = _size(name)
    return SuperGlueConfig(
        extractor=extractor, descriptor_dim=descriptor_dim, project_input=True,
        d=size.d, heads=size.heads, n_layers=size.n_layers,
    )  # fmt: skip


def _size(name: str) -> Size:
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; choose from {sorted(PRESETS)}")
    return PRESETS[name]
