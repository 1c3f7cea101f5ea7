"""`lumiglue bank` and `lumiglue train`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from lumiglue.cli.terminal import Progress, err, say
from lumiglue.matcher.lightglue import Encoding
from lumiglue.pipeline import Precision


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
    with Progress("photos", None) as advance:
        for part in build_bank(photos, out, extractor, settings, workers=workers):
            advance(part.photos_done - done, f"{len(part.skipped)} unreadable", part.photos)
            done, skipped = part.photos_done, part.skipped
    say(f"{done - len(skipped)} photos, {views} views each -> {out}")
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
    with Progress("steps", settings.steps) as advance:
        for now in run_training(bank, out, settings):
            if now.layers:
                last = now.layers[-1]
                note = f"recall {last['recall']:.1f} precision {last['precision']:.1f}"
                save_figure(draw_learning_curves(out / "metrics.jsonl"), out / "curves.png")
            advance(now.step - done, f"loss {now.loss:.3f}  {now.pairs_per_second:.1f} pairs/s  {note}")
            done = now.step
    say(f"trained weights -> {out / 'weights.safetensors'}")
    return 0
