"""The user's own features: a class in a file or an installed module, adapted to behave as the built-in ones."""

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
    """An extractor around the user's own class.

    `max_keypoints`, `resize` and `device` are passed to the class if its constructor has such parameters. Otherwise the
    image is downscaled here, keypoints and scales are converted back to its pixels, and the strongest by score (without
    scores, the first) are kept. So they apply even if the class does not support them.

    Only these settings are pickled, and a worker process creates the object again. So the class may have attributes that
    cannot be pickled, such as OpenCV detectors or networks.

    Attributes:
        source: "path/to/file.py:Class" or "package.module:Class"; modules are also looked for in the working directory.
        max_keypoints: Number of keypoints to keep; None is no limit.
        resize: Long side in pixels to which larger images are downscaled; None keeps the full size.
        device: Where the class computes; None takes its default.
        extractor: The object of the class.
        takes: Names of the settings that the class takes.

    Raises:
        InputError: The class cannot be loaded, or lacks a member of `Extractor`.
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
        if where.endswith(".py"):  # a worker process may have another working directory
            object.__setattr__(self, "source", f"{Path(where).absolute()}:{class_name}")
        kind = _find_class(self.source)
        settings = {"max_keypoints": self.max_keypoints, "resize": self.resize, "device": self.device}
        takes = frozenset(name for name in settings if _takes(kind, name))
        given = {name: settings[name] for name in takes if name != "device" or self.device is not None}
        if given.get("max_keypoints", 0) is None:  # no limit: the class has its own default
            del given["max_keypoints"]
        try:
            extractor = kind(**given)
        except TypeError as error:
            raise InputError(f"{self.source} cannot be created ({error}); give its parameters default values") from error
        _check(extractor, self.source)
        object.__setattr__(self, "extractor", extractor)
        object.__setattr__(self, "takes", takes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (self.source, self.max_keypoints, self.resize, self.device)

    @property
    def name(self) -> str:
        """The name stored beside features and weights."""
        return self.extractor.name

    @property
    def descriptor_dim(self) -> int:
        """Number of channels of a descriptor."""
        return self.extractor.descriptor_dim

    def config(self) -> dict[str, Any]:
        """The settings that descriptors depend on, from the class."""
        return {**self.extractor.config(), "name": self.name}

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Features:
        """Calls the class.

        Args:
            image: h x w x 3, RGB.

        Returns:
            Its features in pixels of this image, on the CPU in float32.

        Raises:
            InputError: It returned something else than `Features`, or descriptors of another size than it declares.
        """
        height, width = image.shape[:2]
        small = image if "resize" in self.takes else resize_long_side(image, self.resize)
        with torch.no_grad():
            features = self.extractor(np.ascontiguousarray(small))
        if not isinstance(features, Features):
            raise InputError(f"{self.source} returned {type(features).__name__}; return lumiglue.Features")
        if (channels := features.descriptors.shape[1]) != self.descriptor_dim:
            declared = f"its descriptor_dim is {self.descriptor_dim}"
            raise InputError(f"{self.source} returned descriptors of {channels} channels; {declared}")
        features = _plain(features)
        if small.shape != image.shape:
            features = rescaled(features, width / small.shape[1], height / small.shape[0])
        return replace(strongest(features, self.max_keypoints), image_size=(width, height), extractor=self.name)


def _plain(features: Features) -> Features:
    """The features on the CPU in float32, whatever the class's device and precision."""
    names = ("keypoints", "descriptors", "scores", "scales", "orientations")
    tensors = {name: tensor for name in names if (tensor := getattr(features, name)) is not None}
    return replace(features, **{name: tensor.detach().cpu().float() for name, tensor in tensors.items()})


def _make(source: str, max_keypoints: int | None, resize: int | None, device: str | None) -> OwnExtractor:
    return OwnExtractor(source=source, max_keypoints=max_keypoints, resize=resize, device=device)


def _find_class(source: str) -> type:
    where, _, class_name = source.rpartition(":")
    if not where or not class_name.isidentifier():
        raise InputError(f"{source!r} is not the name of a class; give path/to/file.py:Class or package.module:Class")
    module = _import(where)
    value = getattr(module, class_name, None)
    if not isinstance(value, type):
        own = sorted(name for name, value in vars(module).items() if isinstance(value, type) and _is_of(value, module))
        raise InputError(f"{where} has no class {class_name!r}; it has {own}")
    return value


def _import(where: str) -> ModuleType:
    """Imports a module from a .py file or by its dotted name; while it runs it can import its neighbours."""
    path = Path(where)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise InputError(f"{path} does not exist; give path/to/file.py:Class or package.module:Class")
    folder = str(path.absolute().parent if is_file else Path.cwd())
    sys.path.insert(0, folder)
    try:
        return _run_file(path) if is_file else importlib.import_module(where)
    except Exception as error:  # whatever the user's module raises
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{where} cannot be imported ({reason}); check that `python -c` can import it") from error
    finally:
        sys.path.remove(folder)


def _run_file(path: Path) -> ModuleType:
    name = f"lumiglue_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def _is_of(value: type, module: ModuleType) -> bool:
    return value.__module__ == module.__name__


def _takes(kind: type, parameter: str) -> bool:
    try:
        return parameter in inspect.signature(kind).parameters
    except ValueError:  # written in C, without a signature
        return False


def _check(extractor: object, source: str) -> None:
    """Raises InputError if a member of `Extractor` is missing or of the wrong kind."""
    missing = [name for name in ("name", "descriptor_dim") if not hasattr(extractor, name)]
    methods = (("config()", "config"), ("__call__(image)", "__call__"))
    missing += [shown for shown, name in methods if not callable(getattr(extractor, name, None))]
    if missing:
        members = "name, descriptor_dim, config() and __call__(image)"
        raise InputError(f"{source} lacks {' and '.join(missing)}; an extractor has {members}, see lumiglue.Extractor")
    name, channels = (getattr(extractor, member) for member in ("name", "descriptor_dim"))
    if not isinstance(name, str) or not name:
        raise InputError(f"{source} has the name {name!r}; give a word that identifies its features")
    if not isinstance(channels, int) or channels < 1:
        raise InputError(f"{source} has descriptor_dim {channels!r}; give the number of channels of a descriptor")
    config = getattr(extractor, "config")()  # noqa: B009  (an object of any class)
    try:
        plain = isinstance(config, dict) and json.loads(json.dumps(config)) == config
    except (TypeError, ValueError):
        plain = False
    if not plain:
        raise InputError(f"{source} has a config() of {config!r}; return a dict of strings, numbers and lists")
