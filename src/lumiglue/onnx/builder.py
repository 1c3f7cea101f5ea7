"""Builds an ONNX graph node by node: constants, branches, inputs, outputs. Nothing here knows the matcher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass
from onnx_ir.tape import Tape
from torch import Tensor

OPSET = 17
FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


class Builder:
    """Appends nodes to a graph, or to a branch of it. Constants go to the outermost graph, which every branch can read."""

    def __init__(self, root: "Builder | None" = None) -> None:
        self.tape = Tape()
        self.root = root or self
        self.constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}

    def __call__(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.tape.op(op, inputs, attributes)

    def several(self, count: int, op: str, *inputs: ir.Value, **attributes: Any) -> Sequence[ir.Value]:
        """The outputs of a node that has `count` of them."""
        return self.tape.op_multi_out(op, inputs, attributes, num_outputs=count)

    def constant(self, value: Any, dtype: Any = np.float32) -> ir.Value:
        """The initializer of a value; equal values share one."""
        array = np.asarray(value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value).astype(dtype)
        root, key = self.root, (array.dtype.str, array.tobytes(), array.shape)
        if key not in root.constants:
            root.constants[key] = root.tape.initializer(ir.tensor(array, name=f"constant_{len(root.constants)}"))
        return root.constants[key]

    def integers(self, *values: int) -> ir.Value:
        return self.constant(np.array(values), np.int64)

    def number(self, value: int) -> ir.Value:
        return self.constant(np.array(value), np.int64)

    def choose(self, condition: ir.Value, then: "Branch", otherwise: "Branch") -> Sequence[ir.Value]:
        """If: the outputs of one branch or of the other."""
        branches = {"then_branch": then.graph(), "else_branch": otherwise.graph()}
        return self.several(len(then.outputs), "If", condition, **branches)


@dataclass
class Branch:
    """One side of an If."""

    builder: Builder
    outputs: Sequence[ir.Value]

    def graph(self) -> ir.Graph:
        return ir.Graph((), self.outputs, nodes=self.builder.tape.nodes, name="branch")


def finish(g: Builder, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], metadata: dict[str, str]) -> ir.Model:
    """The model with its inputs, outputs and metadata; every value gets a unique name."""
    graph = ir.Graph(
        inputs, outputs, nodes=g.tape.nodes, initializers=g.tape.initializers, opset_imports={"": OPSET}, name="lumiglue"
    )
    model = ir.Model(graph, ir_version=8, producer_name="lumiglue")
    model.metadata_props.update(metadata)
    NameFixPass()(model)
    return model


def tensor_input(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    """A graph input."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def as_output(g: Builder, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    """The value under that name, with a declared type and shape."""
    output = g("Identity", value)
    output.name, output.type, output.shape = name, ir.TensorType(dtype), ir.Shape(shape)
    return output
