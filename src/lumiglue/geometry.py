"""Projective geometry in pixels: pure maths on tensors, batched over leading dimensions."""

import torch
from jaxtyping import Float
from torch import Tensor


def transform(homography: Float[Tensor, "*b 3 3"], points: Float[Tensor, "*b n 2"]) -> Float[Tensor, "*b n 2"]:
    """Points mapped by a homography; a point on or behind its horizon maps to infinity."""
    mapped = points @ homography[..., :2].mT + homography[..., 2].unsqueeze(-2)
    depth = mapped[..., 2:]
    return torch.where(depth > 1e-8, mapped[..., :2] / depth, torch.inf)


def reprojection_error(
    image1_from_image0: Float[Tensor, "3 3"], points0: Float[Tensor, "k 2"], points1: Float[Tensor, "k 2"]
) -> Float[Tensor, " k"]:
    """Distance in pixels of image 1 between each mapped point of image 0 and its match."""
    return (transform(image1_from_image0, points0) - points1).norm(dim=-1)


def skew(v: Float[Tensor, " 3"]) -> Float[Tensor, "3 3"]:
    """[v]_x, so that skew(v) @ w is the cross product of v and w."""
    zero = torch.zeros_like(v[0])
    rows = [torch.stack([zero, -v[2], v[1]]), torch.stack([v[2], zero, -v[0]]), torch.stack([-v[1], v[0], zero])]
    return torch.stack(rows)


def fundamental_from_pose(
    intrinsics0: Float[Tensor, "3 3"],
    intrinsics1: Float[Tensor, "3 3"],
    rotation: Float[Tensor, "3 3"],
    translation: Float[Tensor, " 3"],
) -> Float[Tensor, "3 3"]:
    """F with x1^T F x0 = 0, for X_1 = rotation X_0 + translation."""
    essential = skew(translation) @ rotation
    return torch.linalg.inv(intrinsics1).mT @ essential @ torch.linalg.inv(intrinsics0)


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
    """Angle in degrees between two directions, 0..180; 180 where one of them is zero."""
    lengths = a.norm() * b.norm()
    if lengths < 1e-12:
        return 180.0
    return float(torch.rad2deg(torch.acos((a @ b / lengths).clamp(-1, 1))))
