"""What computes a matcher's layers: the float32 layers themselves, or a copy in bfloat16 derived from them."""

import copy
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lumiglue.matcher.settings import Precision


@runtime_checkable
class Layers(Protocol):
    """Layers in order: a model's own, copies in a lower precision, or `backends.cuda_graphs.ReplayedLayers` of either."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Callable[..., Tensor]]: ...


def execution_layers(model: nn.Module, precision: Precision) -> nn.ModuleList:
    """The layers of a matcher in the precision in which they are run; the model itself remains as it is.

    In bfloat16 the layers multiply. The states that they add to remain float32, and so do positions, heads and classifiers,
    in which bfloat16 would blur close scores.

    Args:
        model: A matcher in float32, on the device where it is to run.
        precision: "fp32" or "bf16".

    Returns:
        The model's own layers for fp32, a copy of them for bf16.
    """
    layers = model.get_submodule("layers")
    assert isinstance(layers, nn.ModuleList)
    return copy.deepcopy(layers).to(torch.bfloat16) if precision == "bf16" else layers


def own_precision(model: nn.Module) -> torch.autocast:
    """Inside, each part of the model computes in its own precision, whatever autocast the caller is under."""
    return torch.autocast(next(model.parameters()).device.type, enabled=False)
