"""The matchers that there are, by name."""

from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.superglue import SuperGlue, SuperGlueConfig

MatcherModel = LightGlue | SuperGlue
ModelConfig = LightGlueConfig | SuperGlueConfig

CONFIGS: dict[str, type[LightGlueConfig] | type[SuperGlueConfig]] = {
    "lightglue": LightGlueConfig,
    "superglue": SuperGlueConfig,
}


def model_name(config: ModelConfig) -> str:
    """ "lightglue" or "superglue"."""
    return "lightglue" if isinstance(config, LightGlueConfig) else "superglue"


def build(config: ModelConfig) -> MatcherModel:
    """A fresh matcher of that shape; its weights depend on PyTorch's random state."""
    return LightGlue(config) if isinstance(config, LightGlueConfig) else SuperGlue(config)
