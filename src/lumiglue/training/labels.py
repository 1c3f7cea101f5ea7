"""Ground-truth assignments from known geometry (Section 4, "Supervision")."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lumiglue.geometry.projective import epipolar_distances, fundamental_from_pose, transfer, transform


@dataclass(frozen=True, eq=False)
class Labels:
    """Ground truth of B pairs of m and n points. Points that are neither matched nor unmatchable have no label.

    Attributes:
        matches: (pair, row in the first image, row in the second), mutual nearest and close in both images.
        unmatchable0: Points of the first images whose true position is far from every point of the second.
        unmatchable1: The same for the second images.
    """

    matches: Int[Tensor, "k 3"]
    unmatchable0: Bool[Tensor, "b m"]
    unmatchable1: Bool[Tensor, "b n"]

    def to(self, device: torch.device) -> "Labels":
        """The same labels on `device`."""
        return Labels(self.matches.to(device), self.unmatchable0.to(device), self.unmatchable1.to(device))


def labels_from_homographies(
    keypoints0: Float[Tensor, "b m 2"],
    keypoints1: Float[Tensor, "b n 2"],
    image1_from_image0: Float[Tensor, "b 3 3"],
    related: Bool[Tensor, " b"],
    *,
    match_px: float = 3.0,
    unmatchable_px: float = 3.0,
) -> Labels:
    """Labels of pairs that are related by a homography.

    Points are mapped in float64, which neither autocast nor TF32 rounds: bfloat16 would move them by pixels.

    Args:
        keypoints0: Pixels in the first images.
        keypoints1: Pixels in the second images.
        image1_from_image0: Homographies.
        related: False for pairs of two different photos, which have no match.
        match_px: Largest distance of a match, in both images.
        unmatchable_px: Distance to every point of the other image from which on a point is unmatchable.
    """
    image1_from_image0 = image1_from_image0.double()
    image0_from_image1 = torch.linalg.inv(image1_from_image0)
    in1 = _distances(transform(image1_from_image0, keypoints0.double()).float(), keypoints1)  # (B, m, n) pixels of image 1
    in0 = _distances(keypoints0, transform(image0_from_image1, keypoints1.double()).float())  # pixels of image 0
    far = torch.full_like(in1, torch.inf)
    distance = torch.where(related[:, None, None], torch.maximum(in0, in1).nan_to_num(torch.inf), far)
    nearest = torch.where(related[:, None, None], torch.minimum(in0, in1).nan_to_num(torch.inf), far)
    return Labels(mutual_nearest(distance, match_px), nearest.amin(2) > unmatchable_px, nearest.amin(1) > unmatchable_px)


def labels_from_depths(
    keypoints0: Float[Tensor, "b m 2"],
    keypoints1: Float[Tensor, "b n 2"],
    depths0: Float[Tensor, "b m"],
    depths1: Float[Tensor, "b n"],
    intrinsics0: Float[Tensor, "b 3 3"],
    intrinsics1: Float[Tensor, "b 3 3"],
    camera1_from_camera0: Float[Tensor, "b 4 4"],
    *,
    match_px: float = 3.0,
    unmatchable_px: float = 5.0,
    depth_tolerance: float = 0.05,
) -> Labels:
    """Labels of pairs with known cameras and, where not NaN, known depths.

    Two points match if they are within `match_px` in both images and their depths, transferred, agree within
    `depth_tolerance`. A point behind another surface is therefore no match, and occlusion needs no depth map. Two points are
    different if a known depth puts them more than `unmatchable_px` apart or at depths that differ by twice the tolerance, or
    if one is that far from the other's epipolar line. A point that is different from every point of the other image is
    unmatchable. Points of unknown depth are judged by epipolar lines only. Points are transferred in float64.

    Args:
        keypoints0: Pixels in the first images.
        keypoints1: Pixels in the second images.
        depths0: z in the first camera, NaN where unknown.
        depths1: z in the second camera, NaN where unknown.
        intrinsics0: Camera matrices of the first images, in pixels.
        intrinsics1: Camera matrices of the second images.
        camera1_from_camera0: Rigid transforms.
        match_px: Largest distance of a match, in both images.
        unmatchable_px: Smallest distance between points that are different.
        depth_tolerance: Largest relative difference in depth of a match.
    """
    intrinsics0, intrinsics1, camera1_from_camera0 = (
        matrix.double() for matrix in (intrinsics0, intrinsics1, camera1_from_camera0)
    )
    exact0, exact1 = keypoints0.double(), keypoints1.double()
    camera0_from_camera1 = torch.linalg.inv(camera1_from_camera0)
    seen1, carried0 = (
        tensor.float() for tensor in transfer(exact0, depths0.double(), intrinsics0, intrinsics1, camera1_from_camera0)
    )
    seen0, carried1 = (
        tensor.float() for tensor in transfer(exact1, depths1.double(), intrinsics1, intrinsics0, camera0_from_camera1)
    )
    in1, in0 = _distances(seen1, keypoints1), _distances(keypoints0, seen0)  # (B, m, n), NaN where unknown
    disagree = torch.maximum(
        (carried0[..., :, None] - depths1[..., None, :]).abs() / depths1[..., None, :],
        (carried1[..., None, :] - depths0[..., :, None]).abs() / depths0[..., :, None],
    )
    distance = torch.maximum(in0, in1).where(disagree <= depth_tolerance, torch.inf)

    rotation, translation = camera1_from_camera0[..., :3, :3], camera1_from_camera0[..., :3, 3]
    fundamental = fundamental_from_pose(intrinsics0, intrinsics1, rotation, translation)
    off_line = torch.maximum(*epipolar_distances(fundamental, exact0, exact1)) > unmatchable_px
    # Comparisons with NaN are false: an unknown depth excludes nothing.
    different = (in1 > unmatchable_px) | (in0 > unmatchable_px) | (disagree > 2 * depth_tolerance) | off_line
    return Labels(mutual_nearest(distance, match_px), different.all(2), different.all(1))


def _distances(a: Float[Tensor, "b m 2"], b: Float[Tensor, "b n 2"]) -> Float[Tensor, "b m n"]:
    """Without matrix products, which lose a tenth of a pixel; keeps inf and NaN."""
    return torch.hypot(a[:, :, None, 0] - b[:, None, :, 0], a[:, :, None, 1] - b[:, None, :, 1])


def mutual_nearest(distance: Float[Tensor, "b m n"], limit: float) -> Int[Tensor, "k 3"]:
    """(pair, row, column) where the distance is the smallest of its row and of its column, and at most `limit`."""
    row, column = distance.argmin(2), distance.argmin(1)
    rows = torch.arange(distance.shape[1], device=distance.device)
    mutual = column.gather(1, row) == rows
    close = distance.gather(2, row.unsqueeze(2)).squeeze(2) <= limit
    pair, i = (mutual & close).nonzero(as_tuple=True)
    return torch.stack([pair, i, row[pair, i]], dim=1)
