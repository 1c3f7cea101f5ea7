"""Packed tokens: any number of pairs, with any numbers of keypoints, as one tensor without padding.

Shape letters: P pairs, T tokens in all, n tokens of a segment, d channels, h heads, c = d / h channels of a head.
A batch holds 2P segments in the order A0 B0 A1 B1 ...; segment s and its partner s ^ 1 are the two images of a pair.
Whatever runs over tokens (linear layers, norms) runs once over T; attention runs inside a segment or between partners.
On a CPU a kernel is chosen by a pair's own sizes alone, so that a pair's result never depends on what else is in its batch;
on a GPU pairs of like size are padded and masked for attention, so that it does not but for rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PackedPairs:
    """The matcher's input: P pairs of unequal images.

    descriptors: T x descriptor_dim. positions: T x 2 or T x 4, see `matcher.inputs.positions_of`.
    lengths: 2P segment lengths; zeros are legal.
    """

    descriptors: Float[Tensor, "t d"]
    positions: Float[Tensor, "t p"]
    lengths: tuple[int, ...]

    @property
    def n_pairs(self) -> int:
        return len(self.lengths) // 2

    def split(self, tokens: int) -> "list[PackedPairs]":
        """The same pairs in order, in parts of at most `tokens` tokens or of one pair."""
        parts: list[list[int]] = []
        room = 0
        for pair in range(self.n_pairs):
            size = sum(self.lengths[2 * pair : 2 * pair + 2])
            if not parts or size > room:
                parts.append([])
                room = tokens
            parts[-1].append(pair)
            room -= size
        starts = offsets_of(self.lengths)
        found = []
        for part in parts:
            first, end = 2 * part[0], 2 * part[-1] + 2
            rows = slice(starts[first], starts[end])
            found.append(PackedPairs(self.descriptors[rows], self.positions[rows], self.lengths[first:end]))
        return found

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "PackedPairs":
        """On `device`, with descriptors in `dtype`; positions stay float32, where half precision would lose pixels."""
        return PackedPairs(self.descriptors.to(device, dtype), self.positions.to(device), self.lengths)


def offsets_of(lengths: Sequence[int]) -> list[int]:
    """Where each segment starts, and the end of the last: one more than there are segments."""
    return [0, *accumulate(lengths)]


def segment_counts(flags: Bool[Tensor, " t"], lengths: Sequence[int]) -> list[int]:
    """How many tokens of each segment are true."""
    running = torch.cat([flags.new_zeros(1, dtype=torch.int64), flags.cumsum(0)])
    ends = torch.tensor(offsets_of(lengths), device=flags.device)
    return running[ends].diff().tolist()


def keep_segments(lengths: Sequence[int], segments: Sequence[int], device: torch.device) -> Int[Tensor, " k"]:
    """Token rows of the given segments, in order."""
    starts = offsets_of(lengths)
    rows = [torch.arange(starts[s], starts[s + 1], device=device) for s in segments]
    return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64, device=device)
