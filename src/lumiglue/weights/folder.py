"""A matcher as a folder: model.safetensors, config.json and a model card, as the Hugging Face Hub has them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lumiglue.errors import InputError, WeightsError
from lumiglue.io.download import file_sha256
from lumiglue.matcher.models import MatcherModel, model_name
from lumiglue.matcher.settings import MatchSettings
from lumiglue.weights.files import FOLDER_FILES, check_folder, read_metadata, save_weights

CONFIG, WEIGHTS, CARD = *FOLDER_FILES, "README.md"  # loading does not need the card
_NAMES = {"lightglue": "LightGlue", "superglue": "SuperGlue"}
_PAPERS = {
    "lightglue": "Philipp Lindenberger, Paul-Edouard Sarlin, Marc Pollefeys: LightGlue: Local Feature Matching at Light "
    "Speed. ICCV 2023.",
    "superglue": "Paul-Edouard Sarlin, Daniel DeTone, Tomasz Malisiewicz, Andrew Rabinovich: SuperGlue: Learning Feature "
    "Matching with Graph Neural Networks. CVPR 2020.",
}


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """The content of a model folder.

    Attributes:
        weights: The safetensors file, whose checksum was compared.
        features: Name of the extractor that the matcher was trained for; "" for any.
        settings: Default settings for matching.
        metadata: The training record.
    """

    weights: Path
    features: str
    settings: MatchSettings
    metadata: Mapping[str, Any]


def write_model_folder(
    folder: str | Path, model: MatcherModel, settings: MatchSettings, metadata: Mapping[str, Any], name: str
) -> None:
    """Writes the weights, config.json and a model card of that name. Creates the folder if it does not exist.

    Raises InputError if the weights were rounded to bfloat16, or the disk is full.
    """
    if any(tensor.dtype == torch.bfloat16 for tensor in model.state_dict().values()):
        raise InputError("the weights were rounded to bfloat16; write the unrounded ones")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / WEIGHTS, metadata)
    config = {
        "library": "lumiglue",
        "model": model_name(model.config),
        "features": model.config.extractor,
        "config": asdict(model.config),
        "settings": asdict(settings),
        "sha256": file_sha256(folder / WEIGHTS),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(model, metadata, name), encoding="utf-8")


def read_model_folder(folder: str | Path) -> ModelFolder:
    """Checks and reads a folder that `write_model_folder` wrote. Raises WeightsError if a file is missing, damaged or of
    another kind."""
    weights, config = check_folder(Path(folder))
    try:
        settings = MatchSettings(**config["settings"])
    except (KeyError, TypeError, ValueError) as error:  # InputError is a ValueError
        raise WeightsError(
            f"{folder}/{CONFIG} has settings that this version does not support ({error}); update lumiglue"
        ) from None
    model, metadata = read_metadata(weights)
    return ModelFolder(weights=weights, features=model.extractor, settings=settings, metadata=metadata)


def model_card(model: MatcherModel, metadata: Mapping[str, Any], name: str) -> str:
    """The model card: Markdown with the Hub's front matter. It states only what the training record has."""
    config = model.config
    kind, features = _NAMES[model_name(config)], config.extractor or f"any {config.descriptor_dim}-channel"
    licence = str(metadata.get("licence", "unknown"))
    tags = ["feature-matching", "image-matching", "keypoint-matching", model_name(config), *filter(None, [config.extractor])]
    front = {"license": licence.lower(), "library_name": "lumiglue", "tags": tags}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parts = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),  # JSON is YAML
        "---",
        "",
        f"# {name}",
        "",
        f"A {kind} matcher for {features} features: {config.n_layers} layers of {config.d} channels, "
        f"{parameters / 1e6:.1f} million parameters.",
        "",
        "```python",
        "import lumiglue",
        "",
        f"matcher = lumiglue.Pipeline.from_pretrained({name!r})",
        'result = matcher.match("a.jpg", "b.jpg")',
        "```",
        "",
        f'Or `lumiglue match a.jpg b.jpg --weights hub:{name}`. Install with `pip install "lumiglue[hub]"`.',
        "",
        f"Licence of the weights: {licence}.",
    ]
    if training := metadata.get("training_data"):
        parts += ["", "## Training data", "", str(training)]
    if metrics := metadata.get("metrics"):
        parts += ["", "## Measured", "", *_table(metrics)]
    parts += [
        "",
        "## Cite",
        "",
        _PAPERS[model_name(config)],
    ]
    return "\n".join(parts) + "\n"


def _table(metrics: Any) -> list[str]:
    if not isinstance(metrics, Mapping):
        return [str(metrics)]
    rows = [f"| {key} | {json.dumps(value) if not isinstance(value, str) else value} |" for key, value in metrics.items()]
    return ["| figure | value |", "|---|---|", *rows]
