"""Local features. An extractor is any object with the members of `Extractor`; `EXTRACTORS` names the built-in ones."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lumiglue.errors import InputError
from lumiglue.extractors.sift import Sift
from lumiglue.types import Features

__all__ = ["EXTRACTORS", "Extractor", "Sift", "create_extractor"]


@runtime_checkable
class Extractor(Protocol):
    """What the pipeline and the bank ask of an extractor. It must be picklable, and give the same output each time."""

    @property
    def name(self) -> str:
        """Stored beside features and weights; a matcher refuses features of another name."""
        ...

    @property
    def descriptor_dim(self) -> int:
        """Width d of the descriptors."""
        ...

    def config(self) -> dict[str, Any]:
        """What the descriptors depend on, as JSON values."""
        ...

    def __call__(self, image: np.ndarray) -> Features:
        """Features of an h x w x 3 RGB uint8 image; an empty `Features` where nothing is found."""
        ...


def _aliked(**settings: Any) -> Extractor:
    """An `Aliked`; kornia is imported only here, when it is asked for."""
    try:
        from lumiglue.extractors.aliked import Aliked
    except ImportError as error:
        reason = f'ALIKED needs kornia 0.9 or later ({error}); install it with `pip install "lumiglue[aliked]"`'
        raise InputError(reason) from None
    return Aliked(**settings)


EXTRACTORS: dict[str, Callable[..., Extractor]] = {"sift": Sift, "aliked": _aliked}


def create_extractor(name: str, **settings: Any) -> Extractor:
    """The built-in extractor of that name. Raises InputError for an unknown one."""
    if name not in EXTRACTORS:
        raise InputError(f"unknown extractor {name!r}; choose from {sorted(EXTRACTORS)}")
    return EXTRACTORS[name](**settings)
