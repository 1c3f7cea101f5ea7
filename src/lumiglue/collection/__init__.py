"""Collections of photos: features, pairs, matches and a reconstruction, each in one resumable call.

lumiglue.collection.extract_features("photos", "features.h5")
pairs = lumiglue.collection.choose_pairs("features.h5")
lumiglue.collection.match_pairs("features.h5", pairs, "matches.h5")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lumiglue.collection.costs import Costs, project_costs
    from lumiglue.collection.export import Export, export_colmap
    from lumiglue.collection.features import Progress, extract_features
    from lumiglue.collection.hloc import FeaturesFile, MatchesReader
    from lumiglue.collection.localization import Localization, localize
    from lumiglue.collection.localizer import QueryPose
    from lumiglue.collection.matching import match_pairs, match_photos
    from lumiglue.collection.pairs import choose_pairs, read_pairs, write_pairs
    from lumiglue.collection.sfm import Reconstruction, reconstruct

__all__ = [
    "By",
    "CameraMode",
    "Costs",
    "Export",
    "FeaturesFile",
    "Localization",
    "MatchesReader",
    "Progress",
    "QueryPose",
    "Reconstruction",
    "RefineCameras",
    "choose_pairs",
    "export_colmap",
    "extract_features",
    "localize",
    "match_pairs",
    "match_photos",
    "project_costs",
    "read_pairs",
    "reconstruct",
    "write_pairs",
]

By = Literal["exhaustive", "sequential", "retrieval", "position"]
CameraMode = Literal["image", "folder", "exif", "single"]
RefineCameras = Literal["none", "focal", "all"]
# Imported on first use, as PyTorch takes seconds.
_MODULES = {
    "Costs": "costs",
    "Export": "export",
    "FeaturesFile": "hloc",
    "Localization": "localization",
    "MatchesReader": "hloc",
    "Progress": "features",
    "QueryPose": "localizer",
    "Reconstruction": "sfm",
    "choose_pairs": "pairs",
    "export_colmap": "export",
    "extract_features": "features",
    "localize": "localization",
    "match_pairs": "matching",
    "match_photos": "matching",
    "project_costs": "costs",
    "read_pairs": "pairs",
    "reconstruct": "sfm",
    "write_pairs": "pairs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lumiglue.collection' has no attribute {name!r}")
    value = getattr(import_module(f"lumiglue.collection.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
