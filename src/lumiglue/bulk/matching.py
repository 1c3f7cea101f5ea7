"""Matches of a collection in one HDF5 file, in hloc's layout; the job goes on after a kill and holds few features."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import h5py
import numpy as np

from lumiglue.bulk.features import FeaturesFile, Step
from lumiglue.bulk.pairs import Pair
from lumiglue.bulk.parts import GrowingFile
from lumiglue.errors import InputError, LumiglueError
from lumiglue.many import Matched
from lumiglue.pipeline import Pipeline

PAIRS_IN_A_PART = 128


def pair_key(a: str, b: str) -> str:
    """hloc's group of a pair: slashes inside a name become dashes."""
    return "/".join(name.replace("/", "-") for name in (a, b))


def match_collection(
    features: str | Path,
    pairs: Sequence[Pair],
    pipeline: Pipeline,
    out: str | Path,
    *,
    workers: int | None = None,
    cached_images: int = 256,
) -> Iterator[Step]:
    """Matches the pairs and writes `out`; yields after each part. Run again after a kill, or with more pairs: it does what
    is missing.

    At most `cached_images` images' features are held, whatever the collection. A pair that cannot be matched stops nothing
    else; it is in `failed`, and tried again by the next run. The order of the pairs is best such that images recur soon.
    Raises InputError where `out` holds matches of other features, weights or settings.
    """
    with FeaturesFile(features) as file:
        settings = {"features": file.record, "matching": str(pipeline.settings), "weights": pipeline.fingerprint()}
        with GrowingFile(out, json.dumps(settings, sort_keys=True)) as growing:
            missing = set(growing.missing([pair_key(*pair) for pair in pairs]))
            todo = [pair for pair in pairs if pair_key(*pair) in missing]
            done = len(pairs) - len(todo)
            yield Step(done, len(pairs))
            failed: list[tuple[str, str]] = []

            def on_error(number: int, error: LumiglueError) -> None:
                failed.append((" ".join(todo[number]), str(error)))

            found = pipeline.match_described(
                todo, file.read, workers=workers, cached_images=cached_images, on_error=on_error
            )
            for start in range(0, len(todo), PAIRS_IN_A_PART):
                failed.clear()
                with growing.part() as group:
                    for pair, matched in zip(
                        todo[start : start + PAIRS_IN_A_PART], islice(found, PAIRS_IN_A_PART), strict=True
                    ):
                        if matched is not None:
                            _write(group(pair_key(*pair)), matched)
                done += min(PAIRS_IN_A_PART, len(todo) - start)
                yield Step(done, len(pairs), tuple(failed))
            growing.finish()


def _write(group: h5py.Group, matched: Matched) -> None:
    count = len(matched.features0)
    group.create_dataset("matches0", data=matched.matches.matches0(count).numpy().astype(np.int32), compression="lzf")
    scores = matched.matches.scores0(count).numpy().astype(np.float16)
    group.create_dataset("matching_scores0", data=scores, compression="lzf")
    group.attrs["stop_layer"] = matched.matches.stop_layer


class MatchesReader:
    """Reads matches in hloc's layout, ours or hloc's own."""

    def __init__(self, path: str | Path) -> None:
        """Raises InputError where the file is missing or no HDF5."""
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{self.path} does not exist; write it with `lumiglue matches`")
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            raise InputError(f"{self.path} cannot be read as HDF5 ({error})") from None
        self.record = str(self._file.attrs.get("record", ""))

    def __enter__(self) -> "MatchesReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, pair: Pair) -> bool:
        return pair_key(*pair) in self._file

    def read(self, a: str, b: str) -> np.ndarray:
        """k x 2 rows of the keypoints of a and b that match; in either order of the names. Raises InputError for others."""
        for names, turned in (((a, b), False), ((b, a), True)):
            if names in self:
                group = self._file[pair_key(*names)]
                assert isinstance(group, h5py.Group)
                dataset = group["matches0"]
                assert isinstance(dataset, h5py.Dataset)
                partner = np.asarray(dataset[()], np.int64)
                rows = np.flatnonzero(partner >= 0)
                ends = np.stack([rows, partner[rows]], axis=1)
                return ends[:, ::-1] if turned else ends
        raise InputError(f"{self.path} has no matches of {a!r} and {b!r}")
