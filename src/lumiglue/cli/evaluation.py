"""`lumiglue eval`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from lumiglue.cli.flags import PipelineFlags
from lumiglue.cli.terminal import Progress
from lumiglue.errors import InputError

if TYPE_CHECKING:
    from lumiglue.evaluation.pairs import Summary


def evaluate(
    folder: Positional[Path],
    flags: Annotated[PipelineFlags, arg(name="")],
    methods: tuple[str, ...] = ("lumiglue", "nn", "ratio-0.8", "ratio-0.9", "adalam"),
    groups: tuple[str, ...] = (),
    out: Path | None = None,
) -> int:
    """Measure Lumiglue beside other matchers, on the same features, over a folder of pairs with ground truth.

    Args:
        folder: Holds the photos and a pairs.json.
        flags: Features, weights, adaptivity.
        methods: Columns of the comparison; lumiglue-full has adaptivity off.
        groups: Only pairs whose group starts with one of these.
        out: Also write every pair's figures to this .csv file.
    """
    from lumiglue.evaluation.baselines import BASELINES, Matcher
    from lumiglue.evaluation.pairs import evaluate as run_evaluation
    from lumiglue.evaluation.pairs import select_pairs, summarise

    pipeline = flags.pipeline()
    without = pipeline.with_settings(dataclasses.replace(pipeline.settings, exit_ratio=None, prune_below=None))
    ours: dict[str, Matcher] = {
        "lumiglue": lambda a, b: pipeline.match_features([(a, b)])[0],
        "lumiglue-full": lambda a, b: without.match_features([(a, b)])[0],
    }
    known = {**ours, **BASELINES}
    if unknown := [name for name in methods if name not in known]:
        raise InputError(f"unknown method {unknown[0]!r}; choose from {sorted(known)}")
    chosen = {name: known[name] for name in methods}
    scores = []
    pairs = select_pairs(folder, groups)
    with Progress("evaluations", len(pairs) * len(chosen)) as advance:
        for score in run_evaluation(folder, pairs, pipeline.extractor, chosen):
            scores.append(score)
            advance(1, "")
    if out is not None:
        lines = [",".join(field.name for field in dataclasses.fields(scores[0]))] if scores else []
        lines += [",".join(str(value) for value in dataclasses.astuple(score)) for score in scores]
        out.write_text("\n".join(lines) + "\n")
    protocol = "PoseLib; homography 2 px, pose and F 1.5 px"
    title = f"{folder}: {flags.max_keypoints} {flags.features} keypoints; {protocol}"
    Console(width=180, highlight=False).print(_comparison(summarise(scores), title))
    return 0


def _comparison(rows: "Sequence[Summary]", title: str) -> Table:
    table = Table("matcher", title=title)
    for column in (
        "P / R / F1 at 3 px",
        "corner AUC 1/3/5/10 px",
        "pose AUC 5/10/20 deg",
        "epipolar AUC 3/10/20 px",
        "matches",
        "ms",
        "stop",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        shares = ((row.precision, row.recall, row.f1), row.corner_auc, row.pose_auc, row.epipolar_auc)
        cells = [" / ".join(f"{value:.1f}" for value in values) for values in shares]
        table.add_row(row.method, *cells, f"{row.matches:.0f}", f"{row.milliseconds:.1f}", f"{row.stop_layer:.2f}")
    return table
