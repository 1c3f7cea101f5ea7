"""Packed (varlen) tokens: any number of pairs, with any numbers of keypoints, as one tensor without padding.

Shape letters: P pairs, T tokens in all, n tokens of a segment, d channels, h heads, c = d / h channels of a head.
A batch holds 2P segments in the order A0 B0 A1 B1 ...; segment s and its partner s ^ 1 are the two images of a pair.
Operations on single tokens (linear layers, norms) run once over T; attention runs inside a segment or between partners.
On a CPU a pair's own sizes alone choose the kernel, so a pair's result never depends on what else is in its batch. On a GPU
pairs of similar size are padded and masked for attention, so the result differs by rounding at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Lengths = Sequence[tuple[int, int]]  # tokens of either image of each pair


@dataclass(frozen=True, eq=False)
class PackedPairs:
    """The matcher's input: P pairs of images with any numbers of keypoints.

    Attributes:
        descriptors: T x descriptor_dim.
        positions: T x 2, T x 3 or T x 4, see `matcher.inputs.normalize_positions`.
        lengths: Tokens of either image of each pair; zeros are legal.
    """

    descriptors: Float[Tensor, "t d"]
    positions: Float[Tensor, "t p"]
    lengths: tuple[tuple[int, int], ...]

    @property
    def n_pairs(self) -> int:
        """P."""
        return len(self.lengths)

    def split(self, tokens: int) -> "list[PackedPairs]":
        """The same pairs, in order, in parts of at most `tokens` tokens or of one pair."""
        parts: list[list[tuple[int, int]]] = []
        room = 0
        for lengths in self.lengths:
            if not parts or sum(lengths) > room:
                parts.append([])
                room = tokens
            parts[-1].append(lengths)
            room -= sum(lengths)
        sizes = [sum(map(sum, part)) for part in parts]
        tensors = zip(self.descriptors.split(sizes), self.positions.split(sizes), parts, strict=True)
        return [PackedPairs(descriptors, positions, tuple(part)) for descriptors, positions, part in tensors]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "PackedPairs":
        """On `device`, with descriptors in `dtype`; positions remain float32, because half precision would lose pixels."""
        return PackedPairs(self.descriptors.to(device, dtype), self.positions.to(device), self.lengths)


def segments_of(lengths: Lengths) -> list[int]:
    """Tokens of each of the 2P segments."""
    return [n for pair in lengths for n in pair]


def counts_in_pairs(flags: Bool[Tensor, " t"], lengths: Lengths) -> list[tuple[int, int]]:
    """How many tokens of either image of each pair are true."""
    running = torch.cat([flags.new_zeros(1, dtype=torch.int64), flags.cumsum(0)])
    ends = torch.tensor([0, *accumulate(segments_of(lengths))], device=flags.device)
    return [(m, n) for m, n in running[ends].diff().view(-1, 2).tolist()]


def rows_of_pairs(lengths: Lengths, pairs: Sequence[int], device: torch.device) -> Int[Tensor, " k"]:
    """Token rows of the given pairs, in order."""
    ends = list(accumulate(map(sum, lengths)))
    rows = [torch.arange(ends[i] - sum(lengths[i]), ends[i], device=device) for i in pairs]
    return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64, device=device)
