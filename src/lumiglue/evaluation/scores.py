"""Scores on disk: a CSV file that grows pair by pair, so that an interrupted evaluation can be resumed.

scores.csv has a line for each pair, method, factor and seed; scores.json beside it has the protocol and what was measured.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lumiglue.errors import InputError
from lumiglue.evaluation.pairs import GroundTruthPair
from lumiglue.evaluation.scoring import PairScore
from lumiglue.io.atomic import replacing
from lumiglue.io.text import read_json, read_text, reason

_NAMES = [field.name for field in fields(PairScore)]
_TYPES = {field.name: field.type for field in fields(PairScore)}


def read_scores(path: str | Path) -> list[PairScore]:
    """Reads the .csv of `lumiglue eval --out`. Columns that an older version did not write get their defaults.

    Raises InputError if it is missing or not a file of scores.
    """
    text = read_text(path, "give the .csv of `lumiglue eval --out`")
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        return [PairScore(**{name: _value(name, text) for name, text in row.items()}) for row in rows]
    except (TypeError, KeyError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is not a file of scores ({reason(error)}); write it with `lumiglue eval --out`") from None


def read_record(path: str | Path) -> dict[str, Any]:
    """Reads the .json beside the .csv of scores, which says how they were measured; empty if there is none.

    Raises InputError if it is no such record.
    """
    file = Path(path).with_suffix(".json")
    record = read_json(file, "write it with `lumiglue eval --out`") if file.exists() else {}
    if not isinstance(record, dict):
        raise InputError(f"{file} is not a record of an evaluation; write it with `lumiglue eval --out`")
    return record


class ScoresFile:
    """A file of scores that is being written, new or resumed.

    Args:
        path: The .csv.
        record: JSON values that say how and what is measured.
        per_pair: How many scores a complete pair has.

    Attributes:
        scores: The scores so far, of complete pairs.

    Raises:
        InputError: the file has results of another record, or is no .csv.
    """

    def __init__(self, path: str | Path, record: Mapping[str, Any], per_pair: int) -> None:
        self.path = Path(path)
        if self.path.suffix != ".csv":
            raise InputError(f"{path} is not a .csv file; the scores of pairs are written as .csv")
        plain = json.loads(json.dumps(record))
        self.scores: list[PairScore] = []
        if self.path.exists():
            if read_record(self.path) != plain:
                raise InputError(
                    f"{path} has results of another protocol, set or matcher; choose another --out or delete it"
                )
            stored = read_scores(self.path)
            counts = Counter((score.a, score.b) for score in stored)
            self.scores = [score for score in stored if counts[score.a, score.b] == per_pair]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.with_suffix(".json").write_text(json.dumps(plain, indent=2) + "\n")
        with replacing(self.path) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, _NAMES)
            writer.writeheader()
            writer.writerows(asdict(score) for score in self.scores)

    def missing(self, pairs: Iterable[GroundTruthPair]) -> list[GroundTruthPair]:
        """Selects the pairs that are not in the file yet."""
        done = {(score.a, score.b) for score in self.scores}
        return [pair for pair in pairs if (pair.a, pair.b) not in done]

    def append(self, scores: Iterable[PairScore]) -> None:
        """Adds scores; they are on disk when this returns."""
        added = list(scores)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, _NAMES).writerows(asdict(score) for score in added)
        self.scores += added


def _value(name: str, text: str) -> Any:
    kind = _TYPES[name]
    return int(text) if kind is int else float(text) if kind is float else text
