"""Layers of the networks of ALIKED and DISK that do without what PyTorch lacks or does slowly."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

STRIP, CHUNK = 2**16, 2**13  # pixels of a strip, and pixels that are read at a time: 4 MiB, for the processor's cache
RADIUS = 2  # of the window of which a keypoint is the maximum
_MORE_ON_GPU = 32
_LEAST_ROWS = 32  # of a strip
_LOG2_E = 1.4426950408889634
_SELU_POSITIVE, _SELU_NEGATIVE = 1.0507009873554805, 1.7580993408473766  # lambda, lambda * alpha (Klambauer et al., 2017)


class Block(nn.Module):
    """Two convolutions with batch normalisation and SELU."""

    def __init__(self, inputs: int, outputs: int, convolution: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, outputs), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = convolution(outputs, outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return selu(normalised(self.conv2, self.bn2, selu(normalised(self.conv1, self.bn1, x))))


class ResidualBlock(Block):
    """The same with a connection past both."""

    def __init__(self, inputs: int, outputs: int, convolution: Callable[[int, int], nn.Module]) -> None:
        super().__init__(inputs, outputs, convolution)
        self.downsample = nn.Conv2d(inputs, outputs, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        inner = normalised(self.conv2, self.bn2, selu(normalised(self.conv1, self.bn1, x)))
        return selu(inner.add_(pointwise(x, self.downsample.weight, self.downsample.bias)))


def selu(x: Tensor) -> Tensor:
    """SELU in place. On CPUs PyTorch's takes twice as long: it computes expm1."""
    if x.device.type != "cpu":
        return F.selu_(x)
    negative = torch.clamp(x, max=0).mul_(_LOG2_E).exp2_()
    torch.add(x.new_tensor(-_SELU_NEGATIVE), x.clamp_(min=0), alpha=_SELU_POSITIVE, out=x)
    return x.add_(negative, alpha=_SELU_NEGATIVE)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1 x 1 convolution. Its dilation has no effect, except that PyTorch calls oneDNN also on a single thread."""
    return F.conv2d(x, weight, bias, dilation=2)


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3 x 3 convolution."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)


class DeformableConvolution(nn.Module):
    """A 3 x 3 convolution whose nine taps are moved by predicted offsets (Dai et al., ICCV 2017)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.offset_conv = nn.Conv2d(inputs, 18, kernel_size=3, padding=1)  # (dy, dx) of each tap
        self.regular_conv = convolution(inputs, outputs)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The convolution by these weights; `regular_conv` has them before batch normalisation."""
        height, width = x.shape[2:]
        limit = max(height, width) / 4
        offsets = table(self.offset_conv(x)).clamp_(-limit, limit).view(height, width, 3, 3, 2)
        rows, columns, step = (torch.arange(n, device=x.device) for n in (height, width, 3))
        matrix = weight.permute(2, 3, 1, 0).flatten(0, 2)
        output = x.new_empty(height * width, len(weight))
        count = max(1, pieces(CHUNK, x) // width)
        for start in range(0, height, count):
            band = offsets[start : start + count]
            y = band[..., 0] + (rows[start : start + count, None, None, None] + step[:, None] - 1)
            x_ = band[..., 1] + (columns[:, None, None] + step - 1)
            sampled = bilinear(x, taps(x_, width), taps(y, height)).view(-1, len(matrix))
            torch.addmm(bias, sampled, matrix, out=output[start * width : start * width + len(sampled)])
        return output.view(1, height, width, -1).permute(0, 3, 1, 2)


def normalised(layer: nn.Module, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """A convolution and the batch normalisation after it, as one convolution."""
    plain = layer.regular_conv if isinstance(layer, DeformableConvolution) else layer
    scale = norm.weight * (norm.get_buffer("running_var") + norm.eps).rsqrt()
    weight = plain.get_parameter("weight") * scale[:, None, None, None]
    bias = norm.bias - norm.get_buffer("running_mean") * scale
    if isinstance(layer, DeformableConvolution):
        return layer.convolve(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)


def pieces(pixels: int, x: Tensor) -> int:
    """The number of pixels to process at a time on the device of x."""
    return pixels if x.device.type == "cpu" else _MORE_ON_GPU * pixels


def table(x: Float[Tensor, "1 c h w"]) -> Float[Tensor, "h*w c"]:
    """The pixels of a map as rows; a view of a map in channels-last order."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def taps(positions: Float[Tensor, "..."], size: int) -> tuple[Int[Tensor, "... 2"], Float[Tensor, "... 2"]]:
    """The two pixels beside positions on an axis and their linear weights; 0 for a pixel outside of the map."""
    first = positions.floor()
    pixels = torch.stack([first, first + 1], -1)
    weights = (1 - (pixels - positions[..., None]).abs()) * ((pixels >= 0) & (pixels < size))
    return pixels.clamp_(0, size - 1).int(), weights


def bilinear(source: Float[Tensor, "1 c h w"], x: Sequence[Tensor], y: Sequence[Tensor]) -> Float[Tensor, "n c"]:
    """A map at points, given by `taps` of their columns and rows, which are broadcast to each other."""
    pixels = y[0][..., :, None] * source.shape[3] + x[0][..., None, :]
    weights = y[1][..., :, None] * x[1][..., None, :]
    return F.embedding_bag(pixels.view(-1, 4), table(source), mode="sum", per_sample_weights=weights.view(-1, 4))


def add_upsampled(x: Float[Tensor, "1 c r w"], maps: Sequence[Tensor], low: int, height: int) -> Float[Tensor, "1 c r w"]:
    """Adds maps that have fewer rows, upsampled (bilinear, corners aligned) to `height` rows; x begins at row `low`.

    The upsampled rows are a small matrix times the rows of the map.
    """
    _, channels, rows, width = x.shape
    output = x[0].permute(1, 2, 0).reshape(rows, width * channels)
    for coarse in maps:
        scale = (coarse.shape[2] - 1) / (height - 1)
        positions = torch.arange(low, low + rows, device=x.device, dtype=x.dtype) * scale
        first, last = int(low * scale), int((low + rows - 1) * scale) + 2
        source = coarse[0].permute(1, 2, 0).flatten(1)[first:last]
        weights = 1 - (positions[:, None] - torch.arange(first, first + len(source), device=x.device)).abs()
        output.addmm_(weights.clamp_(min=0), source)
    return output.view(rows, width, channels).permute(2, 0, 1)[None]


def in_strips(function: Callable[[int, int], Tensor], x: Tensor, halo: int) -> Tensor:
    """A map of the size of x from a function that computes it for some rows of x, `low` to `high`.

    The convolutions of the function pad each strip. What that spoils, `halo` rows at inner borders, is discarded.
    """
    height, width = x.shape[2:]
    step = max(_LEAST_ROWS, pieces(STRIP, x) // width)
    output = x
    for start in range(0, height, step):
        low, stop = max(0, start - halo), min(height, start + step)
        strip = function(low, min(height, stop + halo))
        if start == 0:
            shape = 1, strip.shape[1], height, width
            output = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        output[:, :, start:stop] = strip[:, :, start - low : stop - low]
    return output


def strict_maxima(scores: Float[Tensor, "h w"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Rows and columns of the pixels that are greater than all others in the 5 x 5 window around them."""
    if min(scores.shape) <= 2 * RADIUS:
        none = torch.zeros(0, dtype=torch.long, device=scores.device)
        return none, none
    pairs = torch.maximum(scores[:, :-1], scores[:, 1:])
    fives = torch.maximum(torch.maximum(pairs[:, :-3], pairs[:, 2:-1]), scores[:, 4:])
    two_rows = torch.maximum(fives[:-1], fives[1:])
    others = torch.maximum(two_rows[:-3], two_rows[3:])  # the two rows above and the two below
    others = torch.maximum(others, torch.maximum(pairs[2:-2, :-3], pairs[2:-2, 3:]))
    y, x = (scores[2:-2, 2:-2] > others).nonzero(as_tuple=True)
    return y + RADIUS, x + RADIUS
