"""A scene that is known."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers import draw_photo
from lumiglue.training.data.synthetic_scenes import Camera, SceneSettings, build_scene, render


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """Eight photos on an arc around a synthetic scene, and where they were taken."""
    folder, rng = tmp_path_factory.mktemp("scene"), np.random.default_rng(3)
    settings = SceneSettings(objects=(3, 3), spread=4.0)
    world = build_scene(rng, (draw_photo(seed, 320, 240) for seed in range(10_000)), settings)
    centres = {}
    for number in range(8):
        angle = np.radians(-28 + 8 * number)
        centre = np.array([6 * np.sin(angle), 0.15 * number, -6 * np.cos(angle) + 0.0])
        forward = -centre / np.linalg.norm(centre)
        right = np.cross([0.0, 1.0, 0.0], forward)
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        camera_from_world = np.eye(4)
        camera_from_world[:3, :3], camera_from_world[:3, 3] = rotation, -rotation @ centre
        intrinsics = np.array([[520.0, 0, 239.5], [0, 520.0, 179.5], [0, 0, 1]])
        image = render(world, Camera(intrinsics, camera_from_world, (480, 360))).image
        assert cv2.imwrite(str(folder / f"{number}.png"), image[..., ::-1])
        centres[f"{number}.png"] = centre
    return folder, centres
