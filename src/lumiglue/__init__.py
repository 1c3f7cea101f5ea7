"""Lumiglue: sparse feature matching. Two photos in, correspondences out.

import lumiglue

matcher = lumiglue.Pipeline.pretrained("sift", max_keypoints=2048)
result = matcher.match("a.jpg", "b.jpg")
result.points0, result.points1, result.scores
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lumiglue import collection
from lumiglue.errors import DatasetError, ImageError, InputError, LumiglueError, TrainingError, WeightsError
from lumiglue.matcher.settings import MatchSettings
from lumiglue.system.threads import short_spins

if TYPE_CHECKING:
    from lumiglue.collection.localization import localize
    from lumiglue.collection.sfm import Reconstruction, reconstruct
    from lumiglue.evaluation.run import evaluate
    from lumiglue.extractors import EXTRACTORS, Extractor, Sift
    from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
    from lumiglue.pipeline.pipeline import Pipeline
    from lumiglue.pipeline.result import MatchResult
    from lumiglue.types import Features, Geometry, Matches

__version__ = "0.1.0"
__all__ = [
    "EXTRACTORS",
    "DatasetError",
    "Extractor",
    "Features",
    "Geometry",
    "ImageError",
    "InputError",
    "LightGlue",
    "LightGlueConfig",
    "LumiglueError",
    "MatchResult",
    "MatchSettings",
    "Matches",
    "Pipeline",
    "Reconstruction",
    "Sift",
    "TrainingError",
    "WeightsError",
    "__version__",
    "collection",
    "evaluate",
    "localize",
    "reconstruct",
]

# Imported on first use: PyTorch takes seconds to import, and `lumiglue --help` does not need it.
_HOMES = {
    "EXTRACTORS": "extractors",
    "Extractor": "extractors",
    "Features": "types",
    "Geometry": "types",
    "LightGlue": "matcher.lightglue",
    "LightGlueConfig": "matcher.lightglue",
    "MatchResult": "pipeline",
    "Matches": "types",
    "Pipeline": "pipeline",
    "Reconstruction": "collection",
    "Sift": "extractors",
    "evaluate": "evaluation.run",
    "localize": "collection",
    "reconstruct": "collection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lumiglue' has no attribute {name!r}")
    with short_spins():
        value = getattr(import_module(f"lumiglue.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
