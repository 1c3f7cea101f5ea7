"""LightGlue as an ONNX graph for a batch of padded pairs, each with the result that it has alone.

Masks take the place of the single form's changing sizes. Points that are padding or pruned are not attended to, and a pair
that is done keeps its state. A layer is skipped, by an If, once all pairs are done.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from lumiglue.onnx.builder import FLOAT, INT64, Branch, Builder
from lumiglue.onnx.graph import AnySide, Assignment, LightGlueGraph, PaddedSide

BOOL = ir.DataType.BOOL


class BatchedGraph(LightGlueGraph):
    """Writes a matcher into a graph whose values have a first dimension for the pairs."""

    def batch(
        self, g: Builder, positions: Sequence[ir.Value], descriptors: Sequence[ir.Value], counts: Sequence[ir.Value]
    ) -> Assignment:
        """Adds the whole matcher.

        Args:
            g: The graph.
            positions: Of image 0 and image 1, (b, n, p), normalised.
            descriptors: Of image 0 and image 1, (b, n, descriptor_dim).
            counts: Of image 0 and image 1, (b,): the first points of a row are keypoints, the others padding of any value.

        Returns:
            The outputs.
        """
        sides = [self._begin_padded(g, *values) for values in zip(positions, descriptors, counts, strict=True)]
        done = g("Equal", g("Mul", *counts), g.number(0))
        total = g("Cast", g("Max", g("Add", *counts), g.number(1)), to=FLOAT)
        stop = g("Mul", counts[0], g.number(0))
        depth = self.model.config.n_layers
        if not self.settings.exit_ratio and not self.settings.prune_below:
            for block in self.model.layers:
                sides = [replace(side, x=x) for side, x in zip(sides, self._run_layer(g, sides, block), strict=True)]
            stop = g("Where", done, stop, g.number(depth))
            sides = [replace(side, layers=self._count(g, side, g("Not", done), g.number(depth))) for side in sides]
            return self._assign_padded(g, sides, stop)
        for layer in range(depth):
            computed, passed = Builder(g.root), Builder(g.root)
            state = [value for side in sides for value in (side.x, side.active, side.layers)] + [done, stop]
            after = self._padded_layer(computed, sides, done, stop, total, layer)
            branches = [
                Branch(b, _typed(b, values, self.dtype == np.float16)) for b, values in ((passed, state), (computed, after))
            ]
            state = g.choose(_all(g, done), *branches)
            sides = [
                replace(side, x=state[3 * i], active=state[3 * i + 1], layers=state[3 * i + 2])
                for i, side in enumerate(sides)
            ]
            done, stop = state[6:]
        return self._assign_padded(g, sides, stop)

    def _begin_padded(self, g: Builder, positions: ir.Value, descriptors: ir.Value, count: ir.Value) -> PaddedSide:
        n = g("Gather", g("Shape", descriptors), g.number(1))
        number = g("Unsqueeze", g("Range", g.number(0), n, g.number(1)), g.integers(0))
        active = g("Less", number, g("Unsqueeze", count, g.integers(1)))  # (b, n)
        # Padding may hold NaN, which masks alone would let through.
        mask = g("Unsqueeze", active, g.integers(2))
        positions, descriptors = (g("Where", mask, value, g.constant(0.0)) for value in (positions, descriptors))
        cosine, sine = self._rotations(g, positions, 1)
        layers = g("Mul", g("Cast", active, to=INT64), g.number(0))
        return PaddedSide(self._states(g, descriptors), cosine, sine, active, layers)

    def _split_heads(self, g: Builder, x: ir.Value) -> ir.Value:
        """(b, n, d) to (b, h, n, c)."""
        return g("Transpose", g("Reshape", x, g.integers(0, 0, self.heads, self.channels)), perm=[0, 2, 1, 3])

    def _join_heads(self, g: Builder, x: ir.Value) -> ir.Value:
        return g("Reshape", g("Transpose", x, perm=[0, 2, 1, 3]), g.integers(0, 0, self.d))

    def _attend(self, g: Builder, q: ir.Value, k: ir.Value, v: ir.Value, keys: AnySide) -> ir.Value:
        assert isinstance(keys, PaddedSide)
        # Finite, so that a pair without active points gives no NaN; its exponential is 0 beside any other.
        hidden = g.constant(-3e4 if self.dtype == np.float16 else -1e9, self.dtype)
        bias = g("Where", keys.active, g.constant(0.0, self.dtype), hidden)
        similarity = g("MatMul", q, g("Transpose", k, perm=[0, 1, 3, 2]))
        similarity = g("Add", similarity, g("Unsqueeze", bias, g.integers(1, 2)))
        return g("MatMul", g("Softmax", similarity, axis=-1), v)

    def _count(self, g: Builder, side: PaddedSide, running: ir.Value, depth: ir.Value) -> ir.Value:
        """The layers of each point, where the active ones of running pairs have reached `depth`."""
        return g("Where", g("And", side.active, g("Unsqueeze", running, g.integers(1))), depth, side.layers)

    def _padded_layer(
        self, g: Builder, sides: Sequence[PaddedSide], done: ir.Value, stop: ir.Value, total: ir.Value, layer: int
    ) -> list[ir.Value]:
        """The state after a layer, the exit test and pruning; that of pairs that are done remains."""
        running, depth = g("Not", done), g.number(layer + 1)
        frozen = g("Unsqueeze", done, g.integers(1, 2))
        new = self._run_layer(g, sides, self.model.layers[layer])
        xs = [g("Where", frozen, side.x, x) for side, x in zip(sides, new, strict=True)]
        layers = [self._count(g, side, running, depth) for side in sides]
        active, stop = [side.active for side in sides], g("Where", done, stop, depth)
        if layer < self.model.config.n_layers - 1:
            done, active = self._adapt_padded(g, xs, active, done, total, layer)
        else:
            done = g("Or", done, running)
        return [value for i in (0, 1) for value in (xs[i], active[i], layers[i])] + [done, stop]

    def _adapt_padded(
        self, g: Builder, xs: Sequence[ir.Value], active: list[ir.Value], done: ir.Value, total: ir.Value, layer: int
    ) -> tuple[ir.Value, list[ir.Value]]:
        settings, limit = self.settings, g.constant(self.model.exit_threshold(layer))
        confident = [g("Greater", self._probability(g, x, self.model.confidences[layer]), limit) for x in xs]
        if settings.exit_ratio:
            unsure = [_number(g, g("And", a, g("Not", c))) for a, c in zip(active, confident, strict=True)]
            share = g("Sub", g.constant(1.0), g("Div", g("Cast", g("Add", *unsure), to=FLOAT), total))
            done = g("Or", done, g("Greater", share, g.constant(settings.exit_ratio)))
        matchability = self.model.heads[layer].matchability
        if not settings.prune_below or matchability is None:
            return done, active
        finished, remaining = g("Unsqueeze", done, g.integers(1)), []
        for x, mask, flags in zip(xs, active, confident, strict=True):
            low = g("Less", self._probability(g, x, matchability), g.constant(settings.prune_below))
            remaining.append(g("And", mask, g("Or", finished, g("Not", g("And", flags, low)))))
        emptied = g("Equal", g("Mul", *(_number(g, mask) for mask in remaining)), g.number(0))
        return g("Or", done, emptied), remaining

    def _assign_padded(self, g: Builder, sides: Sequence[PaddedSide], stop: ir.Value) -> Assignment:
        """The head of the last layer that ran for each pair."""
        model, settings = self.model, self.settings
        last = g("Max", g("Sub", stop, g.number(1)), g.number(0))  # (b,)

        def of_layer(values: Sequence[Tensor]) -> ir.Value:
            arrays = [value.detach().float().cpu().numpy() for value in values]
            return g("Gather", g.constant(np.stack(arrays), self.dtype), last, axis=0)  # (b, ...)

        def applied(side: PaddedSide, linears: Sequence[nn.Linear]) -> ir.Value:
            weight, bias = of_layer([linear.weight.T for linear in linears]), of_layer([linear.bias for linear in linears])
            y = g("Add", g("MatMul", side.x, weight), g("Unsqueeze", bias, g.integers(1)))
            return g("Cast", y, to=FLOAT) if self.dtype == np.float16 else y

        root = g.constant(self.d**-0.25)
        f0, f1 = (g("Mul", applied(side, [head.projection for head in model.heads]), root) for side in sides)
        similarity = g("MatMul", f0, g("Transpose", f1, perm=[0, 2, 1]))
        both = g("And", g("Unsqueeze", sides[0].active, g.integers(2)), g("Unsqueeze", sides[1].active, g.integers(1)))
        similarity = g("Where", both, similarity, g.constant(-1e9))
        log_p = g("Add", g("LogSoftmax", similarity, axis=2), g("LogSoftmax", similarity, axis=1))
        if model.config.ablation != "no-matchability":
            for i, side in enumerate(sides):
                logits = applied(side, [cast(nn.Linear, head.matchability) for head in model.heads])  # (b, n, 1)
                log_sigma = g("Neg", g("Softplus", g("Neg", logits)))
                log_p = g("Add", log_p, g("Transpose", log_sigma, perm=[0, 2, 1]) if i else log_sigma)
        log_p = g("Where", both, log_p, g.constant(-np.inf))
        best = g("ReduceMax", log_p, axes=[2], keepdims=0)  # (b, n0)
        partner = g("ArgMax", log_p, axis=2, keepdims=0)
        back = g("GatherElements", g("ArgMax", log_p, axis=1, keepdims=0), partner, axis=1)
        rows = g("Gather", g("Shape", best), g.number(1))
        here = g("Unsqueeze", g("Range", g.number(0), rows, g.number(1)), g.integers(0))
        threshold = settings.score_threshold
        assert threshold is not None
        good = g("Greater", best, g.constant(math.log(threshold) if threshold > 0 else -1e30))
        matched = g("Transpose", g("NonZero", g("And", g("Equal", back, here), good)), perm=[1, 0])  # (k, 2)
        ends = g("Unsqueeze", g("GatherND", partner, matched), g.integers(1))
        scores = g("Exp", g("GatherND", best, matched))
        return Assignment(g("Concat", matched, ends, axis=1), scores, sides[0].layers, sides[1].layers, stop)


def _number(g: Builder, mask: ir.Value) -> ir.Value:
    """How many of each row of (b, n) are true, (b,)."""
    return g("ReduceSum", g("Cast", mask, to=INT64), g.integers(1), keepdims=0)


def _all(g: Builder, flags: ir.Value) -> ir.Value:
    return g("Equal", g("ReduceSum", g("Cast", g("Not", flags), to=INT64), g.integers(0), keepdims=0), g.number(0))


def _typed(g: Builder, state: Sequence[ir.Value], half: bool) -> list[ir.Value]:
    """The outputs of a branch, which owns them, with types and ranks."""
    side = [(ir.DataType.FLOAT16 if half else FLOAT, 3), (BOOL, 2), (INT64, 2)]
    outputs = [g("Identity", value) for value in state]
    for value, (dtype, rank) in zip(outputs, [*side, *side, (BOOL, 1), (INT64, 1)], strict=True):
        value.type, value.shape = ir.TensorType(dtype), ir.Shape([None] * rank)
    return outputs
