"""Pictures of matches: where lines, points and colours are, and what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from helpers import draw_photo
from lumiglue import Features, Geometry, InputError, Matches
from lumiglue.pictures import picture_of_matches, save_picture


def features(*points: tuple[float, float]) -> Features:
    xy = torch.tensor(points).float().reshape(-1, 2)
    return Features(keypoints=xy, descriptors=torch.zeros(len(xy), 4), image_size=(500, 300))


def matches(*pairs: tuple[int, int]) -> Matches:
    rows = torch.tensor(pairs).long().reshape(-1, 2)
    return Matches(
        pairs=rows, scores=torch.ones(len(rows)), layers0=torch.ones(3).long(), layers1=torch.ones(3).long(), stop_layer=1
    )


def test_lines_join_the_points_and_outliers_are_faint() -> None:
    """Two black photos of 500 x 300 side by side, 20 pixels apart, are drawn at their size: 1,020 pixels."""
    black = np.zeros((300, 500, 3), np.uint8)
    images = features((100, 50), (100, 150), (100, 250)), features((400, 50), (400, 150), (400, 250))
    geometry = Geometry(kind="homography", matrix=torch.eye(3), inliers=torch.tensor([True, False]))
    drawn = picture_of_matches(black, black, *images, matches((0, 0), (1, 1)), geometry, "title")
    top = drawn.shape[0] - 300 - 8
    photos = drawn[top : top + 300, :1020].astype(int)
    good, bad, none = (photos[y, 300] for y in (50, 150, 250))
    assert good[0] > 80
    assert good[2] < good[0] / 2  # score 1 is yellow
    assert len(set(bad.tolist())) == 1
    assert 40 < bad[0] < 80
    assert none.tolist() == [0, 0, 0]
    assert photos[250, 100].min() > 100  # a point without a match
    assert photos[50, 920].min() < 100 < photos[50, 920].max()
    assert (drawn[: top - 2, :1020] < 128).any()  # the title


@pytest.mark.parametrize("size", [(40, 30), (2000, 1500)])
def test_any_size_and_no_matches(size: tuple[int, int], tmp_path: Path) -> None:
    photo, narrow = draw_photo(1, *size), np.zeros((70, 9, 3), np.uint8)
    drawn = picture_of_matches(photo, narrow, features(), features((3.0, 3.0)), matches(), title="a $ 照片 " * 40)
    assert 900 <= drawn.shape[1] <= 1600
    for suffix in (".png", ".JPG"):
        save_picture(drawn, tmp_path / f"m{suffix}")
        read = cv2.imread(str(tmp_path / f"m{suffix}"))
        assert read is not None
        read = read[..., ::-1].astype(int)
        assert np.abs(read - drawn).mean() < (5 if suffix == ".JPG" else 1e-9)
    with pytest.raises(InputError, match=r"m.xyz has an unsupported suffix"):
        save_picture(drawn, tmp_path / "m.xyz")
