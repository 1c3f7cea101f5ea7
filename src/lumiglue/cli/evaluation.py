"""`lumiglue eval` and its formats."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from lumiglue.cli.flags import PipelineFlags
from lumiglue.cli.terminal import ProgressBar, err, say, table
from lumiglue.errors import InputError
from lumiglue.evaluation import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from lumiglue.evaluation.adaptivity import Saving
    from lumiglue.evaluation.pairs import GroundTruthPair
    from lumiglue.evaluation.report import Example
    from lumiglue.evaluation.scoring import PairScore, Summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationFlags:
    """What is compared, how errors are measured, and where scores are written."""

    methods: tuple[str, ...] = METHODS
    """Methods to compare: lumiglue, lumiglue-full (adaptivity off), nn, ratio-0.8, ratio-0.85, ratio-0.9, adalam,
    opencv-bf, opencv-flann."""
    groups: tuple[str, ...] = ()
    """Only pairs whose group (sequence or first folder) starts with one of these."""
    thresholds: tuple[float, ...] = (1.0,)
    """Factors of RANSAC's thresholds; each gets its own row."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of RANSAC; AUCs are means over them."""
    out: Path | None = None
    """A .csv file for the scores of each pair, with a .json of the protocol beside it. Run again to resume."""


def evaluate(
    folder: Positional[Path],
    flags: Annotated[PipelineFlags, arg(name="")],
    how: Annotated[EvaluationFlags, arg(name="")],
) -> int:
    """Compare matchers on the same features, over a folder of pairs with ground truth.

    Other formats: `lumiglue eval homography`, `lumiglue eval pose`, `lumiglue eval strecha`.

    Args:
        folder: Folder with the photos and a pairs.json.
        flags: Features, weights, adaptivity.
        how: Methods, thresholds and output.
    """
    _compare(folder, None, flags, how)
    return 0


def evaluate_homography(
    folder: Positional[Path],
    flags: Annotated[PipelineFlags, arg(name="")],
    how: Annotated[EvaluationFlags, arg(name="")],
) -> int:
    """Compare matchers on HPatches' layout: folders v_* and i_* with images 1, 2, ... and homographies H_1_2, ...

    Args:
        folder: Folder of the sequences.
        flags: Features, weights, adaptivity.
        how: Methods, thresholds and output.
    """
    from lumiglue.evaluation.formats import read_hpatches

    _compare(folder, read_hpatches(folder), flags, how)
    return 0


def evaluate_pose(
    pairs: Positional[Path],
    root: Path,
    flags: Annotated[PipelineFlags, arg(name="")],
    how: Annotated[EvaluationFlags, arg(name="")],
) -> int:
    """Compare matchers on SuperGlue's lists of pairs with ground truth: ScanNet-1500, YFCC, MegaDepth-1500.

    Args:
        pairs: Text file, 38 words per line: paths, rotations, K_A, K_B, T_AB.
        root: Folder that the paths are relative to.
        flags: Features, weights, adaptivity.
        how: Methods, thresholds and output.
    """
    from lumiglue.evaluation.formats import read_pose_pairs

    _compare(root, read_pose_pairs(pairs, root), flags, how)
    return 0


def evaluate_strecha(
    folder: Positional[Path],
    flags: Annotated[PipelineFlags, arg(name="")],
    how: Annotated[EvaluationFlags, arg(name="")],
    largest_gap: int | None = None,
) -> int:
    """Compare matchers on all image pairs of a set with Strecha's .camera files.

    Args:
        folder: Folder with the images and their cameras.
        flags: Features, weights, adaptivity.
        how: Methods, thresholds and output.
        largest_gap: Only pairs at most this many images apart.
    """
    from lumiglue.evaluation.formats import read_strecha

    _compare(folder, read_strecha(folder, largest_gap=largest_gap), flags, how)
    return 0


def evaluate_adaptivity(
    folder: Positional[Path],
    flags: Annotated[PipelineFlags, arg(name="")],
    alphas: tuple[float, ...] = (0.8, 0.9, 0.98, 0.0),
    betas: tuple[float, ...] = (0.0, 0.05, 0.2),
    groups: tuple[str, ...] = (),
    out: Path | None = None,
) -> int:
    """Measure what early exit and pruning save and cost, by difficulty of the pairs and over both thresholds.

    Difficulty splits the pairs into thirds by the share of keypoints that mutual nearest neighbours match correctly.

    Args:
        folder: Folder with the photos and a pairs.json.
        flags: Features and weights.
        alphas: Exit ratios to try in addition to that of the weights; 0 is off.
        betas: Pruning limits to try in addition to that of the weights; 0 is off.
        groups: Only pairs whose group (sequence or first folder) starts with one of these.
        out: A .csv file for the scores of each pair. Run again to resume.
    """
    from lumiglue.evaluation import adaptivity

    scores = _compare(folder, None, flags, EvaluationFlags(groups=groups, out=out), alphas=alphas, betas=betas)
    own = flags.pipeline().matcher.own_settings
    usual = adaptivity.settings_name(own)
    _print_savings(adaptivity.by_difficulty(scores, usual), f"by difficulty: {usual} compared with full depth")
    swept = {name: adaptivity.saving(scores, name) for name in adaptivity.sweep(own, alphas, betas)}
    _print_savings(swept, "over alpha (exit ratio) and beta (prune below)")
    return 0


def report(
    runs: Positional[tuple[Path, ...]],
    out: Annotated[Path, arg(aliases=["-o"])] = Path("report.html"),
    method: str = "lumiglue",
    against: str = "nn",
    pictures: int = 3,
) -> int:
    """Write one HTML page of evaluations: tables, error curves, speed, interesting pairs. It needs no other file.

    Args:
        runs: .csv files of `lumiglue eval --out`. With two or more, pairs are compared with those of the second.
        out: The page to write.
        method: Method whose worst and most improved pairs are drawn.
        against: With one run, the method that it is compared with.
        pictures: How many of the worst and of the most improved pairs are drawn; 0 needs no images.
    """
    from lumiglue.evaluation.report import examples, read_runs, write_report

    loaded = read_runs(runs)
    chosen = examples(loaded, method, against, pictures)
    with ProgressBar("pictures", len(chosen)) as advance:
        draw = _drawer(loaded[0].record, method, lambda: advance(1, "")) if chosen else None
        write_report(loaded, out, chosen, draw, title=" and ".join(run.name for run in loaded))
    say(f"{len(loaded)} {'run' if len(loaded) == 1 else 'runs'}, {len(chosen)} pictures -> {out}")
    return 0


def _drawer(record: dict[str, Any], method: str, done: "Callable[[], None]") -> "Callable[[Example], Figure]":
    """Draws a pair as its run matched it. Raises InputError where the run did not record how, or that has changed since."""
    from lumiglue.evaluation.run import identity_of, methods_of, redraw

    if "weights" not in record.get("matching", {}):
        raise InputError("the first run has no .json of `lumiglue eval` that records how it matched; give --pictures 0")
    pipeline = PipelineFlags(**record["matching"]).pipeline()
    today = identity_of(pipeline)
    today["matcher"]["precision"] = record.get("matcher", {}).get("precision")  # other processors draw with another one
    if any(record.get(name, value) != value for name, value in today.items()):
        raise InputError(
            "the weights or the features of the first run have changed since; measure again or give --pictures 0"
        )
    again = redraw(Path(record["folder"]), pipeline, methods_of(pipeline, [method])[method])

    def draw(example: "Example") -> "Figure":
        figure = again(example)
        done()
        return figure

    return draw


def _compare(
    folder: Path,
    pairs: "Sequence[GroundTruthPair] | None",
    flags: PipelineFlags,
    how: EvaluationFlags,
    **sweep: tuple[float, ...],
) -> "list[PairScore]":
    """Evaluates the methods, or with `sweep` the settings of adaptivity, with a progress bar; prints the tables."""
    from lumiglue.evaluation.adaptivity import evaluate_adaptivity
    from lumiglue.evaluation.run import evaluate
    from lumiglue.evaluation.scoring import Protocol

    pipeline = flags.pipeline()
    options: dict[str, Any] = {"groups": how.groups, "thresholds": how.thresholds, "seeds": how.seeds, "out": how.out}
    options["matching"] = dataclasses.asdict(flags)
    with ProgressBar("pairs", None) as advance:
        before = -1

        def progress(done: int, total: int) -> None:
            nonlocal before
            if before >= 0:
                advance(done - before, total=total)
            elif done:
                err.print(f"{done} pairs are already in {how.out}", markup=False)
            before = done

        if sweep:
            scores = evaluate_adaptivity(folder, pipeline, progress=progress, **sweep, **options)
        else:
            scores = evaluate(folder, pipeline, pairs=pairs, methods=how.methods, progress=progress, **options)
    protocol = Protocol(factors=how.thresholds, seeds=how.seeds)
    print_comparison(
        scores, f"{folder}: {flags.max_keypoints} {pipeline.extractor.name} keypoints, {_size(flags)}; {protocol}"
    )
    return scores


def _size(flags: PipelineFlags) -> str:
    return f"long side {flags.resize}" if flags.resize else "full size"


def _print_savings(rows: "Mapping[str, Saving]", title: str) -> None:
    columns = ("pairs", "stop layer", "points pruned %", "speed-up", "pose AUC 5/10/20", "full depth", "F1", "full depth")
    savings = table(title, "", *columns)
    for name, row in rows.items():
        cells = f"{row.stop_layer:.2f}", f"{row.pruned:.1f}", f"{row.speed_up:.2f}", _shares(row.pose_auc)
        savings.add_row(name, str(row.pairs), *cells, _shares(row.pose_auc_full), _shares([row.f1]), _shares([row.f1_full]))
    Console(width=180, highlight=False).print(savings)


def print_comparison(scores: "Sequence[PairScore]", title: str) -> None:
    """The tables of a comparison: accuracy, matching, and 95 % intervals; the protocol is in the title."""
    from lumiglue.evaluation.scoring import intervals, summarise

    console = Console(width=180, highlight=False)
    rows = summarise(scores)
    say(title)
    console.print(_accuracy(rows))
    console.print(_matching(rows))
    ranges = [intervals([s for s in scores if (s.method, s.factor) == (row.method, row.factor)]) for row in rows]
    names = list(dict.fromkeys(name for row in ranges for name in row))
    shown = table("95 % bootstrap intervals over the pairs", "matcher", *names)
    for row, of_row in zip(rows, ranges, strict=True):
        shown.add_row(_name(row), *(f"{of_row[n][0]:.1f} to {of_row[n][1]:.1f}" if n in of_row else "" for n in names))
    if names:
        console.print(shown)


def _accuracy(rows: "Sequence[Summary]") -> Table:
    accuracy = table(
        "accuracy, percent", "matcher", "P / R / F1 at 3 px", "P / R at 1 px", "corner AUC 1/3/5/10 px", "by DLT",
        "pose AUC 5/10/20 deg", "by OpenCV", "epipolar P", "epipolar AUC 3/10/20 px",
    )  # fmt: skip
    for row in rows:
        cells = [
            (row.precision, row.recall, row.f1), (row.precision_1px, row.recall_1px), row.corner_auc, row.corner_auc_dlt,
            row.pose_auc, row.pose_auc_opencv, (row.epipolar_precision,), row.epipolar_auc,
        ]  # fmt: skip
        accuracy.add_row(_name(row), *(_shares(values) for values in cells))
    return accuracy


def _matching(rows: "Sequence[Summary]") -> Table:
    columns = ("pairs", "matches", "inliers", "ms", "stop layer", "layers per point", "points pruned %")
    matching = table("matching: means; ms is the median, matching alone", "matcher", *columns)
    for row in rows:
        numbers = f"{row.matches:.0f}", f"{row.inliers:.0f}", f"{row.milliseconds:.1f}", f"{row.stop_layer:.2f}"
        matching.add_row(_name(row), str(row.pairs), *numbers, f"{row.layers_per_point:.2f}", f"{row.pruned:.1f}")
    return matching


def _name(row: "Summary") -> str:
    return row.method if row.factor == 1.0 else f"{row.method} x {row.factor:g}"


def _shares(values: Sequence[float]) -> str:
    return "" if all(value != value for value in values) else " / ".join(f"{value:.1f}" for value in values)
