"""SuperGlue (Sarlin, DeTone, Malisiewicz, Rabinovich, CVPR 2020) on packed tokens, for comparison with LightGlue.

Shape letters as in `lightglue`: P pairs, T tokens in all, d channels, h heads, c = d / h; m and n points of a pair.
Section and equation numbers are the SuperGlue paper's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lumiglue.errors import InputError
from lumiglue.matcher.execution import Layers, own_precision
from lumiglue.matcher.inputs import PositionInput
from lumiglue.matcher.ops.attention import partner_attention, self_attention
from lumiglue.matcher.packed import Lengths, PackedPairs, segments_of
from lumiglue.matcher.precision import lowered
from lumiglue.matcher.settings import MatchSettings
from lumiglue.system.device import keep_scratch_memory
from lumiglue.types import Matches

# SuperGlue divides positions about the centre by 0.7 max(size), `pack` by max(size) / 2.
_POSITION_SCALE = 0.5 / 0.7


@dataclass(frozen=True, kw_only=True)
class SuperGlueConfig:
    """The shape of a SuperGlue matcher. The defaults are the paper's model.

    Attributes:
        extractor: Name of the features that the matcher was trained for; "" accepts any of the right width.
        descriptor_dim: Channels of a descriptor.
        d: Width of the states.
        heads: Attention heads.
        n_layers: Pairs of a self- and a cross-attention layer.
        encoder_widths: Hidden widths of the keypoint encoder.
        sinkhorn_iterations: In matching; training takes half as many.
        project_input: Map descriptors to d by a linear layer; needed if the widths differ.

    Raises:
        InputError: The values do not fit together.
    """

    extractor: str = ""
    descriptor_dim: int = 256
    d: int = 256
    heads: int = 4
    n_layers: int = 9
    encoder_widths: tuple[int, ...] = (32, 64, 128, 256)
    sinkhorn_iterations: int = 100
    project_input: bool = False

    def __post_init__(self) -> None:
        if self.d < 1 or self.heads < 1 or self.d % self.heads:
            raise InputError(f"d is {self.d} with {self.heads} heads; d must be a multiple of heads")
        if self.n_layers < 1 or not 1 <= self.sinkhorn_iterations <= 10_000:
            values = f"n_layers is {self.n_layers}, sinkhorn_iterations {self.sinkhorn_iterations}"
            raise InputError(f"{values}; give at least 1, and at most 10,000 iterations")
        if not self.encoder_widths or min(self.encoder_widths) < 1:
            raise InputError(f"encoder_widths is {self.encoder_widths}; give at least one width, each at least 1")
        if self.descriptor_dim != self.d and not self.project_input:
            raise InputError(f"descriptors of width {self.descriptor_dim} need project_input to become d = {self.d}")

    @property
    def encoding(self) -> PositionInput:
        """What the keypoint encoder sees: position and detector score."""
        return "xy-score"


def log_sinkhorn(
    scores: Float[Tensor, "*b m n"], row_marginals: Tensor, column_marginals: Tensor, iterations: int
) -> Float[Tensor, "*b m n"]:
    """log of diag(u) exp(scores) diag(v) whose rows and columns sum to the marginals (Cuturi 2013).

    Args:
        scores: The logarithm of what is scaled.
        row_marginals: Logarithms of the sums of the rows.
        column_marginals: Logarithms of the sums of the columns.
        iterations: After the last one the sums of the columns are exact and those of the rows nearly.

    Returns:
        The scaled matrix, as logarithms.
    """
    u, v = torch.zeros_like(row_marginals), torch.zeros_like(column_marginals)
    for _ in range(iterations):
        u = row_marginals - (scores + v.unsqueeze(-2)).logsumexp(-1)
        v = column_marginals - (scores + u.unsqueeze(-1)).logsumexp(-2)
    return scores + u.unsqueeze(-1) + v.unsqueeze(-2)


def log_optimal_transport(
    similarity: Float[Tensor, "*b m n"], dustbin: Float[Tensor, ""], iterations: int
) -> Float[Tensor, "*b r s"]:
    """log P with a dustbin row and column, m + 1 by n + 1 (Section 3.2, Equations 8-10).

    Each point has mass 1, each dustbin as much as the other image has points: a = [1 ... 1, n], b = [1 ... 1, m].

    Args:
        similarity: S of m points and n points.
        dustbin: The score of the dustbins.
        iterations: Of Sinkhorn's algorithm.

    Returns:
        log P; the last row and column are the dustbins.
    """
    m, n = similarity.shape[-2:]
    batch = similarity.shape[:-2]
    row, column = (dustbin.expand(*batch, 1, size) for size in (n + 1, m))
    scores = torch.cat([torch.cat([similarity, column.mT], dim=-1), row], dim=-2)
    ones_m, ones_n = (similarity.new_zeros(*batch, size) for size in (m, n))
    rows = torch.cat([ones_m, similarity.new_full((*batch, 1), math.log(max(n, 1)))], dim=-1)
    columns = torch.cat([ones_n, similarity.new_full((*batch, 1), math.log(max(m, 1)))], dim=-1)
    return log_sinkhorn(scores, rows, columns, iterations)


def _mlp(*widths: int) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between them."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise(widths[:-1]):
        layers += [nn.Linear(inside, outside), nn.BatchNorm1d(outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


class AttentionLayer(nn.Module):
    """x_i <- x_i + MLP([x_i | m_i]) with a message from the points of the own or of the other image (Equations 3-6)."""

    def __init__(self, d: int, heads: int, kind: Literal["self", "cross"]) -> None:
        super().__init__()
        self.heads, self.attend = heads, self_attention if kind == "self" else partner_attention
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.out = nn.Linear(d, d)
        self.mlp = _mlp(2 * d, 2 * d, d)

    def forward(self, x: Float[Tensor, "t d"], lengths: Lengths) -> Float[Tensor, "t d"]:
        inside = lowered(x, self.q.weight)
        q, k, v = (linear(inside).unflatten(1, (self.heads, -1)) for linear in (self.q, self.k, self.v))  # (T, h, c)
        message = self.out(self.attend(q, k, v, lengths).flatten(1))
        return x + self.mlp(torch.cat([inside, message], dim=1))


class SuperGlue(nn.Module):
    """The matcher: keypoint encoder, alternating self- and cross-attention, one optimal transport at the end.

    Args:
        config: Its shape.
    """

    default_threshold = 0.2

    def __init__(self, config: SuperGlueConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d
        self.input_projection = nn.Linear(config.descriptor_dim, d) if config.project_input else nn.Identity()
        self.keypoint_encoder = _mlp(3, *config.encoder_widths, d)
        kinds: tuple[Literal["self", "cross"], ...] = ("self", "cross") * config.n_layers
        self.layers = cast(Sequence[AttentionLayer], nn.ModuleList(AttentionLayer(d, config.heads, kind) for kind in kinds))
        self.projection = nn.Linear(d, d)
        self.dustbin = nn.Parameter(torch.tensor(1.0))
        self._initialise()

    @property
    def own_settings(self) -> MatchSettings:
        """What settings that are None take."""
        return MatchSettings(score_threshold=self.default_threshold, exit_ratio=0, prune_below=0)

    def _initialise(self) -> None:
        """Updates start at zero, as in `lightglue.LightGlue`, so both start from the similarity of the descriptors."""
        if isinstance(self.input_projection, nn.Linear):
            gain = math.sqrt(max(self.config.d, self.config.descriptor_dim))
            nn.init.orthogonal_(self.input_projection.weight, gain)
            nn.init.zeros_(self.input_projection.bias)
        for mlp in (self.keypoint_encoder, *(layer.mlp for layer in self.layers)):
            last = mlp[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        nn.init.orthogonal_(self.projection.weight, math.sqrt(20 / math.sqrt(self.config.d)))
        nn.init.zeros_(self.projection.bias)

    def features(self, pairs: PackedPairs, layers: Layers | None = None) -> Float[Tensor, "t d"]:
        """The f of S_ij = <f_i, f_j>: the projection of the last states times d^-1/4.

        Args:
            pairs: The input.
            layers: As for `match`.

        Returns:
            One row for each token.
        """
        positions = pairs.positions * pairs.positions.new_tensor([_POSITION_SCALE, _POSITION_SCALE, 1.0])
        with torch.autocast(positions.device.type, enabled=False):  # as in LightGlue
            x = self.input_projection(pairs.descriptors)
            x = x + self.keypoint_encoder(positions.to(x.dtype))
        for layer in layers or self.layers:
            x = layer(x, pairs.lengths)
        features = self.projection(x)
        features = features.float() if features.dtype.itemsize < 4 else features
        return features * self.config.d**-0.25

    @torch.no_grad()
    def match(
        self,
        pairs: PackedPairs,
        settings: MatchSettings | None = None,
        *,
        layers: Layers | None = None,
    ) -> list[Matches]:
        """Matches each pair: mutual maxima of P above the threshold. SuperGlue has no adaptivity.

        Args:
            pairs: The input, see `pack`.
            settings: Only `score_threshold` counts; None takes the paper's, 0.2.
            layers: What computes the layers instead of the model's own: `execution_layers`.

        Returns:
            One result for each pair, in order, on the device of the model.
        """
        keep_scratch_memory()
        parameter = next(self.parameters())
        pairs = pairs.to(parameter.device, parameter.dtype)
        requested = settings.score_threshold if settings else None
        threshold = self.default_threshold if requested is None else requested
        with own_precision(self):
            sides = iter(self.features(pairs, layers).split(segments_of(pairs.lengths)))
            return [self._match_pair(a, b, threshold) for a, b in zip(sides, sides, strict=True)]

    def _match_pair(self, features0: Tensor, features1: Tensor, threshold: float) -> Matches:
        m, n, depth = len(features0), len(features1), 2 * self.config.n_layers
        layers = [torch.full((size,), depth, device=features0.device) for size in (m, n)]
        if not m or not n:
            none = torch.zeros(0, 2, dtype=torch.int64, device=features0.device)
            return Matches(none, features0.new_zeros(0, dtype=torch.float32), 0, *(count * 0 for count in layers))
        similarity = features0 @ features1.mT
        log_p = log_optimal_transport(similarity, self.dustbin.to(similarity.dtype), self.config.sinkhorn_iterations)
        best, partner = log_p[:-1, :-1].max(1)
        mutual = log_p[:-1, :-1].argmax(0)[partner] == torch.arange(m, device=partner.device)
        scores = best.clamp(max=0).exp()  # rounding may lift log P above 0
        mutual_rows = (mutual & (scores > threshold)).nonzero()[:, 0]
        return Matches(torch.stack([mutual_rows, partner[mutual_rows]], dim=1), scores[mutual_rows].float(), depth, *layers)
