"""The mean of several runs' weights, which often matches better than each of them (Wortsman et al., 2022, "Model soups")."""

from collections.abc import Sequence
from dataclasses import asdict

import torch

from lumiglue.errors import WeightsError
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.training.deepening import deepened

_THRESHOLDS = ("exit_ratio", "prune_below")


@torch.no_grad()
def mean_of(models: Sequence[LightGlue]) -> LightGlue:
    """Averages matchers parameter by parameter.

    All should come from one start, as the parameters of unrelated runs do not correspond.

    Args:
        models: Matchers that differ at most in depth and thresholds. Those of fewer layers are deepened first, which does
            not change their matches.

    Returns:
        A new matcher, with the thresholds of the last one.

    Raises:
        WeightsError: There is no matcher, or they differ in more than depth and thresholds.
    """
    if not models:
        raise WeightsError("the mean needs at least one matcher")
    deepest = max(model.config.n_layers for model in models)
    same_depth = [deepened(model, deepest) for model in models]
    mean = same_depth[-1]
    config = asdict(mean.config)
    for model in same_depth:
        differing = [
            name for name, value in asdict(model.config).items() if value != config[name] and name not in _THRESHOLDS
        ]
        if differing:
            values = ", ".join(f"{name} ({getattr(model.config, name)!r} and {config[name]!r})" for name in differing)
            raise WeightsError(f"only weights of one shape have a mean; these differ in {values}")
    states = [model.state_dict() for model in same_depth]
    mean.load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    return mean
