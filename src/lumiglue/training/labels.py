"""Ground-truth assignments from known geometry (Section 4, "Supervision")."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lumiglue.geometry import transform


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of B pairs of m and n points.

    matches: k x 3 (pair, row in A, row in B), mutual nearest and close both ways.
    unmatchable0, unmatchable1: points whose true place is far from every point of the other image.
    Points that are neither stay unlabelled.
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
    """Labels of pairs related by a homography; pairs that are not `related` (two photos) have no match at all."""
    in1 = torch.cdist(transform(image1_from_image0, keypoints0), keypoints1)  # (B, m, n) pixels of image 1
    in0 = torch.cdist(keypoints0, transform(torch.linalg.inv(image1_from_image0), keypoints1))  # pixels of image 0
    far = torch.full_like(in1, torch.inf)
    distance = torch.where(related[:, None, None], torch.maximum(in0, in1).nan_to_num(torch.inf), far)
    nearest = torch.where(related[:, None, None], torch.minimum(in0, in1).nan_to_num(torch.inf), far)
    return Labels(mutual_nearest(distance, match_px), nearest.amin(2) > unmatchable_px, nearest.amin(1) > unmatchable_px)


def mutual_nearest(distance: Float[Tensor, "b m n"], limit: float) -> Int[Tensor, "k 3"]:
    """(pair, row, column) where the distance is the smallest of its row and of its column, and at most `limit`."""
    row, column = distance.argmin(2), distance.argmin(1)
    rows = torch.arange(distance.shape[1], device=distance.device)
    mutual = column.gather(1, row) == rows
    close = distance.gather(2, row.unsqueeze(2)).squeeze(2) <= limit
    pair, i = (mutual & close).nonzero(as_tuple=True)
    return torch.stack([pair, i, row[pair, i]], dim=1)
