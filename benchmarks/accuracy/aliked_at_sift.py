"""SIFT's keypoints with ALIKED's descriptors: what a released matcher for ALIKED finds among the keypoints of SIFT.

    python benchmarks/accuracy/yardstick.py measure YARDSTICK -o SCORES --cache CACHE --max-keypoints 2048 \\
        --features benchmarks/accuracy/aliked_at_sift.py:AlikedAtSift --weights RELEASED/aliked_lightglue.pth \\
        --name released --methods lumiglue

This is the teacher that a student for SIFT has with `lumiglue dataset teach --assignments`.
"""

import numpy as np

import lumiglue
from lumiglue.extractors.networks import Aliked


class AlikedAtSift:
    """SIFT detects, ALIKED describes."""

    name = "aliked-n16"
    descriptor_dim = 128

    def __init__(self, max_keypoints: int = 2048, resize: int | None = 1024) -> None:
        self.sift = lumiglue.Sift(max_keypoints=max_keypoints, resize=resize)
        self.aliked = Aliked(resize=resize)

    def config(self) -> dict:
        """What the descriptors depend on."""
        return {"name": "aliked-at-sift", "sift": self.sift.config()}

    def __call__(self, image: np.ndarray) -> lumiglue.Features:
        """image: h x w x 3, RGB, uint8."""
        detected = self.sift(image)
        return lumiglue.Features(
            keypoints=detected.keypoints,
            descriptors=self.aliked.describe(image, detected.keypoints),
            image_size=detected.image_size,
            scores=detected.scores,
            extractor=self.name,
        )
