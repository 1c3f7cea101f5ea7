"""Convert a COLMAP model and its photos to the plain posed format.

The photos are undistorted, and the tracked points become depth maps: the surface between neighbouring points of similar
depth is assumed to be flat, and the depth is unknown elsewhere. Needs pycolmap (`pip install lumiglue[sfm]`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
from jaxtyping import Bool, Float, Float64, Int, UInt8
from matplotlib.tri import Triangulation

from lumiglue.collection import cameras
from lumiglue.errors import InputError
from lumiglue.io.atomic import write_whole
from lumiglue.training.data.posed_formats import FORMAT, VERSION

_COLMAP_PIXEL = 0.5  # COLMAP puts (0.5, 0.5) on the centre of the top-left pixel
_STAMP = 2  # radius in pixels around a point that gets its depth
_JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True)
class SfmSettings:
    """Which points to trust, and how far to interpolate between them.

    Attributes:
        min_track: Smallest number of photos that see a point.
        max_error: Largest mean reprojection error of a point, in pixels.
        min_angle: Smallest triangulation angle of a point, in degrees; below it depths are inaccurate.
        max_edge: Longest edge of a triangle, relative to the photo's long side.
        max_ratio: Largest ratio of the depths of a triangle's corners.
    """

    min_track: int = 3
    max_error: float = 2.0
    min_angle: float = 2.0
    max_edge: float = 0.05
    max_ratio: float = 1.1

    def __post_init__(self) -> None:
        if self.min_track < 2:
            raise InputError(f"min_track is {self.min_track}; give at least 2: one photo determines no depth")
        if not (self.max_error > 0 and self.min_angle >= 0 and 0 <= self.max_edge <= 1 and self.max_ratio >= 1):
            raise InputError("give max_error above 0, min_angle of at least 0, max_edge in 0..1 and max_ratio of at least 1")


@dataclass(frozen=True)
class SfmProgress:
    """One photo of a conversion.

    Attributes:
        name: Name of the photo.
        photos: Number of photos in the model.
        known: Fraction of its pixels with depth; None if the photo could not be read and is left out.
    """

    name: str
    photos: int
    known: float | None


def posed_from_sfm(
    model: str | Path, images: str | Path, out: str | Path, settings: SfmSettings | None = None
) -> Iterator[SfmProgress]:
    """Converts a COLMAP model. Poses and depths keep the model's unit.

    Args:
        model: Folder with cameras, images and points3D, .bin or .txt.
        images: Folder of the photos.
        out: Folder to write: images/, depth/ and, at the end, cameras.json. An interrupted run leaves no cameras.json.
        settings: Which points to trust.

    Yields:
        The progress after each photo.

    Raises:
        InputError: If the model cannot be read, has no photo with a pose, or none of its photos is in `images`.
    """
    settings, model, images, out = settings or SfmSettings(), Path(model), Path(images), Path(out)
    reconstruction = read_model(model)
    trusted = trusted_points(reconstruction, settings)
    posed = sorted((reconstruction.image(number) for number in reconstruction.reg_image_ids()), key=lambda image: image.name)
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "depth").mkdir(parents=True, exist_ok=True)
    frames: list[dict[str, Any]] = []
    for image in posed:
        path = images / image.name
        bitmap = pycolmap.Bitmap.read(path, as_rgb=True) if path.is_file() else None
        if bitmap is None:
            yield SfmProgress(image.name, len(posed), None)
            continue
        frame, known = _convert(reconstruction, image, bitmap.to_array(), trusted, out, settings)
        frames.append(frame)
        yield SfmProgress(image.name, len(posed), known)
    if not frames:
        raise InputError(f"none of the model's {len(posed)} photos can be read in {images}, the first is {posed[0].name}")
    content = {"format": FORMAT, "version": VERSION, "scene": out.resolve().name, "frames": frames}
    write_whole(out / "cameras.json", json.dumps(content, indent=1).encode())


def read_model(folder: Path) -> pycolmap.Reconstruction:
    """Reads a COLMAP model. Raises InputError if there is none, or fewer than two of its photos have a pose."""
    model = cameras.read_model(folder)
    if model.num_reg_images() < 2:
        raise InputError(f"{folder} has {model.num_reg_images()} photos with a pose; a model needs at least 2")
    return model


def trusted_points(reconstruction: pycolmap.Reconstruction, settings: SfmSettings) -> dict[int, np.ndarray]:
    """Selects the points that many photos see, precisely, and from different directions: world position by number."""
    reconstruction.update_point_3d_errors()
    centres = {number: reconstruction.image(number).projection_center() for number in reconstruction.reg_image_ids()}
    trusted: dict[int, np.ndarray] = {}
    for number, point in reconstruction.points3D.items():
        seen_by = {element.image_id for element in point.track.elements}
        if len(seen_by) < settings.min_track or point.error > settings.max_error:
            continue
        rays = np.stack([centres[image] for image in seen_by]) - point.xyz
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        if np.degrees(np.arccos(np.clip((rays @ rays.T).min(), -1, 1))) >= settings.min_angle:
            trusted[number] = point.xyz
    return trusted


def _convert(
    reconstruction: pycolmap.Reconstruction,
    image: pycolmap.Image,
    pixels: np.ndarray,
    trusted: dict[int, np.ndarray],
    out: Path,
    settings: SfmSettings,
) -> tuple[dict[str, Any], float]:
    """Writes one photo and its depth map; returns its entry in cameras.json and the fraction of known depths."""
    camera = reconstruction.camera(image.camera_id)
    if pixels.shape[:2] != (camera.height, camera.width):
        raise InputError(
            f"{image.name} is {pixels.shape[1]} x {pixels.shape[0]} but its camera in the model {camera.width} x "
            f"{camera.height}; give the photos that the model was made from"
        )
    photo, intrinsics = undistort(pixels, camera)
    pose = np.eye(4)
    pose[:3] = image.cam_from_world().matrix()
    numbers = sorted({p.point3D_id for p in image.points2D if p.has_point3D()} & trusted.keys())
    points = np.array([trusted[number] for number in numbers]).reshape(-1, 3)
    in_camera = points @ pose[:3, :3].T + pose[:3, 3]
    depth = interpolate_depth(in_camera, intrinsics, photo.shape[:2], settings)
    stem = Path(image.name).with_suffix("").as_posix().replace("/", "__") + Path(image.name).suffix.replace(".", "_")
    scale = 65000 / max(float(depth.max()), 1e-12)  # the full range of 16 bits
    cv2.imwrite(str(out / "images" / f"{stem}.jpg"), photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    cv2.imwrite(str(out / "depth" / f"{stem}.png"), np.rint(depth * scale).astype(np.uint16))
    entry = {
        "image": f"images/{stem}.jpg",
        "depth": f"depth/{stem}.png",
        "depth_scale": scale,
        "K": intrinsics.tolist(),
        "camera_from_world": pose.tolist(),
    }
    return entry, float((depth > 0).mean())


def undistort(
    pixels: UInt8[np.ndarray, "h w 3"], camera: pycolmap.Camera
) -> tuple[UInt8[np.ndarray, "p q 3"], Float64[np.ndarray, "3 3"]]:
    """The photo without distortion and blank pixels, and its camera matrix, where (0, 0) is the centre of the top-left
    pixel."""
    pinhole = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
    x, y = np.meshgrid(np.arange(pinhole.width) + _COLMAP_PIXEL, np.arange(pinhole.height) + _COLMAP_PIXEL)
    rays = np.asarray(pinhole.cam_from_img(np.stack([x.ravel(), y.ravel()], axis=1)))
    source = np.asarray(camera.img_from_cam(np.column_stack([rays, np.ones(len(rays))]))) - _COLMAP_PIXEL
    map_x, map_y = np.ascontiguousarray(source.T, dtype=np.float32).reshape(2, pinhole.height, pinhole.width)
    photo = cv2.remap(np.ascontiguousarray(pixels), map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    intrinsics = np.array(pinhole.calibration_matrix(), dtype=np.float64)
    intrinsics[:2, 2] -= _COLMAP_PIXEL
    return photo, intrinsics


def interpolate_depth(
    points: Float64[np.ndarray, "n 3"],
    intrinsics: Float64[np.ndarray, "3 3"],
    shape: tuple[int, int],
    settings: SfmSettings,
) -> Float[np.ndarray, "h w"]:
    """Makes a depth map, 0 where unknown, of (height, width) `shape` from points in the camera frame.

    1 / depth is interpolated over small Delaunay triangles of the projected points, which is exact on planes. Each point
    also fills the few pixels around it, so that a tracked keypoint has its depth.
    """
    height, width = shape
    inverse = np.zeros(shape, dtype=np.float64)
    points = points[points[:, 2] > 1e-9]
    mapped = points @ intrinsics.T
    pixels = mapped[:, :2] / mapped[:, 2:]
    inside = np.all((pixels > -0.5) & (pixels < np.array([width, height]) - 0.5), axis=1)
    pixels, nearness = pixels[inside], 1 / points[inside, 2]
    for (x, y), value in sorted(
        zip(np.rint(pixels).astype(int).tolist(), nearness.tolist(), strict=True), key=lambda p: p[1]
    ):
        inverse[max(y - _STAMP, 0) : y + _STAMP + 1, max(x - _STAMP, 0) : x + _STAMP + 1] = value  # the nearest point wins
    triangles = _triangulate(pixels)
    for triangle in triangles[_small(pixels, nearness, triangles, settings.max_edge * max(shape), settings.max_ratio)]:
        _fill(inverse, pixels[triangle], nearness[triangle])
    return np.divide(1.0, inverse, out=np.zeros(shape), where=inverse > 0).astype(np.float32)


def _triangulate(pixels: np.ndarray) -> Int[np.ndarray, "t 3"]:
    """Delaunay triangles; none for fewer than 3 points or collinear points."""
    try:
        return np.asarray(Triangulation(pixels[:, 0], pixels[:, 1]).triangles).astype(np.int64)
    except (ValueError, RuntimeError):
        return np.zeros((0, 3), dtype=np.int64)


def _small(
    pixels: np.ndarray, nearness: np.ndarray, triangles: np.ndarray, longest: float, ratio: float
) -> Bool[np.ndarray, " t"]:
    corners, values = pixels[triangles], nearness[triangles]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    return (edges.max(1, initial=0) <= longest) & (values.max(1, initial=0) <= ratio * values.min(1, initial=np.inf))


def _fill(inverse: np.ndarray, corners: np.ndarray, values: np.ndarray) -> None:
    """Writes the plane through three (x, y, 1 / depth) into the pixels inside the triangle."""
    low = np.maximum(np.ceil(corners.min(0) - 1e-9).astype(int), 0)
    high = np.minimum(np.floor(corners.max(0) + 1e-9).astype(int), np.array(inverse.shape[::-1]) - 1)
    x, y = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
    system = np.column_stack([corners, np.ones(3)])
    if abs(np.linalg.det(system)) < 1e-9:
        return
    barycentric = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(system)
    inside = (barycentric >= -1e-9).all(-1)
    inverse[y[inside], x[inside]] = barycentric[inside] @ values
