"""Matches of a collection, in one HDF5 file of hloc's layout. Matching can be interrupted and resumed, in bounded memory."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lumiglue.collection.features import Failures, Progress, run_to_end
from lumiglue.collection.hloc import FeaturesFile, Pair, PairMatches, check_keys, pair_key, write_matches
from lumiglue.collection.pairs import read_pairs, unique
from lumiglue.errors import LumiglueError
from lumiglue.io.hdf5 import GrowingFile
from lumiglue.pipeline.pipeline import Pipeline

PAIRS_IN_A_PART = 128


@dataclass(frozen=True, eq=False)
class MatchChunk:
    """Some pairs with their matches.

    Attributes:
        pairs: The pairs.
        matches: Their matches; None for a pair that failed.
        failed: (names, reason) of each pair that failed.
    """

    pairs: Sequence[Pair]
    matches: Sequence[PairMatches | None]
    failed: Failures


# Matches chunks of pairs, in any order.
Engine = Callable[[FeaturesFile, Sequence[Sequence[Pair]], Pipeline], Iterator[MatchChunk]]


def in_threads(workers: int | None = None, cached_images: int = 256) -> Engine:
    """Makes an engine of threads of this process.

    Args:
        workers: Threads; None takes as many as PyTorch uses.
        cached_images: Images whose features are in memory at a time.

    Returns:
        An engine for `match_pairs`.
    """

    def run(file: FeaturesFile, chunks: Sequence[Sequence[Pair]], pipeline: Pipeline) -> Iterator[MatchChunk]:
        todo = [pair for chunk in chunks for pair in chunk]
        failed: list[tuple[str, str]] = []

        def on_error(number: int, error: LumiglueError) -> None:
            failed.append((" ".join(todo[number]), str(error)))

        matched = pipeline.match_extracted(todo, file.read, workers=workers, cached_images=cached_images, on_error=on_error)
        for chunk in chunks:
            matches = [None if pair is None else PairMatches.of(pair) for pair in islice(matched, len(chunk))]
            yield MatchChunk(chunk, matches, tuple(failed))
            failed.clear()

    return run


def match_pairs(
    features: str | Path,
    pairs: str | Path | Sequence[Pair],
    out: str | Path,
    pipeline: Pipeline | None = None,
    *,
    workers: int | None = None,
    engine: Engine | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Failures:
    """Matches the pairs of a collection. If it was interrupted, or pairs were added, call it again.

    Args:
        features: HDF5 file of features in hloc's layout.
        pairs: Pairs of names, or a file with two names on each line. Memory and time are best if images recur soon.
        out: HDF5 file to write, in hloc's layout.
        pipeline: The matcher; None uses `Pipeline.pretrained()` in fp32.
        workers: Threads; None takes as many as PyTorch uses.
        engine: What runs the matching; None is `in_threads(workers)`. See also `collection.ray.on_ray`.
        progress: Called after each part.

    Returns:
        (names, reason) of each pair that could not be matched. The next call tries them again.

    Raises:
        InputError: a file cannot be used, a name is not among the features, or `out` has matches of other features, weights
            or settings.
    """
    if isinstance(pairs, str | Path):
        with FeaturesFile(features) as file:
            pairs = read_pairs(pairs, file.names())
    pipeline = pipeline or Pipeline.pretrained(precision="fp32")
    return run_to_end(match_in_parts(features, pairs, pipeline, out, engine or in_threads(workers)), progress)


def match_in_parts(
    features: str | Path, pairs: Sequence[Pair], pipeline: Pipeline, out: str | Path, engine: Engine | None = None
) -> Iterator[Progress]:
    """Does the work of `match_pairs`, and yields after each part.

    Args:
        features: HDF5 file of features in hloc's layout.
        pairs: Pairs of names. A pair that is given twice, or both ways round, is matched once.
        pipeline: The matcher.
        out: HDF5 file to write, in hloc's layout.
        engine: What runs the matching; None is `in_threads()`.

    Returns:
        An iterator over the progress.

    Raises:
        InputError: a file cannot be used, two images share a key in hloc's layout, or `out` has matches of other features,
            weights or settings.
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
            yield Progress("pairs", done, len(pairs))
            chunks = [todo[start : start + PAIRS_IN_A_PART] for start in range(0, len(todo), PAIRS_IN_A_PART)]
            for chunk in engine(file, chunks, pipeline):
                with growing.part() as group:
                    for pair, matches in zip(chunk.pairs, chunk.matches, strict=True):
                        if matches is not None:
                            write_matches(group(pair_key(*pair)), matches)
                done += len(chunk.pairs)
                yield Progress("pairs", done, len(pairs), chunk.failed)
            growing.finish()
