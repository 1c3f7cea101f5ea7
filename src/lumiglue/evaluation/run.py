"""Evaluation in one call: which methods, over which pairs, with results that an interrupted run resumes from."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lumiglue.errors import InputError
from lumiglue.evaluation.baselines import BASELINES, Matcher
from lumiglue.evaluation.formats import read_upright
from lumiglue.evaluation.pairs import PairScore, Protocol, evaluate
from lumiglue.evaluation.report import Example
from lumiglue.evaluation.scores import ScoresFile
from lumiglue.extractors import Extractor
from lumiglue.geometry.robust import estimate
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.visualization import draw_matches

METHODS = ("lumiglue", "nn", "ratio-0.8", "ratio-0.9", "adalam")


def matcher_of(pipeline: Pipeline) -> Matcher:
    """A pipeline's matcher alone, for features that are there already."""
    return lambda a, b: pipeline.match_features([(a, b)])[0]


def methods_of(pipeline: Pipeline, names: Sequence[str] = METHODS) -> dict[str, Matcher]:
    """The methods by name: lumiglue, lumiglue-full (adaptivity off) and the baselines.

    Raises:
        InputError: a name is unknown.
    """
    full_depth = pipeline.with_settings(dataclasses.replace(pipeline.settings, exit_ratio=None, prune_below=None))
    known: dict[str, Matcher] = {"lumiglue": matcher_of(pipeline), "lumiglue-full": matcher_of(full_depth), **BASELINES}
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"unknown method {unknown[0]!r}; choose from {sorted(known)}")
    return {name: known[name] for name in names}


def open_scores(
    out: Path, folder: Path, methods: Sequence[str], protocol: Protocol, matching: Mapping[str, Any]
) -> ScoresFile:
    """The .csv of every pair's figures with its record, or what an interrupted evaluation left of it."""
    record = {"folder": str(folder.absolute()), "protocol": dataclasses.asdict(protocol), "methods": list(methods)}
    return ScoresFile(out, record | {"matching": dict(matching)}, len(methods) * len(protocol.factors))


def score_pairs(
    folder: Path,
    pairs: Sequence[dict[str, Any]],
    extractor: Extractor,
    methods: dict[str, Matcher],
    protocol: Protocol,
    file: ScoresFile | None = None,
) -> Iterator[list[PairScore]]:
    """The scores of each pair, one list a pair; written to `file` as they come."""
    found = evaluate(folder, pairs, extractor, methods, protocol)
    for _, of_pair in groupby(found, key=lambda score: (score.a, score.b)):
        scores = list(of_pair)
        if file is not None:
            file.append(scores)
        yield scores


def redraw(folder: Path, pipeline: Pipeline, match: Matcher) -> Callable[[Example], Figure]:
    """Matches a pair of an evaluation again, and draws it."""

    def draw(example: Example) -> Figure:
        score = example.score
        images = [read_upright(folder / name, turns) for name, turns in ((score.a, score.turns_a), (score.b, score.turns_b))]
        features = [pipeline.extractor(image) for image in images]
        matches = match(features[0], features[1])
        ends = (f.keypoints[matches.pairs[:, side]].numpy() for side, f in enumerate(features))
        geometry = estimate("homography" if score.type == "homography" else "fundamental", *ends)
        return draw_matches(images[0], images[1], features[0], features[1], matches, geometry)

    return draw
