"""LightGlue (Lindenberger, Sarlin, Pollefeys, ICCV 2023) on packed tokens.

Shape letters: P pairs, T tokens in all, d channels, h heads, c = d / h channels of a head, L layers.
Equation and section numbers are the paper's.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lumiglue.errors import InputError
from lumiglue.matcher.assignment import MatchAssignment, TokenConfidence
from lumiglue.matcher.execution import Layers, current_layers, own_precision
from lumiglue.matcher.inference import match_adaptively, match_by_layer
from lumiglue.matcher.ops.amx import norm_gelu_, rotated
from lumiglue.matcher.ops.attention import PaddedPair, cross_attention, partner_attention, self_attention
from lumiglue.matcher.packed import Lengths, PackedPairs
from lumiglue.matcher.precision import lowered
from lumiglue.matcher.settings import Ablation, Encoding, MatchSettings
from lumiglue.system.device import keep_scratch_memory
from lumiglue.types import Matches

# Tokens that a CPU computes at a time. More do not fit in its cache: a batch of large pairs would take longer than the pairs
# one by one.
CPU_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class LightGlueConfig:
    """The shape of a LightGlue matcher. The defaults are the paper's model.

    Attributes:
        extractor: Name of the features that the matcher was trained for; "" accepts any of the right width.
        descriptor_dim: Channels of a descriptor.
        d: Width of the states.
        heads: Attention heads.
        n_layers: Layers.
        encoding: What the rotary encoding sees. "xy": the normalised position. "xy-scale-orientation": also scale in pixels
            and orientation in radians, unchanged (the released SIFT models). "xy-logscale-angle": also log scale, and the
            orientation with integer frequencies, which keeps it periodic (359 and 1 degree are neighbours).
        project_input: Map descriptors to d by a linear layer; needed if the widths differ.
        ablation: None, or what differs from the paper's model. "no-matchability": P is the double softmax alone.
            "absolute-positions": an MLP of the positions is added to the descriptors once, as in SuperGlue.
            "full-cross-attention": queries and keys of their own instead of one for both.
        exit_ratio: alpha that the weights are meant to be run with, see `MatchSettings`; 0 is off.
        prune_below: beta that they are meant to be run with.

    Raises:
        InputError: The values do not fit together.
    """

    extractor: str = ""
    descriptor_dim: int = 256
    d: int = 256
    heads: int = 4
    n_layers: int = 9
    encoding: Encoding = "xy"
    project_input: bool = False
    ablation: Ablation | None = None
    exit_ratio: float = 0.95
    prune_below: float = 0.01

    def __post_init__(self) -> None:
        MatchSettings(exit_ratio=self.exit_ratio, prune_below=self.prune_below)  # checks them
        if self.d < 1 or self.heads < 1 or self.d % (2 * self.heads):
            raise InputError(f"d is {self.d} with {self.heads} heads; d must be a multiple of 2 x heads")
        if self.n_layers < 1:
            raise InputError(f"n_layers is {self.n_layers}; give at least 1")
        if self.encoding not in get_args(Encoding):
            raise InputError(f"unknown encoding {self.encoding!r}; choose from {list(get_args(Encoding))}")
        if self.ablation is not None and self.ablation not in get_args(Ablation):
            raise InputError(f"unknown ablation {self.ablation!r}; choose from {list(get_args(Ablation))}, or None")
        if self.descriptor_dim != self.d and not self.project_input:
            raise InputError(f"descriptors of width {self.descriptor_dim} need project_input to become d = {self.d}")


class RotaryEncoding(nn.Module):
    """R(p): rotates plane k of each head by the angle b_k^T p with learned b_k (Equation 3), shared by layers and heads.

    With "xy-logscale-angle" the orientation has a fixed integer frequency in plane k instead of a learned one.
    """

    INTEGER_FREQUENCIES = (0, 0, 1, 2)

    def __init__(self, encoding: Encoding, channels: int) -> None:
        super().__init__()
        self.periodic = encoding == "xy-logscale-angle"
        learned = {"xy": 2, "xy-scale-orientation": 4, "xy-logscale-angle": 3}[encoding]
        frequencies = torch.empty(channels // 2, learned)
        if not frequencies.is_meta:  # random numbers for shapes alone would import sympy, for most of a second
            frequencies.normal_()
        self.frequencies = nn.Parameter(frequencies)
        turns = [self.INTEGER_FREQUENCIES[plane % 4] for plane in range(channels // 2)]
        self.register_buffer("turns", torch.tensor(turns, dtype=torch.float32), persistent=False)
        self.turns: Tensor

    def forward(self, positions: Float[Tensor, "t p"]) -> tuple[Float[Tensor, "t q"], Float[Tensor, "t q"]]:
        """Cosine and sine of the angle of each token's q = c / 2 planes, in the positions' precision."""
        frequencies = self.frequencies.to(positions.dtype).mT
        if self.periodic:
            frequencies = torch.cat([frequencies, self.turns.to(positions.dtype)[None]])
        # Sums, not a matrix product: the last bits of that depend on the number of rows, and far from the origin they turn
        # a token visibly.
        along, *others = (coordinate * row for coordinate, row in zip(positions.split(1, dim=1), frequencies, strict=True))
        angles = sum(others, along)
        return angles.cos(), angles.sin()


class AbsoluteEncoding(nn.Module):
    """An ablation: an MLP of each token's position, added to its state once; attention rotates nothing."""

    def __init__(self, encoding: Encoding, d: int, channels: int) -> None:
        super().__init__()
        inputs = 2 if encoding == "xy" else 4
        self.mlp = nn.Sequential(nn.Linear(inputs, d), nn.LayerNorm(d), nn.GELU(), nn.Linear(d, d))
        self.planes = channels // 2

    def offsets(self, positions: Float[Tensor, "t p"]) -> Float[Tensor, "t d"]:
        """What is added to the states."""
        return self.mlp(positions.to(next(self.mlp.parameters()).dtype))

    def forward(self, positions: Float[Tensor, "t p"]) -> tuple[Float[Tensor, "t q"], Float[Tensor, "t q"]]:
        """No rotation."""
        cosine = positions.new_ones(len(positions), self.planes)
        return cosine, torch.zeros_like(cosine)


PositionEncoding = RotaryEncoding | AbsoluteEncoding


def rotate(x: Float[Tensor, "t h c"], cosine: Float[Tensor, "t q"], sine: Float[Tensor, "t q"]) -> Float[Tensor, "t h c"]:
    """Rotates plane k, the channels (k, k + c/2), of each head by its token's angle."""
    if (result := rotated(x, cosine, sine)) is not None:
        return result
    a, b = x.chunk(2, dim=-1)
    cosine, sine = (table.to(x.dtype).unsqueeze(1) for table in (cosine, sine))
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)


class FeedForward(nn.Sequential):
    """MLP([x | m]) of Equation 1."""

    def __init__(self, d: int) -> None:
        super().__init__(nn.Linear(2 * d, 2 * d), nn.LayerNorm(2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, input: Float[Tensor, "t e"]) -> Float[Tensor, "t d"]:
        first, norm, gelu, last = self
        assert isinstance(norm, nn.LayerNorm)
        hidden = first(input)
        return last(hidden if norm_gelu_(hidden, norm) else gelu(norm(hidden)))


class SelfAttention(nn.Module):
    """x_i <- x_i + MLP([x_i | m_i]), m_i attends to the points of its own image by relative position (Equations 1-4)."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.ffn = FeedForward(d)

    def forward(
        self, x: Float[Tensor, "t d"], rotation: tuple[Tensor, Tensor], lengths: Lengths | PaddedPair
    ) -> Float[Tensor, "t d"]:
        inside = lowered(x, self.qkv.weight)
        qk, v = self.qkv(inside).unflatten(1, (3 * self.heads, -1)).split((2 * self.heads, self.heads), dim=1)  # (T, ., c)
        q, k = rotate(qk, *rotation).chunk(2, dim=1)
        message = self.out(self_attention(q, k, v, lengths).flatten(1))
        return x + self.ffn(torch.cat([inside, message], dim=1))


class CrossAttention(nn.Module):
    """x_i <- x_i + MLP([x_i | m_i]), m_i attends to the other image; one key per point (Equation 5).

    Args:
        d: Width of the states.
        heads: Attention heads.
        full: An ablation: points have queries besides keys, and attention is computed for each direction.
    """

    def __init__(self, d: int, heads: int, full: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qk = nn.Linear(d, d)
        self.query = nn.Linear(d, d) if full else None
        self.v = nn.Linear(d, d)
        self.out = nn.Linear(d, d)
        self.ffn = FeedForward(d)

    def forward(self, x: Float[Tensor, "t d"], lengths: Lengths | PaddedPair) -> Float[Tensor, "t d"]:
        inside = lowered(x, self.qk.weight)
        qk, v = (linear(inside).unflatten(1, (self.heads, -1)) for linear in (self.qk, self.v))  # (T, h, c)
        if self.query is None:
            attended = cross_attention(qk, v, lengths)
        else:
            attended = partner_attention(self.query(inside).unflatten(1, (self.heads, -1)), qk, v, lengths)
        message = self.out(attended.flatten(1))
        return x + self.ffn(torch.cat([inside, message], dim=1))


class Layer(nn.Module):
    """One self-attention and one cross-attention unit."""

    def __init__(self, d: int, heads: int, full_cross_attention: bool = False) -> None:
        super().__init__()
        self.self_attention = SelfAttention(d, heads)
        self.cross_attention = CrossAttention(d, heads, full_cross_attention)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], lengths: Lengths | PaddedPair) -> Tensor:
        return self.cross_attention(self.self_attention(x, rotation, lengths), lengths)


class LightGlue(nn.Module):
    """The matcher: L layers, an assignment head after each, a confidence classifier after each but the last.

    Args:
        config: Its shape.
    """

    default_threshold = 0.1

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        self.config = config
        d, channels = config.d, config.d // config.heads
        self.input_projection = nn.Linear(config.descriptor_dim, d) if config.project_input else nn.Identity()
        self.position_encoding: PositionEncoding
        if config.ablation == "absolute-positions":
            self.position_encoding = AbsoluteEncoding(config.encoding, d, channels)
        else:
            self.position_encoding = RotaryEncoding(config.encoding, channels)
        full, matchability = config.ablation == "full-cross-attention", config.ablation != "no-matchability"
        # The casts tell readers and type checkers what the lists contain.
        self.layers = cast(Sequence[Layer], nn.ModuleList(Layer(d, config.heads, full) for _ in range(config.n_layers)))
        self.heads = cast(
            Sequence[MatchAssignment], nn.ModuleList(MatchAssignment(d, matchability) for _ in range(config.n_layers))
        )
        self.confidences = cast(
            Sequence[TokenConfidence], nn.ModuleList(TokenConfidence(d) for _ in range(config.n_layers - 1))
        )
        self._initialise()

    @property
    def own_settings(self) -> MatchSettings:
        """What settings that are None take: the thresholds of the weights."""
        return MatchSettings(
            score_threshold=self.default_threshold, exit_ratio=self.config.exit_ratio, prune_below=self.config.prune_below
        )

    def _initialise(self) -> None:
        """Starts as a soft nearest-neighbour matcher: updates are zero, and projections keep inner products.

        Unit descriptors are scaled to a norm of sqrt(d); S begins as 20 times their cosine.
        """
        config = self.config
        if isinstance(self.input_projection, nn.Linear):
            # A narrowing projection keeps a share d / descriptor_dim of the squared norm; the gain restores it.
            nn.init.orthogonal_(self.input_projection.weight, math.sqrt(max(config.d, config.descriptor_dim)))
            nn.init.zeros_(self.input_projection.bias)
        for module in self.modules():
            if isinstance(module, CrossAttention):
                nn.init.orthogonal_(module.qk.weight)
                if module.query is not None:  # starts equal to the key
                    module.query.load_state_dict(module.qk.state_dict())
            if isinstance(module, AbsoluteEncoding):
                last = module.mlp[3]
                assert isinstance(last, nn.Linear)
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
            if isinstance(module, SelfAttention | CrossAttention):
                last = module.ffn[3]
                assert isinstance(last, nn.Linear)
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
            if isinstance(module, MatchAssignment):
                nn.init.orthogonal_(module.projection.weight, math.sqrt(20 / math.sqrt(config.d)))
                nn.init.zeros_(module.projection.bias)
        for confidence in self.confidences:
            nn.init.zeros_(confidence.weight)
            nn.init.zeros_(confidence.bias)

    def begin(self, pairs: PackedPairs) -> tuple[Float[Tensor, "t d"], tuple[Tensor, Tensor]]:
        """States before the first layer, and the rotations that every self-attention applies.

        In float32 under autocast too: half precision would round positions to two pixels in a thousand, and all states.

        Args:
            pairs: The input.

        Returns:
            The T x d states, and cosine and sine of the T x c/2 angles.
        """
        with torch.autocast(pairs.positions.device.type, enabled=False):
            x = self.input_projection(pairs.descriptors)
            if isinstance(self.position_encoding, AbsoluteEncoding):
                x = x + self.position_encoding.offsets(pairs.positions).to(x.dtype)
            return x, self.position_encoding(pairs.positions)

    def exit_threshold(self, layer: int) -> float:
        """lambda_l of Equation 11: how confident a point must be; layers count from 0."""
        return 0.8 + 0.1 * math.exp(-4.0 * layer / self.config.n_layers)

    def states(self, pairs: PackedPairs, *, layers: Layers | None = None) -> Iterator[Float[Tensor, "t d"]]:
        """The state after each layer, all layers and all points: what training supervises.

        Args:
            pairs: The input.
            layers: As for `match`; None takes the trained ones themselves, which have gradients.

        Yields:
            T x d states.
        """
        x, rotation = self.begin(pairs)
        for layer in layers or self.layers:
            x = layer(x, rotation, pairs.lengths)
            yield x

    @torch.no_grad()
    def match(
        self, pairs: PackedPairs, settings: MatchSettings | None = None, *, layers: Layers | None = None
    ) -> list[Matches]:
        """Matches each pair with adaptive depth and width (Section 3.3); a pair's result does not depend on the others.

        Args:
            pairs: The input, see `pack`.
            settings: Thresholds; None takes the matcher's own.
            layers: What computes the layers: `execution_layers` or `ReplayedLayers`; None takes `current_layers`.

        Returns:
            One result for each pair, in order, on the device of the model.
        """
        on_gpu = next(self.parameters()).is_cuda
        if not on_gpu:
            keep_scratch_memory()
        parts = [pairs] if on_gpu else pairs.split(CPU_TOKENS)
        layers, settings = layers or current_layers(self), settings or MatchSettings()
        with own_precision(self):
            return [matches for part in parts for matches in match_adaptively(self, layers, part, settings)]

    @torch.no_grad()
    def match_by_layer(
        self, pairs: PackedPairs, settings: MatchSettings | None = None, *, layers: Layers | None = None
    ) -> list[list[Matches]]:
        """For each pair, what it would have given after each layer that ran.

        Args:
            pairs: The input, see `pack`.
            settings: Thresholds; None takes the matcher's own.
            layers: As for `match`.

        Returns:
            For each pair a list whose last entry is what `match` gives. Entry l is the assignment, by the head of layer
            l + 1, of the points that were active in that layer. So its `layers0` and `layers1` are below its `stop_layer`
            exactly where a point had been pruned before. A pair without keypoints in an image has one entry, of no layer.
        """
        with own_precision(self):
            return match_by_layer(self, layers or current_layers(self), pairs, settings or MatchSettings())
