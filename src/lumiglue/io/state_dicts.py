"""State dicts from other programs, read without executing anything and separated from what was saved with them."""

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lumiglue.errors import WeightsError
from lumiglue.io.text import reason

_log = logging.getLogger(__name__)

# Prefixes that other programs add to the names of tensors, in any order and number; `_orig_mod` is torch.compile's.
WRAPPERS = frozenset({"module", "model", "net", "network", "state_dict", "model_state_dict", "_orig_mod"})
# Entries of a training checkpoint that may contain tensors, but not the model's.
_TRAINING = re.compile(r"optim\w*|\w*sched\w*|\w*scaler\w*|callbacks|loops|rng\w*|conf\w*|h\w*params|args|eval\w*|loss\w*")
_DEEPEST = 4  # dictionaries inside dictionaries
_NAMED = 12  # tensors of one part that a message names before it counts them


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """The tensors of a file by their names.

    Attributes:
        path: The file.
        tensors: Name to tensor. A dictionary inside a dictionary is joined by dots, as in "matcher.posenc.Wr.weight".
        given: Name to the name that the file has, which is longer where wrappers were removed.
        rest: The other entries of the file: those that are not tensors, and the state of training.
    """

    path: Path
    tensors: dict[str, Tensor]
    given: dict[str, str]
    rest: tuple[str, ...] = ()

    def without(self, wrappers: Collection[str]) -> "StateDict":
        """Removes the leading parts of the names that are wrappers.

        Raises:
            WeightsError: Two names become equal.
        """
        given: dict[str, str] = {}
        for name in self.tensors:
            bare = _bare(name, wrappers)
            if bare in given:
                raise WeightsError(f"{self.path} has two tensors for {bare!r}, {given[bare]!r} and {name!r}; save one model")
            given[bare] = name
        tensors = {bare: self.tensors[name] for bare, name in given.items()}
        return replace(self, tensors=tensors, given={bare: self.given[name] for bare, name in given.items()})

    def as_given(self, name: str) -> str:
        """The name in the file; for a tensor that the file lacks, with the wrappers that most of the others have."""
        if name in self.given:
            return self.given[name]
        prefixes = Counter(given.removesuffix(bare) for bare, given in self.given.items())
        return max(prefixes, key=prefixes.__getitem__, default="") + name

    def log_unused(self, title: str, used: Collection[str], harmless: Callable[[str], bool]) -> None:
        """Logs in one line which entries were not used; a warning if it is not known that a tensor is harmless.

        Args:
            title: Name of the model.
            used: Names of the tensors that were used.
            harmless: Whether the tensor of a name can be ignored.
        """
        unused = [name for name in self.tensors if name not in used]
        unknown = [self.given[name] for name in unused if not harmless(name)]
        ignored = [*(self.given[name] for name in unused if harmless(name)), *self.rest]
        if unknown:
            also = f"; also not used: {_listed(ignored)}" if ignored else ""
            _log.warning("%s: %s has no tensor %s; not used%s", self.path, title, _listed(unknown), also)
        elif ignored:
            _log.info("%s: %s; not used: %s", self.path, title, _listed(ignored))


def _bare(name: str, wrappers: Collection[str]) -> str:
    first, dot, rest = name.partition(".")
    while dot and first in wrappers:
        name = rest
        first, dot, rest = name.partition(".")
    return name


def _listed(names: Iterable[str]) -> str:
    """Names, joined by commas. If a part, such as an extractor, has many tensors, they are counted instead."""
    parts: dict[str, list[str]] = {}
    for name in names:
        shown = name if name.isprintable() else repr(name)
        parts.setdefault(shown.partition(".")[0], []).append(shown)
    texts = []
    for part, members in parts.items():
        texts += members if len(members) <= _NAMED else [f"{part}.* ({len(members)} tensors)"]
    return ", ".join(texts)


def read_state_dict(path: Path) -> StateDict:
    """Reads the tensors of a .pth or .safetensors file, without executing anything in it.

    Raises:
        WeightsError: The file is missing, cannot be read as tensors alone, or has none.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; give a .pth or .safetensors checkpoint")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except Exception as error:  # on other bytes torch's reader raises errors of a dozen types
        raise _unreadable(path, error) from None
    tensors, rest = _collected(content)
    if not tensors:
        raise WeightsError(f"{path} is not a state dict of tensors; save it with torch.save(model.state_dict(), ...)")
    for name, tensor in tensors.items():
        stored = tensor.untyped_storage().nbytes() if tensor.layout is torch.strided and not tensor.is_quantized else 0
        if tensor.is_meta or tensor.numel() * tensor.element_size() > stored:  # an expanded view
            raise WeightsError(f"{path} does not contain all of {name!r}; save its tensors with .clone() and torch.save")
    return StateDict(path=path, tensors=tensors, given={name: name for name in tensors}, rest=tuple(rest))


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an unusual pickle protocol, which loads or fails
        return torch.load(path, map_location="cpu", weights_only=True)


def _unreadable(path: Path, error: Exception) -> WeightsError:
    pickled = re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error))
    if pickled is None:
        message = f"{path} cannot be read as tensors alone, and nothing else is executed ({reason(error)})"
        return WeightsError(f"{message}; save a state dict with torch.save")
    return WeightsError(
        f"{path} cannot be read as tensors alone, and nothing else is executed: it also has a {pickled[1]}; if you trust "
        "the file, load it with PyTorch's weights_only=False where it was made, and save the state dict alone, as in "
        'torch.save(checkpoint["model"], "weights.pth")'
    )


def _collected(content: object) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in nested dictionaries, and the names of the other entries. If one dictionary has all tensors, its name
    is left out."""
    tensors: dict[str, Tensor] = {}
    rest: list[str] = []
    seen: set[int] = set()  # a dictionary may contain itself

    def collect(entries: dict[Any, Any], prefix: str, depth: int) -> None:
        seen.add(id(entries))
        for key, value in entries.items():
            name = f"{prefix}{key}" if isinstance(key, str) else f"{prefix}{repr(key)[:40]}"
            if isinstance(key, str) and isinstance(value, Tensor):
                tensors[name] = value
            elif isinstance(value, dict) and depth < _DEEPEST and id(value) not in seen and not _TRAINING.fullmatch(name):
                before = len(tensors)
                collect(value, f"{name}.", depth + 1)
                if len(tensors) == before:
                    rest[:] = [entry for entry in rest if not entry.startswith(f"{name}.")] + [name]
            else:
                rest.append(name)

    if isinstance(content, dict):
        collect(content, "", 0)
        for key, value in content.items():
            if isinstance(value, dict) and tensors and all(name.startswith(f"{key}.") for name in tensors):
                return {name.removeprefix(f"{key}."): tensor for name, tensor in tensors.items()}, rest
    return tensors, rest


def load_into(network: nn.Module, path: Path, title: str, remedy: str) -> None:
    """Copies a file's tensors into a network, whatever prefixes their names have.

    Args:
        network: All of its tensors must be in the file and fit.
        path: A .pth or .safetensors file.
        title: The network's name, for messages.
        remedy: What to do if the file does not fit, for messages.

    Raises:
        WeightsError: The file cannot be read, or lacks a tensor; the message names it.
    """
    wrappers = WRAPPERS | {"extractor"}
    state = read_state_dict(path).without(wrappers)
    expected = network.state_dict()
    bare = {name: _bare(name, wrappers) for name in expected}
    unused = [state.given[name] for name in state.tensors.keys() - bare.values() if not _of_a_matcher(name)]
    missing = [name for name in expected if bare[name] not in state.tensors]
    if missing:
        first = state.as_given(bare[missing[0]])
        count = f"{len(missing)} of {len(expected)} tensors are missing, the first" if len(missing) > 1 else "it lacks"
        instead = f" (it has {min(unused)!r})" if unused else ""
        raise WeightsError(f"{path} does not fit {title}: {count} {first!r}{instead}; {remedy}")
    used = {name: state.tensors[bare[name]] for name in expected}
    for name, tensor in used.items():
        message, shape = f"{path} does not fit {title}: {state.as_given(bare[name])!r}", tuple(expected[name].shape)
        if tensor.shape != shape:
            raise WeightsError(f"{message} has shape {tuple(tensor.shape)}, not {shape}; {remedy}")
        if tensor.is_complex() or not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{message} has NaN, infinity or complex numbers; {remedy}")
    try:
        network.load_state_dict(used)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit {title} ({reason(error)}); {remedy}") from None
    state.log_unused(title, set(bare.values()), _of_a_matcher)


def _of_a_matcher(name: str) -> bool:
    return name.startswith("matcher.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file by name; see `read_state_dict`."""
    return read_state_dict(path).tensors
