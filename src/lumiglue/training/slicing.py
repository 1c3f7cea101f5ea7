"""Slicing: a narrower matcher with the weights of a trained one, without training.

The states of a trained matcher lie near a subspace; the narrow matcher keeps the coordinates in it. Its maps are those of
the wide one between main directions. The last map of each unit and the heads are then fitted by least squares, so that the
narrow states follow the wide ones on the user's photos, and each fit makes up for the errors before it.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lumiglue.errors import TrainingError
from lumiglue.matcher.lightglue import CrossAttention, FeedForward, LightGlue, RotaryEncoding, SelfAttention, rotate
from lumiglue.matcher.models import build
from lumiglue.matcher.ops.attention import cross_attention, self_attention
from lumiglue.matcher.packed import Lengths, PackedPairs
from lumiglue.training.subspace import fit_linear, main_directions, shared_directions


def check_width(model: LightGlue, d: int) -> None:
    """Raises TrainingError if the matcher cannot be sliced to the width `d`."""
    config = model.config
    if config.ablation is not None:
        raise TrainingError(f"a matcher with the ablation {config.ablation!r} cannot be sliced")
    if not 0 < d < config.d or d % (2 * config.heads):
        raise TrainingError(f"the width is {d}; give a multiple of {2 * config.heads} below {config.d}, that of the weights")


@torch.no_grad()
def sliced(model: LightGlue, d: int, pairs: Sequence[PackedPairs]) -> LightGlue:
    """Copies a matcher with narrower states, and as many layers and heads.

    Args:
        model: The wide matcher, of the paper's shape (no ablation).
        d: Width of the narrow states, a multiple of twice the heads.
        pairs: Pairs like those that it will match; some 20,000 keypoints are enough.

    Returns:
        The narrow matcher, in evaluation mode.

    Raises:
        TrainingError: The matcher cannot be sliced to this width.
    """
    check_width(model, d)
    config, model = model.config, model.eval()
    with torch.random.fork_rng(devices=[]):
        narrow = build(replace(config, d=d, project_input=True))
    assert isinstance(narrow, LightGlue)
    slicer = _Slicer(model, narrow.eval(), pairs)
    slicer.input()
    for number in range(config.n_layers):
        slicer.self_attention(number)
        slicer.cross_attention(number)
        slicer.heads(number)
    return narrow


class _Slicer:
    """A wide matcher and its narrow copy, run unit by unit on the same pairs."""

    def __init__(self, wide: LightGlue, narrow: LightGlue, pairs: Sequence[PackedPairs]) -> None:
        self.wide, self.narrow, self.pairs = wide, narrow, pairs
        self.lengths = [batch.lengths for batch in pairs]
        starts = [wide.begin(batch) for batch in pairs]
        self.x, self.rotations = [list(part) for part in zip(*starts, strict=True)]
        of_layers = zip(*([x, *wide.states(batch)] for x, batch in zip(self.x, pairs, strict=True)), strict=True)
        states = [torch.cat(x) for x in of_layers]  # before the first layer, and after each
        self.basis = shared_directions(states, narrow.config.d)
        self.planes = self._strongest_planes(states)
        self.y: list[Tensor] = []  # the narrow states
        self.narrow_rotations: list[tuple[Tensor, Tensor]] = []

    def input(self) -> None:
        """The input projection and the frequencies of the rotary encoding."""
        before, after = self.wide.input_projection, self.narrow.input_projection
        assert isinstance(after, nn.Linear)
        if isinstance(before, nn.Linear):
            _set(after, self.basis.T @ before.weight, self.basis.T @ before.bias)
        else:
            _set(after, self.basis.T, torch.zeros(len(after.weight)))
        encodings = self.wide.position_encoding, self.narrow.position_encoding
        assert isinstance(encodings[0], RotaryEncoding)
        assert isinstance(encodings[1], RotaryEncoding)
        encodings[1].frequencies.copy_(encodings[0].frequencies[self.planes])
        starts = [self.narrow.begin(batch) for batch in self.pairs]
        self.y, self.narrow_rotations = [list(part) for part in zip(*starts, strict=True)]

    def self_attention(self, number: int) -> None:
        """The self-attention of a layer."""
        wide, narrow = self.wide.layers[number].self_attention, self.narrow.layers[number].self_attention
        heads, channels = wide.heads, len(wide.out.weight) // wide.heads
        weight, bias = wide.qkv.weight.unflatten(0, (3, heads, channels)), wide.qkv.bias.unflatten(0, (3, heads, channels))
        kept = torch.cat([self.planes, self.planes + channels // 2])
        gain = (len(kept) / channels) ** 0.25
        values = torch.cat([wide.qkv(x).unflatten(1, (3 * heads, -1))[:, 2 * heads :] for x in self.x])
        directions = torch.stack([main_directions(values[:, head], len(kept)) for head in range(heads)])  # h, c, c'
        rows = torch.cat([gain * weight[:2][:, :, kept], (directions.mT @ weight[2])[None]])
        offsets = torch.cat([gain * bias[:2][:, :, kept], (directions.mT @ bias[2, ..., None]).squeeze(-1)[None]])
        _set(narrow.qkv, rows.flatten(0, 2) @ self.basis, offsets.flatten())
        messages = [
            wide.out(_attend_self(wide, x, rotation, lengths))
            for x, rotation, lengths in zip(self.x, self.rotations, self.lengths, strict=True)
        ]
        self._slice_ffn(wide, narrow, directions, messages)
        self.x = [x + wide.ffn(torch.cat([x, m], dim=1)) for x, m in zip(self.x, messages, strict=True)]
        self._fit(narrow, [
            narrow.out(_attend_self(narrow, y, rotation, lengths))
            for y, rotation, lengths in zip(self.y, self.narrow_rotations, self.lengths, strict=True)
        ])  # fmt: skip

    def cross_attention(self, number: int) -> None:
        """The cross-attention of a layer."""
        wide, narrow = self.wide.layers[number].cross_attention, self.narrow.layers[number].cross_attention
        heads, channels = wide.heads, len(wide.out.weight) // wide.heads
        few = len(narrow.out.weight) // heads
        gain = (few / channels) ** 0.25
        every = torch.cat(self.x)
        directions = {}
        for name, linear, scale in (("qk", wide.qk, gain), ("v", wide.v, 1.0)):
            outputs = linear(every).unflatten(1, (heads, -1))
            main = torch.stack([main_directions(outputs[:, head], few) for head in range(heads)])
            rows = main.mT @ linear.weight.unflatten(0, (heads, -1))
            offsets = main.mT @ linear.bias.unflatten(0, (heads, -1))[..., None]
            _set(getattr(narrow, name), scale * rows.flatten(0, 1) @ self.basis, scale * offsets.flatten())
            directions[name] = main
        messages = [wide.out(_attend_cross(wide, x, lengths)) for x, lengths in zip(self.x, self.lengths, strict=True)]
        self._slice_ffn(wide, narrow, directions["v"], messages)
        self.x = [x + wide.ffn(torch.cat([x, m], dim=1)) for x, m in zip(self.x, messages, strict=True)]
        self._fit(narrow, [narrow.out(_attend_cross(narrow, y, s)) for y, s in zip(self.y, self.lengths, strict=True)])

    def heads(self, number: int) -> None:
        """The assignment head and the exit classifier after a layer, fitted to what the wide ones give."""
        wide, narrow = self.wide.heads[number], self.narrow.heads[number]
        x, y = torch.cat(self.x), torch.cat(self.y)
        features = wide.features(x)
        targets = features @ main_directions(features, y.shape[1])
        fit_linear(narrow.projection, y, targets * y.shape[1] ** 0.25)
        assert wide.matchability is not None
        assert narrow.matchability is not None
        fit_linear(narrow.matchability, y, wide.matchability(x))
        if number < len(self.wide.confidences):
            fit_linear(self.narrow.confidences[number], y, self.wide.confidences[number](x))

    def _strongest_planes(self, states: list[Tensor]) -> Int[Tensor, " planes"]:
        """Planes of the rotary encoding with the largest products of queries and keys, over all layers and heads."""
        wide, narrow = (model.position_encoding for model in (self.wide, self.narrow))
        assert isinstance(wide, RotaryEncoding)
        assert isinstance(narrow, RotaryEncoding)
        strength = torch.zeros(len(wide.frequencies))
        for layer, x in zip(self.wide.layers, states[:-1], strict=True):
            unit = layer.self_attention
            squared = unit.qkv(x).unflatten(1, (3, unit.heads, 2, -1)).square().mean(0).sum(2)  # 3, h, planes
            strength += (squared[0] * squared[1]).sqrt().sum(0)
        planes = torch.zeros(len(narrow.frequencies), dtype=torch.int64)
        turns = (
            (wide.turns, narrow.turns) if wide.periodic else (torch.zeros_like(wide.turns), torch.zeros_like(narrow.turns))
        )
        for turn in turns[1].unique():  # a plane with a fixed frequency takes the place of one with the same
            places, candidates = (turns[1] == turn).nonzero()[:, 0], (turns[0] == turn).nonzero()[:, 0]
            best = strength[candidates].argsort(descending=True, stable=True)[: len(places)]
            planes[places] = candidates[best].sort().values
        return planes

    def _slice_ffn(
        self,
        wide: SelfAttention | CrossAttention,
        narrow: SelfAttention | CrossAttention,
        values: Tensor,
        messages: list[Tensor],
    ) -> None:
        """The output of attention, and the first half of the MLP with its most important hidden units."""
        main = main_directions(torch.cat(messages), len(narrow.out.weight))
        rows = torch.einsum("ohc,hcn->ohn", wide.out.weight.unflatten(1, (len(values), -1)), values).flatten(1)
        _set(narrow.out, main.T @ rows, main.T @ wide.out.bias)
        first, norm, gelu, last = wide.ffn
        assert isinstance(first, nn.Linear)
        assert isinstance(norm, nn.LayerNorm)
        assert isinstance(last, nn.Linear)
        inside = torch.cat([torch.cat(self.x), torch.cat(messages)], dim=1)
        before = first(inside)
        importance = gelu(norm(before)).std(0) * last.weight.norm(dim=0)
        small_first, small_norm = narrow.ffn[0], narrow.ffn[1]
        assert isinstance(small_first, nn.Linear)
        assert isinstance(small_norm, nn.LayerNorm)
        kept = importance.topk(len(small_norm.weight)).indices.sort().values
        state, message = first.weight[kept].chunk(2, dim=1)
        _set(small_first, torch.cat([state @ self.basis, message @ main], dim=1), first.bias[kept])
        wider = (before[:, kept].std(1) / before.std(1)).mean()  # the norm divides by what it sees
        _set(small_norm, wider * norm.weight[kept], norm.bias[kept])

    def _fit(self, narrow: SelfAttention | CrossAttention, messages: list[Tensor]) -> None:
        """Fits the last map of a unit, and runs the unit."""
        hidden = [_hidden(narrow.ffn, torch.cat([y, m], dim=1)) for y, m in zip(self.y, messages, strict=True)]
        last = narrow.ffn[3]
        assert isinstance(last, nn.Linear)
        fit_linear(last, torch.cat(hidden), torch.cat(self.x) @ self.basis - torch.cat(self.y))
        self.y = [y + last(h) for y, h in zip(self.y, hidden, strict=True)]


def _attend_self(unit: SelfAttention, x: Tensor, rotation: tuple[Tensor, Tensor], lengths: Lengths) -> Tensor:
    qk, v = unit.qkv(x).unflatten(1, (3 * unit.heads, -1)).split((2 * unit.heads, unit.heads), dim=1)
    q, k = rotate(qk, *rotation).chunk(2, dim=1)
    return self_attention(q, k, v, lengths).flatten(1)


def _attend_cross(unit: CrossAttention, x: Tensor, lengths: Lengths) -> Tensor:
    qk, v = (linear(x).unflatten(1, (unit.heads, -1)) for linear in (unit.qk, unit.v))
    return cross_attention(qk, v, lengths).flatten(1)


def _hidden(ffn: FeedForward, inside: Tensor) -> Tensor:
    first, norm, gelu, _ = ffn
    return gelu(norm(first(inside)))


def _set(module: nn.Linear | nn.LayerNorm, weight: Tensor, bias: Tensor) -> None:
    module.weight.copy_(weight)
    module.bias.copy_(bias)
