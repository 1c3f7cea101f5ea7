"""A sample pair with known ground truth: framed photographs before a brick wall, seen by two cameras.

The photographs come with scikit-image. Every surface is a plane, drawn by a homography, and the nearest one is visible. So
the true position of any pixel in the other image is known, occlusions included.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from skimage import data

SIZE = (800, 600)
_FOCAL = 700.0
# Texture, centre (metres; x right, y down, z ahead), yaw in degrees about the vertical, width in metres.
_PLANES = (
    ("brick", (0.0, 0.0, 5.4), 0.0, 9.0),
    ("coffee", (-1.75, -0.95, 4.9), 12.0, 1.7),
    ("astronaut", (-0.35, 0.15, 4.2), 6.0, 1.35),
    ("rocket", (1.35, -0.95, 4.8), -10.0, 1.7),
    ("chelsea", (1.2, 0.75, 3.7), -22.0, 1.3),
    ("camera", (-1.75, 0.85, 3.9), 24.0, 1.2),
)
# Camera centre, yaw and roll in degrees, exposure.
_CAMERAS = (((-0.9, -0.1, 0.0), 10.0, 2.0, 1.0), ((1.0, 0.15, 0.35), -13.0, -7.0, 0.72))


@dataclass(frozen=True, eq=False)
class SamplePair:
    """Two views with ground truth.

    Attributes:
        image0: h x w x 3, RGB.
        image1: h x w x 3, RGB.
        planes0: h x w, number of the plane that each pixel of image 0 shows.
        planes1: h x w, the same for image 1.
        homographies: p x 3 x 3, image1_from_image0 of each plane.
    """

    image0: UInt8[np.ndarray, "h w 3"]
    image1: UInt8[np.ndarray, "h w 3"]
    planes0: np.ndarray
    planes1: np.ndarray
    homographies: Float[np.ndarray, "p 3 3"]

    def is_right(self, points0: Float[np.ndarray, "k 2"], points1: Float[np.ndarray, "k 2"], px: float = 3.0) -> np.ndarray:
        """Which matches are correct.

        Args:
            points0: k x 2, pixels of image 0.
            points1: k x 2, the matching pixels of image 1.
            px: Largest distance from the true position in image 1, in pixels.

        Returns:
            k booleans: whether both points are on the same plane and the distance is within the limit.
        """
        planes = _look_up(self.planes0, points0)
        true1 = np.einsum("kij,kj->ki", self.homographies[planes], np.column_stack([points0, np.ones(len(points0))]))
        error = np.linalg.norm(true1[:, :2] / true1[:, 2:] - points1, axis=1)
        return (error <= px) & (_look_up(self.planes1, points1) == planes)


@dataclass(frozen=True)
class _Plane:
    """A textured rectangle in the world."""

    texture: np.ndarray
    centre: np.ndarray
    yaw: float
    width: float

    @cached_property
    def world_from_pixel(self) -> np.ndarray:
        """3 x 3: (u, v, 1) of the texture to a world point, linear because the plane is flat."""
        height, width = self.texture.shape[:2]
        metre = self.width / width
        right, down = _yaw(self.yaw)[:, 0] * metre, np.array([0.0, metre, 0.0])
        corner = self.centre - right * (width - 1) / 2 - down * (height - 1) / 2
        return np.column_stack([right, down, corner])


def sample_pair() -> SamplePair:
    """Renders the sample pair, always the same. Needs scikit-image (`pip install "lumiglue[sample]"`)."""
    planes = [_Plane(_texture(name), np.array(centre), yaw, width) for name, centre, yaw, width in _PLANES]
    images, labels, maps = zip(*(_render(planes, *camera) for camera in _CAMERAS), strict=True)
    homographies = np.stack([m1 @ np.linalg.inv(m0) for m0, m1 in zip(*maps, strict=True)])
    return SamplePair(images[0], images[1], labels[0], labels[1], homographies)


def _render(
    planes: list[_Plane], centre: tuple[float, float, float], yaw: float, roll: float, exposure: float
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Image, plane of each pixel, and image_from_texture homographies."""
    camera_from_world = _roll(roll) @ _yaw(yaw).T
    intrinsics = np.array([[_FOCAL, 0, (SIZE[0] - 1) / 2], [0, _FOCAL, (SIZE[1] - 1) / 2], [0, 0, 1.0]])
    x, y = np.meshgrid(np.arange(SIZE[0], dtype=np.float64), np.arange(SIZE[1], dtype=np.float64))
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1)
    image = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    label = np.zeros((SIZE[1], SIZE[0]), np.int64)
    nearest = np.full((SIZE[1], SIZE[0]), np.inf)
    maps = []
    for number, plane in enumerate(planes):
        world = plane.world_from_pixel - np.outer(centre, [0.0, 0.0, 1.0])
        image_from_texture = intrinsics @ camera_from_world @ world
        maps.append(image_from_texture)
        texture_point = pixels @ np.linalg.inv(image_from_texture).T
        depth = 1.0 / texture_point[..., 2]  # the intrinsics keep z, and the third coordinate of texture points is 1
        u_v = texture_point[..., :2] * depth[..., None]
        height, width = plane.texture.shape[:2]
        inside = (u_v >= -0.5).all(-1) & (u_v <= (width - 0.5, height - 0.5)).all(-1) & (depth > 0) & (depth < nearest)
        u, v = (np.ascontiguousarray(u_v[..., axis], dtype=np.float32) for axis in (0, 1))
        drawn = cv2.remap(plane.texture, u, v, cv2.INTER_LINEAR)
        image[inside], label[inside], nearest[inside] = drawn[inside], number, depth[inside]
    image = np.clip(255.0 * (image / 255.0) ** (1 / exposure), 0, 255).astype(np.uint8)
    return image, label, maps


def _texture(name: str) -> np.ndarray:
    """A bundled photograph as RGB with a white frame; the brick wall has none."""
    image = getattr(data, name)()
    image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image
    if name == "brick":
        return image
    border = max(image.shape) // 25
    return cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_CONSTANT, value=(245, 245, 245))


def _yaw(degrees: float) -> np.ndarray:
    return cv2.Rodrigues(np.array([0.0, np.radians(degrees), 0.0]))[0]


def _roll(degrees: float) -> np.ndarray:
    return cv2.Rodrigues(np.array([0.0, 0.0, np.radians(degrees)]))[0]


def _look_up(labels: np.ndarray, points: np.ndarray) -> np.ndarray:
    columns, rows = np.rint(points).astype(int).T
    return labels[rows.clip(0, labels.shape[0] - 1), columns.clip(0, labels.shape[1] - 1)]
