"""The sizes that we train and ship."""

from collections.abc import Callable

from lumiglue.errors import InputError
from lumiglue.matcher.lightglue import Encoding, LightGlueConfig


def base(extractor: str, descriptor_dim: int, encoding: Encoding) -> LightGlueConfig:
    """The paper's size: 9 layers of 256 channels in 4 heads, 11.9 M parameters."""
    return LightGlueConfig(
        extractor=extractor, descriptor_dim=descriptor_dim, encoding=encoding, project_input=True, d=256, heads=4, n_layers=9
    )


def compact(extractor: str, descriptor_dim: int, encoding: Encoding) -> LightGlueConfig:
    """For CPUs: 5 layers of 128 channels in 4 heads, 1.7 M parameters, 14 times fewer operations than `base`."""
    return LightGlueConfig(
        extractor=extractor, descriptor_dim=descriptor_dim, encoding=encoding, project_input=True, d=128, heads=4, n_layers=5
    )


PRESETS: dict[str, Callable[[str, int, Encoding], LightGlueConfig]] = {"base": base, "compact": compact}


def preset(name: str, extractor: str, descriptor_dim: int, encoding: Encoding) -> LightGlueConfig:
    """The preset of that name. Raises InputError for an unknown one."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; choose from {sorted(PRESETS)}")
    return PRESETS[name](extractor, descriptor_dim, encoding)
