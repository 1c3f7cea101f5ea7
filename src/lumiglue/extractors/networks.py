"""DISK, XFeat and SuperPoint over kornia and transformers, with their published weights or a local file.

SuperPoint's weights are not for commercial use; a warning says so when they are first loaded.
"""

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from lumiglue.errors import WeightsError
from lumiglue.extractors.regions import check_limits
from lumiglue.images import resize_long_side
from lumiglue.io.state_dicts import load_into
from lumiglue.types import Features
from lumiglue.weights.registry import NETWORKS, local_network, network_file

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NetworkExtractor(ABC):
    """A network that finds and describes points; they have no scale and no orientation.

    max_keypoints: the strongest are kept. resize: the long side in pixels that larger images are shrunk to; None keeps the
    full size. weights: a file of the released weights (of SuperPoint a folder in transformers' layout); by default the
    environment variable of the class, then the cache folder, then a download. device: where the network runs;
    features are returned on the CPU, keypoints in pixels of the image handed in.

    The network is loaded at the first image, once a process, and is never pickled. Calls raise WeightsError where its
    weights cannot be found or do not fit.
    """

    max_keypoints: int = 2048
    resize: int | None = 1024
    weights: str | Path | None = None
    device: str = "cpu"

    model: ClassVar[str]
    dim: ClassVar[int]
    least: ClassVar[int] = 32  # pixels of each side that the network needs

    def __post_init__(self) -> None:
        check_limits(self.max_keypoints, self.resize, self.least)

    @property
    def name(self) -> str:
        """Stored beside features and weights."""
        return self.model

    @property
    def descriptor_dim(self) -> int:
        """Channels of a descriptor."""
        return self.dim

    def config(self) -> dict[str, Any]:
        """What the descriptors depend on."""
        return {"name": self.name}

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Features:
        """image: h x w x 3, RGB. Returns up to `max_keypoints` features, strongest first, with unit descriptors."""
        height, width = image.shape[:2]
        small = resize_long_side(image, self.resize)
        if min(small.shape[:2]) < self.least:
            nothing = torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, self.dim)
            return self._features(*nothing, (width, height), torch.ones(2))
        network = _load(type(self), _weights_file(self), str(self.device))
        pixels = torch.from_numpy(np.array(small)).to(self.device).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            keypoints, scores, descriptors = (t.cpu().float().clone() for t in self.run(network, pixels))
        scale = torch.tensor([width / small.shape[1], height / small.shape[0]])
        return self._features(keypoints, scores, descriptors, (width, height), scale)

    def _features(
        self, keypoints: Tensor, scores: Tensor, descriptors: Tensor, size: tuple[int, int], scale: Tensor
    ) -> Features:
        x, y = keypoints.numpy().T
        order = np.lexsort((x, y, -scores.numpy()))[: self.max_keypoints]  # ties by position
        rows = torch.from_numpy(order)
        return Features(
            keypoints=(keypoints[rows] + 0.5) * scale - 0.5,
            descriptors=nn.functional.normalize(descriptors[rows], dim=1),
            image_size=size,
            scores=scores[rows],
            extractor=self.name,
        )

    @abstractmethod
    def run(self, network: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keypoints in pixels of the 1 x 3 x h x w input, scores, descriptors."""

    @staticmethod
    @abstractmethod
    def build() -> nn.Module:
        """The network without weights."""

    @staticmethod
    def fetch() -> nn.Module:
        """The network with the weights that its library downloads: of networks that the registry does not have."""
        raise NotImplementedError


class Disk(NetworkExtractor):
    """DISK (Tyszkiewicz et al., NeurIPS 2020; Apache-2.0) over kornia. A photo is padded to multiples of 16 pixels."""

    model, dim = "disk", 128

    def run(self, network: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = network(pixels, n=self.max_keypoints, pad_if_not_divisible=True)[0]
        inside = (found.keypoints < pixels.new_tensor([pixels.shape[3], pixels.shape[2]])).all(1)
        return found.keypoints[inside], found.detection_scores[inside], found.descriptors[inside]

    @staticmethod
    def build() -> nn.Module:
        from kornia.feature import DISK

        return DISK()


class XFeat(NetworkExtractor):
    """XFeat (Potje et al., CVPR 2024; Apache-2.0) over kornia, its sparse form."""

    model, dim = "xfeat", 64

    def run(self, network: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = network.detectAndCompute(pixels, top_k=self.max_keypoints)[0]
        return found["keypoints"], found["scores"], found["descriptors"]

    @staticmethod
    def build() -> nn.Module:
        from kornia.feature import XFeat as Network

        return Network()


class SuperPoint(NetworkExtractor):
    """SuperPoint (DeTone et al., CVPRW 2018; non-commercial licence) over transformers."""

    model, dim = "superpoint", 256

    def run(self, network: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grey = (pixels * pixels.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        found = network(grey.expand(-1, 3, -1, -1))
        rows = found.mask[0].bool()
        size = pixels.new_tensor([pixels.shape[3], pixels.shape[2]])  # transformers gives shares of the sides
        return found.keypoints[0][rows] * size, found.scores[0][rows], found.descriptors[0][rows]

    @staticmethod
    def build() -> nn.Module:
        from transformers import SuperPointConfig, SuperPointForKeypointDetection

        return SuperPointForKeypointDetection(SuperPointConfig())

    @staticmethod
    def fetch() -> nn.Module:
        from transformers import SuperPointForKeypointDetection

        return SuperPointForKeypointDetection.from_pretrained("magic-leap-community/superpoint")


# Where the weights are to be had by hand, and what they may be used for.
_SOURCES = {
    "disk": ("https://github.com/cvlab-epfl/disk", "depth-save.pth", ""),
    "xfeat": ("https://github.com/verlab/accelerated_features", "xfeat.pt", ""),
    "superpoint": (
        "https://huggingface.co/magic-leap-community/superpoint", "model.safetensors",
        "SuperPoint's weights are for non-commercial research alone (Magic Leap's licence)",
    ),
}  # fmt: skip


def _weights_file(extractor: NetworkExtractor) -> Path | None:
    """The file of the weights, downloaded if need be; None where the network's library downloads them."""
    if extractor.model in NETWORKS:
        return network_file(extractor.model, extractor.weights)
    return local_network(extractor.model, _SOURCES[extractor.model][1], extractor.weights)


@lru_cache(maxsize=4)
def _load(kind: type[NetworkExtractor], file: Path | None, device: str) -> nn.Module:
    source, name, notice = _SOURCES[kind.model]
    if notice:
        _log.warning(notice)
    with torch.random.fork_rng(devices=[]):
        if file is None:
            try:
                return kind.fetch().eval().to(device)
            except (OSError, RuntimeError) as error:
                reason = str(getattr(error, "reason", None) or str(error).splitlines()[0])
                raise WeightsError(
                    f"the weights of {kind.model} are not on this machine and cannot be downloaded ({reason}); get {name} "
                    f"from {source} and set LUMIGLUE_{kind.model.upper()} to the file"
                ) from None
        network = kind.build()
    load_into(network, file, kind.model, f"give {name} from {source}")
    return network.eval().to(device)
