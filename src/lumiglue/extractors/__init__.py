"""Local features. An extractor is any object with the members of `Extractor`; `EXTRACTORS` has the built-in ones."""

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
from lumiglue.system.extras import EXTRAS, require

__all__ = [
    "EXTRACTORS",
    "Extractor",
    "OwnExtractor",
    "Sift",
    "Tiled",
    "check_package",
    "create_extractor",
    "tiled_extractor",
]


# Features -> the package that computes them.
_PACKAGES = {"xfeat": "kornia", "superpoint": "transformers"}


def check_package(features: str) -> None:
    """Checks that the package that computes these features, if they need one, is installed in a version that works.

    Raises:
        InputError: It is not; the message says how to install it.
    """
    package = _PACKAGES.get(features)
    if package is not None and find_spec(package) is None:
        raise InputError(f'{features} needs {package}; install it with `pip install "lumiglue[{EXTRAS[package][0]}]"`')
    if package is not None:
        require(package)


def _network(kind: str, *, device: str = "cpu", **settings: Any) -> Extractor:
    """A class of `networks`, which is imported here, when it is first used."""
    from lumiglue.extractors import networks

    return getattr(networks, kind)(device=device, **settings)


_aliked = partial(_network, "Aliked")
EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "sift": Sift,
    "aliked": _aliked,  # its default model, aliked-n16
    "aliked-t16": partial(_aliked, model="aliked-t16"),
    "aliked-n16": partial(_aliked, model="aliked-n16"),
    "aliked-n16rot": partial(_aliked, model="aliked-n16rot"),
    "aliked-n32": partial(_aliked, model="aliked-n32"),
    "disk": partial(_network, "Disk"),
    "xfeat": partial(_network, "XFeat"),
    "superpoint": partial(_network, "SuperPoint"),
}


def create_extractor(name: str, *, device: str | None = None, **settings: Any) -> Extractor:
    """Creates an extractor by name.

    Args:
        name: A built-in extractor, or your own as "path/to/file.py:Class" or "package.module:Class".
        device: Where a network runs; other extractors ignore it.
        **settings: Parameters of a built-in extractor; of your own, `max_keypoints` and `resize`, which apply whether or not
            the class supports them (see `OwnExtractor`).

    Raises:
        InputError: The name or a setting is unknown, a package is missing, or the class lacks a member of `Extractor`.
    """
    factory = OwnExtractor if ":" in name else EXTRACTORS.get(name)
    if factory is None:
        own = "or your own as path/to/file.py:Class or package.module:Class"
        raise InputError(f"unknown extractor {name!r}; choose from {sorted(EXTRACTORS)}, {own}")
    check_package(name)
    if ":" in name:
        settings["source"] = name
    if device is not None and "device" in inspect.signature(factory).parameters:
        settings["device"] = device
    try:
        return factory(**settings)
    except TypeError as error:
        raise InputError(f"the extractor {name!r} cannot be created: {error}") from error


def tiled_extractor(
    name: str,
    *,
    max_keypoints: int | None,
    resize: int | None,
    tile: int | None,
    device: str | None = None,
    detector_threshold: float | None = None,
) -> Extractor:
    """Creates an extractor that processes large photos in tiles.

    Args:
        name: See `create_extractor`.
        max_keypoints: Number of keypoints to keep per photo; None keeps all.
        resize: Long side in pixels to which larger photos are downscaled; None keeps the full size.
        tile: Side of a tile in pixels, see `Tiled`; None uses no tiles.
        device: Where a network runs.
        detector_threshold: Smallest response of a keypoint: SIFT's contrast threshold, the score of a network. None takes
            the features' own.

    Raises:
        InputError: As for `create_extractor` and `Tiled`.
    """
    threshold = {}
    if detector_threshold is not None:
        if ":" in name:
            raise InputError(f"a detector threshold cannot be passed to {name!r}; set it in the class")
        threshold["contrast_threshold" if name == "sift" else "detection_threshold"] = detector_threshold
    if tile is None:
        return create_extractor(name, max_keypoints=max_keypoints, resize=resize, device=device, **threshold)
    whole = create_extractor(name, max_keypoints=max_keypoints, resize=None, device=device, **threshold)
    return Tiled(extractor=whole, tile=tile, max_keypoints=max_keypoints, resize=resize)
