"""The command line: flags, progress and printing. Nothing else in the package prints."""

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tyro.conf import Positional, arg

from lumiglue import __version__
from lumiglue.errors import ImageError, InputError, LumiglueError
from lumiglue.matcher.lightglue import Encoding, MatchSettings
from lumiglue.pipeline import MatchResult, Pipeline, Precision
from lumiglue.types import Geometry

if TYPE_CHECKING:
    from lumiglue.evaluation.pairs import Summary

GeometryChoice = Literal["fundamental", "homography", "none"]
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineFlags:
    """Which features and weights, and how far to adapt."""

    features: str = "sift"
    """Local features: sift."""
    max_keypoints: int = 2048
    """Keypoints kept per image, strongest first."""
    resize: int = 1024
    """Long side in pixels that larger images are shrunk to for detection; 0 keeps the full size."""
    weights: str | None = None
    """A .safetensors file, or a URL with #sha256=...; without it, the weights in the package."""
    score_threshold: float = 0.1
    """Smallest score of a match."""
    exit_ratio: float = 0.95
    """Stop once this share of the points is confident; 0 runs all layers."""
    prune_below: float = 0.01
    """Confident points of lower matchability leave early; 0 keeps all points."""
    precision: Precision = "fp32"
    """Arithmetic of the matcher."""
    device: str | None = None
    """cpu or cuda; by default the GPU if there is one."""

    def pipeline(self) -> Pipeline:
        settings = MatchSettings(
            score_threshold=self.score_threshold,
            exit_ratio=self.exit_ratio or None,
            prune_below=self.prune_below or None,
        )
        return Pipeline.pretrained(
            self.features,
            max_keypoints=self.max_keypoints,
            resize=self.resize or None,
            weights=self.weights,
            settings=settings,
            device=self.device,
            precision=self.precision,
        )


def match(
    inputs: Positional[tuple[Path, ...]],
    flags: Annotated[PipelineFlags, arg(name="")],
    out: Path | None = None,
    root: Path = Path(),
    geometry: GeometryChoice = "fundamental",
    adaptivity: Path | None = None,
    batch_size: int = 8,
) -> int:
    """Match two photos, or every pair of a list.

    Args:
        inputs: Two image files, or one text file with a pair of image paths on each line.
        flags: Features, weights, adaptivity.
        out: Two photos: .png/.jpg/.pdf/.svg for a picture, .npz/.json for the matches (default: A_B_matches.png here).
            A list: the .h5 file to write.
        root: Folder that the paths of a list are relative to.
        geometry: Model that separates inliers from outliers in the summary and the picture.
        adaptivity: Also save a picture of where the matcher stopped and which points it pruned.
        batch_size: Pairs matched at a time, for a list.
    """
    if len(inputs) == 2:
        return _match_two(inputs[0], inputs[1], flags, out, geometry, adaptivity)
    if len(inputs) == 1:
        return _match_list(inputs[0], root, flags, out, batch_size)
    raise InputError(f"{len(inputs)} inputs were given; give two photos, or one list of pairs")


def _match_two(
    a: Path, b: Path, flags: PipelineFlags, target: Path | None, kind: GeometryChoice, adaptivity: Path | None
) -> int:
    from lumiglue.export.files import DATA_SUFFIXES, save_result
    from lumiglue.images import read_image
    from lumiglue.visualization import draw_adaptivity, save_figure

    target = target or Path(f"{a.stem}_{b.stem}_matches.png")
    if target.suffix.lower() not in (*PICTURE_SUFFIXES, *DATA_SUFFIXES):
        raise InputError(f"--out {target} has no known suffix; use one of {[*PICTURE_SUFFIXES, *DATA_SUFFIXES]}")
    images = read_image(a), read_image(b)
    pipeline = flags.pipeline()
    result = pipeline.match(*images)
    geometry = None if kind == "none" else result.geometry(kind)
    summary = _summary(result, geometry, pipeline.matcher.config.n_layers)
    if target.suffix.lower() in DATA_SUFFIXES:
        save_result(target, result, geometry)
    else:
        _save_picture(target, images, result, geometry, f"{a.name} and {b.name}: {summary}")
    if adaptivity is not None:
        layers = pipeline.matcher.config.n_layers
        save_figure(draw_adaptivity(*images, result.features0, result.features1, result.matches, layers), adaptivity)
    _print_summary(summary, result, [path for path in (target, adaptivity) if path])
    return 0


def _match_list(list_file: Path, root: Path, flags: PipelineFlags, target: Path | None, batch_size: int) -> int:
    from lumiglue.export.files import MatchesFile

    names = _read_list(list_file)
    if target is None or target.suffix != ".h5":
        raise InputError(f"a list of pairs is written to an .h5 file; give --out matches.h5 (not {target})")
    pipeline = flags.pipeline()
    failures: list[str] = []
    total = 0
    pairs = [(root / a, root / b) for a, b in names]
    results = pipeline.match_many(pairs, batch_size=batch_size, on_error=lambda _, error: failures.append(str(error)))
    with _Progress("matching pairs", len(names)) as advance, MatchesFile(target) as file:
        for (a, b), result in zip(names, results, strict=True):
            if result is not None:
                file.write(a, b, result)
                total += len(result)
            advance(1, f"{total} matches")
    out.print(f"{len(names) - len(failures)} pairs, {total} matches -> {target}")
    if failures:
        err.print(f"error: {len(failures)} of {len(names)} pairs were left out; the first: {failures[0]}")
        return 2
    return 0


def sample(flags: Annotated[PipelineFlags, arg(name="")], out: Path = Path("demo.png"), photos: Path | None = None) -> int:
    """Match a sample pair with known ground truth, made from scikit-image's photographs.

    Args:
        flags: Features, weights, adaptivity.
        out: Picture to save.
        photos: Also save the two sample photos in this folder.
    """
    from PIL import Image

    from lumiglue.samples import sample_pair

    pair = sample_pair()
    if photos is not None:
        photos.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate((pair.image0, pair.image1)):
            Image.fromarray(image).save(photos / f"sample{number}.jpg", quality=92)
    pipeline = flags.pipeline()
    result = pipeline.match(pair.image0, pair.image1)
    geometry = result.geometry("fundamental")
    right = pair.is_right(result.points0, result.points1)
    share = 100 * right.mean() if len(right) else 0.0
    summary = _summary(result, geometry, pipeline.matcher.config.n_layers)
    summary += f", {int(right.sum())} truly right ({share:.0f} %)"
    _save_picture(out, (pair.image0, pair.image1), result, geometry, summary)
    _print_summary(summary, result, [out])
    return 0


def bank(
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    features: str = "sift",
    views: int = 8,
    max_keypoints: int = 512,
    long_side: int = 640,
    seed: int = 0,
    workers: int = 0,
) -> int:
    """Build a feature bank from a folder of photos: random views, their features and homographies. Resumable.

    Args:
        photos: Folder, searched with its subfolders.
        out: The .h5 file to write.
        features: Local features: sift.
        views: Random views of each photo; any two are a training pair.
        max_keypoints: Keypoints kept per view.
        long_side: Photos are shrunk to this many pixels.
        seed: Of the random views.
        workers: Processes; 0 takes one per core.
    """
    from lumiglue.extractors import create_extractor
    from lumiglue.training.bank import BankSettings, build_bank

    settings = BankSettings(views=views, max_keypoints=max_keypoints, long_side=long_side, seed=seed)
    extractor = create_extractor(features, max_keypoints=round(1.5 * max_keypoints), resize=None)
    done, skipped = 0, ()
    with _Progress("photos", None) as advance:
        for part in build_bank(photos, out, extractor, settings, workers=workers):
            advance(part.photos_done - done, f"{len(part.skipped)} unreadable", part.photos)
            done, skipped = part.photos_done, part.skipped
    _out_line(f"{done - len(skipped)} photos, {views} views each -> {out}")
    if skipped:
        err.print(f"{len(skipped)} photos could not be read and were left out; the first: {skipped[0]}")
    return 0


def train(
    bank: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    preset: str = "compact",
    encoding: Encoding = "xy-logscale-angle",
    pairs: int = 48_000,
    confidence_pairs: int = 3_200,
    batch_size: int = 16,
    points: int = 256,
    long_points: int = 384,
    learning_rate: float = 1e-3,
    negatives: float = 0.05,
    precision: Precision = "bf16",
    seed: int = 0,
) -> int:
    """Train a matcher on a feature bank, in two stages. Run again to go on after an interruption.

    Args:
        bank: The .h5 file of `lumiglue bank`.
        out: Folder of the run: metrics.jsonl, curves.png, checkpoint.pt, weights.safetensors.
        preset: Size of the matcher: base or compact.
        encoding: What the rotary encoding sees; "xy" for features without scale and orientation.
        pairs: Pairs seen in stage 1 (correspondences).
        confidence_pairs: Pairs seen in stage 2 (exit classifier).
        batch_size: Pairs per step.
        points: Keypoints per image.
        long_points: Keypoints per image in the last fifth of stage 1 and in stage 2.
        learning_rate: Its peak.
        negatives: Share of pairs of two different photos.
        precision: Of the forward and backward pass.
        seed: Of the initial weights and the order of pairs.
    """
    from lumiglue.training.loop import TrainSettings
    from lumiglue.training.loop import train as run_training
    from lumiglue.visualization import draw_learning_curves, save_figure

    settings = TrainSettings(
        preset=preset,
        encoding=encoding,
        pairs=pairs,
        confidence_pairs=confidence_pairs,
        batch_size=batch_size,
        points=points,
        long_points=long_points,
        learning_rate=learning_rate,
        negatives=negatives,
        precision=precision,
        seed=seed,
    )
    done, note = 0, ""
    with _Progress("steps", settings.steps) as advance:
        for now in run_training(bank, out, settings):
            if now.layers:
                last = now.layers[-1]
                note = f"recall {last['recall']:.1f} precision {last['precision']:.1f}"
                save_figure(draw_learning_curves(out / "metrics.jsonl"), out / "curves.png")
            advance(now.step - done, f"loss {now.loss:.3f}  {now.pairs_per_second:.1f} pairs/s  {note}")
            done = now.step
    _out_line(f"trained weights -> {out / 'weights.safetensors'}")
    return 0


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
    with _Progress("evaluations", len(pairs) * len(chosen)) as advance:
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


def import_weights(checkpoint: Positional[Path], out: Annotated[Path, arg(aliases=["-o"])], features: str = "") -> int:
    """Convert a checkpoint in the released LightGlue naming (.pth or .safetensors) to a Lumiglue weights file.

    Args:
        checkpoint: File to read; nothing in it is executed.
        out: The .safetensors file to write.
        features: Name of the features it was trained for, so that others are refused; empty accepts any of that size.
    """
    from lumiglue.weights import import_released, save_weights

    model = import_released(checkpoint, features)
    save_weights(model, out, {"imported_from": checkpoint.name})
    config = model.config
    _out_line(
        f"{config.n_layers} layers of {config.d}, {config.descriptor_dim}-channel descriptors, {config.encoding} -> {out}"
    )
    return 0


def show_weights(weights: Positional[str] = "sift") -> int:
    """Print the config, training record, metrics and licence of weights.

    Args:
        weights: A name of built-in weights, or a .safetensors file.
    """
    from lumiglue.weights import BUILT_IN, pretrained_path, read_metadata

    config, metadata = read_metadata(pretrained_path(weights) if weights in BUILT_IN else weights)
    _out_line(json.dumps({"config": dataclasses.asdict(config), **metadata}, indent=2))
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "match": match,
    "sample": sample,
    "bank": bank,
    "train": train,
    "eval": evaluate,
    "weights import": import_weights,
    "weights show": show_weights,
}


DESCRIPTION = (
    "Sparse feature matching: two photos in, correspondences out. Pixels: (0, 0) is the centre of the top-left one."
)


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Exit code 2 with one sentence for input that cannot be used."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words == ["--version"]:
        _out_line(f"lumiglue {__version__}")
        return 0
    if " ".join(words[:2]) in COMMANDS:  # a command of two words is one to tyro
        words[:2] = [" ".join(words[:2])]
    app = tyro.extras.SubcommandApp()
    for name, command in COMMANDS.items():
        app.command(name=name)(command)
    try:
        return app.cli(prog="lumiglue", description=DESCRIPTION, args=words)
    except LumiglueError as error:
        err.print(f"error: {error}", markup=False)
        return 2
    except OSError as error:
        err.print(f"error: {error.filename or 'file'}: {error.strerror or error}", markup=False)
        return 2
    except KeyboardInterrupt:
        err.print("interrupted")
        return 130


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


def _read_list(path: Path) -> list[tuple[str, str]]:
    """Pairs of paths, one pair a line; blank lines and lines that begin with # are passed over."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give two photos, or one list of pairs") from None
    except UnicodeDecodeError:
        raise ImageError(f"{path} is not a text file; give two photos, or one list of pairs") from None
    names = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2:
            raise InputError(f"{path} line {number} holds one path; give two, separated by a space")
        names.append((words[0], words[1]))
    if not names:
        raise InputError(f"{path} holds no pairs; give two image paths on each line")
    return names


def _summary(result: MatchResult, geometry: Geometry | None, layers: int) -> str:
    parts = [f"{len(result.features0)} and {len(result.features1)} keypoints", f"{len(result)} matches"]
    if geometry is not None:
        parts.append(f"{int(geometry.inliers.sum())} inliers ({geometry.kind})")
    if result.matches.stop_layer:
        parts.append(f"stopped after layer {result.matches.stop_layer} of {layers}")
    return ", ".join(parts)


def _print_summary(summary: str, result: MatchResult, files: list[Path]) -> None:
    _out_line(summary)
    _out_line(", ".join(f"{step} {1000 * seconds:.0f} ms" for step, seconds in result.seconds.items()))
    if not len(result.features0) or not len(result.features1):
        err.print("note: an image has no keypoints (blank, or under 8 pixels), so there is nothing to match")
    for file in files:
        _out_line(f"saved {file}")


def _save_picture(
    target: Path, images: tuple[np.ndarray, np.ndarray], result: MatchResult, geometry: Geometry | None, title: str
) -> None:
    from lumiglue.visualization import draw_matches, save_figure

    save_figure(draw_matches(*images, result.features0, result.features1, result.matches, geometry, title), target)


def _out_line(text: str) -> None:
    out.print(text, markup=False)


class _Progress:
    """A progress bar on stderr: `advance(steps, note, total=None)`."""

    def __init__(self, label: str, total: int | None) -> None:
        columns: tuple[Any, ...] = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self.bar = Progress(*columns, console=err)
        self.task = self.bar.add_task(label, total=total, note="")

    def __enter__(self) -> Callable[..., None]:
        return self.advance

    def advance(self, steps: int, note: str, total: int | None = None) -> None:
        self.bar.start()  # only now, so that an error before the first step stands alone
        if total is not None:
            self.bar.update(self.task, total=total)
        self.bar.update(self.task, advance=steps, note=note)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
