"""Conversion of checkpoints with the released names of LightGlue and SuperGlue; nothing in them is executed."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lumiglue.errors import InputError, WeightsError
from lumiglue.io.state_dicts import WRAPPERS, StateDict, read_state_dict
from lumiglue.io.text import reason
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.models import MatcherModel, ModelConfig, build, build_for
from lumiglue.matcher.superglue import SuperGlueConfig

_AROUND_MATCHERS = WRAPPERS | {"matcher", "lightglue", "superglue"}


def import_released(path: str | Path, extractor: str) -> MatcherModel:
    """Reads a LightGlue or SuperGlue checkpoint as it was released, or as glue-factory, Lightning or DataParallel save it.

    SuperGlue's may also have transformers' names. The tensors tell which of them it is, and its size. Other content of the
    file, such as an extractor, unused buffers or an optimizer, is not used and is named in one log line: a warning unless it
    is known to be harmless.

    Args:
        path: A .pth or .safetensors file.
        extractor: Name of the extractor that it was trained for; "" accepts any.

    Returns:
        The matcher in evaluation mode.

    Raises:
        WeightsError: The file is neither, lacks a tensor, or has an unknown one inside a layer; the message names it.
    """
    state = read_state_dict(Path(path)).without(_AROUND_MATCHERS)
    superglue = any(name == "bin_score" or name.startswith(("gnn.", "kenc.")) for name in state.tensors)
    try:
        return (_superglue if superglue else _lightglue)(state, extractor)
    except WeightsError:
        raise
    except (LookupError, ValueError, ArithmeticError, RuntimeError) as error:  # tensors of shapes that no release has
        raise WeightsError(f"{path} is not a released checkpoint ({reason(error)}); download it again") from None


def _load(config: ModelConfig, tensors: Mapping[str, Tensor], path: Path, title: str) -> MatcherModel:
    try:
        return build_for(config, {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    except (ValueError, RuntimeError, TypeError) as error:
        raise WeightsError(f"{path} is not a complete {title} checkpoint ({reason(error)}); download it again") from None


def _names_of(config: ModelConfig) -> list[str]:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return list(build(config).state_dict())


def _check_names(
    state: StateDict, title: str, missing: Sequence[str], unknown: Sequence[str], inside: tuple[str, ...]
) -> None:
    """Raises WeightsError if a tensor is missing or there is an unknown one `inside` a layer. All names are the file's."""
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        instead = f"; it has {unknown[0]!r}" if unknown else ""
        raise WeightsError(
            f"{state.path} is not a complete {title} checkpoint ({missing[0]!r} is missing{more}{instead}); "
            "download it again"
        )
    for name in state.tensors:
        if (given := state.given[name]) in unknown and name.startswith(inside):
            raise WeightsError(f"{state.path} has an unknown tensor {given!r}; it is not a released {title} checkpoint")


def _lightglue(state: StateDict, extractor: str) -> MatcherModel:
    released = {_modern_name(name): tensor for name, tensor in state.tensors.items()}
    older = any(name.startswith(_OLDER) for name in state.tensors)

    def given(name: str) -> str:
        return state.as_given(_older_name(name) if older else name)

    try:
        config = _config_of(released, extractor)
    except KeyError as error:
        name, known = given(error.args[0]), any(_our_name(name) is not None for name in released)
        kind = "a complete" if known else "a released"
        raise WeightsError(f"{state.path} is not {kind} LightGlue checkpoint ({name!r} is missing)") from None
    except (ValueError, InputError) as error:
        raise WeightsError(f"{state.path} is not a released LightGlue checkpoint ({reason(error)})") from None
    ours = {_released_name(name): name for name in _names_of(config)}
    missing = [given(name) for name in ours if name not in released]
    unused = [name for name in released if name not in ours]
    unknown = [given(name) for name in unused if not _is_harmless(name)]
    _check_names(state, "LightGlue", missing, unknown, ("transformers.", *_OLDER))
    half = config.d // config.heads // 2
    tensors = {name: released[theirs] for theirs, name in ours.items()}
    for name, tensor in tensors.items():
        if ".qkv." in name:
            tensors[name] = _planes_apart(tensor, config.heads, half)
    model = _load(config, tensors, state.path, "LightGlue")
    used = {name for name in state.tensors if _modern_name(name) in ours}
    state.log_unused("LightGlue", used, _is_harmless)
    return model


def _is_harmless(name: str) -> bool:
    """Whether a tensor is known to have no effect on matches: an extractor's, or an unused buffer."""
    beside = name.startswith(("extractor.", "keypoint_detector."))
    return beside or name == "confidence_thresholds" or re.fullmatch(r"log_assignment\.\d+\.r", name) is not None


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
_OLDER = ("self_attn.", "cross_attn.")


def _our_name(released: str) -> str | None:
    group, _, rest = released.partition(".")
    number, _, part = rest.partition(".")
    if group == "posenc":
        return "position_encoding.frequencies"
    if group == "input_proj":
        return f"input_projection.{rest}"
    if group == "transformers":
        for theirs, mine in _PARTS.items():
            if part.startswith(theirs + "."):
                return f"layers.{number}.{mine}{part.removeprefix(theirs)}"
    if group == "log_assignment":
        return f"heads.{number}.{part.replace('final_proj', 'projection')}"
    if group == "token_confidence":
        return f"confidences.{number}.{part.removeprefix('token.0.')}"
    return None


def _modern_name(name: str) -> str:
    """The names of older files, `self_attn.{i}.` and `cross_attn.{i}.`, to `transformers.{i}.self_attn.` and so on."""
    return re.sub(r"^(self_attn|cross_attn)\.(\d+)\.", r"transformers.\2.\1.", name)


def _older_name(name: str) -> str:
    return re.sub(r"^transformers\.(\d+)\.(self_attn|cross_attn)\.", r"\2.\1.", name)


def _config_of(released: Mapping[str, Tensor], extractor: str) -> LightGlueConfig:
    """Raises KeyError with the name of a missing tensor, ValueError if no release has such a shape."""
    half, positions = released["posenc.Wr.weight"].shape
    d = released["transformers.0.self_attn.out_proj.weight"].shape[0]
    projects = any(name.startswith("input_proj.") for name in released)
    if positions not in (2, 4):
        raise ValueError(f"its positions have {positions} coordinates, not 2 or 4")
    return LightGlueConfig(
        extractor=extractor,
        descriptor_dim=released["input_proj.weight"].shape[1] if projects else d,
        project_input=projects,
        d=d,
        heads=d // (2 * half),
        n_layers=len({name.split(".")[1] for name in released if name.startswith("transformers.")}),
        encoding="xy" if positions == 2 else "xy-scale-orientation",
    )


def _planes_apart(qkv: Tensor, heads: int, half: int) -> Tensor:
    """Rows of Wqkv from (head, channel, {q, k, v}) with rotary planes of channels (2k, 2k + 1) to our
    ({q, k, v}, head, channel) with planes (k, k + half)."""
    rows = qkv.reshape(heads, half, 2, 3, -1)  # (h, plane, a/b, qkv, d)
    apart = rows.permute(3, 0, 2, 1, 4).reshape(3, heads, 2 * half, -1)
    values = qkv.reshape(heads, 2 * half, 3, -1)[:, :, 2]  # values are not rotated and keep their order
    return torch.cat([apart[:2], values[None]]).reshape(qkv.shape)


def released_names(model: LightGlue) -> dict[str, Tensor]:
    """The weights under the released names, for the original LightGlue and kornia's.

    Raises:
        InputError: Those models cannot represent the matcher: it has the periodic encoding or an ablation.
    """
    config = model.config
    if config.encoding == "xy-logscale-angle" or config.ablation is not None:
        feature = config.ablation or f"encoding {config.encoding!r}"
        raise InputError(f"the released LightGlue has no {feature}; only matchers without it have released names")
    half, released = config.d // config.heads // 2, {}
    for name, tensor in model.state_dict().items():
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
    """The inverse of `_planes_apart`."""
    rows = qkv.reshape(3, heads, 2, half, -1).permute(1, 3, 2, 0, 4).reshape(heads, 2 * half, 3, -1).clone()
    rows[:, :, 2] = qkv.reshape(3, heads, 2 * half, -1)[2]
    return rows.reshape(qkv.shape)


# SuperGlue's name of a part -> ours, in the released checkpoints and in transformers'.
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


def _superglue(state: StateDict, extractor: str) -> MatcherModel:
    """A SuperGlue checkpoint. The released ones store channel c of head h at c * heads + h, convolutions for linear maps."""
    interleaved = not any(name.startswith(("keypoint_encoder.", "final_projection.")) for name in state.tensors)
    parts = _RELEASED_PARTS if interleaved else _TRANSFORMERS_PARTS
    ours: dict[str, Tensor] = {}
    in_file: dict[str, str] = {}
    for name, tensor in state.tensors.items():
        if (new_name := _superglue_name(name, parts)) is not None:
            ours[new_name] = tensor.squeeze(-1) if tensor.ndim == 3 else tensor
            in_file[new_name] = name

    def given(name: str) -> str:
        return state.as_given(_superglue_name_in_file(name, interleaved))

    heads = 4  # the tensors do not show it; all releases have 4
    try:
        d = ours["projection.weight"].shape[0]
        numbers = sorted({int(name.split(".")[1]) for name in ours if name.startswith("keypoint_encoder.")})
        widths = [ours[f"keypoint_encoder.{k}.weight"].shape[0] for k in numbers if k % 3 == 0]
        layers = len({name.split(".")[1] for name in ours if name.startswith("layers.")})
        config = SuperGlueConfig(
            extractor=extractor, descriptor_dim=d, d=d, heads=heads, n_layers=layers // 2, encoder_widths=tuple(widths[:-1])
        )
    except KeyError as error:
        name = given(error.args[0])
        raise WeightsError(f"{state.path} is not a complete SuperGlue checkpoint ({name!r} is missing)") from None
    except (ValueError, InputError) as error:
        raise WeightsError(f"{state.path} is not a released SuperGlue checkpoint ({reason(error)})") from None
    expected = _names_of(config)
    missing = [given(name) for name in expected if name not in ours]
    used = {in_file[name] for name in expected if name in in_file}
    unknown = [state.given[name] for name in state.tensors if name not in used and not _is_harmless(name)]
    _check_names(state, "SuperGlue", missing, unknown, ("gnn.", "kenc.", "keypoint_encoder."))
    ours = {name: ours[name] for name in expected}
    if interleaved:
        for name, tensor in ours.items():
            match name.split("."):
                case ["layers", _, "q" | "k" | "v", _]:
                    ours[name] = tensor.unflatten(0, (-1, heads)).transpose(0, 1).flatten(0, 1)
                case ["layers", _, "out", "weight"]:
                    ours[name] = tensor.unflatten(1, (-1, heads)).transpose(1, 2).flatten(1)
    model = _load(config, ours, state.path, "SuperGlue")
    state.log_unused("SuperGlue", used, _is_harmless)
    return model


def _superglue_name(name: str, parts: Sequence[tuple[str, str]]) -> str | None:
    for theirs, mine in parts:
        if re.fullmatch(theirs, name):
            return re.sub(theirs, mine, name)
    # transformers groups a linear map and its norm: its block k is our layers 3k and 3k + 1
    block = r"(keypoint_encoder\.encoder|gnn\.layers\.\d+\.mlp)\.(\d+)\.(?:(linear|batch_norm)\.)?(\w+)"
    where = re.fullmatch(block, name) if parts is _TRANSFORMERS_PARTS else None
    if where is None:
        return None
    group, number, part, leaf = where.groups()
    group = "keypoint_encoder" if group.startswith("keypoint") else group.removeprefix("gnn.")
    return f"{group}.{3 * int(number) + (part == 'batch_norm')}.{leaf}"


def _superglue_name_in_file(ours: str, interleaved: bool) -> str:
    """The inverse of `_superglue_name`, for messages."""
    group, _, rest = ours.partition(".")
    number, _, part = rest.partition(".")
    name, _, leaf = part.rpartition(".")
    if group == "dustbin":
        return "bin_score"
    if group == "projection":
        return f"final_proj.{rest}" if interleaved else f"final_projection.final_proj.{rest}"
    if group == "layers" and name in ("out", "q", "k", "v"):
        released = {"out": "attn.merge", "q": "attn.proj.0", "k": "attn.proj.1", "v": "attn.proj.2"}
        elsewhere = {"out": "output.dense", "q": "self.query", "k": "self.key", "v": "self.value"}
        theirs = released[name] if interleaved else f"attention.{elsewhere[name]}"
        return f"gnn.layers.{number}.{theirs}.{leaf}"
    if group == "layers":
        return f"gnn.layers.{number}.{_blocks(part, interleaved)}"
    return f"kenc.encoder.{rest}" if interleaved else f"keypoint_encoder.{_blocks(f'encoder.{rest}', interleaved)}"


def _blocks(name: str, interleaved: bool) -> str:
    """`mlp.1.weight` to `mlp.0.batch_norm.weight`, in transformers' naming."""
    group, number, leaf = name.split(".")
    if interleaved or (group == "mlp" and number == "3"):
        return name if interleaved else f"{group}.1.{leaf}"
    return f"{group}.{int(number) // 3}.{'batch_norm' if int(number) % 3 else 'linear'}.{leaf}"
