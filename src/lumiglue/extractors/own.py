"""Features of the user's own: a class in a file or an installed module, made to behave as the built-in ones do."""

import importlib
import importlib.util
import inspect
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from lumiglue.errors import InputError
from lumiglue.extractors.regions import check_limits, rescaled, strongest
from lumiglue.images import resize_long_side
from lumiglue.types import Features


@dataclass(frozen=True, kw_only=True)
class OwnExtractor:
    """An extractor around a class of the user's.

    source: "path/to/file.py:Class" or "package.module:Class"; modules are also looked for in the working directory.
    max_keypoints, resize: as for `Sift`. They, and `device`, are handed to the class if its constructor takes them;
        otherwise the image is shrunk here, keypoints and scales are brought back to its pixels, and the strongest by
        score (without scores, the first) are kept here. So the class may leave them out, and they hold all the same.

    Only these settings are pickled, and a worker process makes the object anew: the class may hold what cannot be sent,
    OpenCV detectors or networks. Raises InputError where the class cannot be loaded or lacks a member of `Extractor`, and
    from a call where what it returns does not fit what it says of itself.
    """

    source: str
    max_keypoints: int | None = None
    resize: int | None = None
    device: str | None = None
    extractor: Any = field(init=False, repr=False, compare=False)
    takes: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_limits(self.max_keypoints, self.resize)
        where, _, class_name = self.source.rpartition(":")
        if where.endswith(".py"):  # a worker process may run elsewhere
            object.__setattr__(self, "source", f"{Path(where).absolute()}:{class_name}")
        made = _find_class(self.source)
        settings = {"max_keypoints": self.max_keypoints, "resize": self.resize, "device": self.device}
        takes = frozenset(name for name in settings if _takes(made, name))
        given = {name: settings[name] for name in takes if name != "device" or self.device is not None}
        if given.get("max_keypoints", 0) is None:  # no limit: the class has its own default
            del given["max_keypoints"]
        try:
            extractor = made(**given)
        except TypeError as error:
            raise InputError(f"{self.source} cannot be made ({error}); give its parameters default values") from error
        _check(extractor, self.source)
        object.__setattr__(self, "extractor", extractor)
        object.__setattr__(self, "takes", takes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (self.source, self.max_keypoints, self.resize, self.device)

    @property
    def name(self) -> str:
        """Stored beside features and weights."""
        return self.extractor.name

    @property
    def descriptor_dim(self) -> int:
        """Channels of a descriptor."""
        return self.extractor.descriptor_dim

    def config(self) -> dict[str, Any]:
        """What the descriptors depend on, as the class says."""
        return {**self.extractor.config(), "name": self.name}

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Features:
        """image: h x w x 3, RGB. Returns the class's features, in pixels of this image."""
        height, width = image.shape[:2]
        small = image if "resize" in self.takes else resize_long_side(image, self.resize)
        with torch.no_grad():
            found = self.extractor(np.ascontiguousarray(small))
        if not isinstance(found, Features):
            raise InputError(f"{self.source} returned {type(found).__name__}; return lumiglue.Features")
        if found.descriptors.shape[1] != self.descriptor_dim:
            given, said = found.descriptors.shape[1], self.descriptor_dim
            raise InputError(f"{self.source} returned descriptors of {given} channels; its descriptor_dim is {said}")
        found = _plain(found)
        if small.shape != image.shape:
            found = rescaled(found, width / small.shape[1], height / small.shape[0])
        return replace(strongest(found, self.max_keypoints), image_size=(width, height), extractor=self.name)


def _plain(features: Features) -> Features:
    """On the CPU and in float32, wherever and in whatever precision the class computed them."""
    names = ("keypoints", "descriptors", "scores", "scales", "orientations")
    tensors = {name: tensor for name in names if (tensor := getattr(features, name)) is not None}
    return replace(features, **{name: tensor.detach().cpu().float() for name, tensor in tensors.items()})


def _make(source: str, max_keypoints: int | None, resize: int | None, device: str | None) -> OwnExtractor:
    return OwnExtractor(source=source, max_keypoints=max_keypoints, resize=resize, device=device)


def _find_class(source: str) -> type:
    where, _, class_name = source.rpartition(":")
    if not where or not class_name.isidentifier():
        raise InputError(f"{source!r} names no class; give path/to/file.py:Class or package.module:Class")
    module = _import(where)
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        own = sorted(name for name, value in vars(module).items() if isinstance(value, type) and _is_of(value, module))
        raise InputError(f"{where} has no class {class_name!r}; it has {own}")
    return found


def _import(where: str) -> ModuleType:
    """A module from a .py file or by its dotted name; its neighbours can be imported from it meanwhile."""
    path = Path(where)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise InputError(f"{path} does not exist; give path/to/file.py:Class or package.module:Class")
    folder = str(path.absolute().parent if is_file else Path.cwd())
    sys.path.insert(0, folder)
    try:
        return _run_file(path) if is_file else importlib.import_module(where)
    except Exception as error:  # whatever the user's module raises while it is run
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{where} cannot be imported ({reason}); see that `python -c` can import it") from error
    finally:
        sys.path.remove(folder)


def _run_file(path: Path) -> ModuleType:
    name = f"lumiglue_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def _is_of(value: type, module: ModuleType) -> bool:
    return value.__module__ == module.__name__


def _takes(made: type, parameter: str) -> bool:
    try:
        return parameter in inspect.signature(made).parameters
    except ValueError:  # built in C, without a signature
        return False


def _check(extractor: object, source: str) -> None:
    """Raises InputError where a member of `Extractor` is missing or of the wrong kind."""
    missing = [name for name in ("name", "descriptor_dim") if not hasattr(extractor, name)]
    methods = (("config()", "config"), ("__call__(image)", "__call__"))
    missing += [shown for shown, name in methods if not callable(getattr(extractor, name, None))]
    if missing:
        wanted = "name, descriptor_dim, config() and __call__(image)"
        raise InputError(f"{source} lacks {' and '.join(missing)}; an extractor has {wanted}, see lumiglue.Extractor")
    name, channels = (getattr(extractor, member) for member in ("name", "descriptor_dim"))
    if not isinstance(name, str) or not name:
        raise InputError(f"{source} has the name {name!r}; give a word, by which a matcher knows its features")
    if not isinstance(channels, int) or channels < 1:
        raise InputError(f"{source} has descriptor_dim {channels!r}; give the number of channels of a descriptor")
    config = getattr(extractor, "config")()  # noqa: B009  (an object of any class)
    try:
        plain = isinstance(config, dict) and json.loads(json.dumps(config)) == config
    except (TypeError, ValueError):
        plain = False
    if not plain:
        raise InputError(f"{source} has a config() of {config!r}; return a dict of strings, numbers and lists")
