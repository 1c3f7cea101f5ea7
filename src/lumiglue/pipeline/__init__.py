"""Photos in, matches out."""

from lumiglue.pipeline.pipeline import Pipeline, Rotation
from lumiglue.pipeline.result import MatchResult

__all__ = ["MatchResult", "Pipeline", "Rotation"]
