"""Lumiglue: sparse feature matching. Two photos in, correspondences out.

import lumiglue

matcher = lumiglue.Pipeline.pretrained("sift", max_keypoints=2048)
result = matcher.match("a.jpg", "b.jpg")
result.points0, result.points1, result.scores
"""

from lumiglue.errors import BankError, ImageError, InputError, LumiglueError, TrainingError, WeightsError
from lumiglue.extractors import EXTRACTORS, Extractor, Sift
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.settings import MatchSettings
from lumiglue.pipeline import MatchResult, Pipeline
from lumiglue.types import Features, Geometry, Matches

__version__ = "0.1.0"
__all__ = [
    "EXTRACTORS",
    "BankError",
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
    "Sift",
    "TrainingError",
    "WeightsError",
    "__version__",
]
