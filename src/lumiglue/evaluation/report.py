"""A report of evaluations: one self-contained HTML page with tables, curves, histograms and the pairs to look at."""

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lumiglue.errors import InputError
from lumiglue.evaluation.scores import read_record, read_scores
from lumiglue.evaluation.scoring import PairScore, Protocol, Summary, intervals, summarise

_LIMITS = {"homography": 10.0, "pose": 20.0, "correspondences": 20.0}
_UNITS = {"homography": "corner error (px)", "pose": "pose error (degrees)", "correspondences": "epipolar error (px)"}
_TITLES = {"homography": "planar pairs", "pose": "pairs with known pose", "correspondences": "annotated pairs"}


@dataclass(frozen=True)
class Run:
    """The results of one `lumiglue eval --out`.

    Attributes:
        name: The file's name without suffix.
        scores: Its scores.
        record: Protocol, folder and matching, from the .json beside it.
    """

    name: str
    scores: Sequence[PairScore]
    record: dict[str, Any]

    @property
    def protocol(self) -> str:
        """Describes how it was measured."""
        matching = self.record.get("matching", {})
        stored: dict[str, Any] = self.record.get("protocol", {})
        swept = {name: tuple(stored[name]) for name in ("factors", "seeds") if name in stored}  # lists in JSON
        protocol = Protocol(**{**stored, **swept})
        size = f"long side {matching['resize']} px" if matching.get("resize") else "full size"
        name = self.record.get("features") or matching.get("features", "")
        features = f"{matching.get('max_keypoints', '?')} {name} keypoints, {size}"
        return f"{features}; {protocol}" if self.record else "Protocol not recorded."


@dataclass(frozen=True)
class Example:
    """A pair to look at.

    Attributes:
        run: The run that matched it.
        score: Its score.
        why: Why it is shown.
    """

    run: Run
    score: PairScore
    why: str


def read_runs(files: Sequence[str | Path]) -> list[Run]:
    """Reads runs from .csv files. Raises InputError if one is missing, damaged or empty, or two have the same name."""
    if not files:
        raise InputError("no file of scores was given; give the .csv files of `lumiglue eval --out`")
    runs = [Run(Path(file).stem, read_scores(file), read_record(file)) for file in files]
    for run, file in zip(runs, files, strict=True):
        if not run.scores:
            raise InputError(f"{file} has no pairs yet")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"two runs are called {max(names, key=names.count)!r}; rename one of the files")
    return runs


def examples(runs: Sequence[Run], method: str, against: str, count: int) -> list[Example]:
    """Selects the `count` pairs of the first run on which a method is worst, and as many on which it gains most.

    Gains are over the same method of the second run, or over the method `against` if there is only one run. Raises
    InputError if the first run has no such method.
    """
    run, other = runs[0], runs[min(1, len(runs) - 1)]
    mine = {(s.a, s.b): s for s in run.scores if s.method == method and s.factor == 1.0}
    theirs = {(s.a, s.b): s for s in other.scores if s.method == (method if other is not run else against)}
    if not mine:
        raise InputError(f"{run.name} has no method {method!r}; choose from {sorted({s.method for s in run.scores})}")
    worst = sorted(mine.values(), key=lambda s: -_relative(s))[:count]
    gains = sorted((key for key in mine if key in theirs), key=lambda key: _relative(mine[key]) - _relative(theirs[key]))
    name = other.name if other is not run else against
    improved = [
        Example(run, mine[key], f"gains most over {name}: {_error_text(theirs[key])} there")
        for key in gains[:count]
        if _relative(mine[key]) < _relative(theirs[key])
    ]
    return [Example(run, score, "among the worst") for score in worst] + improved


def write_report(
    runs: Sequence[Run],
    out: str | Path,
    chosen: Sequence[Example] = (),
    draw: Callable[[Example], Figure] | None = None,
    title: str = "Feature matching",
) -> None:
    """Writes the report as one HTML file.

    Args:
        runs: The runs, from `read_runs`.
        out: The file.
        chosen: Examples to show.
        draw: Draws the pair of an example with its matches; None shows no pictures.
        title: Title of the page.
    """
    rows = [(run, summary) for run in runs for summary in summarise(run.scores)]
    names = [_row_name(run, summary, len(runs) > 1) for run, summary in rows]
    summaries = [summary for _, summary in rows]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("report.html").render(
        title=title,
        runs=[{"name": r.name, "pairs": len({(s.a, s.b) for s in r.scores}), "protocol": r.protocol} for r in runs],
        tables=[_accuracy(names, summaries), _matching(names, summaries), _intervals(names, rows)],
        plots=_plots(names, rows),
        pictures=[_picture(example, draw(example)) for example in chosen] if draw else [],
    )
    Path(out).write_text(page)


def _relative(score: PairScore) -> float:
    """The error as a share of the largest useful error, at most 1, so that types of pairs can be compared."""
    return min(score.error / _LIMITS[score.type], 1.0) if np.isfinite(score.error) else 1.0


def _error_text(score: PairScore) -> str:
    return f"{score.error:.2f} {_UNITS[score.type].split('(')[1].rstrip(')')}"


def _row_name(run: Run, summary: Summary, several: bool) -> str:
    name = f"{run.name}: {summary.method}" if several else summary.method
    return name if summary.factor == 1.0 else f"{name}, thresholds x {summary.factor:g}"


def _table(title: str, note: str, head: Sequence[str], names: Sequence[str], columns: Sequence[Sequence[float]]) -> dict:
    """Columns of numbers with the largest of each marked; columns of NaN alone are left out."""
    shown = [(h, c) for h, c in zip(head, columns, strict=True) if np.isfinite(c).any()]
    rows = [[{"text": name, "best": False}] for name in names]
    for _, column in shown:
        best = np.nanmax(column)
        for row, value in zip(rows, column, strict=True):
            row.append({"text": f"{value:.1f}" if np.isfinite(value) else "", "best": value == best})
    return {"title": title, "note": note, "head": ["matcher", *(h for h, _ in shown)], "rows": rows}


def _accuracy(names: Sequence[str], summaries: Sequence[Summary]) -> dict:
    parts: dict[str, Callable[[Summary], float]] = {
        "P 3 px": lambda s: s.precision, "R 3 px": lambda s: s.recall, "F1": lambda s: s.f1,
        "P 1 px": lambda s: s.precision_1px, "R 1 px": lambda s: s.recall_1px,
        "corner 1 px": lambda s: s.corner_auc[0], "3 px": lambda s: s.corner_auc[1], "5 px": lambda s: s.corner_auc[2],
        "DLT 5 px": lambda s: s.corner_auc_dlt[2],
        "pose 5°": lambda s: s.pose_auc[0], "10°": lambda s: s.pose_auc[1], "20°": lambda s: s.pose_auc[2],
        "OpenCV 5°": lambda s: s.pose_auc_opencv[0], "epipolar P": lambda s: s.epipolar_precision,
        "epipolar 10 px": lambda s: s.epipolar_auc[1],
    }  # fmt: skip
    note = "Percent. Precision, recall and F1 of planar pairs; AUC of the corner error, the pose error, the epipolar error."
    return _table("Accuracy", note, list(parts), names, [[part(s) for s in summaries] for part in parts.values()])


def _matching(names: Sequence[str], summaries: Sequence[Summary]) -> dict:
    parts: dict[str, Callable[[Summary], float]] = {
        "pairs": lambda s: s.pairs, "matches": lambda s: s.matches, "inliers": lambda s: s.inliers,
        "ms": lambda s: s.milliseconds, "stop layer": lambda s: s.stop_layer,
        "layers per point": lambda s: s.layers_per_point, "points pruned %": lambda s: s.pruned,
    }  # fmt: skip
    table = _table("Matching", "Means over the pairs; ms is the median, of matching alone.", list(parts), names,
                   [[float(part(s)) for s in summaries] for part in parts.values()])  # fmt: skip
    return table | {"rows": [[cell | {"best": False} for cell in row] for row in table["rows"]]}


def _intervals(names: Sequence[str], rows: Sequence[tuple[Run, Summary]]) -> dict:
    ranges = [intervals([s for s in run.scores if (s.method, s.factor) == (m.method, m.factor)]) for run, m in rows]
    head = list(dict.fromkeys(name for row in ranges for name in row))
    cells = [
        [{"text": name, "best": False}]
        + [{"text": f"{r[h][0]:.1f} to {r[h][1]:.1f}" if h in r else "", "best": False} for h in head]
        for name, r in zip(names, ranges, strict=True)
    ]
    note = "Over resampled pairs, 1000 times, seed 0."
    return {"title": "95 % bootstrap intervals", "note": note, "head": ["matcher", *head], "rows": cells}


def _plots(names: Sequence[str], rows: Sequence[tuple[Run, Summary]]) -> list[dict]:
    errors: dict[str, dict[str, np.ndarray]] = {}
    for name, (run, summary) in zip(names, rows, strict=True):
        for kind in _LIMITS:
            values = [s.error for s in run.scores if (s.method, s.factor, s.type) == (summary.method, summary.factor, kind)]
            if values:
                errors.setdefault(kind, {})[name] = np.array(values)
    plots = []
    for kind, by_name in errors.items():
        figure = Figure(figsize=(11, 4), layout="constrained")
        curve, histogram = figure.subplots(1, 2)
        _draw_recall(curve, by_name, _LIMITS[kind])
        _draw_histogram(histogram, by_name, _LIMITS[kind])
        for axes in (curve, histogram):
            axes.set_xlabel(_UNITS[kind])
        note = "Left: share of the pairs within an error. Right: histogram of the errors; the last bar is everything larger."
        plots.append({"title": f"Errors, {_TITLES[kind]}", "svg": _svg(figure), "note": note})
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, (_, s) in zip(names, rows, strict=True):
        value = s.pose_auc[0] if np.isfinite(s.pose_auc[0]) else s.f1
        axes.scatter(max(s.milliseconds, 1e-2), value, s=45)
        axes.annotate(name, (max(s.milliseconds, 1e-2), value), textcoords="offset points", xytext=(6, 4), fontsize=8)
    posed = any(np.isfinite(s.pose_auc[0]) for _, s in rows)
    axes.set(xscale="log", xlabel="ms a pair, median", ylabel="pose AUC@5° (%)" if posed else "planar F1 (%)")
    axes.grid(alpha=0.3)
    plots.append({"title": "Speed and accuracy", "svg": _svg(figure), "note": "Matching alone, on the machine of the run."})
    return plots


def _draw_recall(axes: Axes, by_name: dict[str, np.ndarray], limit: float) -> None:
    for name, values in by_name.items():
        ordered = np.sort(values)
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        inside = ordered <= limit
        x = np.concatenate([[0], ordered[inside], [limit]])
        y = np.concatenate([[0], share[inside], [share[inside][-1] if inside.any() else 0]])
        axes.step(x, 100 * y, where="post", label=name)
    axes.set(ylabel="pairs (%)", xlim=(0, limit), ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")


def _draw_histogram(axes: Axes, by_name: dict[str, np.ndarray], limit: float) -> None:
    edges = np.linspace(0, limit, 11)
    width = (edges[1] - edges[0]) / (len(by_name) + 1)
    for number, values in enumerate(by_name.values()):
        counts = np.histogram(values[np.isfinite(values)], edges)[0]
        beyond = len(values) - counts.sum()
        lefts = np.append(edges[:-1], limit)
        axes.bar(lefts + (number + 0.5) * width, 100 * np.append(counts, beyond) / len(values), width)
    axes.set(ylabel="pairs (%)")
    axes.grid(alpha=0.3, axis="y")


def _svg(figure: Figure) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Markup(re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), count=1, flags=re.S))


def _picture(example: Example, figure: Figure) -> dict:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=90)
    score = example.score
    note = f"{score.a} and {score.b} ({example.why}): {_error_text(score)}, {score.matches} matches, {score.inliers} inliers"
    return {"note": note, "data": base64.b64encode(buffer.getvalue()).decode()}
