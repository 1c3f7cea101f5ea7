"""Evaluation in one call: methods over the pairs of a folder, with a file of scores that an interrupted run resumes."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lumiglue.errors import InputError
from lumiglue.evaluation import METHODS
from lumiglue.evaluation.baselines import BASELINES, Matcher
from lumiglue.evaluation.formats import read_upright
from lumiglue.evaluation.pairs import GroundTruthPair, only_groups, read_pairs
from lumiglue.evaluation.report import Example
from lumiglue.evaluation.scores import ScoresFile
from lumiglue.evaluation.scoring import PairScore, Protocol, score_pairs
from lumiglue.geometry.robust import estimate
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.system.extras import require
from lumiglue.visualization import draw_matches


def matcher_of(pipeline: Pipeline) -> Matcher:
    """The matcher of a pipeline, as a function of two images' features."""
    return lambda a, b: pipeline.match_features([(a, b)])[0]


def methods_of(pipeline: Pipeline, names: Sequence[str] = METHODS) -> dict[str, Matcher]:
    """Looks up methods by name: `lumiglue` is the pipeline's matcher, `lumiglue-full` the same with adaptivity off, the
    others are keys of `baselines.BASELINES`. Raises InputError if a name is unknown or a package is missing."""
    full_depth = pipeline.with_settings(dataclasses.replace(pipeline.settings, exit_ratio=0, prune_below=0))
    known: dict[str, Matcher] = {"lumiglue": matcher_of(pipeline), "lumiglue-full": matcher_of(full_depth), **BASELINES}
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"unknown method {unknown[0]!r}; choose from {sorted(known)}")
    if "adalam" in names:
        require("kornia")
    return {name: known[name] for name in names}


def evaluate(
    folder: str | Path,
    pipeline: Pipeline | None = None,
    *,
    pairs: Sequence[GroundTruthPair] | None = None,
    methods: Sequence[str] | Mapping[str, Matcher] = METHODS,
    groups: Sequence[str] = (),
    thresholds: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
    matching: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[PairScore]:
    """Measures matchers on pairs with ground truth, all with the same features.

    `evaluation.scoring.summarise` makes a table of the scores.

    Args:
        folder: Folder that the image files are relative to, and of `pairs.json`.
        pipeline: Features and matcher; None uses `Pipeline.pretrained()` in fp32.
        pairs: Pairs of another format, from `evaluation.formats`; None reads `pairs.json`.
        methods: Names for `methods_of`, or matchers by name.
        groups: Only pairs whose group starts with one of these; empty takes all.
        thresholds: Factors of RANSAC's thresholds.
        seeds: Seeds of RANSAC.
        out: A .csv file for the scores, with a .json of the protocol beside it. If it exists, what it has is not measured
            again.
        matching: How `pipeline` was made, as JSON values, for the .json; None records the sizes of its extractor.
        progress: Called with the pairs that are done and their number, at first for those that `out` has.

    Returns:
        One score for each pair, method, threshold and seed.

    Raises:
        InputError: the pairs, a method or `out` cannot be used, or `out` has results of other features, weights or settings.
    """
    folder = Path(folder)
    pairs = only_groups(read_pairs(folder) if pairs is None else pairs, groups)
    pipeline = pipeline or Pipeline.pretrained(precision="fp32")
    named = dict(methods) if isinstance(methods, Mapping) else methods_of(pipeline, methods)
    protocol = Protocol(factors=tuple(thresholds), seeds=tuple(seeds))
    file, scores, missing = None, [], pairs
    if out is not None:
        record = {"folder": str(folder.absolute()), "protocol": dataclasses.asdict(protocol), "methods": list(named)}
        record |= identity_of(pipeline)
        record["matching"] = _sizes(pipeline) if matching is None else dict(matching)
        file = ScoresFile(out, record, len(named) * len(protocol.factors) * len(protocol.seeds))
        scores, missing = list(file.scores), file.missing(pairs)
    done = len(pairs) - len(missing)
    if progress is not None:
        progress(done, len(pairs))
    fresh = score_pairs(folder, missing, pipeline.extractor, named, protocol)
    for _, group in groupby(fresh, key=lambda score: (score.a, score.b)):
        of_pair = list(group)
        if file is not None:
            file.append(of_pair)
        scores += of_pair
        done += 1
        if progress is not None:
            progress(done, len(pairs))
    return scores


def identity_of(pipeline: Pipeline) -> dict[str, Any]:
    """The features and the matcher as JSON values. Weights are identified by checksum: a file of the same name may be
    another one today."""
    matcher = {"settings": str(pipeline.settings), "fingerprint": pipeline.fingerprint(), "precision": pipeline.precision}
    identity = {"features": pipeline.extractor.name, "extractor": pipeline.extractor.config(), "matcher": matcher}
    return json.loads(json.dumps(identity))


def _sizes(pipeline: Pipeline) -> dict[str, Any]:
    extractor = pipeline.extractor
    return {name: getattr(extractor, name) for name in ("max_keypoints", "resize", "tile") if hasattr(extractor, name)}


def redraw(folder: str | Path, pipeline: Pipeline, match: Matcher) -> Callable[[Example], Figure]:
    """Makes a function for `report.write_report` that matches the pair of an example again by `match` and draws it. Image
    files are relative to `folder`."""

    def draw(example: Example) -> Figure:
        score = example.score
        sides = ((score.a, score.turns_a), (score.b, score.turns_b))
        images = [read_upright(Path(folder) / name, turns) for name, turns in sides]
        features = [pipeline.extractor(image) for image in images]
        matches = match(features[0], features[1])
        points = (f.keypoints[matches.pairs[:, side]].numpy() for side, f in enumerate(features))
        geometry = estimate("homography" if score.type == "homography" else "fundamental", *points)
        return draw_matches(images[0], images[1], features[0], features[1], matches, geometry)

    return draw
