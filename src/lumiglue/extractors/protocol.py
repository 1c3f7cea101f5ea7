"""The interface of extractors."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from lumiglue.types import Features


@runtime_checkable
class Extractor(Protocol):
    """What the pipeline and feature datasets require of an extractor.

    It must return the same output each time, and be picklable for worker processes; an `OwnExtractor` makes your class so.
    """

    @property
    def name(self) -> str:
        """The name stored beside features and weights; a matcher refuses features of another name."""
        ...

    @property
    def descriptor_dim(self) -> int:
        """Number of channels d of a descriptor."""
        ...

    def config(self) -> dict[str, Any]:
        """The settings that descriptors depend on, as JSON values."""
        ...

    def __call__(self, image: np.ndarray) -> Features:
        """The features of an h x w x 3 RGB uint8 image; an empty `Features` if there are none."""
        ...
