"""Structs refuse what cannot be matched; geometry agrees with closed forms; robust estimation finds known models."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from helpers import make_features
from lumiglue import Features, Geometry, InputError, Matches, MatchResult
from lumiglue.geometry.projective import (
    direction_angle,
    epipolar_error,
    fundamental_from_pose,
    reprojection_error,
    rotation_angle,
    transform,
)
from lumiglue.geometry.robust import estimate, relative_pose

pytestmark = pytest.mark.portable

TILT = torch.tensor([[0.9, -0.2, 30.0], [0.15, 1.1, -12.0], [2e-4, -1e-4, 1.0]])


def test_features_say_what_is_wrong() -> None:
    good = make_features(3, 0)
    nan = good.keypoints.clone()
    nan[1, 0] = math.nan
    cases = [
        ({"keypoints": nan}, "keypoints contain NaN or infinity .first at row 1."),
        ({"descriptors": good.descriptors * math.inf}, "descriptors contain NaN"),
        ({"scales": torch.tensor([1.0, 0.0, 2.0])}, "scales must be positive"),
        ({"image_size": (0, 480)}, "image_size is"),
    ]
    for change, message in cases:
        values = {"keypoints": good.keypoints, "descriptors": good.descriptors, "image_size": good.image_size, **change}
        with pytest.raises(InputError, match=message):
            Features(**values)


def test_what_is_printed_fits_on_a_line() -> None:
    features = make_features(300, 0)
    matches = Matches(torch.tensor([[0, 1]]), torch.tensor([0.5]), 4)
    result = MatchResult(features, features[:2], matches)
    assert repr(features) == "Features(300 keypoints, unknown, image 640 x 480)"
    assert repr(matches) == "Matches(1, stop_layer=4)"
    assert repr(result).startswith("MatchResult(Matches(1, stop_layer=4), Features(300 keypoints")
    assert repr(Geometry("homography", torch.eye(3), torch.tensor([True, False]))) == "Geometry(homography, 1 inliers of 2)"
    assert repr(Geometry("fundamental", None, torch.zeros(0))) == "Geometry(fundamental, not found)"


def test_features_are_picked_by_rows() -> None:
    features = make_features(6, 0)
    picked = features[torch.tensor([4, 1])]
    assert torch.equal(picked.keypoints, features.keypoints[[4, 1]])
    assert picked.orientations is not None
    assert features.orientations is not None
    assert torch.equal(picked.orientations, features.orientations[[4, 1]])
    assert len(features[:0]) == 0
    assert picked.image_size == (640, 480)


def test_matches_in_the_form_of_other_tools() -> None:
    matches = Matches(torch.tensor([[0, 3], [2, 1]]), torch.tensor([0.9, 0.4]))
    assert matches.matches0(4).tolist() == [3, -1, 1, -1]
    assert_close(matches.scores0(4), torch.tensor([0.9, 0.0, 0.4, 0.0]))


def test_homographies_map_and_come_back() -> None:
    points = torch.rand(20, 2) * 400
    there = transform(TILT, points)
    assert_close(transform(torch.linalg.inv(TILT), there), points, rtol=0, atol=1e-2)
    assert_close(reprojection_error(TILT, points, there + torch.tensor([3.0, 4.0])), torch.full((20,), 5.0))
    behind = torch.tensor([[-1.0, 0.0]])
    horizon = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    assert bool(torch.isinf(transform(horizon, behind)).all())


def test_epipolar_error_is_zero_on_true_matches_and_grows_across_the_line() -> None:
    k = torch.tensor([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]], dtype=torch.float64)
    angle = torch.tensor(0.2, dtype=torch.float64)
    rotation = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]], dtype=torch.float64)
    translation = torch.tensor([1.0, 0.1, 0.05], dtype=torch.float64)
    world = torch.rand(30, 3, dtype=torch.float64) * torch.tensor([4.0, 3, 4]) + torch.tensor([-2.0, -1.5, 4])
    x0, x1 = world @ k.T, (world @ rotation.T + translation) @ k.T
    points0, points1 = x0[:, :2] / x0[:, 2:], x1[:, :2] / x1[:, 2:]
    fundamental = fundamental_from_pose(k, k, rotation, translation)
    assert float(epipolar_error(fundamental, points0, points1).max()) < 1e-9
    shifted = epipolar_error(fundamental, points0, points1 + torch.tensor([0.0, 5.0]))
    assert 2.0 < float(shifted.mean()) < 6.0
    pose = relative_pose(points0.numpy(), points1.numpy(), k.numpy(), k.numpy())
    assert pose is not None
    assert rotation_angle(torch.tensor(pose[0]), rotation) < 0.1
    assert direction_angle(torch.tensor(pose[1]), translation) < 0.5
    assert pose[2].all()


def test_angles() -> None:
    x, y = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 2, 0])
    assert direction_angle(x, y) == pytest.approx(90, abs=1e-4)
    assert direction_angle(x, -3 * x) == pytest.approx(180, abs=1e-4)
    assert direction_angle(x, torch.zeros(3)) == 180.0
    assert rotation_angle(torch.eye(3), torch.diag(torch.tensor([1.0, -1, -1]))) == pytest.approx(180, abs=1e-3)


@pytest.mark.parametrize("kind", ["homography", "fundamental"])
def test_a_known_model_is_recovered_among_outliers(kind: str) -> None:
    rng = np.random.default_rng(0)
    points0 = rng.uniform(0, 500, (200, 2))
    points1 = transform(TILT.double(), torch.tensor(points0)).numpy()
    if kind == "fundamental":  # a homography plus parallax along x is no homography
        points1[:, 0] += rng.uniform(0, 60, 200)
    wrong = np.zeros(200, bool)
    wrong[:80] = True
    points1[wrong] = rng.uniform(0, 500, (80, 2))
    estimated = estimate(kind, points0, points1)  # pyright: ignore[reportArgumentType]
    assert estimated.matrix is not None
    inliers = estimated.inliers.numpy()
    assert inliers[~wrong].mean() > 0.97
    assert inliers[wrong].mean() < 0.1
    if kind == "homography":
        matrix = estimated.matrix
        assert float(matrix[2, 2]) == pytest.approx(1.0)
        assert_close(
            transform(matrix, torch.tensor(points0).float()),
            transform(TILT, torch.tensor(points0).float()),
            rtol=0,
            atol=0.5,
        )


def test_too_few_points_give_no_model() -> None:
    for n in (0, 1, 3):
        estimated = estimate("homography", np.zeros((n, 2)), np.zeros((n, 2)))
        assert estimated.matrix is None
        assert estimated.inliers.tolist() == [False] * n
    assert relative_pose(np.zeros((4, 2)), np.zeros((4, 2)), np.eye(3), np.eye(3)) is None


@pytest.mark.usefixtures("unchecked")
def test_unknown_geometry_is_refused() -> None:
    with pytest.raises(InputError, match="unknown geometry 'plane'; choose from"):
        estimate("plane", np.zeros((9, 2)), np.zeros((9, 2)))  # pyright: ignore[reportArgumentType]
