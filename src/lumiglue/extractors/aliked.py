"""ALIKED (Zhao et al., IEEE TIM 2023), learned keypoints and descriptors, over kornia's network and the released weights."""

import contextlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from kornia.feature import ALIKED

from lumiglue.errors import InputError
from lumiglue.extractors.regions import check_limits
from lumiglue.images import resize_long_side
from lumiglue.io.state_dicts import load_into
from lumiglue.types import Features
from lumiglue.weights.registry import NETWORKS, network_file

# Model -> descriptor channels.
MODELS = {"aliked-t16": 64, "aliked-n16": 128, "aliked-n16rot": 128, "aliked-n32": 128}

# How far right of and below its structure each released network puts a keypoint, in pixels of its input. n16rot: half of
# how far the keypoints of mirrored photos miss each other (20 photos, +-0.02; by turned copies 0.3 to 0.5). The others match
# few mirrored points: by turned and scaled copies (+-0.2), see benchmarks/accuracy/aliked_shift.py, which finds 0.00 for
# SIFT. n32 was not measured. Left in, the shift grows with the factor of `resize` and comes twice into a pair of which one
# is turned.
_SHIFTS = {"aliked-t16": (0.9, 0.9), "aliked-n16": (0.45, 0.2), "aliked-n16rot": (0.455, 0.0)}

_DERIVED = {"dkd.hw_grid"}  # a constant of the network that the released files leave out


@dataclass(frozen=True, kw_only=True)
class Aliked:
    """ALIKED features of an image; they have no scale and no orientation.

    max_keypoints: the strongest local maxima of the score map are kept.
    resize: the long side in pixels that larger images are shrunk to before detection; None keeps the full size, at about
        a kilobyte of memory a pixel. Keypoints are always returned in pixels of the image handed in.
    model: aliked-t16 (small, 64 channels), aliked-n16, aliked-n16rot (trained with rotations) or aliked-n32.
    detection_threshold: smallest score. 0, the default, lets the strongest maxima fill `max_keypoints`: the paper's 0.2
        leaves a few hundred on most photos, and telling weak points apart is the matcher's task.
    weights: the released file of the model, or a folder that holds it; by default $LUMIGLUE_ALIKED (file or folder), then
        the cache folder, then a download, whose SHA-256 is checked.
    device: where the network runs; features are returned on the CPU.

    The network is loaded at the first image, once a process, and is never pickled. Calls raise WeightsError where its
    weights cannot be found or do not fit.
    """

    max_keypoints: int = 2048
    resize: int | None = 1024
    model: str = "aliked-n16"
    detection_threshold: float = 0.0
    weights: str | Path | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_limits(self.max_keypoints, self.resize)
        if self.model not in MODELS:
            raise InputError(f"unknown ALIKED model {self.model!r}; choose from {sorted(MODELS)}")
        if not 0 <= self.detection_threshold < 1:
            raise InputError(f"detection_threshold is {self.detection_threshold}; give a score in [0, 1)")

    @property
    def name(self) -> str:
        """Stored beside features and weights: the model's, as a matcher for one network's descriptors is of no use for
        another's."""
        return self.model

    @property
    def descriptor_dim(self) -> int:
        """Channels of a descriptor."""
        return MODELS[self.model]

    def config(self) -> dict[str, Any]:
        """What the descriptors depend on, to be stored beside features and weights."""
        return {"name": self.name}

    def weights_are_here(self) -> bool:
        """Whether the network's weights lie on this machine, so that nothing would be downloaded."""
        return self.weights is not None or NETWORKS[self.model].is_here()

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Features:
        """image: h x w x 3, RGB. Returns up to `max_keypoints` features, strongest first, with unit descriptors."""
        height, width = image.shape[:2]
        small = resize_long_side(image, self.resize)
        scale = torch.tensor([width / small.shape[1], height / small.shape[0]])
        network = _network(self.model, network_file(self.model, self.weights), self.max_keypoints, str(self.device))
        pixels = torch.from_numpy(np.array(small)).to(self.device).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode(), _full_precision(pixels.device):
            found = network(pixels)[0]
        # Clones made outside inference mode are ordinary tensors, which autograd and in-place code may use.
        keypoints, scores, descriptors = (
            tensor.cpu().float().clone() for tensor in (found.keypoints, found.keypoint_scores, found.descriptors)
        )
        x, y = keypoints.numpy().T
        order = np.lexsort((x, y, -scores.numpy()))  # ties by position, so that the order never depends on kornia's
        rows = torch.from_numpy(order)[scores[order] > self.detection_threshold]
        centred = keypoints[rows] - torch.tensor(_SHIFTS.get(self.model, (0.0, 0.0)))
        return Features(
            keypoints=(centred + 0.5) * scale - 0.5,  # kornia too has the centre of the top-left pixel at (0, 0)
            descriptors=descriptors[rows],
            image_size=(width, height),
            scores=scores[rows],
            extractor=self.name,
        )


@lru_cache(maxsize=4)
def _network(model: str, file: Path, max_keypoints: int, device: str) -> ALIKED:
    settings: dict[str, Any] = {"max_num_keypoints": max_keypoints, "detection_threshold": 0.0}
    with torch.random.fork_rng(devices=[]):
        network = ALIKED(model, **settings)
    load_into(network, file, model, f"give the released {model}.pth", derived=_DERIVED)
    return network.eval().to(device)


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """On CUDA, convolutions in fp32 proper and by deterministic kernels, so that features are the CPU's up to rounding."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
