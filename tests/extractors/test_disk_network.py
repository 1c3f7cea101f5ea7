"""DISK's network: equal to kornia's, with random and with the released weights, and to the definitions of its parts."""

from typing import Any

import pytest
import skimage.data
import torch
from kornia.feature import DISK
from torch import Tensor
from torch.nn import functional as F

from helpers import draw_photo
from lumiglue.extractors import disk_network
from lumiglue.extractors.disk_network import DiskNetwork, _convolve_at, _convolve_to_one
from lumiglue.io.state_dicts import load_into
from released_files import NETWORKS, released_file

pytestmark = pytest.mark.numeric


def as_input(photo: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].to(dtype) / 255


def check_equal(network: DiskNetwork, twin: DISK, pixels: Tensor, count: int, threshold: float, within: float) -> int:
    """Compared by position, as equal scores may be in another order. Returns the number of keypoints."""
    keypoints, scores, descriptors = network(pixels, count, threshold)
    expected = twin(pixels, n=count, score_threshold=threshold, pad_if_not_divisible=True)[0]
    rows, of_twin = (
        {tuple(point): i for i, point in enumerate(points.tolist())} for points in (keypoints, expected.keypoints)
    )
    assert rows.keys() == of_twin.keys()
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    order = [of_twin[point] for point in rows]
    largest = float(scores.abs().max()) if len(scores) else 1.0
    torch.testing.assert_close(scores, expected.detection_scores[order], atol=within * largest, rtol=0)
    torch.testing.assert_close(descriptors, F.normalize(expected.descriptors[order], dim=1), atol=within, rtol=0)
    return len(rows)


@torch.inference_mode()
def test_equal_to_kornias_with_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_network, "CHUNK", 500)  # several chunks also for few keypoints
    torch.manual_seed(0)
    network = DiskNetwork().eval().double()
    for name, tensor in network.state_dict().items():
        if name.endswith("1.weight") and tensor.ndim == 1:
            tensor.uniform_(-0.5, 0.5)  # slopes, each another
    twin = DISK().eval().double()
    twin.load_state_dict(network.state_dict())
    for width, height in ((128, 96), (101, 70)):  # multiples of the stride, and not
        pixels = as_input(draw_photo(4, width, height), torch.float64)
        assert check_equal(network, twin, pixels, 5000, -10.0, 1e-9) > 30
        assert check_equal(network, twin, pixels, 20, -10.0, 1e-9) == 20
        assert check_equal(network, twin, pixels, 5000, 0.05, 1e-9) < len(network(pixels, None, -10.0)[0])


@torch.inference_mode()
def test_equal_to_kornias_with_the_released_weights() -> None:
    file = released_file(NETWORKS["disk"])
    if file is None:
        pytest.skip("install the packages of tests/released.txt")
    network, twin = DiskNetwork().eval(), DISK().eval()
    load_into(network, file, "disk", "")
    twin.load_state_dict(network.state_dict())
    assert check_equal(network, twin, as_input(skimage.data.astronaut()[20:190, 80:300]), 2048, 0.0, 2e-5) > 200


def test_convolutions_where_they_are_needed() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 11, 14, dtype=torch.float64)
    weight, bias = torch.randn(6, 8, 5, 5, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    whole = F.conv2d(x, weight, bias, padding=2)[0]
    torch.testing.assert_close(_convolve_to_one(x, weight[3], bias[3]), whole[3])
    rows, columns = torch.tensor([0, 10, 5, 1, 10]), torch.tensor([0, 13, 6, 12, 2])
    torch.testing.assert_close(_convolve_at(x, rows, columns, weight, bias), whole[:, rows, columns].mT)
    assert _convolve_at(x, rows[:0], columns[:0], weight, bias).shape == (0, 6)
