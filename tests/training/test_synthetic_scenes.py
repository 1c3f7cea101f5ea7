"""Synthetic scenes: what is rendered lies where geometry says, and labels from depth respect occlusion."""

from itertools import cycle

import numpy as np
import pytest
import torch

from helpers import draw_photo
from lumiglue import InputError
from lumiglue.geometry.projective import epipolar_distances, epipolar_error, fundamental_from_pose, transfer, transform
from lumiglue.training.data.synthetic_scenes import (
    Camera,
    Rectangle,
    SceneSettings,
    aim_camera,
    build_scene,
    depths_at,
    render,
)
from lumiglue.training.labels import labels_from_depths, labels_from_homographies

INTRINSICS = np.array([[200.0, 0, 79.5], [0, 200.0, 59.5], [0, 0, 1]])
SIZE = (160, 120)


def board(z: float, texture: np.ndarray, width: float = 2.0) -> Rectangle:
    """A texture that faces the camera at the origin, centred on its axis."""
    rows, columns = texture.shape[:2]
    step = width / columns
    origin = np.array([-(columns - 1) / 2 * step, -(rows - 1) / 2 * step, z])
    return Rectangle(texture, origin, np.array([step, 0, 0]), np.array([0, step, 0]))


def camera_at(x: float, yaw: float = 0.0) -> Camera:
    camera_from_world = np.eye(4)
    camera_from_world[:3, :3] = [[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]]
    camera_from_world[:3, 3] = -camera_from_world[:3, :3] @ [x, 0, 0]
    return Camera(INTRINSICS, camera_from_world, SIZE)


def batched(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.asarray(array, dtype=np.float32))[None] for array in arrays]


def test_a_board_that_fills_the_view_is_its_texture() -> None:
    texture = draw_photo(0, 160, 120)
    rendering = render([board(1.0, texture, width=0.8)], Camera(INTRINSICS, np.eye(4), SIZE))  # one texel a pixel
    assert np.abs(rendering.image.astype(int) - texture).max() <= 1
    assert rendering.depth == pytest.approx(np.ones((120, 160)))
    assert (rendering.surface == 0).all()


def test_the_nearer_surface_hides_the_farther_whatever_their_order() -> None:
    far, near = board(2.0, draw_photo(1, 160, 120), 3.0), board(1.0, np.full((20, 20, 3), 255, np.uint8), 0.2)
    for scene, front in (([far, near], 1), ([near, far], 0)):
        rendering = render(scene, Camera(INTRINSICS, np.eye(4), SIZE))
        assert rendering.surface[60, 80] == front
        assert rendering.depth[60, 80] == pytest.approx(1.0)
        assert rendering.depth[5, 5] == pytest.approx(2.0)
        assert (rendering.surface == front).sum() == pytest.approx(40 * 40, abs=90)  # 0.2 at distance 1 and focal 200


def test_depth_is_a_ray_casters_depth() -> None:
    """Slow twin: intersect each pixel's ray with every rectangle's plane."""
    rng = np.random.default_rng(3)
    settings = SceneSettings(size=SIZE)
    scene = build_scene(rng, cycle([draw_photo(k, 80, 60) for k in range(4)]), settings)
    camera = aim_camera(rng, settings)
    rendering = render(scene, camera)
    world_from_camera = np.linalg.inv(camera.camera_from_world)
    wrong = compared = 0
    for x, y in rng.integers(0, SIZE, (120, 2)):
        ray = world_from_camera[:3, :3] @ np.linalg.inv(camera.intrinsics) @ [x, y, 1.0]  # z = 1 in the camera
        depths, margins = [np.inf], []
        for rectangle in scene:
            matrix = np.column_stack([rectangle.right, rectangle.down, -ray])
            if abs(np.linalg.det(matrix)) < 1e-15:
                continue
            u, v, z = np.linalg.solve(matrix, world_from_camera[:3, 3] - rectangle.origin)
            rows, columns = rectangle.texture.shape[:2]
            if z > 1e-9:
                margins.append(min(u + 0.5, columns - 0.5 - u, v + 0.5, rows - 0.5 - v))
            if z > 1e-9 and -0.5 <= u <= columns - 0.5 and -0.5 <= v <= rows - 0.5:
                depths.append(z)
        if min(map(abs, margins)) > 1e-3:  # not on an edge, where rounding decides
            compared += 1
            wrong += not np.isclose(min(depths), rendering.depth[y, x], rtol=1e-6)
    assert compared > 80
    assert wrong == 0


def test_depths_at_keypoints_are_exact_on_planes_and_unknown_on_edges() -> None:
    tilted = Rectangle(
        draw_photo(2, 160, 120), np.array([-1.0, -0.8, 1.5]), np.array([0.0125, 0, 0.004]), np.array([0, 0.0125, 0])
    )
    near = board(0.8, np.full((20, 20, 3), 255, np.uint8), 0.1)
    rendering = render([tilted, near], Camera(INTRINSICS, np.eye(4), SIZE))
    points = np.array(
        [[30.25, 40.75], [100.5, 100.5], [79.5, 59.5], [79.5 - 12.5, 59.5]]
    )  # the last on the near board's edge
    depths = depths_at(rendering, points)
    normal = np.cross(tilted.right, tilted.down)
    rays = np.column_stack([points, np.ones(4)]) @ np.linalg.inv(INTRINSICS).T
    assert depths[:2] == pytest.approx((normal @ tilted.origin / (rays @ normal))[:2], rel=1e-6)
    assert depths[2] == pytest.approx(0.8)
    assert np.isnan(depths[3])
    empty = render([], Camera(INTRINSICS, np.eye(4), SIZE))
    assert np.isnan(depths_at(empty, points)).all()


def test_surfaces_behind_or_edge_on_do_not_appear() -> None:
    edge_on = Rectangle(draw_photo(0, 8, 8), np.array([0, -1.0, 1]), np.array([0, 0, 0.1]), np.array([0, 0.1, 0]))
    rendering = render([board(-1.0, draw_photo(1, 8, 8)), edge_on], Camera(INTRINSICS, np.eye(4), SIZE))
    assert (rendering.surface == -1).all()
    through = Rectangle(draw_photo(0, 64, 64), np.array([-1, 0.3, -2]), np.array([0.05, 0, 0]), np.array([0, 0, 0.1]))
    floor = render([through], Camera(INTRINSICS, np.eye(4), SIZE))  # reaches behind the camera: only its front is drawn
    assert (floor.surface[:60] == -1).all()
    assert (floor.surface[110:, 40:120] == 0).all()


def test_two_views_of_a_board_are_related_by_its_homography() -> None:
    """Labels from depth on a plane are the labels of the plane's homography."""
    rng = np.random.default_rng(0)
    a, b = camera_at(0.0), camera_at(0.3, 0.1)
    points = rng.uniform([0, 0], [159, 119], (80, 2))
    b_from_a = b.camera_from_world @ np.linalg.inv(a.camera_from_world)
    depth = 2.0
    plane = INTRINSICS @ (b_from_a[:3, :3] + np.outer(b_from_a[:3, 3], [0, 0, 1 / depth])) @ np.linalg.inv(INTRINSICS)
    there = transform(torch.from_numpy(plane), torch.from_numpy(points)).numpy() + rng.normal(0, 1.5, (80, 2))
    rays = np.column_stack([there, np.ones(80)]) @ np.linalg.inv(INTRINSICS).T @ b_from_a[:3, :3]
    depths1 = (depth + (b_from_a[:3, :3].T @ b_from_a[:3, 3])[2]) / rays[:, 2]
    cloud = batched(points, there, np.full(80, depth), depths1, INTRINSICS, INTRINSICS, b_from_a)
    labels = labels_from_depths(*cloud)
    twin = labels_from_homographies(cloud[0], cloud[1], torch.from_numpy(plane).float()[None], torch.tensor([True]))
    assert labels.matches.tolist() == twin.matches.tolist()
    assert len(labels.matches) > 30


def test_transfer_there_and_back_and_behind() -> None:
    points, depths = torch.tensor([[[10.0, 20.0], [150.0, 90.0], [80.0, 60.0]]]), torch.tensor([[2.0, 3.0, torch.nan]])
    a, b, way = batched(INTRINSICS, INTRINSICS, camera_at(0.4, 0.2).camera_from_world)
    seen, carried = transfer(points, depths, a, b, way)
    back, again = transfer(seen, carried, b, a, torch.linalg.inv(way))
    assert back[0, :2].numpy() == pytest.approx(points[0, :2].numpy(), abs=1e-3)
    assert again[0, :2].numpy() == pytest.approx([2.0, 3.0], abs=1e-5)
    assert bool(seen[0, 2].isnan().all())
    turned = torch.diag(torch.tensor([-1.0, 1, -1, 1]))[None]
    behind, depth = transfer(points, depths, a, b, turned)
    assert bool(behind[0, 0].isinf().all())
    assert float(depth[0, 0]) == -2


def test_epipolar_distances_are_those_of_single_pairs() -> None:
    rng = np.random.default_rng(1)
    way = camera_at(0.5, 0.2).camera_from_world
    k = torch.from_numpy(INTRINSICS)
    fundamental = fundamental_from_pose(k, k, torch.from_numpy(way[:3, :3]), torch.from_numpy(way[:3, 3]))
    a, b = (torch.from_numpy(rng.uniform(0, 150, (n, 2))) for n in (5, 7))
    d0, d1 = epipolar_distances(fundamental, a, b)
    assert d0.shape == (5, 7)
    for i in range(5):
        for j in range(7):
            assert float((d0 + d1)[i, j] / 2) == pytest.approx(
                float(epipolar_error(fundamental, a[i : i + 1], b[j : j + 1]))
            )


def test_an_occluded_point_does_not_match_its_occluder() -> None:
    """Two points of the second image lie where the first one's point is seen: one at its depth, one in front of it."""
    way = camera_at(0.5).camera_from_world
    point, depth = np.array([[90.0, 60.0]]), np.array([2.0])
    seen, carried = transfer(*batched(point, depth, INTRINSICS, INTRINSICS, way))
    x, y = seen[0, 0].tolist()
    both = np.array([[x + 0.5, y], [x, y]])
    labels = labels_from_depths(*batched(point, both, depth, np.array([float(carried), 1.0]), INTRINSICS, INTRINSICS, way))
    assert labels.matches.tolist() == [[0, 0, 0]]
    assert labels.unmatchable0.tolist() == [[False]]
    assert labels.unmatchable1.tolist() == [[False, True]]
    alone = labels_from_depths(*batched(point, both[1:], depth, np.array([1.0]), INTRINSICS, INTRINSICS, way))
    assert alone.matches.shape == (0, 3)
    assert alone.unmatchable0.tolist() == [[True]]


def test_points_of_unknown_depth_are_judged_by_the_epipolar_line_alone() -> None:
    way = camera_at(0.5).camera_from_world  # epipolar lines are the image rows
    a, unknown = np.array([[90.0, 60.0]]), np.array([np.nan])
    for y, unmatchable in ((60.0, False), (64.0, False), (70.0, True)):
        other = np.array([[20.0, y]])
        labels = labels_from_depths(*batched(a, other, unknown, unknown, INTRINSICS, INTRINSICS, way))
        assert labels.matches.shape == (0, 3)
        assert labels.unmatchable0.tolist() == [[unmatchable]]


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="objects is \\(5, 2\\)"):
        SceneSettings(objects=(5, 2))
    with pytest.raises(InputError, match="at least 64 x 64"):
        SceneSettings(size=(32, 32))
