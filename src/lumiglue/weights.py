"""Weights on disk: safetensors with their config beside the tensors, strict loading, download with SHA-256, and the
released LightGlue naming."""

import hashlib
import json
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lumiglue.errors import InputError, WeightsError
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig

FORMAT = "lumiglue-lightglue"


def save_weights(model: LightGlue, path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Writes a model and its config; `metadata` holds JSON values (training data, steps, metrics, licence)."""
    header = {"format": FORMAT, "config": json.dumps(asdict(model.config)), "metadata": json.dumps(dict(metadata))}
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(save(tensors, metadata=header))  # save_file would make it readable by its owner alone
    unfinished.replace(path)


def read_metadata(path: str | Path) -> tuple[LightGlueConfig, dict[str, Any]]:
    """The config and the metadata of a weights file. Raises WeightsError where it is missing or not one of ours."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; give a .safetensors file, or leave --weights out for the built-in ones")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except Exception as error:  # safetensors raises SafetensorError, OSError and ValueError on damaged files
        raise WeightsError(f"{path} cannot be read as safetensors ({error}); copy or convert it again") from None
    if header.get("format") != FORMAT:
        raise WeightsError(f"{path} is not a Lumiglue weights file; convert it with `lumiglue weights import`")
    try:
        return LightGlueConfig(**json.loads(header["config"])), json.loads(header.get("metadata", "{}"))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} has a config that this version cannot read ({error}); update lumiglue") from None


def load_weights(path: str | Path, device: torch.device | str = "cpu") -> LightGlue:
    """A model in evaluation mode from a file; every tensor must be there and fit. Raises WeightsError."""
    config, _ = read_metadata(path)
    with torch.random.fork_rng(devices=[]):
        model = LightGlue(config)
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} does not fit its own config: {str(error).splitlines()[-1].strip()}") from None
    return model.eval().to(device)


# The weights in the package: a name of features stands for their default. Trained by us; see docs/weights.md.
BUILT_IN = {
    "sift": "sift-compact.safetensors",
    "sift-clean": "sift-compact-clean.safetensors",  # of openly licensed photos alone
    "aliked": "aliked-compact.safetensors",
    "aliked-n16rot": "aliked-compact.safetensors",
}


def pretrained_path(name: str) -> Path:
    """Where the built-in weights of that name lie. Raises WeightsError for an unknown name."""
    if name not in BUILT_IN:
        raise WeightsError(f"there are no built-in weights for {name!r}; choose from {sorted(BUILT_IN)} or give a file")
    return Path(__file__).parent / "data" / BUILT_IN[name]


def cache_folder() -> Path:
    """Where downloads are kept: $LUMIGLUE_CACHE, else ~/.cache/lumiglue."""
    return Path(os.environ.get("LUMIGLUE_CACHE") or Path.home() / ".cache" / "lumiglue")


def download(url: str, sha256: str, cache: Path | None = None, timeout: float = 60.0) -> Path:
    """The file at `url`, fetched once and kept; its SHA-256 is checked each time. Raises WeightsError."""
    target = (cache or cache_folder()) / f"{sha256[:16]}-{url.rsplit('/', 1)[-1]}"
    if target.exists() and _sha256(target) == sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.unfinished")
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response, unfinished.open("wb") as file:
            while block := response.read(1 << 20):
                file.write(block)
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors; ValueError for a malformed address
        unfinished.unlink(missing_ok=True)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise WeightsError(f"{url} cannot be downloaded ({reason}); fetch it elsewhere and give the file's path") from None
    if (found := _sha256(unfinished)) != sha256:
        unfinished.unlink()
        raise WeightsError(f"{url} has SHA-256 {found}, not {sha256}; it is not the file that was asked for")
    unfinished.replace(target)
    return target


def resolve(weights: str | Path) -> Path:
    """The file of a built-in name, a local path, or a URL with its checksum as https://host/file.safetensors#sha256=HEX."""
    text = str(weights)
    if text in BUILT_IN:
        return pretrained_path(text)
    if "://" not in text:
        return Path(weights)
    url, _, checksum = text.partition("#sha256=")
    if len(checksum) != 64:
        raise WeightsError(f"{url} has no checksum; append #sha256= and the file's 64 hexadecimal digits")
    return download(url, checksum.lower())


def import_released(path: str | Path, extractor: str) -> LightGlue:
    """Reads a checkpoint in the naming of the released LightGlue (.pth or .safetensors) as one of our models.

    The shape is read off the tensors. `extractor` names the features it was trained for. Nothing in the file is
    executed. Raises WeightsError where it is not such a checkpoint.
    """
    released = _modern_names(read_tensors(Path(path)))
    config = _config_of(released, extractor, path)
    half = config.d // config.heads // 2
    ours: dict[str, Tensor] = {"position_encoding.frequencies": released.pop("posenc.Wr.weight")}
    for name in ("weight", "bias"):
        if config.project_input:
            ours[f"input_projection.{name}"] = released.pop(f"input_proj.{name}")
    for name, tensor in released.items():
        new_name = _our_name(name)
        if new_name is None:
            raise WeightsError(f"{path} holds an unknown tensor {name!r}; it is not a released LightGlue checkpoint")
        ours[new_name] = _planes_apart(tensor, config.heads, half) if ".qkv." in new_name else tensor
    with torch.random.fork_rng(devices=[]):
        model = LightGlue(config)
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in ours.items()})
    except RuntimeError as error:
        raise WeightsError(f"{path} is not a whole LightGlue checkpoint: {str(error).splitlines()[1].strip()}") from None
    return model.eval()


# Released name of a layer's part -> ours.
_PARTS = {
    "self_attn.Wqkv": "self_attention.qkv",
    "self_attn.out_proj": "self_attention.out",
    "self_attn.ffn": "self_attention.ffn",
    "cross_attn.to_qk": "cross_attention.qk",
    "cross_attn.to_v": "cross_attention.v",
    "cross_attn.to_out": "cross_attention.out",
    "cross_attn.ffn": "cross_attention.ffn",
}
_DERIVED = ("confidence_thresholds",)


def _our_name(released: str) -> str | None:
    group, _, rest = released.partition(".")
    number, _, part = rest.partition(".")
    if group == "transformers":
        for theirs, mine in _PARTS.items():
            if part.startswith(theirs + "."):
                return f"layers.{number}.{mine}{part.removeprefix(theirs)}"
    if group == "log_assignment":
        return f"heads.{number}.{part.replace('final_proj', 'projection')}"
    if group == "token_confidence":
        return f"confidences.{number}.{part.removeprefix('token.0.')}"
    return None


def _modern_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undoes wrappers (`matcher.`, `module.`, `model.`) and the older `self_attn.{i}.` and `cross_attn.{i}.`."""
    renamed = {}
    for name, tensor in tensors.items():
        for wrapper in ("module.", "model.", "matcher."):
            name = name.removeprefix(wrapper)
        kind, _, rest = name.partition(".")
        if kind in ("self_attn", "cross_attn"):
            number, _, part = rest.partition(".")
            name = f"transformers.{number}.{kind}.{part}"
        if name not in _DERIVED and not name.startswith("extractor."):
            renamed[name] = tensor
    return renamed


def _config_of(tensors: Mapping[str, Tensor], extractor: str, path: str | Path) -> LightGlueConfig:
    try:
        d = tensors["transformers.0.self_attn.out_proj.weight"].shape[0]
        half, positions = tensors["posenc.Wr.weight"].shape
        layers = len({name.split(".")[1] for name in tensors if name.startswith("transformers.")})
        projection = tensors.get("input_proj.weight")
        return LightGlueConfig(
            extractor=extractor,
            descriptor_dim=d if projection is None else projection.shape[1],
            project_input=projection is not None,
            d=d,
            heads=d // (2 * half),
            n_layers=layers,
            encoding={2: "xy", 4: "xy-scale-orientation"}[positions],  # pyright: ignore[reportArgumentType]
        )
    except (KeyError, ValueError, InputError) as error:
        raise WeightsError(f"{path} is not a released LightGlue checkpoint: {error} is missing or misshaped") from None


def _planes_apart(qkv: Tensor, heads: int, half: int) -> Tensor:
    """Rows of Wqkv from (head, channel, {q, k, v}) with rotary planes of channels (2k, 2k + 1) to our
    ({q, k, v}, head, channel) with planes (k, k + half)."""
    rows = qkv.reshape(heads, half, 2, 3, -1)  # (h, plane, a/b, qkv, d)
    apart = rows.permute(3, 0, 2, 1, 4).reshape(3, heads, 2 * half, -1)
    values = qkv.reshape(heads, 2 * half, 3, -1)[:, :, 2]  # values are not rotated and keep their order
    return torch.cat([apart[:2], values[None]]).reshape(qkv.shape)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pth or .safetensors file; nothing in it is executed. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; give a .pth or .safetensors checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # files of an unusual pickle protocol still load, or are refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on bytes that are no checkpoint, torch's reader raises errors of a dozen types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be read as tensors alone, and nothing else is executed ({reason})") from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} does not hold a state dict of tensors; save it with torch.save(model.state_dict(), ...)")
    return content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
