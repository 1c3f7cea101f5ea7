"""Local features. An extractor is any object with the members of `Extractor`; `EXTRACTORS` names the built-in ones."""

import inspect
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

from lumiglue.errors import InputError
from lumiglue.extractors.own import OwnExtractor
from lumiglue.extractors.protocol import Extractor
from lumiglue.extractors.regions import Tiled
from lumiglue.extractors.sift import Sift

__all__ = ["EXTRACTORS", "Extractor", "OwnExtractor", "Sift", "Tiled", "create_extractor", "tiled_extractor"]


def _network(kind: str, package: str, extra: str, *, device: str = "cpu", **settings: Any) -> Extractor:
    """A class of `networks`, which is imported here, when it is first used."""
    if find_spec(package) is None:
        raise InputError(f'{kind} needs {package}; install it with `pip install "lumiglue[{extra}]"`')
    from lumiglue.extractors import networks

    return getattr(networks, kind)(device=device, **settings)


_aliked = partial(_network, "Aliked", "kornia", "aliked")
EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "sift": Sift,
    "aliked": _aliked,  # its default model, aliked-n16
    "aliked-t16": partial(_aliked, model="aliked-t16"),
    "aliked-n16": partial(_aliked, model="aliked-n16"),
    "aliked-n16rot": partial(_aliked, model="aliked-n16rot"),
    "aliked-n32": partial(_aliked, model="aliked-n32"),
    "disk": partial(_network, "Disk", "kornia", "aliked"),
    "xfeat": partial(_network, "XFeat", "kornia", "aliked"),
    "superpoint": partial(_network, "SuperPoint", "transformers", "superpoint"),
}


def create_extractor(name: str, *, device: str | None = None, **settings: Any) -> Extractor:
    """The built-in extractor of that name, or one of your own by "path/to/file.py:Class" or "package.module:Class".

    device: for extractors that run a network; the others pass it over. settings: of a built-in extractor, all of its
    parameters; of your own, `max_keypoints` and `resize`, which hold whether the class takes them or not (see
    `OwnExtractor`). Raises InputError for an unknown name, a setting that it does not have, a class that does not do.
    """
    factory = OwnExtractor if ":" in name else EXTRACTORS.get(name)
    if factory is None:
        own = "or your own as path/to/file.py:Class or package.module:Class"
        raise InputError(f"unknown extractor {name!r}; choose from {sorted(EXTRACTORS)}, {own}")
    if ":" in name:
        settings["source"] = name
    if device is not None and "device" in inspect.signature(factory).parameters:
        settings["device"] = device
    try:
        return factory(**settings)
    except TypeError as error:
        raise InputError(f"the extractor {name!r} cannot be made: {error}") from error


def tiled_extractor(
    name: str, *, max_keypoints: int, resize: int | None, tile: int | None, device: str | None = None
) -> Extractor:
    """`create_extractor`, shown larger photos in tiles of so many pixels a side where `tile` says so; see `Tiled`."""
    if tile is None:
        return create_extractor(name, max_keypoints=max_keypoints, resize=resize, device=device)
    whole = create_extractor(name, max_keypoints=max_keypoints, resize=None, device=device)
    return Tiled(extractor=whole, tile=tile, max_keypoints=max_keypoints, resize=resize)
