"""Weights files: safetensors with the model's config in the header, loaded strictly; the weights in the package."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save

from lumiglue.errors import WeightsError
from lumiglue.io.atomic import write_whole
from lumiglue.io.download import file_sha256
from lumiglue.io.text import reason
from lumiglue.matcher.models import CONFIGS, MatcherModel, ModelConfig, build_for, config_from, model_name

FORMAT = "lumiglue-"  # and the name of the model
FOLDER_FILES = ("config.json", "model.safetensors")  # of a model folder, as on the Hugging Face Hub


def save_weights(model: MatcherModel, path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Writes a model and its config.

    Args:
        model: The matcher.
        path: A .safetensors file.
        metadata: The training record as JSON values: training data, steps, metrics, licence.

    Raises:
        InputError: The disk is full.
    """
    header = {"config": json.dumps(asdict(model.config)), "metadata": json.dumps(dict(metadata))}
    header["format"] = FORMAT + model_name(model.config)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    write_whole(path, save(tensors, metadata=header))  # save_file would make it readable by its owner alone


def read_metadata(path: str | Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads the config and the metadata of a weights file.

    Raises:
        WeightsError: The file is missing, damaged or not a Lumiglue weights file.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; give a .safetensors file, or omit --weights to use the built-in ones")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except Exception as error:  # safetensors raises SafetensorError, OSError and ValueError on damaged files
        if path.suffix in (".pth", ".pt"):
            convert = f"convert it with `lumiglue weights import {path} -o {path.stem}.safetensors`"
            raise WeightsError(f"this is a PyTorch checkpoint; {convert}") from None
        raise WeightsError(f"{path} cannot be read as safetensors ({reason(error)}); copy or convert it again") from None
    name = header.get("format", "").removeprefix(FORMAT)
    if name not in CONFIGS:
        raise WeightsError(f"{path} is not a Lumiglue weights file; convert it with `lumiglue weights import`")
    try:
        config, metadata = config_from(name, json.loads(header["config"])), json.loads(header.get("metadata", "{}"))
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is not a dictionary")
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} has a config that this version cannot read ({reason(error)}); update lumiglue") from None
    return config, metadata


def is_ours(path: str | Path) -> bool:
    """Whether the header identifies a Lumiglue weights file, unlike a released checkpoint."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format", "").startswith(FORMAT)
    except (safetensors.SafetensorError, OSError):
        return False


def load_weights(path: str | Path, device: torch.device | str = "cpu") -> MatcherModel:
    """Loads a model in evaluation mode.

    Args:
        path: A Lumiglue weights file.
        device: Where to put the model.

    Raises:
        WeightsError: The file cannot be read, or lacks a tensor of the model.
    """
    config, _ = read_metadata(path)
    try:
        return build_for(config, load_file(path)).to(device)
    except Exception as error:  # safetensors raises SafetensorError, OSError and more on damaged files
        raise WeightsError(f"{path} does not fit its own config ({reason(error)}); copy it again") from None


# The weights in the package, by name. Trained by us; see docs/weights.md.
BUILT_IN = {
    "sift-compact": "sift-compact.safetensors",
    "sift-deep": "sift-deep.safetensors",
    "sift-clean": "sift-compact-clean.safetensors",  # trained with openly licensed photos only
    "aliked-n16rot-deep": "aliked-n16rot-deep.safetensors",
    "aliked-n16-compact": "aliked-n16-compact.safetensors",
    "aliked-n16-deep": "aliked-n16-deep.safetensors",
}


def pretrained_path(name: str) -> Path:
    """The path of the built-in weights of a name in `BUILT_IN`. Raises WeightsError for another name."""
    if name not in BUILT_IN:
        raise WeightsError(f"there are no built-in weights for {name!r}; choose from {sorted(BUILT_IN)} or give a file")
    return Path(__file__).parent / "data" / BUILT_IN[name]


def built_in_checksums() -> dict[str, str]:
    """The SHA-256 of each file of built-in weights, from data/SHA256SUMS."""
    lines = (Path(__file__).parent / "data" / "SHA256SUMS").read_text().splitlines()
    return {name.strip(): digest for digest, name in (line.split(maxsplit=1) for line in lines)}


def check_folder(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Checks a model folder, as on the Hub, compares the checksum, and returns the weights file and the content of
    config.json.

    Raises WeightsError if a file is missing, damaged or not Lumiglue's.
    """
    path, weights = (folder / name for name in FOLDER_FILES)
    for file in (path, weights):
        if not file.is_file():
            raise WeightsError(f"{folder} has no {file.name}; give a folder that save_pretrained or push_to_hub wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        expected = config["sha256"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not one of Lumiglue's ({type(error).__name__}: {error}); write it again") from None
    if (received := file_sha256(weights)) != expected:
        raise WeightsError(
            f"{weights} has SHA-256 {received}, not {expected} as in config.json; delete it and download it again"
        )
    return weights, config
