"""What computes a matcher's layers: copies derived from the float32 layers that are trained and saved."""

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lumiglue.matcher.ops.native.layers import native_layers
from lumiglue.matcher.settings import Precision


@runtime_checkable
class Layers(Protocol):
    """Layers in order: a model's own, copies of them, or `backends.cuda_graphs.ReplayedLayers` of either."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Callable[..., Tensor]]: ...


def execution_layers(model: nn.Module, precision: Precision) -> Layers:
    """A copy of a matcher's layers to run them without gradients; the model itself remains as it is.

    LightGlue's layers in float32 run by the kernels of `ops.native` where those serve the processor, else by PyTorch.

    Args:
        model: A matcher in float32, on the device where it is to run.
        precision: "fp32" or "bf16".

    Returns:
        The copy. Weights of the model that change afterwards do not reach it.
    """
    layers = folded_layers(model, precision)
    return layers if precision == "bf16" else native_layers(layers) or layers


def folded_layers(model: nn.Module, precision: Precision) -> nn.ModuleList:
    """A copy of a matcher's layers by PyTorch.

    In LightGlue's copy the projection of the messages is multiplied into the layer that reads them (`fold_message`).
    In bfloat16 the layers multiply. The states that they add to remain float32, and so do positions, heads and classifiers,
    in which bfloat16 would blur close scores.

    Args:
        model: A matcher in float32, on the device where it is to run.
        precision: "fp32" or "bf16".

    Returns:
        The copy.
    """
    layers = copy.deepcopy(model.get_submodule("layers")).requires_grad_(False)
    assert isinstance(layers, nn.ModuleList)
    for unit in layers.modules():
        if isinstance(getattr(unit, "ffn", None), nn.Sequential):
            fold_message(unit)
    return layers.to(torch.bfloat16) if precision == "bf16" else layers


@torch.no_grad()
def fold_message(unit: nn.Module) -> None:
    """[x | a Wo] W = x Wx + a (Wo Wm): replaces `out` of an attention unit by nothing and changes its `ffn` accordingly.

    That saves a tenth of the products of a layer. The product is taken in float64 on the CPU, as not every device has it.
    """
    out, first = unit.get_submodule("out"), unit.get_submodule("ffn.0")
    assert isinstance(out, nn.Linear)
    assert isinstance(first, nn.Linear)
    read, message, offset = (tensor.cpu().double() for tensor in (first.weight, out.weight, out.bias))
    of_x, of_message = read.split([first.in_features - out.out_features, out.out_features], dim=1)
    first.bias.add_((of_message @ offset).to(first.bias))
    first.weight.copy_(torch.cat([of_x, of_message @ message], dim=1))
    unit.out = nn.Identity()


_derived: "WeakKeyDictionary[nn.Module, tuple[object, Layers]]" = WeakKeyDictionary()
_deriving = threading.Lock()


def current_layers(model: nn.Module) -> Layers:
    """`execution_layers` in the model's own precision, kept until its weights are replaced or written to.

    Args:
        model: A matcher.

    Returns:
        The copy that belongs to the present weights. Writing through a parameter's `data` goes unnoticed.
    """
    state = [_state_of(tensor) for tensor in model.get_submodule("layers").parameters()]
    with _deriving:
        known, layers = _derived.get(model, (None, None))
        if layers is None or known != state:
            layers = execution_layers(model, "fp32")
            _derived[model] = state, layers
        return layers


def _state_of(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, tensor.dtype, tensor.device


def own_precision(model: nn.Module) -> torch.autocast:
    """Inside, each part of the model computes in its own precision, whatever autocast the caller is under."""
    return torch.autocast(next(model.parameters()).device.type, enabled=False)
