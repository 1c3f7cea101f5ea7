"""Projective geometry in pixels: functions of tensors, batched over leading dimensions."""

import torch
from jaxtyping import Float
from torch import Tensor


def transform(homography: Float[Tensor, "*b 3 3"], points: Float[Tensor, "*b n 2"]) -> Float[Tensor, "*b n 2"]:
    """Maps points (n x 2) by a homography (3 x 3); points on or behind its horizon map to infinity."""
    mapped = points @ homography[..., :2].mT + homography[..., 2].unsqueeze(-2)
    depth = mapped[..., 2:]
    return torch.where(depth > 1e-8, mapped[..., :2] / depth, torch.inf)


def transfer(
    points: Float[Tensor, "*b n 2"],
    depths: Float[Tensor, "*b n"],
    intrinsics0: Float[Tensor, "*b 3 3"],
    intrinsics1: Float[Tensor, "*b 3 3"],
    camera1_from_camera0: Float[Tensor, "*b 4 4"],
) -> tuple[Float[Tensor, "*b n 2"], Float[Tensor, "*b n"]]:
    """Projects pixels of image 0 with known depth into image 1.

    Args:
        points: n x 2, pixels of image 0.
        depths: n, z in camera 0; NaN if unknown.
        intrinsics0: 3 x 3, of camera 0.
        intrinsics1: 3 x 3, of camera 1.
        camera1_from_camera0: 4 x 4, in the unit of the depths.

    Returns:
        The points in image 1 (n x 2, pixels), infinite behind camera 1 and NaN where the depth is NaN; and their depths in
        camera 1 (n).
    """
    rays = torch.nn.functional.pad(points, (0, 1), value=1.0) @ torch.linalg.inv(intrinsics0).mT
    rotation, translation = camera1_from_camera0[..., :3, :3], camera1_from_camera0[..., :3, 3]
    in_camera1 = (rays * depths.unsqueeze(-1)) @ rotation.mT + translation.unsqueeze(-2)
    pixels, depth = in_camera1 @ intrinsics1.mT, in_camera1[..., 2]
    seen = torch.where(depth.unsqueeze(-1) > 1e-8, pixels[..., :2] / pixels[..., 2:], torch.inf)
    return torch.where(depth.isnan().unsqueeze(-1), torch.nan, seen), depth


def reprojection_error(
    image1_from_image0: Float[Tensor, "3 3"], points0: Float[Tensor, "k 2"], points1: Float[Tensor, "k 2"]
) -> Float[Tensor, " k"]:
    """Distance in pixels of image 1 between each mapped point of image 0 and its match."""
    return (transform(image1_from_image0, points0) - points1).norm(dim=-1)


def skew(v: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """The matrix [v]_x: skew(v) @ w is the cross product of v and w."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def fundamental_from_pose(
    intrinsics0: Float[Tensor, "*b 3 3"],
    intrinsics1: Float[Tensor, "*b 3 3"],
    rotation: Float[Tensor, "*b 3 3"],
    translation: Float[Tensor, "*b 3"],
) -> Float[Tensor, "*b 3 3"]:
    """The fundamental matrix F with x1^T F x0 = 0, for X_1 = rotation X_0 + translation."""
    essential = skew(translation) @ rotation
    return torch.linalg.inv(intrinsics1).mT @ essential @ torch.linalg.inv(intrinsics0)


def epipolar_distances(
    fundamental: Float[Tensor, "*b 3 3"], points0: Float[Tensor, "*b m 2"], points1: Float[Tensor, "*b n 2"]
) -> tuple[Float[Tensor, "*b m n"], Float[Tensor, "*b m n"]]:
    """Distances of points to epipolar lines, for all pairs of m points of image 0 and n points of image 1.

    Returns:
        Two m x n tensors of pixels, from each point of image 0 to the epipolar line of each point of image 1 and from each
        point of image 1 to the line of each point of image 0.
    """
    x0, x1 = (torch.nn.functional.pad(points, (0, 1), value=1.0) for points in (points0, points1))
    lines1, lines0 = x0 @ fundamental.mT, x1 @ fundamental
    residual = (lines1 @ x1.mT).abs()
    length0, length1 = (lines[..., :2].norm(dim=-1).clamp_min(1e-12) for lines in (lines0, lines1))
    return residual / length0.unsqueeze(-2), residual / length1.unsqueeze(-1)


def epipolar_error(
    fundamental: Float[Tensor, "3 3"], points0: Float[Tensor, "k 2"], points1: Float[Tensor, "k 2"]
) -> Float[Tensor, " k"]:
    """Symmetric epipolar distance in pixels: the mean of the distances to the epipolar lines in both images."""
    ones = points0.new_ones(len(points0), 1)
    x0, x1 = torch.cat([points0, ones], 1), torch.cat([points1, ones], 1)
    line1, line0 = x0 @ fundamental.mT, x1 @ fundamental
    residual = (x1 * line1).sum(1).abs()
    return residual * (1 / line0[:, :2].norm(dim=1).clamp_min(1e-12) + 1 / line1[:, :2].norm(dim=1).clamp_min(1e-12)) / 2


def rotation_angle(rotation_a: Float[Tensor, "3 3"], rotation_b: Float[Tensor, "3 3"]) -> float:
    """Angle in degrees between two rotations."""
    cosine = (torch.trace(rotation_a.mT @ rotation_b) - 1) / 2
    return float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))))


def direction_angle(a: Float[Tensor, " 3"], b: Float[Tensor, " 3"]) -> float:
    """Angle in degrees between two directions, 0 to 180; 180 if one of them is zero."""
    lengths = a.norm() * b.norm()
    if lengths < 1e-12:
        return 180.0
    return float(torch.rad2deg(torch.acos((a @ b / lengths).clamp(-1, 1))))
