"""Synthetic scenes: photos on planes and boxes in space, seen by several cameras, with exact depth, pose and occlusion.

Homographies have neither parallax nor occlusion, and posed photos with depth are large downloads. A synthetic scene has both
at no cost: in every view each textured rectangle is a homography of its photo, and a z-buffer resolves occlusion.

World frame: x right, y down, z ahead (metres in name only); cameras look along +z of their own frame.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float64, UInt8

from lumiglue.errors import ImageError, InputError
from lumiglue.extractors import Extractor
from lumiglue.images import read_image, resize_long_side
from lumiglue.training.data.build import strongest
from lumiglue.training.data.dataset import Kind, View
from lumiglue.training.data.homographies import check_share, photo_names, photos_sha256, rng_for
from lumiglue.training.data.photometric import augment_photometric
from lumiglue.training.data.repeats import sometimes_repeating

NEAREST = 0.02  # nearer than this to the camera, rectangles are clipped


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """The distribution of scenes and cameras. Angles are in degrees; lengths are relative to a camera distance of 1.

    Attributes:
        objects: Smallest and largest number of boxes and boards in front of the backdrop.
        spread: Standard deviation of the viewing direction, so two views differ by about twice that.
        distance: Smallest and largest distance of the cameras, log-uniform.
        roll: Standard deviation of the in-plane rotation.
        any_roll: Fraction of views with a uniform in-plane rotation instead.
        focal: Smallest and largest focal length relative to the long side, log-uniform.
        photometric: Strength of the photometric augmentation.
        repeats: Fraction of photos with a part that repeats (`training/data/repeats.py`).
        size: (width, height) of the views in pixels.
    """

    objects: tuple[int, int] = (3, 9)
    spread: float = 18.0
    distance: tuple[float, float] = (0.8, 1.8)
    roll: float = 10.0
    any_roll: float = 0.1
    focal: tuple[float, float] = (0.7, 1.5)
    photometric: float = 0.7
    repeats: float = 0.0
    size: tuple[int, int] = (480, 360)

    def __post_init__(self) -> None:
        if not 0 <= self.objects[0] <= self.objects[1]:
            raise InputError(f"objects is {self.objects}; give two counts, the smaller first")
        if not 0 <= self.spread <= 60:
            raise InputError(f"spread is {self.spread} degrees; give 0 to 60")
        if min(self.size) < 64:
            raise InputError(f"size is {self.size}; give at least 64 x 64 pixels")
        check_share("any_roll", self.any_roll)
        check_share("repeats", self.repeats)


@dataclass(frozen=True, eq=False)
class Rectangle:
    """A photo on a rectangle in space: texture pixel (u, v) is at origin + u * right + v * down.

    Attributes:
        texture: The photo.
        origin: World position of the top-left pixel.
        right: World vector of one pixel to the right.
        down: World vector of one pixel down.
    """

    texture: UInt8[np.ndarray, "h w 3"]
    origin: Float64[np.ndarray, " 3"]
    right: Float64[np.ndarray, " 3"]
    down: Float64[np.ndarray, " 3"]

    @property
    def world_from_texture(self) -> Float64[np.ndarray, "3 3"]:
        """Maps (u, v, 1) to world coordinates."""
        return np.column_stack([self.right, self.down, self.origin])


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera.

    Attributes:
        intrinsics: Camera matrix in pixels.
        camera_from_world: Rigid transform.
        size: (width, height) of the image.
    """

    intrinsics: Float64[np.ndarray, "3 3"]
    camera_from_world: Float64[np.ndarray, "4 4"]
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Rendering:
    """A rendered view.

    Attributes:
        image: Pixels, RGB.
        depth: z of each pixel; infinite in the background.
        surface: Number of the rectangle at each pixel; -1 for the background.
    """

    image: UInt8[np.ndarray, "h w 3"]
    depth: Float64[np.ndarray, "h w"]
    surface: np.ndarray


def render(
    scene: Sequence[Rectangle], camera: Camera, brightness: Sequence[float] | None = None, background: int = 110
) -> Rendering:
    """Renders a scene. brightness: a factor for each rectangle, which varies with the viewing direction; 1 by default.
    background: its grey value."""
    width, height = camera.size
    image = np.full((height, width, 3), background, np.uint8)
    depth, surface = np.full((height, width), np.inf), np.full((height, width), -1, np.int16)
    for number, rectangle in enumerate(scene):
        drawn = _draw(rectangle, camera)
        if drawn is None:
            continue
        (left, top), pixels, covered, z = drawn
        window = (slice(top, top + z.shape[0]), slice(left, left + z.shape[1]))
        nearer = covered & (z < depth[window])
        if brightness is not None:
            pixels = cv2.convertScaleAbs(pixels, alpha=brightness[number])
        image[window][nearer], depth[window][nearer], surface[window][nearer] = pixels[nearer], z[nearer], number
    return Rendering(image, depth, surface)


def _draw(rectangle: Rectangle, camera: Camera) -> tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray] | None:
    """One rectangle, in the smallest window of pixels that contains it: (left, top), colours, coverage, z; or None."""
    rotation, translation = camera.camera_from_world[:3, :3], camera.camera_from_world[:3, 3:]
    camera_from_texture = rotation @ rectangle.world_from_texture + translation @ np.array([[0.0, 0.0, 1.0]])
    height, width = rectangle.texture.shape[:2]
    corners = np.array([[-0.5, -0.5, 1], [width - 0.5, -0.5, 1], [width - 0.5, height - 0.5, 1], [-0.5, height - 0.5, 1]]).T
    outline = _clip(camera_from_texture @ corners)
    if outline is None or abs(np.linalg.det(camera_from_texture)) < 1e-12:  # behind the camera, or seen edge-on
        return None
    pixels = (camera.intrinsics @ outline)[:2] / outline[2]
    low = np.maximum(np.floor(pixels.min(1)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(pixels.max(1)).astype(int) + 2, camera.size)
    if (high <= low).any():
        return None
    # In front of the camera, (u, v, 1) / z = texture_from_image @ (x, y, 1).
    shifted = camera.intrinsics.copy()
    shifted[:2, 2] -= low
    texture_from_image = np.linalg.inv(shifted @ camera_from_texture)
    y, x = np.mgrid[0 : high[1] - low[1], 0 : high[0] - low[0]]
    u, v, inverse_z = np.tensordot(texture_from_image, np.stack([x, y, np.ones_like(x)]), 1)
    z = np.divide(1.0, inverse_z, out=np.full(x.shape, np.inf), where=inverse_z > 1e-9)
    ahead = inverse_z > 1e-9
    u, v = np.where(ahead, u, -1e6) * np.where(ahead, z, 1.0), np.where(ahead, v, -1e6) * np.where(ahead, z, 1.0)
    covered = ahead & (np.abs(u - (width - 1) / 2) <= width / 2) & (np.abs(v - (height - 1) / 2) <= height / 2)
    if not covered.any():
        return None
    texture, u, v = _shrunk_to_fit(rectangle.texture, u.astype(np.float32), v.astype(np.float32), covered)
    colours = cv2.remap(texture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return (int(low[0]), int(low[1])), colours, covered, z


def _clip(corners: np.ndarray) -> np.ndarray | None:
    """The part of a polygon (3 x n, camera frame) in front of the camera; None if there is none."""
    clipped = []
    for a, b in zip(corners.T, np.roll(corners.T, -1, axis=0), strict=True):
        if a[2] >= NEAREST:
            clipped.append(a)
        if (a[2] >= NEAREST) != (b[2] >= NEAREST):
            clipped.append(a + (b - a) * (NEAREST - a[2]) / (b[2] - a[2]))
    return np.column_stack(clipped) if len(clipped) >= 3 else None


def _shrunk_to_fit(
    texture: np.ndarray, u: np.ndarray, v: np.ndarray, covered: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The texture at the resolution of the view, against aliasing, and the coordinates in it."""
    inside = covered[:-1, :-1] & covered[1:, :-1] & covered[:-1, 1:]
    if not inside.any():
        return texture, u, v
    step_x, step_y = np.diff(u, axis=1)[:-1][inside], np.diff(v, axis=1)[:-1][inside]
    down_x, down_y = np.diff(u, axis=0)[:, :-1][inside], np.diff(v, axis=0)[:, :-1][inside]
    shrink = float(np.sqrt(np.median(np.abs(step_x * down_y - step_y * down_x))))  # texture pixels per image pixel
    if shrink <= 1.3:
        return texture, u, v
    size = [max(2, round(side / shrink)) for side in texture.shape[1::-1]]
    smaller = cv2.resize(texture, size, interpolation=cv2.INTER_AREA)
    scale_x, scale_y = smaller.shape[1] / texture.shape[1], smaller.shape[0] / texture.shape[0]
    return smaller, (u + 0.5) * np.float32(scale_x) - 0.5, (v + 0.5) * np.float32(scale_y) - 0.5


def build_scene(rng: np.random.Generator, textures: Iterator[np.ndarray], settings: SceneSettings) -> list[Rectangle]:
    """A backdrop of photos (a wall, sometimes with a floor and a side wall) and objects near the origin."""
    depth, tilt = rng.uniform(0.4, 1.2), rng.uniform(-0.3, 0.3)
    scene = _wall(
        textures, np.array([0.0, 0.0, depth]), _rotation(rng.uniform(-0.1, 0.1), tilt, 0.0), rng.uniform(0.8, 1.3), 3, 3
    )
    if rng.random() < 0.6:
        below = np.array([0.0, rng.uniform(0.35, 0.7), 0.0])
        scene += _wall(textures, below, _rotation(-np.pi / 2, 0, rng.uniform(-0.3, 0.3)), 0.9, 3, 3)
    if rng.random() < 0.4:
        side = rng.choice([-1, 1])
        turn = _rotation(0, side * rng.uniform(1.0, 1.5), 0)
        scene += _wall(textures, np.array([side * rng.uniform(0.8, 1.3), 0.0, 0.0]), turn, 0.9, 2, 2)
    for _ in range(int(rng.integers(settings.objects[0], settings.objects[1] + 1))):
        place = np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.4, 0.4), rng.uniform(-0.25, 0.4)])
        if rng.random() < 0.5:
            scene += _box(textures, place, _rotation(*rng.normal(0, [0.15, 0.6, 0.15])), rng.uniform(0.12, 0.35, 3))
        else:
            scene += _wall(textures, place, _rotation(*rng.normal(0, [0.35, 0.5, 0.3])), rng.uniform(0.2, 0.6), 1, 1)
    return scene


def aim_camera(rng: np.random.Generator, settings: SceneSettings) -> Camera:
    """A random camera about one unit in front of the origin that looks near it."""
    width, height = settings.size
    pitch, yaw = np.radians(settings.spread) * rng.standard_normal(2) * [0.5, 1.0]
    roll = rng.uniform(0, 360) if rng.random() < settings.any_roll else rng.normal(0, settings.roll)
    rotation = _rotation(0, 0, np.radians(roll)) @ _rotation(pitch, np.clip(yaw, -1.2, 1.2), 0)
    look_at = rng.normal(0, [0.15, 0.1, 0.1])
    distance = np.exp(rng.uniform(*np.log(settings.distance)))
    camera_from_world = np.eye(4)
    camera_from_world[:3, :3] = rotation
    camera_from_world[:3, 3] = np.array([0, 0, distance]) - rotation @ look_at
    focal = np.exp(rng.uniform(*np.log(settings.focal))) * max(width, height)
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    return Camera(intrinsics, camera_from_world, settings.size)


def depths_at(rendering: Rendering, points: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
    """Depth at pixels (x, y); NaN in the background and within 2 pixels of depth edges, where a keypoint belongs to
    neither surface."""
    height, width = rendering.depth.shape
    x, y = np.clip(np.rint(points), 0, [width - 1, height - 1]).astype(int).T
    square = np.ones((5, 5), np.uint8)
    nearest, farthest = (
        morph(rendering.depth, square, borderType=cv2.BORDER_REPLICATE) for morph in (cv2.erode, cv2.dilate)
    )
    jump = (farthest > 1.1 * nearest)[y, x]
    x0, y0 = np.clip(np.floor(points), 0, [width - 2, height - 2]).astype(int).T
    fx, fy = (points - np.column_stack([x0, y0])).T
    with np.errstate(invalid="ignore"):
        inverse = 1 / rendering.depth  # on a plane, linear in pixels
        upper = inverse[y0, x0] * (1 - fx) + inverse[y0, x0 + 1] * fx
        lower = inverse[y0 + 1, x0] * (1 - fx) + inverse[y0 + 1, x0 + 1] * fx
        interpolated = upper * (1 - fy) + lower * fy
    known = ~jump & (rendering.surface[y, x] >= 0) & (interpolated > 0)
    return np.divide(1.0, interpolated, out=np.full(len(points), np.nan), where=known)


@dataclass(frozen=True)
class SyntheticScenes:
    """The source of a dataset of synthetic scenes, textured with the photos of a folder.

    A scene uses each photo once before it repeats one: a matcher cannot tell two equal surfaces apart, but would learn not
    to match their points. Views depend on the seed, the scene's number and the list of photos.

    Attributes:
        root: Folder of the photos.
        photos: Names of the photos.
        count: Number of scenes.
        n_views: Views of each scene.
        texture_side: Photos are shrunk to this long side, in pixels.
        seed: Seed of scenes and views.
        settings: Distribution of scenes and cameras.
        device: Where the photometric augmentation is computed.
    """

    root: Path
    photos: Sequence[str]
    count: int = 1000
    n_views: int = 5
    texture_side: int = 320
    seed: int = 0
    settings: SceneSettings = SceneSettings()
    device: str = "cpu"
    kind: Kind = field(default="depth", init=False)

    def __post_init__(self) -> None:
        if self.n_views < 2 or self.count < 1:
            raise InputError(
                f"{self.count} synthetic scenes of {self.n_views} views make no pair; give at least 1 scene and 2 views"
            )

    @classmethod
    def of_folder(cls, folder: str | Path, **settings: Any) -> "SyntheticScenes":
        """Scenes textured with the photos of a folder and its subfolders. Raises InputError if there is none."""
        root = Path(folder).resolve()
        return cls(root, photo_names(root), **settings)

    @property
    def items(self) -> Sequence[str]:
        """Names of the scenes. They seed the views, so a name must not change."""
        return [f"world-{number:06d}" for number in range(self.count)]

    def plan(self) -> dict[str, Any]:
        """All that the views depend on besides the scenes' names and the extractor, as JSON values."""
        return {
            "source": "worlds", "photos": len(self.photos), "photos_sha256": photos_sha256(self.root, self.photos),
            "views": self.n_views, "texture_side": self.texture_side, "seed": self.seed, "world": asdict(self.settings),
        }  # fmt: skip

    def pairs(self) -> None:
        """None: all views of a scene are paired."""

    def views(self, item: int, extractor: Extractor, max_keypoints: int) -> list[View]:
        """The views of one scene. Raises ImageError if no photo can be read."""
        rng = rng_for(self.seed, self.items[item])
        scene = build_scene(rng, self.textures(rng), self.settings)
        return [self._view(self.items[item], scene, extractor, max_keypoints, rng) for _ in range(self.n_views)]

    def textures(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """The photos in random order, then their mirror images, in an endless loop. Photos that cannot be read are skipped;
        raises ImageError if none can."""
        order, readable = rng.permutation(np.array(self.photos)).tolist(), True
        for mirrored in cycle((False, True)):
            if not readable:
                raise ImageError(f"no photo of {self.root} can be read; a scene needs at least one")
            readable = False
            for name in order:
                try:
                    photo = resize_long_side(read_image(self.root / name), self.texture_side)
                except ImageError:
                    continue
                readable = True
                photo = sometimes_repeating(rng, photo, self.settings.repeats)
                yield photo[:, ::-1].copy() if mirrored else photo

    def _view(
        self, name: str, scene: list[Rectangle], extractor: Extractor, max_keypoints: int, rng: np.random.Generator
    ) -> View:
        camera = aim_camera(rng, self.settings)
        shine = np.exp(rng.normal(0, 0.12 * self.settings.photometric, len(scene))).tolist()
        rendering = render(scene, camera, shine, int(rng.integers(40, 200)))
        pixels = torch.from_numpy(rendering.image).to(self.device)
        features = extractor(augment_photometric(rng, pixels, self.settings.photometric).cpu().numpy())
        depths = depths_at(rendering, features.keypoints.numpy().astype(np.float64))
        rows = strongest(features, np.isfinite(depths), max_keypoints)
        return View(
            name, features[torch.from_numpy(rows)], intrinsics=camera.intrinsics,
            camera_from_world=camera.camera_from_world, depths=depths[rows],
        )  # fmt: skip


def _wall(
    textures: Iterator[np.ndarray], centre: np.ndarray, rotation: np.ndarray, tile: float, columns: int, rows: int
) -> list[Rectangle]:
    """A plane tiled with photos of width `tile`. Without a rotation it faces -z."""
    rectangles = []
    high = 0.75 * tile
    for row in range(rows):
        for column in range(columns):
            middle = np.array([(column - (columns - 1) / 2) * tile, (row - (rows - 1) / 2) * high, 0.0])
            rectangles.append(_face(next(textures), centre + rotation @ middle, rotation, tile, high))
    return rectangles


def _box(textures: Iterator[np.ndarray], centre: np.ndarray, rotation: np.ndarray, half: np.ndarray) -> list[Rectangle]:
    """Five faces of a box with half side lengths `half`; the bottom is never visible."""
    width, height, depth = half
    faces = [
        (_rotation(0, 0, 0), (0, 0, -depth), width, height),
        (_rotation(0, np.pi, 0), (0, 0, depth), width, height),
        (_rotation(0, np.pi / 2, 0), (-width, 0, 0), depth, height),
        (_rotation(0, -np.pi / 2, 0), (width, 0, 0), depth, height),
        (_rotation(-np.pi / 2, 0, 0), (0, -height, 0), width, depth),
    ]
    return [
        _face(next(textures), centre + rotation @ np.array(place), rotation @ turn, 2 * wide, 2 * high)
        for turn, place, wide, high in faces
    ]


def _face(texture: np.ndarray, centre: np.ndarray, rotation: np.ndarray, width: float, height: float) -> Rectangle:
    """A texture on a rectangle around `centre`."""
    rows, columns = texture.shape[:2]
    right, down = rotation[:, 0] * width / columns, rotation[:, 1] * height / rows
    return Rectangle(texture, centre - right * (columns - 1) / 2 - down * (rows - 1) / 2, right, down)


def _rotation(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """Rotation about x, then y, then z, in radians."""
    turns = [cv2.Rodrigues(np.array(axis, dtype=np.float64))[0] for axis in ((pitch, 0, 0), (0, yaw, 0), (0, 0, roll))]
    return turns[2] @ turns[1] @ turns[0]
