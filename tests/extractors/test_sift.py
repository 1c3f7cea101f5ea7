"""SIFT: units, pixel convention at OpenCV's border, RootSIFT, no twins."""

import math

import cv2
import numpy as np
import pytest
import torch

from helpers import draw_photo
from lumiglue import EXTRACTORS, Extractor, Features, InputError, Sift
from lumiglue.extractors import create_extractor

pytestmark = pytest.mark.portable

PHOTO = draw_photo(3)


def nearest(features: Features, points: np.ndarray) -> np.ndarray:
    """Distance from each point to the nearest keypoint."""
    return torch.cdist(torch.from_numpy(points).float(), features.keypoints).amin(1).numpy()


def test_descriptors_are_rootsift() -> None:
    features = Sift(max_keypoints=200)(PHOTO)
    assert len(features) > 100
    assert torch.allclose(features.descriptors.norm(dim=1), torch.ones(len(features)), atol=1e-5)
    assert float(features.descriptors.min()) >= 0  # square roots
    plain = Sift(max_keypoints=200, rootsift=False)(PHOTO).descriptors
    rooted = (plain / plain.sum(1, keepdim=True)).sqrt()
    assert torch.allclose(rooted, features.descriptors, atol=1e-5)


def test_strongest_first_and_no_more_than_asked() -> None:
    features = Sift(max_keypoints=50)(PHOTO)
    assert len(features) == 50
    assert features.scores is not None
    assert bool((features.scores.diff() <= 0).all())
    more = Sift(max_keypoints=100)(PHOTO)
    assert torch.equal(more.keypoints[:50], features.keypoints)


def test_one_keypoint_per_position_and_scale() -> None:
    twins = Sift(max_keypoints=2000, one_orientation=False)(PHOTO)
    single = Sift(max_keypoints=2000)(PHOTO)
    for features, repeated in ((twins, True), (single, False)):
        assert features.scales is not None
        table = torch.cat([features.keypoints, features.scales[:, None]], 1)
        assert (len(torch.unique(table, dim=0)) < len(table)) is repeated


def test_keypoints_mirror_with_the_image() -> None:
    """(0, 0) is the centre of the top-left pixel: flipping an image of width w maps x to w - 1 - x, without bias."""
    features, flipped = Sift()(PHOTO), Sift()(np.ascontiguousarray(PHOTO[:, ::-1]))
    width = PHOTO.shape[1]
    mirrored = features.keypoints.numpy() * [-1, 1] + [width - 1, 0]
    distance = torch.cdist(torch.from_numpy(mirrored).float(), flipped.keypoints)
    best, row = distance.min(1)
    close = best < 1.0
    assert float(close.float().mean()) > 0.85
    offset = (flipped.keypoints[row[close]] - torch.from_numpy(mirrored).float()[close]).mean(0)
    assert float(offset.abs().max()) < 0.06


def test_a_blob_is_found_at_its_centre_with_its_size() -> None:
    """A Gaussian blob of sigma s is a SIFT keypoint at its centre; scales are in pixels and grow with s."""
    y, x = np.mgrid[0:121, 0:161]
    for sigma in (4.0, 8.0):
        blob = 60 + 180 * np.exp(-((x - 90) ** 2 + (y - 52) ** 2) / (2 * sigma**2))
        features = Sift(max_keypoints=20)(np.repeat(blob[..., None], 3, 2).astype(np.uint8))
        assert features.scales is not None
        at = torch.cdist(torch.tensor([[90.0, 52.0]]), features.keypoints)[0].argmin()
        assert features.keypoints[at].numpy() == pytest.approx([90, 52], abs=0.3)
        assert float(features.scales[at]) == pytest.approx(sigma, rel=0.3)


def test_resizing_for_detection_keeps_the_input_pixels() -> None:
    """Keypoints found on a half-size copy are reported where they are in the image that was given: (xy + 0.5) s - 0.5."""
    large = cv2.resize(PHOTO, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    full = Sift(max_keypoints=150, resize=None)(PHOTO)
    through = Sift(max_keypoints=150, resize=320)(large)
    assert through.image_size == (640, 480)
    assert full.scales is not None
    assert through.scales is not None
    expected = (full.keypoints.numpy() + 0.5) * 2 - 0.5
    distance = nearest(through, expected)
    assert np.median(distance) < 0.5
    assert float(through.scales.median() / full.scales.median()) == pytest.approx(2.0, rel=0.25)


def test_orientation_turns_clockwise_with_the_image() -> None:
    """Turning the photo a quarter clockwise adds pi / 2 to the orientations (radians, from +x towards +y)."""
    turned_photo = np.ascontiguousarray(np.rot90(PHOTO, -1))
    features, turned = Sift()(PHOTO), Sift()(turned_photo)
    height = PHOTO.shape[0]
    expected = np.column_stack([height - 1 - features.keypoints[:, 1], features.keypoints[:, 0]])
    best, row = torch.cdist(torch.from_numpy(expected).float(), turned.keypoints).min(1)
    assert features.orientations is not None
    assert turned.orientations is not None
    change = (turned.orientations[row] - features.orientations)[best < 0.5] - math.pi / 2
    wrapped = torch.remainder(change + math.pi, 2 * math.pi) - math.pi
    assert float((wrapped.abs() < 0.1).float().mean()) > 0.8


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (200, 200)])
def test_blank_and_tiny_images_have_no_keypoints(shape: tuple[int, int]) -> None:
    features = Sift()(np.zeros((*shape, 3), np.uint8))
    assert len(features) == 0
    assert features.descriptors.shape == (0, 128)
    assert features.image_size == (shape[1], shape[0])


def test_registry_and_protocol() -> None:
    assert isinstance(create_extractor("sift", max_keypoints=5), Extractor)
    assert set(EXTRACTORS) >= {"sift", "aliked"}
    with pytest.raises(InputError, match="max_keypoints is 0"):
        Sift(max_keypoints=0)
    with pytest.raises(InputError, match="resize is 4"):
        Sift(resize=4)
