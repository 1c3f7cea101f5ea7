"""ALIKED's network (Zhao et al., IEEE TIM 2023), computed only where its result is used.

The network describes each pixel by the four maps of a pyramid (strides 1, 2, 8 and 32), upsampled and joined. Only the
score needs all pixels: its first layer is linear, so it is applied to each map before upsampling. Descriptors read the
joined maps at a few pixels, and there they are computed. Stages of high resolution run in strips of rows, which bounds
the memory and keeps intermediate maps in the processor's cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lumiglue.extractors.network_layers import (
    CHUNK,
    RADIUS,
    Block,
    DeformableConvolution,
    ResidualBlock,
    add_upsampled,
    bilinear,
    convolution,
    in_strips,
    pieces,
    pointwise,
    selu,
    strict_maxima,
    table,
    taps,
)


class Config(NamedTuple):
    """The sizes of a model: channels of its blocks, channels of a descriptor, positions that a descriptor samples."""

    channels: tuple[int, int, int, int]
    dim: int
    positions: int


_N16 = Config((16, 32, 64, 128), 128, 16)
CONFIGS = {
    "aliked-t16": Config((8, 16, 32, 64), 64, 16),
    "aliked-n16": _N16,
    "aliked-n16rot": _N16,  # trained with rotated photos
    "aliked-n32": _N16._replace(positions=32),
}

_STRIDE = 32  # of the coarsest map; the sides of the input are padded to multiples of it
_TEMPERATURE = 0.1  # of the softmax over that window


@dataclass(frozen=True, eq=False)
class Pyramid:
    """The maps of an image.

    Attributes:
        fine: 1 x c x H x W, the first block's output; its last layer (`conv1`) is applied where needed.
        coarse: 1 x d/4 x H/s x W/s for the strides 2, 8 and 32.
        size: Height and width of the image in pixels, without padding.
        corner: Rows and columns of padding above and left of the image.
    """

    fine: Tensor
    coarse: tuple[Tensor, ...]
    size: tuple[int, int]
    corner: tuple[int, int]


class AlikedNetwork(nn.Module):
    """Detects and describes keypoints. Its parameters have the names of the released files.

    Args:
        model: A key of `CONFIGS`.
    """

    def __init__(self, model: str) -> None:
        super().__init__()
        (c1, c2, c3, c4), dim, positions = CONFIGS[model]
        self.block1 = Block(3, c1, convolution)
        self.block2 = ResidualBlock(c1, c2, convolution)
        self.block3 = ResidualBlock(c2, c3, DeformableConvolution)
        self.block4 = ResidualBlock(c3, c4, DeformableConvolution)
        one_by_one, gate = partial(nn.Conv2d, kernel_size=1, bias=False), nn.SELU(inplace=True)
        self.conv1, self.conv2, self.conv3, self.conv4 = (one_by_one(channels, dim // 4) for channels in (c1, c2, c3, c4))
        self.score_head = nn.Sequential(
            one_by_one(dim, 8), gate, convolution(8, 4), gate, convolution(4, 4), gate, convolution(4, 1)
        )
        self.desc_head = _DescriptorHead(dim, positions)

    def forward(self, image: Float[Tensor, "1 3 h w"], max_keypoints: int) -> tuple[Tensor, Tensor, Tensor]:
        """Applies the network.

        Args:
            image: RGB in [0, 1].
            max_keypoints: Number of keypoints to keep.

        Returns:
            Keypoints (n x 2, pixels), scores (n) and unit descriptors (n x d), the strongest maxima of the score map first.
        """
        pyramid = self.pyramid(image)
        keypoints, scores = detect(self.score_map(pyramid), max_keypoints)
        descriptors = self.desc_head(partial(self.features_at, pyramid), keypoints, pyramid.size)
        return keypoints, scores, descriptors

    def describe(self, image: Float[Tensor, "1 3 h w"], keypoints: Float[Tensor, "n 2"]) -> Float[Tensor, "n d"]:
        """Unit descriptors of given keypoints, in pixels."""
        pyramid = self.pyramid(image)
        return self.desc_head(partial(self.features_at, pyramid), keypoints, pyramid.size)

    def pyramid(self, image: Float[Tensor, "1 3 h w"]) -> Pyramid:
        """The maps of an image (section III-A)."""
        height, width = image.shape[2:]
        rows, columns = -height % _STRIDE, -width % _STRIDE
        top, left = rows // 2, columns // 2
        padded = F.pad(image, (left, columns - left, top, rows - top), mode="replicate")
        padded = padded.contiguous(memory_format=torch.channels_last)
        x1 = in_strips(lambda low, high: self.block1(padded[:, :, low:high]), padded, halo=2)
        half = F.avg_pool2d(x1, 2)
        x2 = in_strips(lambda low, high: self.block2(half[:, :, low:high]), half, halo=2)
        x3 = self.block3(F.avg_pool2d(x2, 4))
        x4 = self.block4(F.avg_pool2d(x3, 4))
        coarse = tuple(selu(pointwise(x, conv.weight)) for conv, x in ((self.conv2, x2), (self.conv3, x3), (self.conv4, x4)))
        return Pyramid(x1, coarse, (height, width), (top, left))

    def score_map(self, pyramid: Pyramid) -> Float[Tensor, "h w"]:
        """The score of each pixel, in (0, 1) (section III-B)."""
        fine, (top, left), (height, width) = pyramid.fine, pyramid.corner, pyramid.size
        weights = self.score_head.get_parameter("0.weight").chunk(4, 1)  # 8 x d/4 x 1 x 1 for each map
        coarse = [
            F.interpolate(pointwise(x, weight), size=(x.shape[2], fine.shape[3]), mode="bilinear", align_corners=True)
            for x, weight in zip(pyramid.coarse, weights[1:], strict=True)
        ]

        def strip(low: int, high: int) -> Tensor:
            x = pointwise(selu(pointwise(fine[:, :, low:high], self.conv1.weight)), weights[0])
            x = add_upsampled(x, coarse, low, fine.shape[2])
            for layer in list(self.score_head)[2::2]:
                x = layer(selu(x))
            return x.sigmoid_()

        return in_strips(strip, fine, halo=3)[0, 0, top : top + height, left : left + width]

    def features_at(
        self, pyramid: Pyramid, columns: Int[Tensor, "n a"], rows: Int[Tensor, "n b"]
    ) -> Float[Tensor, "n b a d"]:
        """The joined maps in windows of the image, each given by its columns and rows; not yet normalised."""
        fine, (top, left) = pyramid.fine, pyramid.corner
        columns, rows = columns + left, rows + top
        pixels = (rows[:, :, None] * fine.shape[3] + columns[:, None]).flatten()
        parts = [selu(F.linear(table(fine).index_select(0, pixels), self.conv1.weight[:, :, 0, 0]))]
        for coarse in pyramid.coarse:
            x, y = (
                taps((positions.to(fine) * ((size - 1) / (full - 1))).clamp(max=size - 1), size)
                for positions, size, full in zip((columns, rows), coarse.shape[:1:-1], fine.shape[:1:-1], strict=True)
            )
            parts.append(bilinear(coarse, [part[:, None] for part in x], [part[:, :, None] for part in y]))
        joined = torch.cat(parts, 1)
        return joined.view(len(rows), rows.shape[1], columns.shape[1], joined.shape[1])


def detect(scores: Float[Tensor, "h w"], max_keypoints: int) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n"]]:
    """Finds the strongest strict maxima of a score map, refined by a softmax over their windows (section III-D).

    Args:
        scores: In (0, 1).
        max_keypoints: Number of maxima to keep.

    Returns:
        Keypoints in pixels, the highest maxima first, and the map's values there.
    """
    height, width = scores.shape
    y, x = strict_maxima(scores)
    strongest = scores[y, x].topk(min(max_keypoints, len(y))).indices
    y, x = y[strongest], x[strongest]
    offsets = torch.arange(-RADIUS, RADIUS + 1, device=scores.device)
    window = scores[y[:, None, None] + offsets[:, None], x[:, None, None] + offsets]
    weights = (window / _TEMPERATURE).flatten(1).softmax(1).view_as(window)
    refined = torch.stack([x + weights.sum(1) @ offsets.to(weights), y + weights.sum(2) @ offsets.to(weights)], 1)
    grid = refined / refined.new_tensor([width - 1, height - 1]) * 2 - 1
    values = F.grid_sample(scores[None, None], grid[None, None], align_corners=True)
    return refined, values[0, 0, 0]


class _DescriptorHead(nn.Module):
    """Descriptors from samples at predicted positions around each keypoint (section III-C)."""

    def __init__(self, dim: int, positions: int) -> None:
        super().__init__()
        self.offset_conv = nn.Sequential(
            nn.Conv2d(dim, 2 * positions, kernel_size=3), nn.SELU(inplace=True), nn.Conv2d(2 * positions, 2 * positions, 1)
        )
        self.sf_conv = nn.Conv2d(dim, dim, kernel_size=1, bias=False)
        self.agg_weights = nn.Parameter(torch.rand(positions, dim, dim))

    def forward(self, features_at: Callable[[Tensor, Tensor], Tensor], keypoints: Tensor, size: tuple[int, int]) -> Tensor:
        """Unit descriptors (n x d) of keypoints (n x 2); `features_at` returns the features of pixels by x and y."""
        positions, dim = self.agg_weights.shape[:2]
        step = max(1, pieces(CHUNK, keypoints) // (4 * positions))
        chunks = [self._describe(features_at, chunk, size) for chunk in keypoints.split(step)]
        return F.normalize(torch.cat(chunks)) if chunks else keypoints.new_zeros(0, dim)

    def _describe(self, features_at: Callable[[Tensor, Tensor], Tensor], keypoints: Tensor, size: tuple[int, int]) -> Tensor:
        (height, width), (positions, dim) = size, self.agg_weights.shape[:2]
        window = torch.arange(3, device=keypoints.device)
        corner = (keypoints.long() - 1).clamp(min=0).minimum(keypoints.new_tensor([width - 4, height - 4]).long())
        columns, rows = (corner[:, :, None] + window).unbind(1)
        patches = F.normalize(features_at(columns, rows), dim=-1).permute(0, 3, 1, 2)
        limit = max(height, width) / 4
        offsets = self.offset_conv(patches).clamp_(-limit, limit).view(-1, 2, positions)
        x, y = (keypoints[:, :, None] + offsets).unbind(1)
        (columns, weights_x), (rows, weights_y) = taps(x.flatten(), width), taps(y.flatten(), height)
        corners = features_at(columns, rows)
        weights = weights_y[:, :, None] * weights_x[:, None] / corners.norm(dim=-1).clamp_(min=1e-12)
        order = torch.arange(4 * len(x) * positions, device=x.device).view(-1, 4)
        samples = F.embedding_bag(order, corners.view(-1, dim), mode="sum", per_sample_weights=weights.flatten(1))
        samples = selu(F.linear(samples, self.sf_conv.weight[:, :, 0, 0]))
        return samples.view(-1, positions * dim) @ self.agg_weights.flatten(0, 1)
