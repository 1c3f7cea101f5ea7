"""Matches of a collection in one HDF5 file, in hloc's layout; the job goes on after a kill and holds few features."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lumiglue.bulk.features import FeaturesFile, Step
from lumiglue.bulk.pairs import Pair, check_keys, unique
from lumiglue.bulk.parts import GrowingFile, Reader
from lumiglue.errors import InputError, LumiglueError
from lumiglue.many import Matched
from lumiglue.pipeline import Pipeline
from lumiglue.reading import HDF5_ERRORS, read_numbers, reason

PAIRS_IN_A_PART = 128


def pair_key(a: str, b: str) -> str:
    """hloc's group of a pair: slashes inside a name become dashes."""
    return "/".join(name.replace("/", "-") for name in (a, b))


@dataclass(frozen=True, eq=False)
class Row:
    """What is kept of a matched pair: for each keypoint of the first image its row in the second or -1, and the scores."""

    matches0: np.ndarray
    scores0: np.ndarray
    stop_layer: int

    @classmethod
    def of(cls, matched: Matched) -> "Row":
        count = len(matched.features0)
        matches0 = matched.matches.matches0(count).numpy().astype(np.int32)
        return cls(matches0, matched.matches.scores0(count).numpy().astype(np.float16), matched.matches.stop_layer)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some pairs and what became of them: None for each that is in `failed`."""

    pairs: Sequence[Pair]
    rows: Sequence[Row | None]
    failed: tuple[tuple[str, str], ...]


# Matches chunks of pairs, in any order.
Engine = Callable[[FeaturesFile, Sequence[Sequence[Pair]], Pipeline], Iterator[Chunk]]


def in_threads(workers: int | None = None, cached_images: int = 256) -> Engine:
    """This machine: threads of one process that hold at most so many images' features."""

    def run(file: FeaturesFile, chunks: Sequence[Sequence[Pair]], pipeline: Pipeline) -> Iterator[Chunk]:
        todo = [pair for chunk in chunks for pair in chunk]
        failed: list[tuple[str, str]] = []

        def on_error(number: int, error: LumiglueError) -> None:
            failed.append((" ".join(todo[number]), str(error)))

        found = pipeline.match_described(todo, file.read, workers=workers, cached_images=cached_images, on_error=on_error)
        for chunk in chunks:
            rows = [None if m is None else Row.of(m) for m in islice(found, len(chunk))]
            yield Chunk(chunk, rows, tuple(failed))
            failed.clear()

    return run


def match_collection(
    features: str | Path, pairs: Sequence[Pair], pipeline: Pipeline, out: str | Path, engine: Engine | None = None
) -> Iterator[Step]:
    """Matches the pairs and writes `out`; yields after each part. Run again after a kill, or with more pairs: it does what
    is missing.

    A pair that cannot be matched stops nothing else; it is in `failed`, and tried again by the next run. A pair that is
    given twice, or both ways round, is matched once. The order of the pairs is best such that images recur soon. engine: by
    default threads. Raises InputError where `out` holds matches of other features, weights or settings, or two images share
    their key in hloc's layout.
    """
    engine, pairs = engine or in_threads(), unique(pairs)
    check_keys(pairs)
    with FeaturesFile(features) as file:
        settings = {"features": file.record, "made": file.made} if file.made else {"features": file.record}
        settings |= {"matching": str(pipeline.settings), "weights": pipeline.fingerprint()}
        settings |= {"precision": pipeline.precision} if pipeline.precision != "fp32" else {}
        with GrowingFile(out, json.dumps(settings, sort_keys=True)) as growing:
            keys = [pair_key(*ends) for a, b in pairs for ends in ((a, b), (b, a))]
            missing = set(growing.missing(keys))
            todo = [(a, b) for a, b in pairs if pair_key(a, b) in missing and pair_key(b, a) in missing]
            done = len(pairs) - len(todo)
            yield Step(done, len(pairs))
            chunks = [todo[start : start + PAIRS_IN_A_PART] for start in range(0, len(todo), PAIRS_IN_A_PART)]
            for chunk in engine(file, chunks, pipeline):
                with growing.part() as group:
                    for pair, row in zip(chunk.pairs, chunk.rows, strict=True):
                        if row is not None:
                            _write(group(pair_key(*pair)), row)
                done += len(chunk.pairs)
                yield Step(done, len(pairs), chunk.failed)
            growing.finish()


def _write(group: h5py.Group, row: Row) -> None:
    group.create_dataset("matches0", data=row.matches0, compression="lzf")
    group.create_dataset("matching_scores0", data=row.scores0, compression="lzf")
    group.attrs["stop_layer"] = row.stop_layer


class MatchesReader(Reader):
    """Reads matches in hloc's layout, ours or hloc's own."""

    written_by = "lumiglue matches"

    def __contains__(self, pair: Pair) -> bool:
        try:
            return pair_key(*pair) in self._file
        except HDF5_ERRORS:
            return False

    def read(self, a: str, b: str) -> np.ndarray:
        """k x 2 rows of the keypoints of a and b that match; in either order of the names. Raises InputError for others."""
        for names, turned in (((a, b), False), ((b, a), True)):
            if names in self:
                partner = self._partners(pair_key(*names))
                rows = np.flatnonzero(partner >= 0)
                ends = np.stack([rows, partner[rows]], axis=1)
                return ends[:, ::-1] if turned else ends
        raise InputError(f"{self.path} has no matches of {a!r} and {b!r}; match them with `lumiglue matches`")

    def _partners(self, key: str) -> np.ndarray:
        try:
            group: Any = self._file[key]
            partner = read_numbers(group, "matches0")
            if partner.ndim != 1 or partner.dtype.kind != "i":
                raise ValueError(f"matches0 is {partner.dtype} of shape {partner.shape}, not whole numbers in a row")
        except HDF5_ERRORS as error:
            raise InputError(f"{self.path}, {key}: {reason(error)}; match them again with `lumiglue matches`") from None
        return partner.astype(np.int64)
