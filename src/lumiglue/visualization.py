"""Figures of matches, of the matcher's adaptivity, and of learning curves, without pyplot's global state."""

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lumiglue.errors import InputError
from lumiglue.images import ImageLike, load_image
from lumiglue.io.atomic import write_whole
from lumiglue.types import Features, Geometry, Matches

CONFIDENCE_COLOURS = "plasma"
LAYER_COLOURS = "viridis"
INLIER_COLOUR, OUTLIER_COLOUR = "#2bd46a", "#ff4b4b"
ColourBy = Literal["score", "inlier"]
_GAP = 0.02  # between the photos, as a share of their width together
_MAX_WIDTH = 15.0  # inches
_DPI = 110
_TITLE_POINTS = 11


def draw_matches(
    image0: ImageLike,
    image1: ImageLike,
    features0: Features,
    features1: Features,
    matches: Matches,
    geometry: Geometry | None = None,
    title: str = "",
    colour_by: ColourBy = "score",
    stacked: bool = False,
) -> Figure:
    """Draws matches over both photos: inliers coloured by score, outliers faint, unmatched points small.

    Args:
        image0: A photo of any type that `Pipeline` accepts.
        image1: The same.
        features0: Features of image 0.
        features1: Features of image 1.
        matches: Rows of both.
        geometry: A model of the matches; without one, every match is drawn as an inlier.
        title: By default the numbers of matches and inliers.
        colour_by: "inlier" draws inliers green and outliers red.
        stacked: Whether to put the photos one above the other instead of side by side.
    """
    figure, axes, corners = _on_one_canvas(image0, image1, stacked)
    points0, points1 = _keypoints(features0, corners[0]), _keypoints(features1, corners[1])
    for points, rows in ((points0, matches.pairs[:, 0].numpy()), (points1, matches.pairs[:, 1].numpy())):
        unmatched = np.delete(points, rows, axis=0)
        axes.scatter(*unmatched.T, s=3, c="white", alpha=0.55, linewidths=0)
    ends0, ends1 = points0[matches.pairs[:, 0].numpy()], points1[matches.pairs[:, 1].numpy()]
    inliers = np.ones(len(matches), bool) if geometry is None else geometry.inliers.numpy()
    scores = matches.scores.numpy()
    order = np.argsort(scores, kind="stable")
    good, bad = order[inliers[order]], order[~inliers[order]]
    # Many opaque lines would hide the photos.
    opacity = min(0.75, max(0.25, 200 / max(1, len(good))))
    _set_title(axes, title or f"{len(matches)} matches, {len(good)} inliers")
    if colour_by == "inlier":
        for rows, colour in ((bad, OUTLIER_COLOUR), (good, INLIER_COLOUR)):
            _lines(axes, ends0[rows], ends1[rows], colors=colour, alpha=max(opacity, 0.45), linewidths=0.8)
            for ends in (ends0, ends1):
                axes.scatter(*ends[rows].T, s=7, c=colour, linewidths=0)
        return figure
    _lines(axes, ends0[bad], ends1[bad], colors="white", alpha=0.22, linewidths=0.5)
    lines = _lines(
        axes, ends0[good], ends1[good], array=scores[good], cmap=CONFIDENCE_COLOURS, norm=Normalize(0, 1),
        alpha=opacity, linewidths=0.8,
    )  # fmt: skip
    for ends in (ends0, ends1):
        axes.scatter(*ends[good].T, s=7, c=scores[good], cmap=CONFIDENCE_COLOURS, vmin=0, vmax=1, linewidths=0)
    figure.colorbar(lines, ax=axes, fraction=0.02, pad=0.01, label="match score")
    return figure


def draw_layer(
    image0: ImageLike,
    image1: ImageLike,
    features0: Features,
    features1: Features,
    layers: Sequence[Matches],
    layer: int,
    n_layers: int,
    stacked: bool = False,
) -> Figure:
    """Draws the state of the matcher after one layer.

    Lines are the matches at that layer, coloured by score. White dots are the remaining points, crosses the pruned ones,
    coloured by their last layer.

    Args:
        image0: A photo of any type that `Pipeline` accepts.
        image1: The same.
        features0: Features of image 0.
        features1: Features of image 1.
        layers: The result of `Pipeline.match_by_layer`.
        layer: Number of the layer, from 1. If it did not run, the last layer that ran is drawn and the title says so.
        n_layers: Number of layers of the matcher.
        stacked: Whether to put the photos one above the other instead of side by side.
    """
    matches = layers[min(layer, len(layers)) - 1]
    stop = layers[-1].stop_layer
    figure, axes, corners = _on_one_canvas(image0, image1, stacked)
    points = [_keypoints(f, corner) for f, corner in zip((features0, features1), corners, strict=True)]
    sides = list(zip(points, (matches.layers0.numpy(), matches.layers1.numpy()), matches.pairs.numpy().T, strict=True))
    for side, layers_run, rows in sides:
        pruned = layers_run < matches.stop_layer
        idle = ~pruned
        idle[rows] = False
        axes.scatter(*side[idle].T, s=4, c="white", alpha=0.7, linewidths=0)
        axes.scatter(
            *side[pruned].T,
            s=13,
            c=layers_run[pruned],
            marker="x",
            cmap=LAYER_COLOURS,
            vmin=1,
            vmax=n_layers,
            linewidths=0.8,
        )
    scores = matches.scores.numpy()
    ends0, ends1 = (side[rows] for side, _, rows in sides)
    opacity = min(0.75, max(0.25, 200 / max(1, len(matches))))
    lines = _lines(
        axes, ends0, ends1, array=scores, cmap=CONFIDENCE_COLOURS, norm=Normalize(0, 1), alpha=opacity, linewidths=0.8
    )
    figure.colorbar(lines, ax=axes, fraction=0.02, pad=0.01, label="match score")
    gone = sum(int((layers_run < matches.stop_layer).sum()) for _, layers_run, _ in sides)
    end = "\n" if stacked else " "
    text = f"{len(matches)} matches, {gone} of {len(features0) + len(features1)} points pruned before (crosses)"
    if layer > stop:
        text = f"layer {layer} of {n_layers} did not run: the pair finished after layer {stop}, shown here;{end}{text}"
    else:
        text = f"after layer {layer} of {n_layers}{', where the pair finished' if layer == stop else ''}:{end}{text}"
    _set_title(axes, text)
    return figure


def draw_adaptivity(
    image0: ImageLike, image1: ImageLike, features0: Features, features1: Features, matches: Matches, n_layers: int
) -> Figure:
    """Draws each keypoint coloured by the layers that it went through; crosses were pruned, dots were not.

    Args:
        image0: A photo of any type that `Pipeline` accepts.
        image1: The same.
        features0: Features of image 0.
        features1: Features of image 1.
        matches: The result for the pair.
        n_layers: Number of layers of the matcher.
    """
    figure, axes, corners = _on_one_canvas(image0, image1)
    drawn = None
    for features, layers, offset in (
        (features0, matches.layers0.numpy(), corners[0]),
        (features1, matches.layers1.numpy(), corners[1]),
    ):
        points = _keypoints(features, offset)
        for mask, marker, size in ((layers < matches.stop_layer, "x", 14), (layers >= matches.stop_layer, "o", 9)):
            drawn = axes.scatter(
                *points[mask].T, s=size, c=layers[mask], marker=marker, cmap=LAYER_COLOURS, vmin=1, vmax=n_layers,
                linewidths=0.9 if marker == "x" else 0,
            )  # fmt: skip
    assert drawn is not None
    figure.colorbar(drawn, ax=axes, fraction=0.02, pad=0.01, label="layers run", ticks=range(1, n_layers + 1))
    pruned = int((matches.layers0 < matches.stop_layer).sum() + (matches.layers1 < matches.stop_layer).sum())
    total = max(1, len(features0) + len(features1))
    text = f"stopped after layer {matches.stop_layer} of {n_layers}; {pruned} of {total} points"
    _set_title(axes, f"{text} ({100 * pruned / total:.0f} %) pruned on the way (crosses)")
    return figure


def draw_curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], unit: str) -> Figure:
    """Draws panels of curves.

    Args:
        panels: Title of a panel -> name of a curve -> (x, y).
        unit: Label of the y axis.
    """
    figure = Figure(figsize=(5 * min(len(panels), 2), 3.6 * -(-len(panels) // 2)), layout="constrained")
    grid = figure.subplots(-(-len(panels) // 2), min(len(panels), 2), squeeze=False).flatten()
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for name, (x, y) in lines.items():
            axes.plot(x, y, marker="o", markersize=3, label=name)
        axes.set(title=title, ylabel=unit)
        axes.grid(alpha=0.3)
    grid[0].legend(fontsize=8)
    return figure


def figure_bytes(figure: Figure, kind: Literal["jpg", "png"]) -> bytes:
    """Encodes a figure as an image file."""
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(file, format=kind, dpi=_DPI)
    return file.getvalue()


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure.

    Args:
        figure: The figure.
        path: The file; its suffix chooses the format.

    Raises:
        InputError: Matplotlib does not support the suffix, or the disk is full.
    """
    suffix = Path(path).suffix.lstrip(".").lower()
    if suffix not in FigureCanvasAgg(figure).get_supported_filetypes():
        raise InputError(f"{path} has an unsupported suffix for pictures; use .png, .jpg, .pdf or .svg")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # in a file name; a box is drawn
        figure.savefig(buffer, dpi=_DPI, format=suffix)
    write_whole(path, buffer.getvalue())


def _set_title(axes: Axes, text: str) -> None:
    """Wraps the title to the width of the figure, because file names may be long."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    columns = int(0.9 * 72 * figure.get_figwidth() / (0.58 * _TITLE_POINTS))  # a tenth is the colour bar's
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, max(columns, 20))]
    axes.set_title("\n".join(lines), fontsize=_TITLE_POINTS, parse_math=False)  # a file name may contain a $


def _on_one_canvas(
    image0: ImageLike, image1: ImageLike, stacked: bool = False
) -> tuple[Figure, Axes, tuple[np.ndarray, np.ndarray]]:
    """Both photos on a dark canvas, centred, and the top-left corner of each."""
    images = load_image(image0), load_image(image1)
    sizes = np.array([image.shape[:2] for image in images])
    along, across = (0, 1) if stacked else (1, 0)
    gap = round(_GAP * sizes[:, 1].sum())
    shape = np.zeros(2, int)
    shape[along], shape[across] = sizes[:, along].sum() + gap, sizes[:, across].max()
    corners = np.zeros((2, 2), int)  # row and column
    corners[1, along] = sizes[0, along] + gap
    corners[:, across] = (shape[across] - sizes[:, across]) // 2
    canvas = np.full((*shape, 3), 32, np.uint8)
    for image, (top, left) in zip(images, corners, strict=True):
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    height, width = int(shape[0]), int(shape[1])
    inches = min(_MAX_WIDTH / (2 if stacked else 1), max(9.0, width / _DPI))
    figure = Figure(figsize=(inches, inches * height / width * 0.95 + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(canvas, interpolation="bilinear")
    axes.set_axis_off()
    axes.autoscale(False)
    places = corners[:, ::-1].astype(float)
    return figure, axes, (places[0], places[1])


def _keypoints(features: Features, corner: np.ndarray) -> np.ndarray:
    return features.keypoints.cpu().numpy().astype(np.float64) + corner


def _lines(axes: Axes, ends0: np.ndarray, ends1: np.ndarray, **style: object) -> LineCollection:
    segments: Sequence[np.ndarray] = list(np.stack([ends0, ends1], axis=1)) if len(ends0) else []
    lines = LineCollection(segments, **style)  # pyright: ignore[reportArgumentType]
    axes.add_collection(lines, autolim=False)
    return lines
