"""Matches of a collection, in one HDF5 file of hloc's layout. Matching can be interrupted and resumed, in bounded memory."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lumiglue.collection.features import Failures, Progress, record_of, run_to_end
from lumiglue.collection.hloc import FeaturesFile, Pair, PairMatches, check_keys, pair_key, write_matches
from lumiglue.collection.pairs import read_pairs, unique
from lumiglue.collection.stamps import Stamp
from lumiglue.errors import LumiglueError
from lumiglue.io.hdf5 import GrowingFile
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.types import Features

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


class Photos:
    """Photos as a source of features, in place of a `FeaturesFile`: they are extracted where they are needed.

    Args:
        root: Folder that the names are relative to.
        pipeline: Has the extractor.
    """

    made = ""
    revised = True  # a photo may have been replaced at any time

    def __init__(self, root: str | Path, pipeline: Pipeline) -> None:
        self.root, self.pipeline, self.record = Path(root), pipeline, record_of(pipeline.extractor, stretch=pipeline.stretch)
        self._stamps: dict[str, Stamp | None] = {}
        self._lock = threading.Lock()

    def read(self, name: str) -> Features:
        """Extracts the features of a photo."""
        stamp = Stamp.of(self.root / name)
        with self._lock:
            self._stamps.setdefault(name, stamp)  # of the first reading: if the photo changes, the next run sees it
        return self.pipeline.extract(self.root / name)

    def stamp(self, name: str) -> Stamp | None:
        """Which content of a photo was read."""
        return self._stamps.get(name)

    def is_current(self, name: str, stamp: Stamp | None) -> bool:
        """Whether the photo has this content, or is gone."""
        path = self.root / name
        return (stamp is not None and stamp.fits(path)) or not path.exists()


Source = FeaturesFile | Photos
# Matches chunks of pairs, in any order.
Engine = Callable[[Source, Sequence[Sequence[Pair]], Pipeline], Iterator[MatchChunk]]


def in_threads(workers: int | None = None, cached_images: int = 256) -> Engine:
    """Makes an engine of threads of this process.

    Args:
        workers: Threads; None takes as many as PyTorch uses.
        cached_images: Images whose features are in memory at a time.

    Returns:
        An engine for `match_pairs`.
    """

    def run(source: Source, chunks: Sequence[Sequence[Pair]], pipeline: Pipeline) -> Iterator[MatchChunk]:
        todo = [pair for chunk in chunks for pair in chunk]
        failed: list[tuple[str, str]] = []

        def on_error(number: int, error: LumiglueError) -> None:
            failed.append((" ".join(todo[number]), str(error)))

        matched = pipeline.match_extracted(
            todo, source.read, workers=workers, cached_images=cached_images, on_error=on_error
        )
        with_points = isinstance(source, Photos)
        for chunk in chunks:
            matches: list[PairMatches | None] = []
            try:
                for pair in islice(matched, len(chunk)):
                    matches.append(None if pair is None else PairMatches.of(pair, with_points=with_points))
            except KeyboardInterrupt:
                yield MatchChunk(chunk[: len(matches)], matches, tuple(failed))  # so that what is done is written
                raise
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


def match_photos(
    pairs: str | Path | Sequence[Pair],
    out: str | Path,
    pipeline: Pipeline | None = None,
    *,
    root: str | Path = ".",
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Failures:
    """Matches pairs of photos without a file of features. If it was interrupted, or pairs were added, call it again.

    Args:
        pairs: Pairs of paths, or a file with two paths on each line.
        out: HDF5 file to write, in hloc's layout and with the pixels of the matches.
        pipeline: Features and matcher; None uses `Pipeline.pretrained()` in fp32.
        root: Folder that the paths are relative to.
        workers: Threads; None takes as many as PyTorch uses.
        progress: Called after each part.

    Returns:
        (paths, reason) of each pair that could not be matched. The next call tries them again.

    Raises:
        InputError: the list cannot be read, or `out` has matches of other features, weights or settings.
    """
    pairs = read_pairs(pairs) if isinstance(pairs, str | Path) else unique(pairs, with_itself=True)
    pipeline = pipeline or Pipeline.pretrained(precision="fp32")
    steps = _match_in_parts(Photos(root, pipeline), pairs, pipeline, out, in_threads(workers, cached_images=64))
    return run_to_end(steps, progress)


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
    with FeaturesFile(features) as file:
        yield from _match_in_parts(file, unique(pairs), pipeline, out, engine or in_threads())


def _match_in_parts(
    source: Source, pairs: Sequence[Pair], pipeline: Pipeline, out: str | Path, engine: Engine
) -> Iterator[Progress]:
    check_keys(pairs)
    settings = {"features": source.record, "made": source.made} if source.made else {"features": source.record}
    settings |= {"matching": str(pipeline.settings), "weights": pipeline.fingerprint()}
    settings |= {"precision": pipeline.precision} if pipeline.precision != "fp32" else {}
    with GrowingFile(out, json.dumps(settings, sort_keys=True)) as growing:
        if source.revised:
            growing.discard(_outdated(growing, source, pairs))
        keys = [pair_key(*ends) for a, b in pairs for ends in ((a, b), (b, a))]
        missing = set(growing.missing(keys))
        todo = [(a, b) for a, b in pairs if pair_key(a, b) in missing and pair_key(b, a) in missing]
        done = len(pairs) - len(todo)
        yield Progress("pairs", done, len(pairs))
        chunks = [todo[start : start + PAIRS_IN_A_PART] for start in range(0, len(todo), PAIRS_IN_A_PART)]
        for chunk in engine(source, chunks, pipeline):
            with growing.part() as group:
                for pair, matches in zip(chunk.pairs, chunk.matches, strict=True):
                    if matches is not None:
                        pair_group = group(pair_key(*pair))
                        write_matches(pair_group, matches)
                        for number, name in enumerate(pair):
                            stamp = source.stamp(name)
                            pair_group.attrs.update({} if stamp is None else stamp.attributes(f"photo{number}"))
            done += len(chunk.pairs)
            yield Progress("pairs", done, len(pairs), chunk.failed)
        growing.finish()


def _outdated(growing: GrowingFile, source: Source, pairs: Iterable[Pair]) -> list[str]:
    """Keys of pairs that were matched when one of the photos was another."""
    ends = {pair_key(*pair): pair for a, b in pairs for pair in ((a, b), (b, a))}
    outdated = []
    for key, attributes in growing.attributes(ends).items():
        stamps = [(name, Stamp.from_attributes(attributes, f"photo{number}")) for number, name in enumerate(ends[key])]
        if not all(source.is_current(name, stamp) for name, stamp in stamps):
            outdated.append(key)
    return outdated
