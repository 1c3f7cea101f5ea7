"""ALIKED's network: equal to kornia's, to a dense form of itself, and to the definitions of its parts."""

from typing import Any

import pytest
import skimage.data
import torch
from kornia.feature import ALIKED
from torch import Tensor
from torch.nn import functional as F

from helpers import draw_photo
from lumiglue.extractors import aliked_network, network_layers
from lumiglue.extractors.aliked_network import CONFIGS, AlikedNetwork, detect
from lumiglue.extractors.network_layers import DeformableConvolution, selu, strict_maxima
from released_files import NETWORKS, released_file

pytestmark = pytest.mark.numeric


def as_input(photo: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].to(dtype) / 255


def random_network(model: str, seed: int = 0) -> AlikedNetwork:
    """Random weights of which each matters, in float64, so that maxima of the score map are the same in both programs."""
    torch.manual_seed(seed)
    network = AlikedNetwork(model).eval().double()
    for name, tensor in network.state_dict().items():
        if "running_var" in name or ("bn" in name and name.endswith("weight")):
            tensor.uniform_(0.5, 2)
        elif "running_mean" in name or name.endswith("bias"):
            tensor.normal_(0, 0.5)
        elif name.startswith("score_head"):
            tensor.mul_(3)
    return network


def kornias(network: AlikedNetwork, model: str, max_keypoints: int) -> ALIKED:
    twin = ALIKED(model, max_num_keypoints=max_keypoints, detection_threshold=0.0).eval()
    state = {"dkd.hw_grid": twin.state_dict()["dkd.hw_grid"], **network.state_dict()}
    twin.to(next(network.parameters()).dtype).load_state_dict(state)
    return twin


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several strips and chunks also for small images."""
    monkeypatch.setattr(network_layers, "STRIP", 32 * 32)
    monkeypatch.setattr(network_layers, "CHUNK", 1000)
    monkeypatch.setattr(aliked_network, "CHUNK", 1000)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("model", CONFIGS)
@torch.inference_mode()
def test_equal_to_kornias_with_random_weights(model: str) -> None:
    network = random_network(model)
    for width, height in ((128, 96), (97, 70)):  # multiples of the stride, and not
        pixels = as_input(draw_photo(4, width, height), torch.float64)
        keypoints, scores, descriptors = network(pixels, 150)
        expected = kornias(network, model, 150)(pixels)[0]
        assert len(keypoints) > 25
        torch.testing.assert_close(keypoints, expected.keypoints, atol=1e-8, rtol=0)
        torch.testing.assert_close(scores, expected.keypoint_scores, atol=1e-8, rtol=0)
        torch.testing.assert_close(descriptors, expected.descriptors, atol=1e-8, rtol=0)


@pytest.mark.parametrize("model", CONFIGS)
@torch.inference_mode()
def test_equal_to_kornias_with_the_released_weights(model: str) -> None:
    """In float32, on a part of a photo. Keypoints are compared by position: equal scores may be in another order."""
    file = released_file(NETWORKS[model])
    if file is None:
        pytest.skip("install the packages of tests/released.txt")
    network = AlikedNetwork(model).eval()
    network.load_state_dict(torch.load(file, weights_only=True))
    pixels = as_input(skimage.data.astronaut()[20:270, 80:400])
    keypoints, scores, descriptors = network(pixels, 512)
    expected = kornias(network, model, 512)(pixels)[0]
    distance, row = torch.cdist(keypoints, expected.keypoints, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert len(keypoints) == len(expected.keypoints) > 200
    assert len(set(row.tolist())) == len(row)
    assert float(distance.max()) < 1e-3
    assert float((scores - expected.keypoint_scores[row]).abs().max()) < 1e-4
    assert float((descriptors - expected.descriptors[row]).abs().max()) < 1e-5


@pytest.mark.usefixtures("small_pieces")
@torch.inference_mode()
def test_maps_where_needed_equal_the_joined_maps() -> None:
    """The slow twin upsamples and joins all maps, applies the score head to the result and reads windows from it."""
    network = random_network("aliked-t16", 1)
    pyramid = network.pyramid(as_input(draw_photo(5, 90, 130), torch.float64))
    full = pyramid.fine.shape[2:]
    maps = [F.selu(network.conv1(pyramid.fine))]
    maps += [F.interpolate(x, size=full, mode="bilinear", align_corners=True) for x in pyramid.coarse]
    (top, left), (height, width) = pyramid.corner, pyramid.size
    joined = torch.cat(maps, 1)
    rows, columns = slice(top, top + height), slice(left, left + width)
    expected_scores = network.score_head(joined).sigmoid()[0, 0, rows, columns]
    torch.testing.assert_close(network.score_map(pyramid), expected_scores, atol=1e-9, rtol=0)
    dense = joined[0, :, rows, columns].permute(1, 2, 0)
    x, y = torch.tensor([[0, 1, 2], [50, 7, 7], [87, 88, 89]]), torch.tensor([[0, 129], [3, 2], [60, 61]])
    windows = network.features_at(pyramid, x, y)
    torch.testing.assert_close(windows, dense[y[:, :, None], x[:, None]], atol=1e-9, rtol=0)


@torch.inference_mode()
def test_a_deformable_convolution_that_moves_no_tap_is_a_convolution() -> None:
    torch.manual_seed(0)
    layer = DeformableConvolution(3, 5).double()
    layer.offset_conv.weight.zero_()
    bias_of_offsets = layer.offset_conv.get_parameter("bias").zero_()
    x, weight, bias = torch.randn(1, 3, 9, 7).double(), layer.regular_conv.weight, torch.randn(5).double()
    torch.testing.assert_close(layer.convolve(x, weight, bias), F.conv2d(x, weight, bias, padding=1))
    bias_of_offsets[0::2] = 1  # all taps one row down
    moved = F.conv2d(F.pad(x, (0, 0, 0, 1))[:, :, 1:], weight, bias, padding=1)
    # Above the first row there are zeros; the moved taps read the first row itself.
    torch.testing.assert_close(layer.convolve(x, weight, bias)[:, :, 1:], moved[:, :, 1:])


def test_maxima_are_strict_and_complete() -> None:
    scores = torch.randint(0, 40, (30, 25), generator=torch.Generator().manual_seed(0)).float()
    scores[10:13, 10:13] = 50  # a plateau has no maximum
    expected = [
        (y, x)
        for y in range(2, 28)
        for x in range(2, 23)
        if (scores[y - 2 : y + 3, x - 2 : x + 3] >= scores[y, x]).sum() == 1
    ]
    assert len(expected) > 5
    assert list(zip(*(index.tolist() for index in strict_maxima(scores)), strict=True)) == expected
    assert len(strict_maxima(torch.rand(4, 60))[0]) == 0


def test_detection_refines_a_blob() -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    scores = torch.exp(-((x - 12.3) ** 2 + (y - 8.0) ** 2) / 8)
    keypoints, values = detect(scores, 5)
    assert len(keypoints) == 1
    torch.testing.assert_close(keypoints[0, 1], torch.tensor(8.0), atol=1e-5, rtol=0)
    assert 12.05 < float(keypoints[0, 0]) < 12.35
    assert 0.97 < float(values[0]) <= 1


def test_selu_is_pytorchs() -> None:
    x = torch.cat([torch.linspace(-30, 30, 10001), torch.tensor([-200.0, 1e20])])
    torch.testing.assert_close(selu(x.clone()), F.selu(x), atol=1e-6, rtol=1e-6)
