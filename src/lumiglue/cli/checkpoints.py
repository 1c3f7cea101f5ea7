"""`lumiglue weights import` and `lumiglue weights show`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

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
        weights: A name of built-in weights, or a .safetensors file.
    """
    from lumiglue.weights import read_metadata, resolve

    config, metadata = read_metadata(resolve(weights))
    say(json.dumps({"config": dataclasses.asdict(config), **metadata}, indent=2))
    return 0
