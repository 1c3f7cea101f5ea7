"""ALIKED and DISK, and XFeat and SuperPoint over kornia and transformers, with published weights or a local file."""

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from lumiglue.errors import InputError, WeightsError
from lumiglue.extractors.aliked_network import CONFIGS, AlikedNetwork
from lumiglue.extractors.disk_network import DiskNetwork
from lumiglue.extractors.regions import SMALLEST_SIDE, check_limits
from lumiglue.images import resize_long_side
from lumiglue.io.state_dicts import load_into
from lumiglue.system.device import one_thread_at_a_time
from lumiglue.types import Features
from lumiglue.weights.registry import NETWORKS, local_network, network_file

_log = logging.getLogger(__name__)
_MOST = 20_000  # keypoints of networks that need a number
_loading = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class NetworkExtractor(ABC):
    """A network that detects and describes keypoints, without scale and orientation.

    The network is loaded at the first image, once per process, and is never pickled. A call raises WeightsError if the
    weights are not found or do not fit.

    Attributes:
        max_keypoints: Number of keypoints to keep, the strongest first; None keeps all, of ALIKED and XFeat up to 20,000.
        resize: Long side in pixels to which larger images are downscaled; None keeps the full size.
        weights: The file of the published weights or the folder that contains it. By default it is the file that the
            network's environment variable names (LUMIGLUE_ALIKED, LUMIGLUE_DISK, LUMIGLUE_XFEAT, LUMIGLUE_SUPERPOINT),
            then one in the cache folder, then a download.
        device: Where the network runs. Features are returned on the CPU.
        detection_threshold: Smallest score of a keypoint; None takes the network's own.
    """

    max_keypoints: int | None = 2048
    resize: int | None = 1024
    weights: str | Path | None = None
    device: str = "cpu"
    detection_threshold: float | None = None

    model: ClassVar[str]
    dim: ClassVar[int]
    least: ClassVar[int] = 32  # pixels of each side that the network needs

    def __post_init__(self) -> None:
        check_limits(self.max_keypoints, self.resize, max(self.least, SMALLEST_SIDE))
        if self.detection_threshold is not None and not self.detection_threshold >= 0:
            raise InputError(f"detection_threshold is {self.detection_threshold}; give a score of at least 0")

    @property
    def name(self) -> str:
        """The network's name, stored beside features and weights."""
        return self.model

    @property
    def descriptor_dim(self) -> int:
        """Number of channels of a descriptor."""
        return self.dim

    def config(self) -> dict[str, Any]:
        """The settings that descriptors depend on, as JSON values."""
        return {"name": self.name}

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Features:
        """Detects and describes keypoints.

        Args:
            image: h x w x 3, RGB.

        Returns:
            Up to `max_keypoints` features in pixels of the image, strongest first, with unit descriptors.

        Raises:
            WeightsError: The network's weights are not found or do not fit.
        """
        height, width = image.shape[:2]
        small = resize_long_side(image, self.resize)
        if min(small.shape[:2]) < self.least:
            nothing = torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, self.descriptor_dim)
            return self._features(*nothing, (width, height), torch.ones(2))
        with one_thread_at_a_time(self.device):
            network, pixels = self._network(), self._pixels(small)
            with torch.inference_mode():
                output = self.run(network, pixels)
            # Clones made outside inference mode are ordinary tensors, which autograd and in-place code accept.
            keypoints, scores, descriptors = (tensor.cpu().float().clone() for tensor in output)
        scale = torch.tensor([width / small.shape[1], height / small.shape[0]])
        return self._features(keypoints, scores, descriptors, (width, height), scale)

    def _network(self) -> Any:
        with _loading:  # one of two threads loads the network, the other waits for it
            return _load(type(self), self._build_arguments(), self.model, self._weights_file(), str(self.device))

    def _pixels(self, image: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(image)).to(self.device).permute(2, 0, 1)[None].float() / 255

    def _features(
        self, keypoints: Tensor, scores: Tensor, descriptors: Tensor, size: tuple[int, int], scale: Tensor
    ) -> Features:
        x, y = keypoints.numpy().T
        # Ties are ordered by position, so that the order does not depend on the library.
        rows = torch.from_numpy(np.lexsort((x, y, -scores.numpy()))[: self.max_keypoints])
        return Features(
            keypoints=(keypoints[rows] + 0.5) * scale - 0.5,
            descriptors=descriptors[rows],
            image_size=size,
            scores=scores[rows],
            extractor=self.name,
        )

    def _weights_file(self) -> Path | None:
        """The file of the weights, downloaded if need be; None if the network's library downloads them."""
        return network_file(self.model, self.weights)

    def _build_arguments(self) -> tuple[Any, ...]:
        """What `build` takes."""
        return ()

    @abstractmethod
    def run(self, network: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Applies the network.

        Args:
            network: What `build` returned, with weights.
            pixels: 1 x 3 x h x w, in [0, 1].

        Returns:
            Keypoints (n x 2, pixels of the input), scores (n) and unit descriptors (n x d).
        """

    @staticmethod
    @abstractmethod
    def build(*arguments: Any) -> nn.Module:
        """The network without weights."""


# Offset of the keypoints of each released ALIKED network from the image structure, in pixels of its input (right, down).
# n16rot: half of the distance between keypoints of mirrored photos (20 photos, +-0.02; with rotated copies 0.3 to 0.5).
# The others match few mirrored points: measured with rotated and scaled copies (+-0.2) by
# benchmarks/accuracy/aliked_shift.py, which measures 0.00 for SIFT. n32 was not measured. Without the correction the
# offset grows with the factor of `resize`, and counts twice in a pair of which one image is rotated.
_ALIKED_SHIFTS = {"aliked-t16": (0.9, 0.9), "aliked-n16": (0.45, 0.2), "aliked-n16rot": (0.455, 0.0)}


@dataclass(frozen=True, kw_only=True)
class Aliked(NetworkExtractor):
    """ALIKED (Zhao et al., IEEE TIM 2023; BSD-3-Clause). It needs about 250 bytes of memory per pixel.

    Attributes:
        model: aliked-t16 (small, 64 channels), aliked-n16, aliked-n16rot (trained with rotations) or aliked-n32.
        detection_threshold: Smallest score of a keypoint. The default, 0, lets the strongest local maxima of the score map
            fill `max_keypoints`: the paper's 0.2 leaves a few hundred on most photos, and rejecting weak points is the
            matcher's task.
    """

    model: str = "aliked-n16"  # pyright: ignore[reportIncompatibleVariableOverride]
    detection_threshold: float | None = 0.0

    least = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model not in CONFIGS:
            raise InputError(f"unknown ALIKED model {self.model!r}; choose from {sorted(CONFIGS)}")

    @property
    def descriptor_dim(self) -> int:
        """Number of channels of a descriptor."""
        return CONFIGS[self.model].dim

    def run(self, network: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with _full_precision(pixels.device):
            keypoints, scores, descriptors = network(pixels, self.max_keypoints or _MOST)
        strong = scores > (self.detection_threshold or 0.0)
        return keypoints[strong] - self._shift(pixels), scores[strong], descriptors[strong]

    def describe(self, image: UInt8[np.ndarray, "h w 3"], keypoints: Float[Tensor, "n 2"]) -> Float[Tensor, "n d"]:
        """Describes given keypoints, such as those of another detector.

        Args:
            image: h x w x 3, RGB.
            keypoints: n x 2, in pixels of the image.

        Returns:
            n x d unit descriptors.

        Raises:
            InputError: The image has a side of less than 4 pixels.
            WeightsError: The network's weights are not found or do not fit.
        """
        small = resize_long_side(image, self.resize)
        if min(small.shape[:2]) < 4:
            raise InputError(f"the image has {small.shape[1]} x {small.shape[0]} pixels; a descriptor needs 4 x 4")
        scale = keypoints.new_tensor([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]])
        with one_thread_at_a_time(self.device):
            network, pixels = self._network(), self._pixels(small)
            with torch.inference_mode(), _full_precision(pixels.device):
                at = ((keypoints + 0.5) * scale - 0.5).to(pixels)
                descriptors = network.describe(pixels, at + self._shift(pixels))
            return descriptors.cpu().clone()

    def _shift(self, like: Tensor) -> Tensor:
        """How far the network's keypoints are from the structure."""
        return like.new_tensor(_ALIKED_SHIFTS.get(self.model, (0.0, 0.0)))

    def _build_arguments(self) -> tuple[Any, ...]:
        return (self.model,)

    @staticmethod
    def build(*arguments: Any) -> nn.Module:
        return AlikedNetwork(*arguments)


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """On CUDA, float32 convolutions by deterministic kernels, so that features equal the CPU's up to rounding."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def _unit(descriptors: Tensor) -> Tensor:
    return nn.functional.normalize(descriptors, dim=1)


class Disk(NetworkExtractor):
    """DISK (Tyszkiewicz et al., NeurIPS 2020; Apache-2.0). It needs about 1 kB of memory per pixel."""

    model, dim = "disk", 128

    def run(self, network: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with _full_precision(pixels.device):
            return network(pixels, self.max_keypoints, self.detection_threshold or 0.0)

    @staticmethod
    def build(*arguments: Any) -> nn.Module:
        return DiskNetwork(*arguments)


class XFeat(NetworkExtractor):
    """XFeat (Potje et al., CVPR 2024; Apache-2.0) over kornia, its sparse form."""

    model, dim = "xfeat", 64

    def run(self, network: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = network.detectAndCompute(pixels, self.max_keypoints or _MOST, self.detection_threshold)[0]
        # kornia resizes to multiples of 32 and returns i * ratio for pixel i, whose centre is (i + 0.5) * ratio - 0.5.
        size = pixels.new_tensor([pixels.shape[3], pixels.shape[2]])
        ratio = size / (size // 32 * 32).clamp(min=32)
        return output["keypoints"] + (ratio - 1) / 2, output["scores"], _unit(output["descriptors"])

    @staticmethod
    def build(*arguments: Any) -> nn.Module:
        from kornia.feature import XFeat as Network

        return Network(*arguments)


class SuperPoint(NetworkExtractor):
    """SuperPoint (DeTone et al., CVPRW 2018) over transformers.

    Its licence allows non-commercial research only; a warning says so when the weights are first loaded.
    """

    model, dim = "superpoint", 256

    def run(self, network: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grey = (pixels * pixels.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        output = network(grey.expand(-1, 3, -1, -1))
        valid = output.mask[0].bool()
        size = pixels.new_tensor([pixels.shape[3], pixels.shape[2]])  # transformers returns fractions of the sides
        return output.keypoints[0][valid] * size, output.scores[0][valid], _unit(output.descriptors[0][valid])

    def _weights_file(self) -> Path | None:
        return local_network(self.model, "model.safetensors", self.weights)

    @staticmethod
    def build(*arguments: Any) -> nn.Module:
        from transformers import SuperPointConfig, SuperPointForKeypointDetection

        return SuperPointForKeypointDetection(SuperPointConfig(**dict(arguments)))

    def _build_arguments(self) -> tuple[Any, ...]:
        return () if self.detection_threshold is None else (("keypoint_threshold", self.detection_threshold),)

    @staticmethod
    def fetch(*arguments: Any) -> nn.Module:
        """The network with the weights that transformers downloads."""
        from transformers import SuperPointForKeypointDetection

        return SuperPointForKeypointDetection.from_pretrained("magic-leap-community/superpoint", **dict(arguments))


_SUPERPOINT_PAGE = "https://huggingface.co/magic-leap-community/superpoint"


@lru_cache(maxsize=4)
def _load(kind: type[NetworkExtractor], arguments: tuple[Any, ...], model: str, file: Path | None, device: str) -> nn.Module:
    """The network with its weights; a file of None has the network's library download them."""
    if kind is SuperPoint:
        _log.warning("SuperPoint's weights are licensed for non-commercial research only (Magic Leap's licence)")
    with torch.random.fork_rng(devices=[]):
        if file is None:  # of SuperPoint alone: the registry has the files of the others
            try:
                return SuperPoint.fetch(*arguments).eval().to(device)
            except (OSError, RuntimeError) as error:
                cause = str(getattr(error, "reason", None) or str(error).splitlines()[0])
                raise WeightsError(
                    f"the weights of {model} are not on this machine and cannot be downloaded ({cause}); download "
                    f"model.safetensors from {_SUPERPOINT_PAGE} and set LUMIGLUE_{model.upper()} to the file"
                ) from None
        try:
            network = kind.build(*arguments)
        except ImportError as error:
            raise InputError(f"{model} needs a newer version of its library ({error}); update it with pip") from None
    source = NETWORKS[model].url if model in NETWORKS else _SUPERPOINT_PAGE
    load_into(network, file, model, f"give the published file from {source}")
    return network.eval().to(device)
