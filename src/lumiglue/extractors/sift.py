"""SIFT (Lowe 2004) with RootSIFT descriptors (Arandjelovic and Zisserman 2012), over OpenCV: the default features."""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from lumiglue.errors import InputError
from lumiglue.extractors.regions import check_limits
from lumiglue.images import resize_long_side, to_grey
from lumiglue.types import Features

# OpenCV repeats a keypoint for each further peak of its orientation histogram: on photos, 1.2 times as many keypoints as
# positions. With this factor enough remain when the repeats are removed.
_REPEAT_MARGIN = 1.4
_NAME = "sift"
_CHANNELS = 128


@dataclass(frozen=True, kw_only=True)
class Sift:
    """SIFT features.

    Attributes:
        max_keypoints: Number of keypoints to keep, the strongest by detector response; None keeps all.
        resize: Long side in pixels to which larger images are downscaled before detection; None keeps the full size.
            Keypoints are always returned in pixels of the given image.
        contrast_threshold: As in Lowe's paper; a low one also detects points in regions of low contrast.
        edge_threshold: As in Lowe's paper.
        rootsift: Whether to L1-normalise and take the square root, so that the inner product is the Hellinger kernel.
        one_orientation: Whether to keep one keypoint per position and scale. SIFT repeats a position for each strong peak
            of its orientation histogram, and such repeats make the ground truth of a one-to-one assignment ambiguous.
    """

    max_keypoints: int | None = 2048
    resize: int | None = 1024
    contrast_threshold: float = 0.01
    edge_threshold: float = 10.0
    rootsift: bool = True
    one_orientation: bool = True

    def __post_init__(self) -> None:
        check_limits(self.max_keypoints, self.resize)
        if not self.contrast_threshold >= 0:
            raise InputError(f"contrast_threshold is {self.contrast_threshold}; give at least 0 (the default is 0.01)")

    @property
    def name(self) -> str:
        """The name stored beside features and weights."""
        return _NAME

    @property
    def descriptor_dim(self) -> int:
        """Number of channels of a descriptor: 4 x 4 cells of 8 directions."""
        return _CHANNELS

    def config(self) -> dict[str, Any]:
        """The settings that descriptors depend on, as JSON values."""
        return {"name": self.name, "rootsift": self.rootsift, "one_orientation": self.one_orientation}

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Features:
        """Detects and describes keypoints.

        Args:
            image: h x w x 3, RGB.

        Returns:
            Up to `max_keypoints` features, strongest first; none in a blank image. Scales are sigma in pixels (half of
            OpenCV's `size`, a diameter), orientations are radians, clockwise.
        """
        height, width = image.shape[:2]
        grey = to_grey(resize_long_side(image, self.resize))
        scale_x, scale_y = width / grey.shape[1], height / grey.shape[0]
        table, descriptors = self._detect(grey)
        if not len(table):
            return _no_features((width, height))
        rows = self._choose(table)
        table, descriptors = table[rows], descriptors[rows].astype(np.float32)
        if self.rootsift:
            descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-12))
        else:
            descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-12)
        table[:, 0] = (table[:, 0] + 0.5) * scale_x - 0.5
        table[:, 1] = (table[:, 1] + 0.5) * scale_y - 0.5
        table[:, 2] *= math.sqrt(scale_x * scale_y)
        x_y, scales, orientations, scores = np.split(table.astype(np.float32), [2, 3, 4], axis=1)
        return Features(
            keypoints=torch.from_numpy(np.ascontiguousarray(x_y)),
            descriptors=torch.from_numpy(descriptors),
            image_size=(width, height),
            scores=torch.from_numpy(scores[:, 0].copy()),
            scales=torch.from_numpy(scales[:, 0].copy()),
            orientations=torch.from_numpy(orientations[:, 0].copy()),
            extractor=self.name,
        )

    def _detect(self, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (x, y, sigma, radians, response) and descriptors; enough of them to keep `max_keypoints` after `_choose`."""
        if min(grey.shape) < 8:
            return np.zeros((0, 5)), np.zeros((0, _CHANNELS), np.float32)
        margin = _REPEAT_MARGIN if self.one_orientation else 1.0
        count = 0 if self.max_keypoints is None else math.ceil(self.max_keypoints * margin)  # 0 is all of them
        while True:
            # Precise upscale: without it OpenCV's doubled first octave shifts keypoints by a quarter pixel.
            detector = cv2.SIFT.create(
                count, 3, self.contrast_threshold, self.edge_threshold, 1.6, enable_precise_upscale=True
            )
            points, descriptors = detector.detectAndCompute(grey, None)
            if not points or descriptors is None:
                return np.zeros((0, 5)), np.zeros((0, _CHANNELS), np.float32)
            rows = [(*p.pt, p.size / 2, math.radians(p.angle), p.response) for p in points]
            table = np.array(rows, dtype=np.float64)
            if self.max_keypoints is None or len(points) < count or len(self._choose(table)) == self.max_keypoints:
                return table, descriptors
            count *= 2

    def _choose(self, table: np.ndarray) -> np.ndarray:
        """Rows to keep: strongest first, one per position; ties by position so that the order never depends on OpenCV's."""
        order = np.lexsort((table[:, 3], table[:, 1], table[:, 0], -table[:, 4]))
        if self.one_orientation:
            _, first = np.unique(table[order][:, :3].round(3), axis=0, return_index=True)
            order = order[np.sort(first)]
        return order[: self.max_keypoints]


def _no_features(size: tuple[int, int]) -> Features:
    empty = torch.zeros(0)
    return Features(
        keypoints=torch.zeros(0, 2),
        descriptors=torch.zeros(0, _CHANNELS),
        image_size=size,
        scores=empty,
        scales=empty,
        orientations=empty,
        extractor=_NAME,
    )
