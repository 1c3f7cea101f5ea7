"""ORB (Rublee et al., ICCV 2011) as an extractor: lumiglue match a.jpg b.jpg --features examples/orb.py:Orb ..."""

import math

import cv2
import numpy as np
import torch

import lumiglue

SPACING = 3  # pixels; within 3 pixels, labels do not tell two points apart


class Orb:
    """OpenCV's ORB: FAST corners on a pyramid, with a direction, and 256 bits that become unit vectors of +-1/16."""

    name = "orb"
    descriptor_dim = 256

    def __init__(self, max_keypoints: int = 2048) -> None:
        self.max_keypoints = max_keypoints
        self.detector = cv2.ORB.create(nfeatures=4 * max_keypoints, scaleFactor=1.2, nlevels=8, fastThreshold=7)

    def config(self) -> dict:
        """What the descriptors depend on."""
        return {"name": self.name, "levels": 8, "scale_factor": 1.2, "spacing": SPACING}

    def __call__(self, image: np.ndarray) -> lumiglue.Features:
        """image: h x w x 3, RGB, uint8."""
        points, raw_bits = self.detector.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
        bits = np.asarray(raw_bits, np.uint8) if points else np.zeros((0, 32), np.uint8)
        scales = np.array([1.2**p.octave for p in points], np.float32)
        # OpenCV multiplies a level's pixels by its nominal scale. But a level has a whole number of pixels, so x and y
        # have their own factors, and the centre of its top-left pixel is not that of the photo's.
        size, of_level = np.array(image.shape[1::-1]), scales.reshape(-1, 1)
        on_level = np.array([p.pt for p in points]).reshape(-1, 2) / of_level
        keypoints = (on_level + 0.5) * (size / np.rint(size / of_level)) - 0.5
        scores = np.array([p.response for p in points], np.float32)
        rows = apart(keypoints, scores, SPACING)[: self.max_keypoints]
        signs = np.unpackbits(bits[rows], axis=1).astype(np.float32) * 2 - 1
        return lumiglue.Features(
            keypoints=torch.from_numpy(keypoints[rows]).float(),
            descriptors=torch.from_numpy(signs / 16),
            image_size=(image.shape[1], image.shape[0]),
            scores=torch.from_numpy(scores[rows]),
            scales=torch.from_numpy(scales[rows]),
            orientations=torch.tensor([math.radians(points[row].angle) for row in rows]),
        )


def apart(keypoints: np.ndarray, scores: np.ndarray, spacing: int) -> list[int]:
    """Rows, strongest first, of which no two are within about `spacing` pixels. ORB finds a corner on several levels of
    its pyramid, three times on average; as copies of one point they compete for its match, and none of them gets it."""
    cells = np.rint(keypoints).astype(int) + spacing
    taken = np.zeros(cells.max(0, initial=0) + spacing + 1, bool)
    rows = []
    for row in np.argsort(-scores, kind="stable"):
        x, y = cells[row]
        if not taken[x, y]:
            taken[x - spacing : x + spacing + 1, y - spacing : y + spacing + 1] = True
            rows.append(int(row))
    return rows
