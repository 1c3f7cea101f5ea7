"""Figures of a run: learning curves, and held-out pairs with their matches."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lumiglue.errors import InputError
from lumiglue.visualization import _GAP, _lines


def draw_learning_curves(metrics: str | Path) -> Figure:
    """Draws the loss, and the recall and precision of each layer, over the pairs seen, from the metrics.jsonl of a run.
    Raises InputError if the file has no steps yet."""
    lines = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    if not lines:
        raise InputError(f"{metrics} has no steps yet; draw it once training has started")
    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, recall, precision = figure.subplots(1, 3)
    for stage, colour in ((1, "C0"), (2, "C1")):
        steps = [line for line in lines if line["stage"] == stage]
        if steps:
            values = np.array([line["loss"] for line in steps])
            window = max(1, len(values) // 100)
            smooth = np.convolve(values, np.ones(window) / window, mode="valid")
            pairs = [line["pairs"] for line in steps][window - 1 :]
            loss.plot(pairs, smooth, colour, label="correspondences" if stage == 1 else "confidence")
    validations = [line for line in lines if line["layers"] and line["stage"] == 1]
    for axes, name in ((recall, "recall"), (precision, "precision")):
        for layer in range(len(validations[0]["layers"]) if validations else 0):
            values = [line["layers"][layer][name] for line in validations]
            axes.plot([line["pairs"] for line in validations], values, label=f"layer {layer + 1}")
        axes.set(title=f"{name} on held-out photos (%)", xlabel="pairs seen")
    loss.set(title="loss", xlabel="pairs seen", yscale="log")
    for axes in (loss, recall):
        axes.legend(fontsize=8)
    return figure


def draw_training_matches(
    pairs: Sequence[tuple[np.ndarray, tuple[float, float], np.ndarray, tuple[float, float], np.ndarray, np.ndarray, int]],
    title: str = "",
) -> Figure:
    """Draws the matches of some pairs over the outlines of their views: correct ones green, wrong ones red, others grey.

    Args:
        pairs: For each pair: keypoints (n x 2) and (width, height) of the first view, then of the second, matches (k x 2
            rows), the kind of each (1 correct, 0 wrong, -1 unknown), and the number of true matches.
        title: Title of the figure.
    """
    columns = min(2, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(7.5 * columns, 3.2 * rows + 0.4), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).flatten()
    for axes, (keypoints0, size0, keypoints1, size1, matches, kinds, true) in zip(grid, pairs, strict=False):
        shift = np.array([size0[0] * (1 + 2 * _GAP), 0.0])
        for keypoints, (width, height), corner in ((keypoints0, size0, 0 * shift), (keypoints1, size1, shift)):
            x, y = corner - 0.5  # pixel centres are whole numbers
            axes.plot([x, x + width, x + width, x, x], [y, y, y + height, y + height, y], c="0.6", linewidth=0.8)
            axes.scatter(*(keypoints + corner).T, s=2, c="0.55", linewidths=0)
        ends0, ends1 = keypoints0[matches[:, 0]], keypoints1[matches[:, 1]] + shift
        for kind, colour in ((-1, "0.75"), (1, "tab:green"), (0, "tab:red")):
            chosen = kinds == kind
            _lines(axes, ends0[chosen], ends1[chosen], colors=colour, alpha=0.6, linewidths=0.6)
        wrong = int((kinds == 0).sum())
        axes.set_title(f"{int((kinds == 1).sum())} of {true} true matches found, {wrong} wrong", fontsize=9)
        axes.set_aspect("equal")
        axes.invert_yaxis()
    for axes in grid:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11)
    return figure
