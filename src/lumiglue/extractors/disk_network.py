"""DISK's network (Tyszkiewicz et al., NeurIPS 2020), computed only where its result is used.

A U-Net of 5 x 5 convolutions gives each pixel a score and a descriptor of 128 channels. Its last layer does more than half
of the work, and of that only the score is needed at all pixels: descriptors are computed at keypoints alone.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lumiglue.extractors.network_layers import CHUNK, pieces, strict_maxima, table

_DOWN, _UP = (16, 32, 64, 64, 64), (64, 64, 64, 129)  # channels after each block
_SIDE = 5  # of a convolution
_REACH = _SIDE // 2
_STRIDE = 16  # of the coarsest map; the sides of the input are padded to multiples of it


class DiskNetwork(nn.Module):
    """Detects and describes keypoints. Its parameters have the names of the released file."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity(), _convolution(3, _DOWN[0]))
        down = [first, *(_unit(*channels) for channels in itertools.pairwise(_DOWN))]
        joined = [below + skip for below, skip in zip((_DOWN[-1], *_UP), _DOWN[-2::-1], strict=False)]
        up = [_unit(*channels) for channels in zip(joined, _UP, strict=True)]
        self.unet = nn.ModuleDict(
            {
                "path_down": nn.ModuleList(nn.Sequential(nn.Identity(), unit) for unit in down),
                "path_up": nn.ModuleList(nn.ModuleDict({"conv": unit}) for unit in up),
            }
        )

    def forward(
        self, image: Float[Tensor, "1 3 h w"], max_keypoints: int | None, threshold: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Applies the network.

        Args:
            image: RGB in [0, 1].
            max_keypoints: Number of keypoints to keep; None keeps all.
            threshold: Score that a keypoint exceeds.

        Returns:
            Keypoints (n x 2, whole pixels), scores (n) and unit descriptors (n x 128), the highest scores first.
        """
        height, width = image.shape[2:]
        padded = F.pad(image, (0, -width % _STRIDE, 0, -height % _STRIDE)).contiguous(memory_format=torch.channels_last)
        maps = self.maps(padded)
        last = self._unit_up(-1)[-1]
        weight, bias = last.get_parameter("weight"), last.get_parameter("bias")
        scores = _convolve_to_one(maps, weight[-1], bias[-1])[:height, :width]
        y, x = strict_maxima(scores)
        strong = scores[y, x] > threshold
        y, x = y[strong], x[strong]
        strongest = scores[y, x].topk(len(y) if max_keypoints is None else min(max_keypoints, len(y))).indices
        y, x = y[strongest], x[strongest]
        descriptors = F.normalize(_convolve_at(maps, y, x, weight[:-1], bias[:-1]))
        return torch.stack([x, y], 1).float(), scores[y, x], descriptors

    def maps(self, image: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 80 h w"]:
        """What the last convolution is applied to; h and w are multiples of 16."""
        x = image
        skips: list[Tensor] = []
        for level, block in enumerate(self.unet.get_submodule("path_down").children()):
            if level:
                skips.append(x)
                x = F.avg_pool2d(x, 2)
            x = block(x)
        units = [self._unit_up(level) for level in range(len(_UP))]
        for unit in units:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = torch.cat([x, skips.pop()], 1)
            x = unit[:-1](x) if unit is units[-1] else unit(x)
        return x

    def _unit_up(self, level: int) -> nn.Sequential:
        unit = self.unet.get_submodule("path_up")[level]["conv"]  # pyright: ignore[reportIndexIssue]
        assert isinstance(unit, nn.Sequential)
        return unit


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=_SIDE, padding=_REACH)


def _unit(inputs: int, outputs: int) -> nn.Sequential:
    """Normalisation of each channel over the image, PReLU, convolution."""
    return nn.Sequential(nn.InstanceNorm2d(inputs), nn.PReLU(inputs), nn.Identity(), _convolution(inputs, outputs))


def _convolve_to_one(x: Float[Tensor, "1 c h w"], weight: Float[Tensor, "c 5 5"], bias: Tensor) -> Float[Tensor, "h w"]:
    """A convolution to one channel, in a quarter of PyTorch's time: a matrix product gives each pixel's 25 summands."""
    summands = weight.flip(1, 2).flatten(1).mT @ table(x).mT
    return F.fold(summands[None], x.shape[2:], _SIDE, padding=_REACH)[0, 0] + bias


def _convolve_at(x: Float[Tensor, "1 c h w"], rows: Tensor, columns: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution with zeros around the map, at some pixels: n x outputs."""
    height, width = x.shape[2:]
    reach = torch.arange(-_REACH, _REACH + 1, device=x.device)
    matrix = weight.permute(2, 3, 1, 0).flatten(0, 2)
    outputs = []
    for y, x_ in zip(*(part.split(max(1, pieces(CHUNK, x) // _SIDE**2)) for part in (rows, columns)), strict=True):
        ys, xs = (y[:, None] + reach)[:, :, None], (x_[:, None] + reach)[:, None]
        inside = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
        pixels = ys.clamp(0, height - 1) * width + xs.clamp(0, width - 1)
        values = table(x)[pixels.flatten()] * inside.view(-1, 1)
        outputs.append(torch.addmm(bias, values.view(len(y), len(matrix)), matrix))
    return torch.cat(outputs) if outputs else x.new_zeros(0, len(bias))
