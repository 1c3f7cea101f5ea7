"""`lumiglue weights list | download | import | mean | show` and `lumiglue export onnx`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lumiglue.cli.terminal import ProgressBar, say


def list_weights() -> int:
    """List weights by name: those in the package, published matchers, and feature networks.

    "here" means that no download is needed. `lumiglue weights download NAME` downloads the others.
    """
    from lumiglue.weights.files import BUILT_IN, pretrained_path, read_metadata
    from lumiglue.weights.registry import MATCHERS, NETWORKS

    rows = [("name", "features", "size", "licence", "here")]
    for name in BUILT_IN:
        path = pretrained_path(name)
        config, metadata = read_metadata(path)
        size = f"{path.stat().st_size / 1e6:.1f} MB"
        rows.append((name, config.extractor, size, metadata.get("licence", "unknown"), "in the package"))
    for file in (*MATCHERS.values(), *NETWORKS.values()):
        about = "" if file.sha256 else "about "
        features = "its own" if file.kind == "network" else file.features
        here = "here" if file.is_here() else "no"
        rows.append((file.name, features, f"{about}{file.megabytes:.1f} MB", file.licence, here))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def download_weights(name: Positional[str], sha256: str | None = None) -> int:
    """Download a published matcher or feature network, verify it, and store it for offline use.

    Args:
        name: A name from `lumiglue weights list`.
        sha256: Checksum to verify, for files whose checksum Lumiglue does not have.
    """
    from lumiglue.weights.files import BUILT_IN, pretrained_path
    from lumiglue.weights.registry import fetch

    if name in BUILT_IN:
        say(f"{name} is in the package: {pretrained_path(name)}")
        return 0
    with ProgressBar(name, None, of_bytes=True) as advance:
        path = fetch(name, sha256=sha256, progress=lambda received, total: advance(received, total=total))
    say(f"{name} -> {path}")
    return 0


def import_weights(checkpoint: Positional[Path], out: Annotated[Path, arg(aliases=["-o"])], features: str = "") -> int:
    """Convert a checkpoint of the released LightGlue or SuperGlue (.pth or .safetensors) to a weights file.

    Args:
        checkpoint: File to read; no code in it is executed.
        out: The .safetensors file to write.
        features: Features that it was trained for; the matcher then refuses others. By default it accepts any of that size.
    """
    from lumiglue.matcher.models import model_name
    from lumiglue.weights.files import save_weights
    from lumiglue.weights.released import import_released

    model = import_released(checkpoint, features)
    save_weights(model, out, {"imported_from": checkpoint.name})
    config = model.config
    shape = f"{config.n_layers} layers of {config.d}, {config.descriptor_dim}-channel descriptors, {config.encoding}"
    say(f"{model_name(config)}: {shape} -> {out}")
    return 0


def average_weights(weights: Positional[tuple[str, ...]], out: Annotated[Path, arg(aliases=["-o"])]) -> int:
    """Average weights that were trained from one start. The mean often matches better than each of them.

    Args:
        weights: Two or more .safetensors files or names; those of fewer layers are deepened first. The last one gives the
            thresholds and the record.
        out: The .safetensors file to write.
    """
    from lumiglue.errors import WeightsError
    from lumiglue.matcher.lightglue import LightGlue
    from lumiglue.training.averaging import mean_of
    from lumiglue.weights.files import load_weights, read_metadata, save_weights
    from lumiglue.weights.registry import resolve

    files = [resolve(name) for name in weights]
    models = [load_weights(file) for file in files]
    lightglue = [model for model in models if isinstance(model, LightGlue)]
    if len(lightglue) < max(2, len(models)):
        raise WeightsError("give two or more weights of LightGlue to average")
    mean = mean_of(lightglue)
    save_weights(mean, out, read_metadata(files[-1])[1] | {"mean_of": list(weights)})
    say(f"mean of {len(models)} -> {out}")
    return 0


def show_weights(weights: Positional[str] = "sift-deep") -> int:
    """Print the config, training record, metrics and licence of weights.

    Args:
        weights: A name from `lumiglue weights list`, a .safetensors file, or an .onnx file from `lumiglue export onnx`.
    """
    from lumiglue.weights.files import read_metadata
    from lumiglue.weights.registry import resolve

    file = resolve(weights)
    if file.suffix == ".onnx":
        from lumiglue.system.extras import require

        require("onnx_ir")
        from lumiglue.onnx.export import read_onnx_metadata

        say(json.dumps(read_onnx_metadata(file), indent=2))
        return 0
    config, metadata = read_metadata(file)
    say(json.dumps({"config": dataclasses.asdict(config), **metadata}, indent=2))
    return 0


def export_onnx(
    out: Annotated[Path, arg(aliases=["-o"])],
    weights: str = "sift-deep",
    layout: Literal["lumiglue", "batch", "opencv", "colmap"] = "lumiglue",
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    score_threshold: float | None = None,
    exit_ratio: float | None = None,
    prune_below: float | None = None,
) -> int:
    """Write a matcher as one ONNX file with early exit and pruning, for any number of keypoints.

    Args:
        out: The .onnx file to write.
        weights: A name from `lumiglue weights list`, or a .safetensors file.
        layout: Names of inputs and outputs: lumiglue (for `match --weights out.onnx`, ONNX Runtime, OpenVINO), batch (the
            same for several padded pairs at once), opencv (for cv2.LightGlueMatcher, at full depth) or colmap.
        precision: Weights and arithmetic; int8 keeps sums in fp32.
        score_threshold: Smallest score of a match; by default 0.1.
        exit_ratio: Stop once this share of the points is confident; 0 runs all layers; by default that of the weights.
        prune_below: Prune confident points whose matchability is below this; 0 keeps all points; by default that of the
            weights.
    """
    from lumiglue.matcher.settings import MatchSettings
    from lumiglue.system.extras import require

    require("onnx_ir")
    from lumiglue.onnx.export import OnnxSettings
    from lumiglue.onnx.export import export_onnx as write
    from lumiglue.weights.files import load_weights
    from lumiglue.weights.registry import resolve

    match = MatchSettings(score_threshold=score_threshold, exit_ratio=exit_ratio, prune_below=prune_below)
    write(load_weights(resolve(weights)), out, OnnxSettings(layout=layout, precision=precision, match=match))
    say(f"{weights}, layout {layout}, {precision}, {out.stat().st_size / 1e6:.1f} MB -> {out}")
    return 0
