"""The sizes that we train and ship."""

from dataclasses import dataclass

from lumiglue.errors import InputError
from lumiglue.matcher.lightglue import LightGlueConfig
from lumiglue.matcher.settings import Encoding
from lumiglue.matcher.superglue import SuperGlueConfig


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
