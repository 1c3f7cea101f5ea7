"""What a pipeline refuses before it works, each in one sentence."""

from pathlib import Path
from typing import Any

from lumiglue.errors import InputError
from lumiglue.extractors import EXTRACTORS
from lumiglue.types import Features

_UNIT_TOLERANCE = 0.05  # of the median length; half precision and 8-bit storage are within 0.01


def as_pair(number: int, pair: Any) -> tuple[Any, Any]:
    try:
        if isinstance(pair, str | Path):
            raise TypeError
        a, b = pair
    except (TypeError, ValueError):
        shown = repr(pair) if isinstance(pair, str | Path) else f"{type(pair).__name__} of {_count(pair)}"
        raise InputError(f"pair {number} is {shown}; give pairs of two images, such as [('a.jpg', 'b.jpg')]") from None
    return a, b


def _count(pair: Any) -> str:
    return f"{len(pair)} entries" if hasattr(pair, "__len__") and getattr(pair, "ndim", 1) else "no entries"


def check_unit_length(pairs: list[tuple[Features, Features]], trained_for: str) -> None:
    """Raises InputError if descriptors of built-in features are not of unit length.

    They are not divided here: that is right for some files (COLMAP's integers), but OpenCV's SIFT would not become RootSIFT.
    """
    sides = (side for pair in pairs if isinstance(pair, list | tuple) for side in pair)
    for features in (side for side in sides if isinstance(side, Features)):
        name = features.extractor or trained_for
        if name not in EXTRACTORS or not features.descriptors.numel():
            continue
        length = float(features.descriptors.detach().float().norm(dim=1).median())
        if abs(length - 1) > _UNIT_TOLERANCE:
            how = (
                "take the square root of each divided by its sum (RootSIFT)"
                if name == "sift"
                else "divide each by its length"
            )
            raise InputError(f"descriptors of {name!r} must have unit length, not {length:.3g}; {how}")
