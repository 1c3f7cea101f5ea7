"""Matches of a collection in one HDF5 file, in hloc's layout; the job goes on after a kill and holds few features."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lumiglue.collection.features import Progress
from lumiglue.collection.hloc import FeaturesFile, PairMatches, pair_key, write_matches
from lumiglue.collection.pairs import Pair, check_keys, unique
from lumiglue.errors import LumiglueError
from lumiglue.io.hdf5 import GrowingFile
from lumiglue.pipeline.pipeline import Pipeline

PAIRS_IN_A_PART = 128


@dataclass(frozen=True, eq=False)
class MatchChunk:
    """Some pairs and what became of them: None for each that is in `failed`."""

    pairs: Sequence[Pair]
    rows: Sequence[PairMatches | None]
    failed: tuple[tuple[str, str], ...]


# Matches chunks of pairs, in any order.
Engine = Callable[[FeaturesFile, Sequence[Sequence[Pair]], Pipeline], Iterator[MatchChunk]]


def in_threads(workers: int | None = None, cached_images: int = 256) -> Engine:
    """This machine: threads of one process that hold at most so many images' features."""

    def run(file: FeaturesFile, chunks: Sequence[Sequence[Pair]], pipeline: Pipeline) -> Iterator[MatchChunk]:
        todo = [pair for chunk in chunks for pair in chunk]
        failed: list[tuple[str, str]] = []

        def on_error(number: int, error: LumiglueError) -> None:
            failed.append((" ".join(todo[number]), str(error)))

        found = pipeline.match_described(todo, file.read, workers=workers, cached_images=cached_images, on_error=on_error)
        for chunk in chunks:
            rows = [None if m is None else PairMatches.of(m) for m in islice(found, len(chunk))]
            yield MatchChunk(chunk, rows, tuple(failed))
            failed.clear()

    return run


def match_collection(
    features: str | Path, pairs: Sequence[Pair], pipeline: Pipeline, out: str | Path, engine: Engine | None = None
) -> Iterator[Progress]:
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
            yield Progress(done, len(pairs))
            chunks = [todo[start : start + PAIRS_IN_A_PART] for start in range(0, len(todo), PAIRS_IN_A_PART)]
            for chunk in engine(file, chunks, pipeline):
                with growing.part() as group:
                    for pair, row in zip(chunk.pairs, chunk.rows, strict=True):
                        if row is not None:
                            write_matches(group(pair_key(*pair)), row)
                done += len(chunk.pairs)
                yield Progress(done, len(pairs), chunk.failed)
            growing.finish()
