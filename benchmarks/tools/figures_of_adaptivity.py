"""The pictures of docs/concepts.md, of the built-in sample photos: python benchmarks/tools/figures_of_adaptivity.py -o
docs/images/"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

from lumiglue import Features, LightGlue, MatchSettings, Pipeline
from lumiglue.evaluation.synthetic import shrunk, turned
from lumiglue.geometry.projective import transform
from lumiglue.matcher.assignment import assign
from lumiglue.matcher.inputs import pack
from lumiglue.samples import sample_pair
from lumiglue.visualization import draw_adaptivity, save_figure

RIGHT_PX = 3.0


@dataclass(frozen=True, eq=False)
class Example:
    """Two images and how a match of them is judged: points of the one and the other (k x 2) to k booleans."""

    title: str
    image0: np.ndarray
    image1: np.ndarray
    is_right: Callable[[np.ndarray, np.ndarray], np.ndarray]


def moved(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """k x 2 points through a homography."""
    return transform(torch.from_numpy(homography).float(), torch.from_numpy(points)).numpy()


def examples() -> list[Example]:
    """From easy to without any overlap, all of the two sample photos."""
    sample = sample_pair()
    photo, other = sample.image0, sample.image1
    rolled, rolled_from_photo = turned(photo, 90)
    small, small_from_other = shrunk(other, 2)

    def as_rolled(points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
        return np.linalg.norm(moved(rolled_from_photo, points0) - points1, axis=1) <= RIGHT_PX

    def as_small(points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
        return sample.is_right(points0, moved(np.linalg.inv(small_from_other), points1), RIGHT_PX)

    def as_parts(points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
        return sample.is_right(points0, points1 + np.array([520, 0]), RIGHT_PX)

    left, right = photo[:, :300], other[:, 520:]  # no photograph hangs in both
    return [
        Example("the photo, turned by 90 degrees", photo, rolled, as_rolled),
        Example("two views (the sample pair)", photo, other, sample.is_right),
        Example("two views, one at half the size", photo, small, as_small),
        Example("left third and right third", left, right, as_parts),
    ]


@dataclass(frozen=True)
class AfterLayer:
    """What a pair looks like after a layer: share of its points that are confident, matches, how many of them are right."""

    confident: float
    matches: int
    right: int


@torch.no_grad()
def layer_by_layer(model: LightGlue, a: Features, b: Features, example: Example) -> list[AfterLayer]:
    """All layers and all points: what the exit test would see, and what each layer's head would match."""
    rows = []
    packed = pack([(a, b)], model.config)
    for layer, x in enumerate(model.states(packed)):
        head = model.heads[layer]
        f0, f1 = head.features(x).split(packed.lengths[0])
        z0, z1 = head.matchability_logits(x).split(packed.lengths[0])
        pairs, _ = assign(f0, f1, z0, z1, model.default_threshold)
        points = a.keypoints[pairs[:, 0]].numpy(), b.keypoints[pairs[:, 1]].numpy()
        right = int(example.is_right(*points).sum())
        last = layer == model.config.n_layers - 1
        confidence = torch.ones(len(x)) if last else model.confidences[layer](x).squeeze(-1).sigmoid()
        sure = confidence > (0 if last else model.exit_threshold(layer))
        rows.append(AfterLayer(float(sure.float().mean()), len(pairs), right))
    return rows


def draw_layers(pairs: dict[str, tuple[list[AfterLayer], int]], exit_ratio: float) -> Figure:
    """Confident points and matches over the layers; a ring where the pair stops."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    sure, matched = figure.subplots(1, 2)
    n_layers = max(len(rows) for rows, _ in pairs.values())
    for (title, (rows, stop)), colour in zip(pairs.items(), ("C2", "C0", "C1", "C3"), strict=True):
        layers = np.arange(1, len(rows) + 1)
        shares = [100 * row.confident for row in rows[:-1]]
        sure.plot(layers[:-1], shares, c=colour, marker="o", markersize=4, label=title)
        matched.plot(layers, [row.right for row in rows], c=colour, marker="o", markersize=4)
        matched.plot(layers, [row.matches - row.right for row in rows], c=colour, linestyle=":", marker="x", markersize=4)
        if stop < len(rows):
            sure.plot(stop, shares[stop - 1], "o", c=colour, markersize=13, fillstyle="none")
        matched.plot(stop, rows[stop - 1].right, "o", c=colour, markersize=13, fillstyle="none")
    sure.axhline(100 * exit_ratio, c="0.4", linestyle="--", linewidth=1)
    sure.text(1.0, 100 * exit_ratio + 1, "more than this: stop", fontsize=8, c="0.3")
    sure.set(title="confident points (%)", xlabel="after layer", ylim=(0, 104), xticks=range(1, n_layers + 1))
    matched.set(title="matches: right (lines), wrong (dots)", xlabel="after layer", xticks=range(1, n_layers + 1))
    sure.legend(fontsize=8, loc="lower right")
    for axes in (sure, matched):
        axes.grid(alpha=0.3)
    return figure


def draw_packing(lengths: list[tuple[int, int]]) -> Figure:
    """The same pairs as a padded batch and packed end to end; widths are keypoints."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    padded, packed = figure.subplots(2, 1, height_ratios=(2.2, 1))
    longest = max(max(pair) for pair in lengths)
    for row, pair in enumerate(lengths):
        for side, n in enumerate(pair):
            left = side * (longest * 1.02)
            padded.barh(row, longest - n, left=left + n, color="0.92", edgecolor="0.6", hatch="////", linewidth=0.5)
            padded.barh(row, n, left=left, color=f"C{row}", alpha=1 - 0.35 * side)
            padded.text(left + n / 2, row, str(n), ha="center", va="center", fontsize=8, c="white")
    left = 0
    for row, pair in enumerate(lengths):
        for side, n in enumerate(pair):
            packed.barh(0, n, left=left, color=f"C{row}", alpha=1 - 0.35 * side, edgecolor="white", linewidth=0.5)
            packed.text(left + n / 2, 0, str(n), ha="center", va="center", fontsize=8, c="white")
            left += n
    tokens, all_cells = left, 2 * longest * len(lengths)
    padded.set_title(f"padded: {all_cells} rows, {100 * (1 - tokens / all_cells):.0f} % of them empty", fontsize=10)
    packed.set_title(f"packed: {tokens} rows; attention stays inside an image and between partners", fontsize=10)
    padded.invert_yaxis()
    for axes in (padded, packed):
        axes.set_axis_off()
    return figure


def main(out: Annotated[Path, tyro.conf.arg(aliases=["-o"])], max_keypoints: int = 1024) -> None:
    """out: folder of the pictures."""
    pipeline = Pipeline.pretrained("sift", max_keypoints=max_keypoints, resize=None, precision="fp32")
    model, exit_ratio = pipeline.matcher, pipeline.settings.exit_ratio
    assert isinstance(model, LightGlue)
    assert exit_ratio is not None
    layers_of, lengths = {}, []
    print("| pair | keypoints | confident | matches (right) | stops after |\n|---|---|---|---|---|")
    for example in examples():
        a, b = pipeline.extract(example.image0), pipeline.extract(example.image1)
        (matches,) = pipeline.match_features([(a, b)])
        rows = layer_by_layer(model, a, b, example)
        layers_of[example.title] = (rows, matches.stop_layer)
        lengths.append((len(a), len(b)))
        shares = " / ".join(f"{100 * row.confident:.0f}" for row in rows[:-1])
        numbers = " / ".join(f"{row.matches} ({row.right})" for row in rows)
        print(f"| {example.title} | {len(a)}, {len(b)} | {shares} % | {numbers} | {matches.stop_layer} |")
    save_figure(draw_layers(layers_of, exit_ratio), out / "adaptivity-layers.png")
    save_figure(draw_packing(lengths), out / "packing.png")

    example = examples()[1]
    wide = pipeline.with_settings(MatchSettings(prune_below=0.2, exit_ratio=0))
    result = wide.match(example.image0, example.image1)
    figure = draw_adaptivity(
        example.image0, example.image1, result.features0, result.features1, result.matches, model.config.n_layers
    )
    save_figure(figure, out / "adaptivity-width.jpg")
    for name, prune_below in (("all points", 0), ("prune_below 0.01", 0.01), ("prune_below 0.2", 0.2)):
        settings = MatchSettings(exit_ratio=0, prune_below=prune_below)
        got = pipeline.with_settings(settings).match(example.image0, example.image1)
        layers = torch.cat([got.matches.layers0, got.matches.layers1])
        right = int(example.is_right(got.points0, got.points1).sum())
        work = 100 * float(layers.float().mean()) / model.config.n_layers
        print(f"{name}: {len(got)} matches, {right} right; points go through {work:.0f} % of the layers")


if __name__ == "__main__":
    tyro.cli(main)
