"""The matchers that there are, by name."""

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
    """A fresh matcher of that shape; its weights depend on PyTorch's random state."""
    return LightGlue(config) if isinstance(config, LightGlueConfig) else SuperGlue(config)


def config_from(name: str, values: object) -> ModelConfig:
    """The config of the matcher of that name, from what a file says. Raises ValueError where that is not one."""
    if name not in CONFIGS:
        raise ValueError(f"unknown matcher {name!r}; choose from {sorted(CONFIGS)}")
    if not isinstance(values, dict):
        raise ValueError("it holds no names and values")
    usual = CONFIGS[name]()
    given: dict[str, Any] = {str(key): tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    known = {field.name: getattr(usual, field.name) for field in fields(usual)}
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
    """A matcher in evaluation mode with these tensors, each of which must be there and fit. Raises ValueError.

    Shapes are compared before memory is taken: a small file may claim a huge matcher.
    """
    if config.n_layers > len(tensors):
        raise ValueError(f"it holds {len(tensors)} tensors, too few for {config.n_layers} layers")
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            wanted = {key: tensor.shape for key, tensor in build(config).state_dict().items()}
        if wrong := sorted(wanted.keys() ^ tensors.keys()):
            raise ValueError(f"{wrong[0]} is {'missing' if wrong[0] in wanted else 'not of this matcher'}")
        for key, shape in wanted.items():
            if tensors[key].shape != shape:
                raise ValueError(f"{key} has shape {tuple(tensors[key].shape)}, not {tuple(shape)}")
            if tensors[key].is_complex() or not bool(torch.isfinite(tensors[key]).all()):
                raise ValueError(f"{key} holds NaN, infinity or complex numbers")
        model = build(config)
    model.load_state_dict(dict(tensors))
    return model.eval()


def weights_sha256(model: nn.Module) -> str:
    """Of the names and values of a model's tensors, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Size:
    """Width, attention heads, layers (of SuperGlue: pairs of a self- and a cross-attention layer)."""

    d: int
    heads: int
    n_layers: int


PRESETS: dict[str, Size] = {
    "base": Size(256, 4, 9),  # the papers' size: LightGlue has 11.9 M parameters
    "compact": Size(128, 4, 5),  # for CPUs: LightGlue has 1.7 M, and 14 times fewer operations than `base`
    "deep": Size(128, 4, 9),  # as narrow, with all layers of `base`, of which adaptivity runs what a pair needs: 3.0 M
}


def preset(name: str, extractor: str, descriptor_dim: int, encoding: Encoding) -> LightGlueConfig:
    """LightGlue in the preset of that name. Raises InputError for an unknown one."""
    size = _size(name)
    return LightGlueConfig(
        extractor=extractor, descriptor_dim=descriptor_dim, project_input=True, encoding=encoding,
        d=size.d, heads=size.heads, n_layers=size.n_layers,
    )  # fmt: skip


def superglue_preset(name: str, extractor: str, descriptor_dim: int) -> SuperGlueConfig:
    """SuperGlue in the preset of that name. Raises InputError for an unknown one."""
    size = _size(name)
    return SuperGlueConfig(
        extractor=extractor, descriptor_dim=descriptor_dim, project_input=True,
        d=size.d, heads=size.heads, n_layers=size.n_layers,
    )  # fmt: skip


def _size(name: str) -> Size:
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; choose from {sorted(PRESETS)}")
    return PRESETS[name]
