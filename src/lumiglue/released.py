"""Checkpoints in the naming of the released LightGlue and SuperGlue, read as our models; nothing in them is executed."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lumiglue.errors import InputError, WeightsError
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.models import MatcherModel, ModelConfig, build_for
from lumiglue.matcher.precision import unrounded_state
from lumiglue.matcher.superglue import SuperGlueConfig
from lumiglue.reading import reason
from lumiglue.weights import read_tensors


def import_released(path: str | Path, extractor: str) -> MatcherModel:
    """Reads a released LightGlue or SuperGlue checkpoint (.pth or .safetensors), SuperGlue's also in transformers' naming.

    Which it is, and its shape, are read off the tensors. `extractor` names the features it was trained for. Raises
    WeightsError where it is neither.
    """
    tensors = read_tensors(Path(path))
    read = _superglue if "bin_score" in {name.rpartition(".")[2] for name in tensors} else _lightglue
    try:
        return read(tensors, extractor, path)
    except WeightsError:
        raise
    except (LookupError, ValueError, ArithmeticError, RuntimeError) as error:  # tensors of shapes that no release has
        raise WeightsError(f"{path} is not a released checkpoint ({reason(error)}); download it again") from None


def _load(config: ModelConfig, tensors: Mapping[str, Tensor], path: str | Path, title: str) -> MatcherModel:
    try:
        return build_for(config, {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    except (ValueError, RuntimeError, TypeError) as error:
        raise WeightsError(f"{path} is not a whole {title} checkpoint ({reason(error)}); download it again") from None


def _lightglue(tensors: Mapping[str, Tensor], extractor: str, path: str | Path) -> MatcherModel:
    released = _modern_names(tensors)
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
    return _load(config, ours, path, "LightGlue")


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
    for name, tensor in _unwrapped(tensors).items():
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


def released_names(model: LightGlue) -> dict[str, Tensor]:
    """The weights under the released names, as kornia's and the original LightGlue load them.

    Raises InputError where those models lack what the matcher has: the periodic encoding, or an ablation.
    """
    config = model.config
    if config.encoding == "xy-logscale-angle" or config.ablation is not None:
        found = config.ablation or f"encoding {config.encoding!r}"
        raise InputError(f"the released LightGlue has no {found}; only matchers without it have released names")
    half, released = config.d // config.heads // 2, {}
    for name, tensor in unrounded_state(model).items():
        tensor = _planes_together(tensor, config.heads, half) if ".qkv." in name else tensor
        released[_released_name(name)] = tensor
    return released


def _released_name(ours: str) -> str:
    group, _, rest = ours.partition(".")
    if group == "position_encoding":
        return "posenc.Wr.weight"
    if group == "input_projection":
        return f"input_proj.{rest}"
    number, _, part = rest.partition(".")
    if group == "heads":
        return f"log_assignment.{number}.{part.replace('projection', 'final_proj')}"
    if group == "confidences":
        return f"token_confidence.{number}.token.0.{part}"
    theirs = next(theirs for theirs, mine in _PARTS.items() if part.startswith(mine + "."))
    return f"transformers.{number}.{theirs}{part.removeprefix(_PARTS[theirs])}"


def _planes_together(qkv: Tensor, heads: int, half: int) -> Tensor:
    """Back from `_planes_apart`."""
    rows = qkv.reshape(3, heads, 2, half, -1).permute(1, 3, 2, 0, 4).reshape(heads, 2 * half, 3, -1).clone()
    rows[:, :, 2] = qkv.reshape(3, heads, 2 * half, -1)[2]
    return rows.reshape(qkv.shape)


_WRAPPERS = ("module.", "model.", "matcher.", "superglue.")


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what a name was prefixed with by what held the matcher."""
    found = {}
    for name, tensor in tensors.items():
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
        found[name] = tensor
    return found


# Name of a part of SuperGlue -> ours, in the released checkpoints, and in transformers'.
_RELEASED_PARTS = (
    (r"bin_score", "dustbin"),
    (r"final_proj\.(\w+)", r"projection.\1"),
    (r"kenc\.encoder\.(\d+\.\w+)", r"keypoint_encoder.\1"),
    (r"gnn\.layers\.(\d+)\.attn\.merge\.(\w+)", r"layers.\1.out.\2"),
    (r"gnn\.layers\.(\d+)\.attn\.proj\.0\.(\w+)", r"layers.\1.q.\2"),
    (r"gnn\.layers\.(\d+)\.attn\.proj\.1\.(\w+)", r"layers.\1.k.\2"),
    (r"gnn\.layers\.(\d+)\.attn\.proj\.2\.(\w+)", r"layers.\1.v.\2"),
    (r"gnn\.layers\.(\d+)\.mlp\.(\d\.\w+)", r"layers.\1.mlp.\2"),
)
_TRANSFORMERS_PARTS = (
    (r"bin_score", "dustbin"),
    (r"final_projection\.final_proj\.(\w+)", r"projection.\1"),
    (r"gnn\.layers\.(\d+)\.attention\.output\.dense\.(\w+)", r"layers.\1.out.\2"),
    (r"gnn\.layers\.(\d+)\.attention\.self\.(q|k|v)\w+\.(\w+)", r"layers.\1.\2.\3"),
)


def _superglue(tensors: Mapping[str, Tensor], extractor: str, path: str | Path) -> MatcherModel:
    """A SuperGlue checkpoint. The released ones store channel c of head h at c * heads + h, convolutions for linear maps."""
    released = {name: t for name, t in _unwrapped(tensors).items() if not name.startswith("keypoint_detector.")}
    interleaved = any(name.startswith("kenc.") for name in released)
    ours: dict[str, Tensor] = {}
    for name, tensor in released.items():
        new_name = _superglue_name(name, _RELEASED_PARTS if interleaved else _TRANSFORMERS_PARTS)
        if new_name is None:
            raise WeightsError(f"{path} holds an unknown tensor {name!r}; it is not a released SuperGlue checkpoint")
        ours[new_name] = tensor.squeeze(-1) if tensor.ndim == 3 else tensor
    heads = 4  # not to be read off the tensors; the only number that was released
    try:
        d = ours["projection.weight"].shape[0]
        firsts = sorted(int(name.split(".")[1]) for name in ours if re.fullmatch(r"keypoint_encoder\.\d+\.weight", name))
        widths = [ours[f"keypoint_encoder.{k}.weight"].shape[0] for k in firsts if k % 3 == 0]
        layers = len({name.split(".")[1] for name in ours if name.startswith("layers.")})
        config = SuperGlueConfig(
            extractor=extractor, descriptor_dim=d, d=d, heads=heads, n_layers=layers // 2, encoder_widths=tuple(widths[:-1])
        )
    except (KeyError, ValueError, InputError) as error:
        raise WeightsError(f"{path} is not a released SuperGlue checkpoint: {error} is missing or misshaped") from None
    if interleaved:
        for name, tensor in ours.items():
            match name.split("."):
                case ["layers", _, "q" | "k" | "v", _]:
                    ours[name] = tensor.unflatten(0, (-1, heads)).transpose(0, 1).flatten(0, 1)
                case ["layers", _, "out", "weight"]:
                    ours[name] = tensor.unflatten(1, (-1, heads)).transpose(1, 2).flatten(1)
    return _load(config, ours, path, "SuperGlue")


def _superglue_name(name: str, parts: Sequence[tuple[str, str]]) -> str | None:
    for theirs, mine in parts:
        if re.fullmatch(theirs, name):
            return re.sub(theirs, mine, name)
    # transformers groups a linear map and its norm: its block k holds our layers 3k and 3k + 1
    block = r"(keypoint_encoder\.encoder|gnn\.layers\.\d+\.mlp)\.(\d+)\.(?:(linear|batch_norm)\.)?(\w+)"
    where = re.fullmatch(block, name) if parts is _TRANSFORMERS_PARTS else None
    if where is None:
        return None
    group, number, part, leaf = where.groups()
    group = "keypoint_encoder" if group.startswith("keypoint") else group.removeprefix("gnn.")
    return f"{group}.{3 * int(number) + (part == 'batch_norm')}.{leaf}"
