"""Attention over packed tokens: inside a segment, or between the two images of a pair."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lumiglue.matcher.ops.amx import attention_with_gradients, fused_attention
from lumiglue.matcher.ops.exponent import MIN_SUM, exponent_offset
from lumiglue.matcher.packed import Lengths, segments_of
from lumiglue.matcher.precision import multiplies_tiles

# On the CPU, attention of up to so many h x n x m scores is computed with the scores in memory: in bfloat16 without AMX
# (4 heads x 2048 x 2048), and in training (4 x 512 x 512). In training this is as fast as the fused kernel and its backward
# pass at 512 keypoints and, on AVX2 without AMX, takes 1.4 times as long at 1,024.
MAX_SCORES_IN_MEMORY = 2**24
MAX_SCORES_IN_TRAINING = 2**20
# Scores of a head at a time in the CPU's bidirectional attention: they fit in the cache.
BLOCK_SCORES = 2**17


@dataclass(frozen=True, eq=False)
class PaddedPair:
    """The lengths of one pair whose images are padded to n tokens each, tokens 0 to n and n to 2n.

    Attributes:
        n: Tokens of an image, padding included.
        counts: How many tokens of either image are real, the first ones. On the device, so that no shape depends on them.
    """

    n: int
    counts: Int[Tensor, " 2"]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, partners: bool) -> Tensor:
        """Attention of each (2n, h, c) query to the real tokens of its image or of the other."""
        real = torch.arange(self.n, device=q.device) < self.counts[:, None]
        q, k, v = (x.unflatten(0, (2, self.n)).transpose(1, 2) for x in (q, k, v))  # (2, h, n, c)
        return _attend_masked(q, k, v, real, partners=partners).flatten(0, 1)


def self_attention(
    q: Float[Tensor, "t h c"], k: Float[Tensor, "t h c"], v: Float[Tensor, "t h c"], lengths: Lengths | PaddedPair
) -> Float[Tensor, "t h c"]:
    """softmax(q k^T / sqrt(c)) v inside each segment (Section 3.1).

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        lengths: Tokens of either image of each pair.

    Returns:
        The message to each token.
    """
    return _attention(q, k, v, lengths, partners=False)


def partner_attention(
    q: Float[Tensor, "t h c"], k: Float[Tensor, "t h c"], v: Float[Tensor, "t h c"], lengths: Lengths | PaddedPair
) -> Float[Tensor, "t h c"]:
    """softmax(q k^T / sqrt(c)) v with the queries of each segment and the keys and values of its partner.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        lengths: Tokens of either image of each pair.

    Returns:
        The message to each token; zero if the partner is empty.
    """
    return _attention(q, k, v, lengths, partners=True)


def cross_attention(
    qk: Float[Tensor, "t h c"], v: Float[Tensor, "t h c"], lengths: Lengths | PaddedPair
) -> Float[Tensor, "t h c"]:
    """Bidirectional attention between partners: one similarity matrix serves both directions (Section 3.1).

    Args:
        qk: Queries, which are the keys too.
        v: Values.
        lengths: Tokens of either image of each pair.

    Returns:
        The message to each token; zero if the partner is empty.
    """
    if isinstance(lengths, PaddedPair):
        return _attention(qk, qk, v, lengths, partners=True)
    if (messages := _attend_for_training(qk, qk, v, lengths, partners=True)) is not None:
        return messages
    if (path := choose_path(lengths, qk)) == "padded":
        return _attention(qk, qk, v, lengths, partners=True)
    if path == "dense":
        qk, v = (x.unflatten(0, (len(lengths), 2, -1)).transpose(2, 3) for x in (qk, v))  # (P, 2, h, n, c)
        a_from_b, b_from_a = _attend_both(qk[:, 0], qk[:, 1], v[:, 0], v[:, 1])
        return torch.stack([a_from_b, b_from_a], dim=1).transpose(2, 3).flatten(0, 2)
    both: list[Tensor] = []
    for (qk_a, qk_b), (v_a, v_b) in zip(_by_pair(qk, lengths), _by_pair(v, lengths), strict=True):
        a_from_b, b_from_a = fused_attention(qk_a, qk_b, v_b), fused_attention(qk_b, qk_a, v_a)
        if a_from_b is None or b_from_a is None:
            sides = (x.transpose(0, 1) for x in (qk_a, qk_b, v_a, v_b))  # (h, n, c)
            a_from_b, b_from_a = (message.transpose(0, 1) for message in _attend_both(*sides))
        both += [a_from_b, b_from_a]
    return torch.cat(both)


def choose_path(lengths: Lengths, x: Tensor) -> Literal["dense", "padded", "segments"]:
    """How attention is computed.

    "dense": segments of equal length at once, on a GPU or in training, which needs all scores anyway. "padded": on a GPU,
    unequal segments padded to one length, because a GPU waits for its kernels, not for a few more products. "segments": one
    by one; a CPU gains nothing from batches of more than one pair, and its cache loses.
    """
    sizes, training = segments_of(lengths), _for_training(x)
    if len(set(sizes)) == 1 and sizes[0] and (x.is_cuda or training):
        return "dense"
    return "padded" if x.is_cuda and len(lengths) > 1 and not training else "segments"


def _attention(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths | PaddedPair, *, partners: bool) -> Tensor:
    """Attention of the (T, h, c) queries of each segment to itself or to its partner."""
    if isinstance(lengths, PaddedPair):
        return lengths.attend(q, k, v, partners=partners)
    if (messages := _attend_for_training(q, k, v, lengths, partners=partners)) is not None:
        return messages
    if (path := choose_path(lengths, q)) == "padded":
        return _attend_padded(q, k, v, lengths, partners=partners)
    if path == "dense":
        if partners:
            k, v = (x.unflatten(0, (len(lengths), 2, -1)).flip(1).flatten(0, 2) for x in (k, v))
        # (2P, h, n, c), as fused kernels want it
        q, k, v = (x.unflatten(0, (2 * len(lengths), -1)).transpose(1, 2) for x in (q, k, v))
        return _attend(q, k, v).transpose(1, 2).flatten(0, 1)
    of_segments: list[Tensor] = []
    for (q_a, q_b), (k_a, k_b), (v_a, v_b) in zip(*(_by_pair(x, lengths) for x in (q, k, v)), strict=True):
        if partners:
            k_a, k_b, v_a, v_b = k_b, k_a, v_b, v_a
        of_segments += [_attend_segment(q_a, k_a, v_a), _attend_segment(q_b, k_b, v_b)]
    return torch.cat(of_segments)


def _attend_for_training(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, *, partners: bool) -> Tensor | None:
    """`_attention` by the kernels that compute gradients too; None if PyTorch has to."""
    if not _for_training(q):
        return None
    return attention_with_gradients(q, k, v, segments_of(lengths), partners=partners)


def _by_pair(x: Tensor, lengths: Lengths) -> list[tuple[Tensor, Tensor]]:
    """The tokens of either image of each pair."""
    parts = x.split(segments_of(lengths))
    return list(zip(parts[::2], parts[1::2], strict=True))


def _attend_padded(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, *, partners: bool) -> Tensor:
    """Attention of each (n, h, c) segment to itself or to its partner, by one call for each group of pairs of similar size.
    Segments are padded to the longest of the group; the padding is masked and never attended to."""
    out = torch.zeros_like(q)
    counts = torch.tensor(lengths, device=q.device)  # (P, 2)
    starts = (counts.flatten().cumsum(0) - counts.flatten()).view(-1, 2)
    for pairs in _pairs_of_similar_size(lengths):
        column = torch.arange(max(max(lengths[pair]) for pair in pairs), device=q.device)
        group = torch.tensor(pairs, device=q.device)
        real = column < counts[group].view(-1, 1)  # (2P, n)
        rows = torch.where(real, starts[group].view(-1, 1) + column, 0)
        queries, keys, values = (x[rows].transpose(1, 2) for x in (q, k, v))  # (2P, h, n, c)
        out[rows[real]] = _attend_masked(queries, keys, values, real, partners=partners).to(out.dtype)[real]
    return out


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, real: Tensor, *, partners: bool) -> Tensor:
    """(2P, n, h, c) messages to the (2P, h, n, c) queries of segments from the (2P, n) real tokens of them or partners."""
    mask = real
    if partners:
        k, v, mask = (x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for x in (k, v, real))
    nonempty = mask.any(1)  # a fully masked row of the softmax would be NaN: an empty partner sends no message
    mask = (mask | ~nonempty[:, None])[:, None, None]  # (2P, 1, 1, n), the same for all heads and queries
    message = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    return message * nonempty[:, None, None, None]


def _pairs_of_similar_size(lengths: Lengths) -> list[list[int]]:
    """Pairs by the power of two above their longer side, so that padding no more than doubles that."""
    groups: dict[int, list[int]] = {}
    for pair, sides in enumerate(lengths):
        if longer := max(sides):
            groups.setdefault((longer - 1).bit_length(), []).append(pair)
    return list(groups.values())


def _for_training(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _in_memory(q: Tensor, m: int) -> bool:
    """Whether the scores of the queries over m keys are to be stored."""
    heads, n = q.shape[-3:-1]
    if q.is_cuda:
        return False
    if _for_training(q):
        return heads * n * m <= MAX_SCORES_IN_TRAINING
    return q.dtype == torch.bfloat16 and not multiplies_tiles() and heads * n * m <= MAX_SCORES_IN_MEMORY


def _attend_segment(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(n, h, c) queries over (m, h, c) keys and values."""
    if (message := fused_attention(q, k, v)) is not None:
        return message
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # (h, n, c)
    return _attend(q, k, v).transpose(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(..., h, n, c) queries over (..., h, m, c) keys and values."""
    channels = q.shape[-1]
    if k.shape[-2] == 0:
        return torch.zeros_like(q)
    if _in_memory(q, k.shape[-2]):
        return ((q * channels**-0.5) @ k.mT).softmax(-1).to(v.dtype) @ v
    if q.ndim == 3:  # the fused kernel wants a batch
        return F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    return F.scaled_dot_product_attention(q, k, v)


def _attend_both(qk_a: Tensor, qk_b: Tensor, v_a: Tensor, v_b: Tensor) -> tuple[Tensor, Tensor]:
    """Messages (..., h, n, c) to A from B and to B from A; if one side is empty, the other's message is zero."""
    n, channels = qk_a.shape[-2:]
    m = qk_b.shape[-2]
    if n == 0 or m == 0:
        return torch.zeros_like(qk_a), torch.zeros_like(qk_b)
    root = math.sqrt(channels**-0.5)
    if _in_memory(qk_a, m):
        similarity = (qk_a * root) @ (qk_b * root).mT  # (..., h, n, m)
        a_from_b = similarity.softmax(-1).to(v_b.dtype) @ v_b
        b_from_a = similarity.softmax(-2).to(v_a.dtype).mT @ v_a
        return a_from_b, b_from_a
    if not qk_a.is_cuda and not _for_training(qk_a) and qk_a.dtype == torch.float32:
        messages = _attend_both_in_blocks(qk_a * root, qk_b * root, v_a, v_b)
        if messages is not None:
            return messages
    return _attend(qk_a, qk_b, v_b), _attend(qk_b, qk_a, v_a)


def _attend_both_in_blocks(a: Tensor, b: Tensor, v_a: Tensor, v_b: Tensor) -> tuple[Tensor, Tensor] | None:
    """`_attend_both` of scaled (h, n, c) and (h, m, c) with one product and one exponential for both directions, in blocks
    of rows; None if one offset cannot serve all rows and columns (`exponent`)."""
    offset = exponent_offset(a, b)
    if offset is None:
        return None
    heads, n, channels = a.shape
    m = b.shape[1]
    a, b, v_a, v_b = a.contiguous(), b.mT.contiguous(), v_a.contiguous(), v_b.contiguous()
    a_from_b, b_from_a = a.new_empty(heads, n, channels), a.new_zeros(heads, m, channels)
    row_sums, column_sums = a.new_empty(heads, n), a.new_zeros(heads, m)
    block = min(max(BLOCK_SCORES // m, 32), 128)
    for start in range(0, n, block):
        rows = slice(start, min(start + block, n))
        scores = torch.bmm(a[:, rows], b)  # (h, block, m); threads take heads
        scores = scores.sub_(offset).exp_() if offset else scores.exp_()
        a_from_b[:, rows] = torch.bmm(scores, v_b)
        b_from_a.baddbmm_(scores.mT, v_a[:, rows])
        row_sums[:, rows] = scores.sum(2)
        column_sums += scores.sum(1)
    if min(float(row_sums.min()), float(column_sums.min())) < MIN_SUM:
        return None
    return a_from_b.div_(row_sums.unsqueeze(-1)), b_from_a.div_(column_sums.unsqueeze(-1))
