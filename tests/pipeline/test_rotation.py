"""Quarter turns: points follow pixels, and the search finds the turn that a matcher for upright photos needs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import draw_photo, make_features
from lumiglue import Features, InputError, LightGlue, LightGlueConfig, Pipeline, Sift
from lumiglue.pipeline.rotation import match_best_turn, turned_features, turned_image

pytestmark = pytest.mark.portable

PHOTO = draw_photo(4)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_points_follow_their_pixels(turns: int) -> None:
    grid = torch.tensor([[0.0, 0.0], [319.0, 0.0], [17.0, 200.0], [319.0, 239.0]])
    features = Features(grid, torch.zeros(4, 8), (320, 240))
    there, image = turned_features(features, turns), turned_image(PHOTO, turns)
    assert there.image_size == (image.shape[1], image.shape[0])
    for (x, y), (u, v) in zip(grid.int().tolist(), there.keypoints.int().tolist(), strict=True):
        assert np.array_equal(PHOTO[y, x], image[v, u])
    back = turned_features(there, -turns)
    assert torch.equal(back.keypoints, grid)
    assert back.image_size == (320, 240)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_orientations_follow_what_is_seen(turns: int) -> None:
    """SIFT of the turned photo has the points of the photo's, where turning puts them, with the turned directions."""
    sift = Sift(max_keypoints=150, resize=None)
    expected, actual = turned_features(sift(PHOTO), turns), sift(turned_image(PHOTO, turns))
    distance = torch.cdist(expected.keypoints, actual.keypoints)
    near, row = distance.min(1)
    assert (near < 0.5).float().mean() > 0.8
    assert expected.orientations is not None
    assert actual.orientations is not None
    difference = torch.remainder(actual.orientations[row] - expected.orientations + torch.pi, 2 * torch.pi) - torch.pi
    assert (difference[near < 0.5].abs() < 0.2).float().mean() > 0.6  # of several directions SIFT keeps one


class Upright:
    """Features without orientation, whose descriptors know which way is up: the pixels around, as they lie."""

    name, descriptor_dim = "upright", 128

    def __init__(self) -> None:
        self.sift = Sift(max_keypoints=120, resize=None)

    def config(self) -> dict:
        return {"name": self.name}

    def __call__(self, image: np.ndarray) -> Features:
        features = self.sift(image)
        grey = np.pad(image.mean(2).astype(np.float32), 12, mode="edge")
        patches = []
        for x, y in features.keypoints.round().int().tolist():
            patch = torch.from_numpy(grey[y : y + 24, x : x + 24])[None, None]
            patch = torch.nn.functional.interpolate(patch, (8, 16), mode="bilinear").flatten()
            patches.append(torch.nn.functional.normalize(patch - patch.mean(), dim=0))
        return Features(
            features.keypoints, torch.stack(patches), features.image_size, scores=features.scores, extractor=self.name
        )


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_the_search_finds_the_turn(turns: int) -> None:
    torch.manual_seed(0)
    matcher = LightGlue(
        LightGlueConfig(
            extractor="upright", descriptor_dim=128, d=128, n_layers=2, project_input=True, ablation="no-matchability"
        )
    )
    pipeline = Pipeline(Upright(), matcher)
    lying = turned_image(PHOTO, turns)
    features1, matches, turn = match_best_turn(
        pipeline.extract(PHOTO), lying, lambda image, _: pipeline.extract(image), pipeline.match_features
    )
    assert turn == -turns % 4
    assert features1.image_size == (lying.shape[1], lying.shape[0])
    result = pipeline.match(PHOTO, lying, rotation="search")
    assert len(result) == len(matches) > 60
    true = turned_features(Features(torch.from_numpy(result.points0), torch.zeros(len(result), 1), (320, 240)), turns)
    error = np.linalg.norm(true.keypoints.numpy() - result.points1, axis=1)
    assert (error < 2).mean() > 0.9
    if turns:
        assert len(pipeline.match(PHOTO, lying)) < 0.5 * len(result)


def test_turning_back_and_forth_keeps_features() -> None:
    features = make_features(20, 0)
    again = turned_features(turned_features(features, 3), 5)
    assert torch.equal(again.keypoints.round(), features.keypoints.round())
    assert again.orientations is not None
    assert features.orientations is not None
    assert torch.allclose(torch.cos(again.orientations - features.orientations), torch.ones(20), atol=1e-5)
    assert torch.equal(again.descriptors, replace(features).descriptors)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_rotation_is_refused() -> None:
    with pytest.raises(InputError, match="unknown rotation 'spin'"):
        Pipeline.pretrained("sift").match(PHOTO, PHOTO, rotation="spin")  # pyright: ignore[reportArgumentType]
