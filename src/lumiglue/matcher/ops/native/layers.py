"""LightGlue's layers in float32 by the kernels: a layer is one call."""

import ctypes
import threading
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumiglue.matcher.ops.native import library
from lumiglue.matcher.packed import Lengths

# Rows of a layer are whole registers.
_MULTIPLE = 8
_MOST_KEPT = 2**24
_of_thread = threading.local()
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_WEIGHTS = ("project", "project_bias", "first", "first_bias", "norm", "norm_bias", "second", "second_bias")


class _Unit(ctypes.Structure):
    """`Unit` of layer.h."""

    _fields_ = [*((name, _POINTER) for name in _WEIGHTS), ("epsilon", ctypes.c_float)]


class _Batch(ctypes.Structure):
    """`Batch` of layer.h."""

    _fields_ = [
        ("lengths", _POINTER), *((name, _NUMBER) for name in ("pairs", "d", "heads")),
        *((name, _POINTER) for name in ("x", "cosine", "sine", "out", "workspace")), ("threads", ctypes.c_int),
    ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Unit:
    """An attention unit's weights, packed in the order of `Unit` of layer.h."""

    tensors: tuple[Tensor, ...]
    epsilon: float

    def struct(self) -> _Unit:
        return _Unit(*(tensor.data_ptr() for tensor in self.tensors), self.epsilon)


@dataclass(frozen=True, eq=False)
class NativeLayer:
    """One layer. The same as the folded `lightglue.Layer` up to rounding, without gradients."""

    inside: Unit
    across: Unit
    d: int
    heads: int

    def __call__(self, x: Tensor, rotation: tuple[Tensor, Tensor], lengths: Lengths) -> Tensor:
        """The T x d states after the layer.

        Args:
            x: T x d states.
            rotation: Cosine and sine of the T x c/2 angles.
            lengths: Tokens of either image of each pair.
        """
        found = library()
        assert not isinstance(found, str)
        kernels = found[1]
        x, cosine, sine = x.contiguous(), rotation[0].contiguous(), rotation[1].contiguous()
        assert x.dtype == cosine.dtype == sine.dtype == torch.float32
        out = torch.empty_like(x)
        sizes = (ctypes.c_int64 * (2 * len(lengths)))(*(n for pair in lengths for n in pair))
        batch = _Batch(
            ctypes.addressof(sizes), len(lengths), self.d, self.heads,
            *(tensor.data_ptr() for tensor in (x, cosine, sine, out)), None, torch.get_num_threads(),
        )  # fmt: skip
        workspace = _workspace(kernels.lumiglue_workspace(ctypes.byref(batch)))
        batch.workspace = workspace.data_ptr()
        kernels.lumiglue_layer(ctypes.byref(self.inside.struct()), ctypes.byref(self.across.struct()), ctypes.byref(batch))
        return out


def _workspace(size: int) -> Tensor:
    """Memory for that many numbers; a thread keeps up to 64 MiB of it for its next layer."""
    memory: Tensor | None = getattr(_of_thread, "memory", None)
    if memory is None or len(memory) < size:
        memory = torch.empty(size)
        _of_thread.memory = memory if size <= _MOST_KEPT else None
    return memory


def native_layers(layers: nn.ModuleList) -> list[NativeLayer] | None:
    """The same layers by the kernels; None where those do not serve them.

    Args:
        layers: Folded layers (`execution.fold_message`).
    """
    if not all(_fits(layer) for layer in layers) or isinstance(found := library(), str):
        return None
    panel = int(found[1].lumiglue_panel())
    return [_native_layer(layer, panel) for layer in layers]


def _fits(layer: Any) -> bool:
    units = [getattr(layer, name, None) for name in ("self_attention", "cross_attention")]
    if not all(isinstance(unit, nn.Module) for unit in units) or getattr(units[1], "query", None) is not None:
        return False
    weights = list(layer.parameters())
    width = layer.get_submodule("self_attention.qkv").in_features
    return width % _MULTIPLE == 0 and all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)


def _native_layer(layer: Any, panel: int) -> NativeLayer:
    inside, across = layer.get_submodule("self_attention"), layer.get_submodule("cross_attention")
    qkv, qk, v = inside.get_submodule("qkv"), across.get_submodule("qk"), across.get_submodule("v")
    d, heads = qkv.in_features, inside.heads
    both_weight, both_bias = torch.cat([qk.weight, v.weight]), torch.cat([qk.bias, v.bias])
    return NativeLayer(
        _unit(qkv.weight, qkv.bias, inside, panel), _unit(both_weight, both_bias, across, panel), d, heads
    )  # fmt: skip


def _unit(weight: Tensor, bias: Tensor, unit: Any, panel: int) -> Unit:
    first, norm, _, second = unit.get_submodule("ffn")
    tensors = (
        *_packed(weight, bias, panel), *_packed(first.weight, first.bias, panel), norm.weight, norm.bias,
        *_packed(second.weight, second.bias, panel),
    )  # fmt: skip
    return Unit(tuple(tensor.detach().contiguous() for tensor in tensors), norm.eps)


def _packed(weight: Tensor, bias: Tensor, panel: int) -> tuple[Tensor, Tensor]:
    """A linear layer's transposed weights in panels of so many columns, and its bias; padded with zeros."""
    missing = -len(weight) % panel
    weight, bias = F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing))
    return weight.view(-1, panel, weight.shape[1]).mT, bias
