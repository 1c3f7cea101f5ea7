"""LightGlue as an ONNX graph with its adaptive depth and width inside (Section 3.3): a pair that is done skips the remaining
layers, and pruned points are taken out of the tensors.

Each layer is an If on `done`: one branch passes the state through, the other computes. The two images have tensors of their
own, so every shape is a plain n0 or n1. Sizes are dynamic, zero included.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from lumiglue.errors import InputError
from lumiglue.matcher.lightglue import CrossAttention, Layer, LightGlue, RotaryEncoding, SelfAttention
from lumiglue.matcher.settings import MatchSettings
from lumiglue.onnx.builder import FLOAT, INT64, Branch, Builder


@dataclass
class Side:
    """The active points of one image: states, rotation, rows in the input; `layers` is of all its points."""

    x: ir.Value
    cosine: ir.Value
    sine: ir.Value
    rows: ir.Value
    layers: ir.Value

    @property
    def state(self) -> list[ir.Value]:
        return [self.x, self.cosine, self.sine, self.rows, self.layers]


@dataclass
class PaddedSide:
    """The points of an image of each pair of a batch: states (b, n, d), rotations (b, 1, n, c / 2), which points are active
    (b, n), layers (b, n)."""

    x: ir.Value
    cosine: ir.Value
    sine: ir.Value
    active: ir.Value
    layers: ir.Value


AnySide = Side | PaddedSide


@dataclass(frozen=True)
class Assignment:
    """The outputs of the graph.

    Attributes:
        pairs: (k, 2) rows in image 0 and image 1; of a batch (k, 3), the number of the pair first.
        scores: (k,) P_ij.
        layers0: (n0,) layers that each point of image 0 went through.
        layers1: (n1,) the same of image 1.
        stop_layer: () layers that ran.

    Of a batch, layers0, layers1 and stop_layer have a first dimension for the pairs.
    """

    pairs: ir.Value
    scores: ir.Value
    layers0: ir.Value
    layers1: ir.Value
    stop_layer: ir.Value


class LightGlueGraph:
    """Writes a matcher into a graph.

    Args:
        model: The matcher.
        settings: Thresholds and adaptivity.
        half: Weights and states in float16; positions, S, exit and pruning tests remain float32.
        integer: Products of the layers' linear maps in int8, with one scale for each channel of the weights and a dynamic
            one for the activations.
    """

    def __init__(self, model: LightGlue, settings: MatchSettings, *, half: bool = False, integer: bool = False) -> None:
        self.model, self.settings, self.integer = model.eval(), settings.completed(model.own_settings), integer
        self.dtype = np.float16 if half else np.float32
        config = model.config
        self.heads, self.channels, self.d = config.heads, config.d // config.heads, config.d

    def assignment(self, g: Builder, positions: Sequence[ir.Value], descriptors: Sequence[ir.Value]) -> Assignment:
        """Adds the whole matcher.

        Args:
            g: The graph.
            positions: Of image 0 and image 1, (n, p), normalised.
            descriptors: Of image 0 and image 1, (n, descriptor_dim).

        Returns:
            The outputs.

        Raises:
            InputError: The matcher has absolute positions.
        """
        sides = [self._begin(g, p, d) for p, d in zip(positions, descriptors, strict=True)]
        totals = [self._length(g, side.rows) for side in sides]
        done = g("Equal", g("Mul", *totals), g.number(0))
        if not self.settings.exit_ratio and not self.settings.prune_below:
            return self._full_depth(g, sides, done)
        stop = g.number(0)
        for layer in range(self.model.config.n_layers):
            computed, passed = Builder(g.root), Builder(g.root)
            state = [*sides[0].state, *sides[1].state, done, stop]
            after = self._layer(computed, sides, totals, layer)
            branches = [
                Branch(b, self._typed([b("Identity", value) for value in values]))  # a branch owns its outputs
                for b, values in ((passed, state), (computed, after))
            ]
            state = self._typed(g.choose(done, *branches))
            sides = [Side(*state[:5]), Side(*state[5:10])]
            done, stop = state[10:]
        return self._assign(g, sides, stop)

    def _full_depth(self, g: Builder, sides: Sequence[Side], empty: ir.Value) -> Assignment:
        """All layers, without a branch."""
        for block in self.model.layers:
            xs = self._run_layer(g, sides, block)
            sides = [replace(side, x=x) for side, x in zip(sides, xs, strict=True)]
        stop = g("Where", empty, g.number(0), g.number(self.model.config.n_layers))
        sides = [replace(side, layers=g("Expand", stop, g("Shape", side.rows))) for side in sides]
        return self._assign(g, sides, stop)

    def _typed(self, state: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Declares types and ranks, which OpenCV does not infer."""
        floats = ir.DataType.FLOAT16 if self.dtype == np.float16 else FLOAT
        side = [(floats, 2), (floats, 3), (floats, 3), (INT64, 1), (INT64, 1)]
        for value, (dtype, rank) in zip(state, [*side, *side, (ir.DataType.BOOL, 0), (INT64, 0)], strict=True):
            value.type, value.shape = ir.TensorType(dtype), ir.Shape([None] * rank)
        return state

    def _constant(self, g: Builder, value: Tensor) -> ir.Value:
        return g.constant(value, self.dtype)

    def _linear(self, g: Builder, x: ir.Value, weight: Tensor, bias: Tensor) -> ir.Value:
        if self.integer and len(weight) > 1:
            return g("Add", self._integer_product(g, x, weight), self._constant(g, bias))
        return g("Add", g("MatMul", x, self._constant(g, weight.T)), self._constant(g, bias))

    def _integer_product(self, g: Builder, x: ir.Value, weight: Tensor) -> ir.Value:
        scales = weight.detach().abs().amax(1).clamp_min(1e-12) / 127
        rounded = (weight.detach() / scales[:, None]).round().T
        x, scale, zero = g.several(3, "DynamicQuantizeLinear", x)
        product = g("MatMulInteger", x, g.constant(rounded, np.int8), zero)
        return g("Mul", g("Cast", product, to=FLOAT), g("Mul", scale, g.constant(scales)))

    def _through(self, g: Builder, x: ir.Value, linear: nn.Linear) -> ir.Value:
        return self._linear(g, x, linear.weight, linear.bias)

    def _begin(self, g: Builder, positions: ir.Value, descriptors: ir.Value) -> Side:
        cosine, sine = self._rotations(g, positions, 0)
        rows = g("Range", g.number(0), self._length(g, descriptors), g.number(1))
        return Side(self._states(g, descriptors), cosine, sine, rows, g("Mul", rows, g.number(0)))

    def _states(self, g: Builder, descriptors: ir.Value) -> ir.Value:
        x = g("Cast", descriptors, to=ir.DataType.FLOAT16) if self.dtype == np.float16 else descriptors
        projection = self.model.input_projection
        return self._through(g, x, projection) if isinstance(projection, nn.Linear) else x

    def _rotations(self, g: Builder, positions: ir.Value, heads_axis: int) -> Sequence[ir.Value]:
        """Cosine and sine, (..., 1, n, c / 2) with the 1 at `heads_axis`."""
        encoding = self.model.position_encoding
        if not isinstance(encoding, RotaryEncoding):
            raise InputError("a matcher with absolute positions cannot be exported; it is an ablation")
        frequencies = encoding.frequencies.detach().float()
        matrix = frequencies.new_zeros(frequencies.shape[0], frequencies.shape[1] + int(encoding.periodic))
        matrix[:, : frequencies.shape[1]] = frequencies
        if encoding.periodic:
            matrix[:, -1] = encoding.turns
        angles = g("MatMul", positions, g.constant(matrix.T))  # (n, c / 2), in float32
        tables = [g("Unsqueeze", g(op, angles), g.integers(heads_axis)) for op in ("Cos", "Sin")]
        return [g("Cast", table, to=ir.DataType.FLOAT16) for table in tables] if self.dtype == np.float16 else tables

    def _length(self, g: Builder, x: ir.Value) -> ir.Value:
        return g("Gather", g("Shape", x), g.number(0))

    def _split_heads(self, g: Builder, x: ir.Value) -> ir.Value:
        """(n, d) to (h, n, c)."""
        return g("Transpose", g("Reshape", x, g.integers(-1, self.heads, self.channels)), perm=[1, 0, 2])

    def _join_heads(self, g: Builder, x: ir.Value) -> ir.Value:
        return g("Reshape", g("Transpose", x, perm=[1, 0, 2]), g.integers(-1, self.d))

    def _rotate(self, g: Builder, x: ir.Value, side: AnySide) -> ir.Value:
        a, b = g.several(2, "Split", x, g.integers(self.channels // 2, self.channels // 2), axis=-1)
        turned = (
            g("Sub", g("Mul", a, side.cosine), g("Mul", b, side.sine)),
            g("Add", g("Mul", b, side.cosine), g("Mul", a, side.sine)),
        )
        return g("Concat", *turned, axis=-1)

    def _attend(self, g: Builder, q: ir.Value, k: ir.Value, v: ir.Value, keys: AnySide) -> ir.Value:
        """Attention to the points of `keys`."""
        assert isinstance(keys, Side)  # a single pair has no inactive points, so there is nothing to mask
        similarity = g("MatMul", q, g("Transpose", k, perm=[0, 2, 1]))
        return g("MatMul", g("Softmax", similarity, axis=-1), v)

    def _update(self, g: Builder, x: ir.Value, message: ir.Value, unit: SelfAttention | CrossAttention) -> ir.Value:
        """x + MLP([x | W message])."""
        first, norm, _, last = unit.ffn
        assert isinstance(first, nn.Linear)
        assert isinstance(norm, nn.LayerNorm)
        assert isinstance(last, nn.Linear)
        message = self._through(g, self._join_heads(g, message), unit.out)
        y = self._through(g, g("Concat", x, message, axis=-1), first)
        affine = (self._constant(g, norm.weight), self._constant(g, norm.bias))
        y = g("LayerNormalization", y, *affine, axis=-1, epsilon=norm.eps)
        erf = g("Erf", g("Div", y, g.constant(math.sqrt(2.0), self.dtype)))
        gelu = g("Mul", g("Mul", y, g("Add", erf, g.constant(1.0, self.dtype))), g.constant(0.5, self.dtype))
        return g("Add", x, self._through(g, gelu, last))

    def _run_layer(self, g: Builder, sides: Sequence[AnySide], block: Layer) -> list[ir.Value]:
        """The states after both attentions of a layer."""
        xs = [self._self_attention(g, side, block.self_attention) for side in sides]
        return self._cross_attention(g, sides, xs, block.cross_attention)

    def _self_attention(self, g: Builder, side: AnySide, unit: SelfAttention) -> ir.Value:
        d, scale = self.d, self.channels**-0.5
        weight, bias = unit.qkv.weight.detach().clone(), unit.qkv.bias.detach().clone()
        weight[:d] *= scale  # of the queries
        bias[:d] *= scale
        q, k, v = g.several(3, "Split", self._linear(g, side.x, weight, bias), g.integers(d, d, d), axis=-1)
        q, k = (self._rotate(g, self._split_heads(g, x), side) for x in (q, k))
        return self._update(g, side.x, self._attend(g, q, k, self._split_heads(g, v), side), unit)

    def _cross_attention(
        self, g: Builder, sides: Sequence[AnySide], xs: Sequence[ir.Value], unit: CrossAttention
    ) -> list[ir.Value]:
        root = self.channels**-0.25
        query = unit.qk if unit.query is None else unit.query
        keys = [self._split_heads(g, self._linear(g, x, unit.qk.weight * root, unit.qk.bias * root)) for x in xs]
        queries = [self._split_heads(g, self._linear(g, x, query.weight * root, query.bias * root)) for x in xs]
        values = [self._split_heads(g, self._through(g, x, unit.v)) for x in xs]
        messages = [self._attend(g, queries[i], keys[1 - i], values[1 - i], sides[1 - i]) for i in (0, 1)]
        return [self._update(g, x, message, unit) for x, message in zip(xs, messages, strict=True)]

    def _layer(self, g: Builder, sides: Sequence[Side], totals: Sequence[ir.Value], layer: int) -> list[ir.Value]:
        """The state after a layer, the exit test and pruning."""
        block = self.model.layers[layer]
        xs = self._run_layer(g, sides, block)
        depth = g.number(layer + 1)
        layers = [
            g("ScatterElements", side.layers, side.rows, g("Expand", depth, g("Shape", side.rows)), axis=0) for side in sides
        ]
        states = [[x, s.cosine, s.sine, s.rows, count] for x, s, count in zip(xs, sides, layers, strict=True)]
        done = g.constant(np.array(False), np.bool_)
        if layer < self.model.config.n_layers - 1:
            done, states = self._adapt(g, states, totals, layer)
        return [*states[0], *states[1], done, depth]

    def _adapt(
        self, g: Builder, states: Sequence[list[ir.Value]], totals: Sequence[ir.Value], layer: int
    ) -> tuple[ir.Value, list[list[ir.Value]]]:
        """The exit test, then pruning of confident unmatchable points where the pair is not done."""
        settings, done = self.settings, g.constant(np.array(False), np.bool_)
        limit = g.constant(self.model.exit_threshold(layer))
        confident = [g("Greater", self._probability(g, s[0], self.model.confidences[layer]), limit) for s in states]
        if settings.exit_ratio:
            unsure = [g("ReduceSum", g("Cast", g("Not", c), to=FLOAT), g.integers(0), keepdims=0) for c in confident]
            total = g("Cast", g("Add", *totals), to=FLOAT)
            share = g("Sub", g.constant(1.0), g("Div", g("Add", *unsure), total))
            done = g("Greater", share, g.constant(settings.exit_ratio))
        matchability = self.model.heads[layer].matchability
        if not settings.prune_below or matchability is None:
            return done, list(states)
        below, pruned = g.constant(settings.prune_below), []
        for state, flags in zip(states, confident, strict=True):
            prune = g("And", flags, g("Less", self._probability(g, state[0], matchability), below))
            mask = g("Or", g("Not", prune), done)
            x, cosine, sine, rows, count = state
            tables = [g("Compress", table, mask, axis=1) for table in (cosine, sine)]
            pruned.append([g("Compress", x, mask, axis=0), *tables, g("Compress", rows, mask, axis=0), count])
        lengths = [self._length(g, state[3]) for state in pruned]
        emptied = g("Equal", g("Mul", *lengths), g.number(0))
        return g("Or", done, emptied), pruned

    def _probability(self, g: Builder, x: ir.Value, linear: nn.Linear) -> ir.Value:
        logits = g("Squeeze", self._through(g, x, linear), g.integers(-1))
        return g("Sigmoid", g("Cast", logits, to=FLOAT) if self.dtype == np.float16 else logits)

    def _assign(self, g: Builder, sides: Sequence[Side], stop: ir.Value) -> Assignment:
        """The head of the last layer that ran. A row and a column of -inf define the maxima of empty images."""
        model, settings = self.model, self.settings
        last = g("Max", g("Sub", stop, g.number(1)), g.number(0))
        root = self.d**-0.25

        def of_layer(values: Sequence[np.ndarray]) -> ir.Value:
            return g("Gather", g.constant(np.stack(values), self.dtype), last, axis=0)

        def array(tensor: Tensor) -> np.ndarray:
            return tensor.detach().float().cpu().numpy()

        weight = of_layer([array(head.projection.weight).T for head in model.heads])
        bias = of_layer([array(head.projection.bias) for head in model.heads])
        features = [g("Add", g("MatMul", side.x, weight), bias) for side in sides]
        if self.dtype == np.float16:
            features = [g("Cast", f, to=FLOAT) for f in features]
        f0, f1 = (g("Mul", f, g.constant(root)) for f in features)
        similarity = g("MatMul", f0, g("Transpose", f1, perm=[1, 0]))
        log_p = g("Add", g("LogSoftmax", similarity, axis=1), g("LogSoftmax", similarity, axis=0))
        if model.config.ablation != "no-matchability":
            linears = [cast(nn.Linear, head.matchability) for head in model.heads]
            weight = of_layer([array(linear.weight).T for linear in linears])
            bias = of_layer([array(linear.bias) for linear in linears])
            for axis, side in zip((1, 0), sides, strict=True):
                logits = g("Add", g("MatMul", side.x, weight), bias)  # (n, 1)
                logits = g("Cast", logits, to=FLOAT) if self.dtype == np.float16 else logits
                log_sigma = g("Neg", g("Softplus", g("Neg", logits)))
                log_p = g("Add", log_p, log_sigma if axis == 1 else g("Transpose", log_sigma, perm=[1, 0]))
        # Concat, not Pad: OpenVINO (2026.4) pads wrongly the first time that a compiled model runs.
        for axis, side in ((0, sides[1]), (1, sides[0])):
            length = g("Unsqueeze", self._length(g, side.rows), g.integers(0))
            length = g("Add", length, g.integers(axis))  # the column includes the entry of the row
            edge = g("Expand", g.constant(-np.inf), length)
            log_p = g("Concat", log_p, g("Unsqueeze", edge, g.integers(axis)), axis=axis)
        best = g("ReduceMax", log_p, axes=[1], keepdims=0)
        partner = g("ArgMax", log_p, axis=1, keepdims=0)
        back = g("Gather", g("ArgMax", log_p, axis=0, keepdims=0), partner)
        here = g("Range", g.number(0), self._length(g, best), g.number(1))
        threshold = settings.score_threshold
        assert threshold is not None
        good = g("Greater", best, g.constant(math.log(threshold) if threshold > 0 else -1e30))
        matched = g("Squeeze", g("NonZero", g("And", g("Equal", back, here), good)), g.integers(0))
        ends = (
            g("Gather", sides[0].rows, matched),
            g("Gather", sides[1].rows, g("Gather", partner, matched)),
        )
        pairs = g("Concat", *(g("Unsqueeze", end, g.integers(1)) for end in ends), axis=1)
        return Assignment(pairs, g("Exp", g("Gather", best, matched)), sides[0].layers, sides[1].layers, stop)
