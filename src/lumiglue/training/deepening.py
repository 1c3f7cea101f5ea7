"""Deepening: add layers to a trained matcher that change nothing at first."""

from dataclasses import replace

import torch
from torch import nn

from lumiglue.errors import TrainingError
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.models import build


@torch.no_grad()
def deepened(model: LightGlue, n_layers: int) -> LightGlue:
    """Copies a matcher and adds layers, up to `n_layers`. Raises TrainingError if it has more.

    Each new layer, head and classifier is a copy of the last one, except that the last linear maps of a new layer are zero.
    A new layer therefore adds nothing to the states, and each new head gives the same assignment as the last one.
    """
    before = model.config.n_layers
    if n_layers < before:
        raise TrainingError(f"the matcher has {before} layers; it cannot be deepened to {n_layers}")
    with torch.random.fork_rng(devices=[]):
        deeper = build(replace(model.config, n_layers=n_layers))
    assert isinstance(deeper, LightGlue)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for group, last in (("layers", before - 1), ("heads", before - 1), ("confidences", before - 2)):
        prefix = f"{group}.{last}."
        copied = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for number in range(last + 1, n_layers - (group == "confidences")):
            state |= {f"{group}.{number}.{name}": tensor.clone() for name, tensor in copied.items()}
    for number in range(before - 1, n_layers - 1):  # a matcher of one layer has no classifier to copy
        for name in ("weight", "bias"):
            state.setdefault(f"confidences.{number}.{name}", deeper.state_dict()[f"confidences.{number}.{name}"])
    deeper.load_state_dict(state)
    for layer in deeper.layers[before:]:
        for unit in (layer.self_attention, layer.cross_attention):
            last = unit.ffn[3]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    return deeper.train(model.training)
