"""The matchers that there are, by name."""

import hashlib

from torch import nn

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


def weights_sha256(model: nn.Module) -> str:
    """Of the names and values of a model's tensors, wherever and in whatever precision they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
