"""The yardstick's ground truth: consensus of two routes, and views whose homography is exact."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from helpers import draw_photo
from lumiglue.evaluation.synthetic import shrunk, turned
from lumiglue.geometry import fundamental_from_pose
from lumiglue.training.data.homographies import ViewSettings, sample_view

FILE = Path(__file__).parents[2] / "benchmarks" / "accuracy" / "yardstick.py"


@pytest.fixture(scope="module")
def yardstick() -> Any:
    spec = importlib.util.spec_from_file_location("yardstick", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["yardstick"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def two_views(seed: int, count: int = 120, wrong: int = 30) -> tuple[tuple[np.ndarray, np.ndarray], torch.Tensor]:
    """Points of a scene in two images, the last `wrong` of them at random, and the true fundamental matrix."""
    rng = np.random.default_rng(seed)
    k = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    rotation, translation = cv2.Rodrigues(np.array([0.05, 0.2, 0.02]))[0], np.array([-0.8, 0.1, 0.05])
    world = rng.uniform([-2, -1.5, 4], [2, 1.5, 8], (count, 3))
    seen = []
    for points in (world, world @ rotation.T + translation):
        pixels = points @ k.T
        seen.append(pixels[:, :2] / pixels[:, 2:] + rng.normal(0, 0.2, (count, 2)))
    seen[1][count - wrong :] = rng.uniform(0, 480, (wrong, 2))
    intrinsics = torch.from_numpy(k)
    true = fundamental_from_pose(intrinsics, intrinsics, torch.from_numpy(rotation), torch.from_numpy(translation))
    return (seen[0], seen[1]), true


def test_what_two_routes_agree_on_fits_the_truth(yardstick: Any) -> None:
    first = yardstick.Route("one", "sift", 10, None)
    second = yardstick.Route("two", "sift", 10, None, magsac=True)
    (of_first, true), (of_second, _) = two_views(1), two_views(2)
    right = yardstick.consensus(first, second, of_first, of_second)
    assert 150 <= len(right[0]) <= 190  # of 180 right ones; some wrong ones lie on their line by chance
    assert np.median(yardstick.line_errors(true, right)) < 0.4
    assert yardstick.line_errors(true, right).max() < 4
    few = yardstick.spread(right, 50)
    assert len(few[0]) == 50
    distances = np.linalg.norm(few[0][:, None] - few[0], axis=2) + 1e9 * np.eye(50)
    rows = np.random.default_rng(0).permutation(len(right[0]))[:50]
    drawn = np.linalg.norm(right[0][rows, None] - right[0][rows], axis=2) + 1e9 * np.eye(50)
    assert distances.min() > 3 * drawn.min()


def test_routes_that_disagree_give_nothing(yardstick: Any) -> None:
    first = yardstick.Route("one", "sift", 10, None)
    second = yardstick.Route("two", "sift", 10, None, magsac=True)
    of_first, _ = two_views(1)
    (a, b), _ = two_views(2)
    turned = (a, b[:, ::-1] + np.array([100.0, -40.0]))  # another geometry, as consistent in itself
    assert yardstick.consensus(first, second, of_first, turned) is None
    assert yardstick.consensus(first, second, of_first, (a[:6], b[:6])) is None
    assert yardstick.consensus(first, second, (of_first[0][-30:], of_first[1][-30:]), (a, b)) is None


def test_a_view_shows_each_point_where_its_homography_says(yardstick: Any) -> None:
    photo = cv2.GaussianBlur(draw_photo(3), (0, 0), 2)
    behind = np.full((50, 70, 3), 7, np.uint8)
    height, width = photo.shape[:2]
    settings = ViewSettings(any_roll=0, tilt=40, zoom=(0.9, 1.3), shift=0.1)
    view_from_photo = sample_view(np.random.default_rng(0), (width, height), settings)
    view = yardstick.seen(photo, view_from_photo, behind)
    assert view.shape == photo.shape
    x, y = np.meshgrid(np.arange(20, width - 20, 9), np.arange(20, height - 20, 9))
    points = np.stack([x.ravel(), y.ravel()], 1).astype(np.float64)
    there = cv2.perspectiveTransform(points[None], view_from_photo)[0].astype(np.float32)
    inside = ((there > 4) & (there < np.array([width, height]) - 5)).all(1)
    shown = cv2.remap(view, there[:, :1], there[:, 1:], cv2.INTER_LINEAR)[:, 0]
    shifted = cv2.remap(view, there[:, :1] + 2, there[:, 1:], cv2.INTER_LINEAR)[:, 0]
    expected = photo[y.ravel(), x.ravel()]
    error, error_shifted = (float(np.abs(side[inside].astype(float) - expected[inside]).mean()) for side in (shown, shifted))
    assert inside.sum() > 100
    assert error < 0.4 * error_shifted
    back = cv2.perspectiveTransform(np.array([[[1.0, 1.0]]]), np.linalg.inv(view_from_photo))[0, 0]
    if not ((back >= 0) & (back < [width, height])).all():
        assert (view[0, 0] == 7).all()


def test_a_similarity_is_read_off_its_points(yardstick: Any) -> None:
    points = np.random.default_rng(0).uniform(0, 200, (40, 2))
    angle, scale = np.radians(-70), 0.4
    turned = scale * points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + 9
    change = yardstick.Change.of((points, turned), [(200, 200), (200, 200)])
    assert (change.turn, change.scale) == (pytest.approx(70), pytest.approx(2.5))
    assert change.class_of("indoor") == "rotation-scale"
    same = yardstick.Change.of((points, points), [(200, 200), (1000, 1000)])
    assert (same.turn, same.scale) == (pytest.approx(0), pytest.approx(1))
    assert same.class_of("indoor") == "little-overlap"
    assert same.class_of("low-light") == "low-light"


@pytest.mark.parametrize(("degrees", "factor"), [(75.0, 1.0), (210.0, 2.0)])
def test_a_turned_and_shrunk_image_keeps_its_pose(yardstick: Any, degrees: float, factor: float) -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    small, small_from_b = shrunk(image, factor)
    _, turned_from_small = turned(small, degrees)
    turned_from_b = turned_from_small @ small_from_b
    k = np.array([[500.0, 0, 330], [0, 500, 220], [0, 0, 1]])
    world = np.random.default_rng(0).uniform([-2, -1.5, 4], [2, 1.5, 8], (50, 3))
    in_b = world @ k.T
    expected = cv2.perspectiveTransform((in_b[:, :2] / in_b[:, 2:])[None], turned_from_b)[0]
    new_k, rotation = yardstick.turned_camera(k, turned_from_b, degrees)
    in_turned = world @ rotation.T @ new_k.T
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert new_k[0, 0] == pytest.approx(500 / factor)
    np.testing.assert_allclose(in_turned[:, :2] / in_turned[:, 2:], expected, atol=1e-6)


def test_what_is_held_out_is_there(yardstick: Any, shared: Path) -> None:
    held = yardstick.held_out()
    lines = [json.loads(line) for line in (shared / "photos" / "photos.jsonl").read_text().splitlines()]
    scenes, files = {line.get("scene") for line in lines}, {line["file"] for line in lines}
    assert {*held["scenes"], *held["dut_pairs"]} <= scenes
    assert set(held["photos"]) <= files
    assert {*yardstick.POSED, *yardstick.UNPOSED} == set(held["scenes"])
    assert {*yardstick.REPEATING_PAIRS, *yardstick.INDOOR_PAIRS} <= set(held["dut_pairs"])
    assert all((shared / "rgbd" / name / "meta.json").is_file() for name in held["rgbd"])
