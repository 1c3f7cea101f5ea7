"""What an extractor is: any object with these members."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from lumiglue.types import Features


@runtime_checkable
class Extractor(Protocol):
    """What the pipeline and the dataset ask of an extractor: the same output each time, and that it can be pickled, for the
    dataset's worker processes (an `OwnExtractor` sees to that for a class of yours)."""

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
