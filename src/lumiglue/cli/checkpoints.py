"""`lumiglue weights import`, `lumiglue weights show` and `lumiglue export onnx`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lumiglue.cli.terminal import say


def import_weights(checkpoint: Positional[Path], out: Annotated[Path, arg(aliases=["-o"])], features: str = "") -> int:
    """Convert a checkpoint in the naming of the released LightGlue or SuperGlue (.pth or .safetensors) to a weights file.

    Args:
        checkpoint: File to read; nothing in it is executed.
        out: The .safetensors file to write.
        features: Name of the features it was trained for, so that others are refused; empty accepts any of that size.
    """
    from lumiglue.matcher.models import model_name
    from lumiglue.released import import_released
    from lumiglue.weights import save_weights

    model = import_released(checkpoint, features)
    save_weights(model, out, {"imported_from": checkpoint.name})
    config = model.config
    shape = f"{config.n_layers} layers of {config.d}, {config.descriptor_dim}-channel descriptors, {config.encoding}"
    say(f"{model_name(config)}: {shape} -> {out}")
    return 0


def show_weights(weights: Positional[str] = "sift") -> int:
    """Print the config, training record, metrics and licence of weights.

    Args:
        weights: A name of built-in weights, a .safetensors file, or an .onnx file of `lumiglue export onnx`.
    """
    from lumiglue.weights import read_metadata, resolve

    file = resolve(weights)
    if file.suffix == ".onnx":
        from lumiglue.extras import require

        require("onnx_ir")
        from lumiglue.onnx.export import read_onnx_metadata

        say(json.dumps(read_onnx_metadata(file), indent=2))
        return 0
    config, metadata = read_metadata(file)
    say(json.dumps({"config": dataclasses.asdict(config), **metadata}, indent=2))
    return 0


def export_onnx(
    out: Annotated[Path, arg(aliases=["-o"])],
    weights: str = "sift",
    layout: Literal["lumiglue", "opencv", "colmap"] = "lumiglue",
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    score_threshold: float | None = None,
    exit_ratio: float = 0.95,
    prune_below: float = 0.01,
) -> int:
    """Write a matcher as one ONNX file, early exit and pruning inside, for any numbers of keypoints.

    Args:
        out: The .onnx file to write.
        weights: A name of built-in weights, or a .safetensors file.
        layout: Names of inputs and outputs: lumiglue (for `match --weights out.onnx`, ONNX Runtime, OpenVINO), opencv (for
            cv2.LightGlueMatcher, at full depth) or colmap.
        precision: Of weights and arithmetic; int8 keeps sums in fp32.
        score_threshold: Smallest score of a match; by default 0.1.
        exit_ratio: Stop once this share of the points is confident; 0 runs all layers.
        prune_below: Confident points of lower matchability leave early; 0 keeps all points.
    """
    from lumiglue.extras import require
    from lumiglue.matcher.settings import MatchSettings

    require("onnx_ir")
    from lumiglue.onnx.export import OnnxSettings
    from lumiglue.onnx.export import export_onnx as write
    from lumiglue.weights import load_weights, resolve

    match = MatchSettings(score_threshold=score_threshold, exit_ratio=exit_ratio or None, prune_below=prune_below or None)
    write(load_weights(resolve(weights)), out, OnnxSettings(layout=layout, precision=precision, match=match))
    say(f"{weights}, layout {layout}, {precision}, {out.stat().st_size / 1e6:.1f} MB -> {out}")
    return 0
