"""Labels of pairs of photos from a teacher, stored sparsely.

They state which keypoints are near each other, which ones the teacher can judge, and the teacher's own assignment.

In the HDF5 file of a dataset of kind "taught" (Q pairs of views; pair q has m and n keypoints, J = sum of all m + n):
    taught/near M x 2 (rows of the two views), near_distances M, near_offsets Q + 1,
    taught/judged J, judged_offsets Q + 1 (the m keypoints of the first view, then the n of the second),
    taught/assigned T x 2, assigned_log_p T, assigned_offsets Q + 1, matchabilities J: the teacher's last assignment,
        empty if the features are not the teacher's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from jaxtyping import Bool, Float, Integer

from lumiglue.io.hdf5 import read_numbers

GROUP = "taught"
MATCH_PX = 3.0  # largest distance of a match, in both images
NEAR_PX = 5.0  # a judged keypoint is unmatchable if no keypoint is this near


@dataclass(frozen=True, eq=False)
class SparseAssignment:
    """A teacher's assignment of m and n keypoints, without the entries near 0.

    Attributes:
        entries: Rows of the two keypoints of each entry.
        log_p: Logarithm of each entry.
        matchability0: Matchability of the first image's keypoints, 0 to 1.
        matchability1: The same for the second image.
    """

    entries: Integer[np.ndarray, "k 2"]
    log_p: Float[np.ndarray, " k"]
    matchability0: Float[np.ndarray, " m"]
    matchability1: Float[np.ndarray, " n"]

    def select(self, position0: np.ndarray, position1: np.ndarray) -> "SparseAssignment":
        """The assignment of a subset of the keypoints. `position0` and `position1` have the new row of each keypoint, -1
        where it is dropped.

        The probability that a keypoint assigned to dropped ones no longer counts as matchable.
        """
        moved = np.column_stack([position0[self.entries[:, 0]], position1[self.entries[:, 1]]])
        mask = (moved >= 0).all(1)
        p = np.exp(self.log_p.astype(np.float64))
        matchabilities = []
        for side, (position, matchability) in enumerate(((position0, self.matchability0), (position1, self.matchability1))):
            rows, size = self.entries[:, side], len(matchability)
            total, remaining = np.bincount(rows, p, size), np.bincount(rows[mask], p[mask], size)
            fraction = np.divide(remaining, total, out=np.ones(size), where=total > 0)
            selected = np.zeros(int((position >= 0).sum()), np.float32)
            selected[position[position >= 0]] = (matchability * fraction)[position >= 0]
            matchabilities.append(selected)
        return SparseAssignment(moved[mask], self.log_p[mask], *matchabilities)

    def reversed(self) -> "SparseAssignment":
        """The same with the two images swapped."""
        return SparseAssignment(self.entries[:, ::-1], self.log_p, self.matchability1, self.matchability0)


@dataclass(frozen=True, eq=False)
class PairLabels:
    """Labels of one pair of m and n keypoints.

    Attributes:
        near: Rows of keypoints that are at most NEAR_PX apart in at least one image.
        distances: Their distance in pixels, the larger one of the two images; infinite if they cannot match.
        judged0: Keypoints of the first image whose position in the second is known, or known to be outside it.
        judged1: The same for the second image.
        assignment: The teacher's assignment of these keypoints, if it could see them.
    """

    near: Integer[np.ndarray, "k 2"]
    distances: Float[np.ndarray, " k"]
    judged0: Bool[np.ndarray, " m"]
    judged1: Bool[np.ndarray, " n"]
    assignment: SparseAssignment | None = None

    def select(self, rows0: np.ndarray, rows1: np.ndarray) -> "PairLabels":
        """The labels of a subset of the keypoints, in the order of `rows0` and `rows1`."""
        position0, position1 = (np.full(len(judged), -1) for judged in (self.judged0, self.judged1))
        position0[rows0], position1[rows1] = np.arange(len(rows0)), np.arange(len(rows1))
        moved = np.column_stack([position0[self.near[:, 0]], position1[self.near[:, 1]]])
        mask = (moved >= 0).all(1)
        return PairLabels(
            moved[mask],
            self.distances[mask],
            self.judged0[rows0],
            self.judged1[rows1],
            None if self.assignment is None else self.assignment.select(position0, position1),
        )

    def reversed(self) -> "PairLabels":
        """The same with the two images swapped."""
        assignment = None if self.assignment is None else self.assignment.reversed()
        return PairLabels(self.near[:, ::-1], self.distances, self.judged1, self.judged0, assignment)

    def matches(self) -> Integer[np.ndarray, "k 2"]:
        """Mutual nearest keypoints at most MATCH_PX apart."""
        order = np.argsort(self.distances, kind="stable")
        rows, columns = self.near[order].T
        _, first_of_row = np.unique(rows, return_index=True)
        _, first_of_column = np.unique(columns, return_index=True)
        mutual = np.intersect1d(first_of_row, first_of_column)
        return self.near[order][mutual[self.distances[order][mutual] <= MATCH_PX]]

    def unmatchable(self) -> tuple[Bool[np.ndarray, " m"], Bool[np.ndarray, " n"]]:
        """Judged keypoints with no keypoint near them."""
        unmatchable0, unmatchable1 = self.judged0.copy(), self.judged1.copy()
        unmatchable0[self.near[:, 0]] = unmatchable1[self.near[:, 1]] = False
        return unmatchable0, unmatchable1


class TaughtPairs:
    """The labels of a dataset's pairs.

    Args:
        file: The dataset.
        pairs: Its pairs of views, Q x 2.
        counts: Keypoints of each view.

    Raises:
        ValueError: If the arrays do not fit each other.
    """

    def __init__(self, file: h5py.File, pairs: np.ndarray, counts: np.ndarray) -> None:
        group: Any = file[GROUP]
        names = ("near", "near_distances", "near_offsets", "judged", "judged_offsets")
        names += ("assigned", "assigned_log_p", "assigned_offsets", "matchabilities")
        self._arrays: dict[str, np.ndarray] = {name: read_numbers(group, name) for name in names}
        self._sizes: np.ndarray = counts[pairs]
        self._check()

    def _check(self) -> None:
        arrays, pairs = self._arrays, len(self._sizes)
        for rows, offsets in (("near", "near_offsets"), ("judged", "judged_offsets"), ("assigned", "assigned_offsets")):
            ends = arrays[offsets]
            if ends.shape != (pairs + 1,) or ends[0] != 0 or ends[-1] != len(arrays[rows]) or (np.diff(ends) < 0).any():
                raise ValueError(f"taught/{offsets} do not rise from 0 to {len(arrays[rows])}")
        if (np.diff(arrays["judged_offsets"]) != self._sizes.sum(1)).any():
            raise ValueError("taught/judged does not have a value for each keypoint of each pair")
        for rows, values in (("near", "near_distances"), ("assigned", "assigned_log_p")):
            if arrays[rows].shape != (len(arrays[values]), 2):
                raise ValueError(f"taught/{rows} has shape {arrays[rows].shape}")
            largest = self._sizes.repeat(np.diff(arrays[f"{rows}_offsets"]), axis=0)
            if (arrays[rows] >= largest).any():
                raise ValueError(f"taught/{rows} has rows beyond the keypoints of their views")
        if len(arrays["matchabilities"]) not in (0, len(arrays["judged"])):
            raise ValueError("taught/matchabilities does not have a value for each keypoint of each pair")

    @property
    def has_assignments(self) -> bool:
        """Whether the teacher's assignments are stored."""
        return len(self._arrays["matchabilities"]) > 0

    def labels(self, pair: int) -> PairLabels:
        """The labels of all keypoints of a pair."""
        count0 = int(self._sizes[pair, 0])
        near, distances = self._part(pair, "near", "near_distances", offsets="near_offsets")
        judged, matchability = self._part(pair, "judged", "matchabilities", offsets="judged_offsets")
        assignment = None
        if self.has_assignments:
            entries, log_p = self._part(pair, "assigned", "assigned_log_p", offsets="assigned_offsets")
            assignment = SparseAssignment(
                entries.astype(np.int64),
                log_p.astype(np.float32),
                matchability[:count0].astype(np.float32),
                matchability[count0:].astype(np.float32),
            )
        judged = judged.astype(bool)
        return PairLabels(near.astype(np.int64), distances.astype(np.float32), judged[:count0], judged[count0:], assignment)

    def _part(self, pair: int, *names: str, offsets: str) -> list[np.ndarray]:
        start, end = self._arrays[offsets][pair : pair + 2]
        return [self._arrays[name][start:end] for name in names]


def write_taught(file: h5py.File, labels: Sequence[PairLabels]) -> None:
    """Writes the labels of pairs, in order, as a new group "taught".

    Raises ValueError if a view has too many keypoints, or only some of the pairs have an assignment.
    """
    if any(max(len(label.judged0), len(label.judged1)) > 2**16 for label in labels):
        raise ValueError("a view has more than 65,536 keypoints")
    no_rows = np.zeros((0, 2), np.uint16)
    assignments = [label.assignment for label in labels if label.assignment is not None]
    if assignments and len(assignments) < len(labels):
        raise ValueError("only some of the pairs have an assignment of the teacher")
    columns = {
        "near": [no_rows, *(label.near.astype(np.uint16) for label in labels)],
        "near_distances": [np.zeros(0, np.float16), *(label.distances.astype(np.float16) for label in labels)],
        "judged": [np.zeros(0, np.uint8), *(side.astype(np.uint8) for x in labels for side in (x.judged0, x.judged1))],
        "assigned": [no_rows, *(x.entries.astype(np.uint16) for x in assignments)],
        "assigned_log_p": [np.zeros(0, np.float16), *(x.log_p.astype(np.float16) for x in assignments)],
        "matchabilities": [
            np.zeros(0, np.float16),
            *(side.astype(np.float16) for x in assignments for side in (x.matchability0, x.matchability1)),
        ],
    }
    counts = {
        "near_offsets": [len(label.near) for label in labels],
        "judged_offsets": [len(label.judged0) + len(label.judged1) for label in labels],
        "assigned_offsets": [0 if label.assignment is None else len(label.assignment.entries) for label in labels],
    }
    group = file.create_group(GROUP)
    for name, parts in columns.items():
        group[name] = np.concatenate(parts)
    for name, sizes in counts.items():
        group[name] = np.concatenate([[0], np.cumsum(np.array(sizes, dtype=np.int64))])


def join_taught(parts: Sequence[h5py.File], file: h5py.File) -> None:
    """Concatenates the labels of the parts of a build."""
    group = file.create_group(GROUP)
    first: Any = parts[0][GROUP]
    for name in first:
        arrays = [read_numbers(part[GROUP], name) for part in parts]  # pyright: ignore[reportArgumentType]
        if not name.endswith("_offsets"):
            group[name] = np.concatenate(arrays)
            continue
        starts = np.cumsum([0, *(array[-1] for array in arrays)])
        group[name] = np.concatenate([[0], *(array[1:] + start for array, start in zip(arrays, starts, strict=False))])
