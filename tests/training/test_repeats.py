"""Photos with a part that repeats: what is textured is copies of a piece of the photo, and the rest is the photo."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers import draw_photo
from lumiglue import InputError
from lumiglue.cli import main
from lumiglue.extractors.sift import Sift
from lumiglue.training.data import repeats
from lumiglue.training.data.homographies import PhotoViews, ViewSettings
from lumiglue.training.data.repeats import sometimes_repeating, with_repeats
from lumiglue.training.data.synthetic_scenes import SceneSettings, SyntheticScenes


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3):
        cv2.imwrite(str(folder / f"{seed}.png"), draw_photo(seed))
    return folder


@pytest.mark.parametrize("size", [(240, 320), (320, 200), (64, 64)])
def test_a_rectangle_repeats_a_piece_of_the_photo(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "SHADE", 0.0)
    monkeypatch.setattr(repeats, "MISSING", 0.0)
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    untouched = photo.copy()
    for seed in range(5):
        textured = with_repeats(np.random.default_rng(seed), photo)
        assert np.array_equal(photo, untouched)
        rows, columns = (textured != photo).any(2).nonzero()
        window = textured[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert np.all(np.array(window.shape[:2]) >= 0.5 * np.array(size) - 1)
        period = [
            next(step for step in range(1, size[axis]) if np.array_equal(*shifted(window, step, axis))) for axis in (0, 1)
        ]
        patch = window[: period[0], : period[1]]
        assert np.all(np.array(period) <= 0.25 * max(size) + 1)
        corners = np.argwhere((photo[: size[0] - period[0] + 1, : size[1] - period[1] + 1] == patch[0, 0]).all(2))
        assert any(np.array_equal(photo[y : y + period[0], x : x + period[1]], patch) for y, x in corners)


def shifted(window: np.ndarray, step: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The window without its first rows (columns), and without its last: equal where it repeats after `step`."""
    count = window.shape[axis]
    return window.take(range(step, count), axis), window.take(range(count - step), axis)


def test_some_copies_are_missing_and_none_is_quite_as_bright(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = draw_photo(0)
    monkeypatch.setattr(repeats, "MISSING", 1.0)
    assert np.array_equal(with_repeats(np.random.default_rng(0), photo), photo)
    monkeypatch.setattr(repeats, "MISSING", 0.0)
    shaded = with_repeats(np.random.default_rng(0), photo).astype(int)
    monkeypatch.setattr(repeats, "SHADE", 0.0)
    even = with_repeats(np.random.default_rng(0), photo).astype(int)
    assert 0 < np.abs(shaded - even).mean() < 25
    assert not np.array_equal(even, photo)


def test_no_share_leaves_the_views_as_they_were() -> None:
    photo, rng = draw_photo(0), np.random.default_rng(0)
    assert sometimes_repeating(rng, photo, 0.0) is photo
    assert rng.random() == np.random.default_rng(0).random()
    count = sum(sometimes_repeating(rng, photo, 0.25) is not photo for _ in range(200))
    assert 30 <= count <= 70


def test_views_of_both_kinds_repeat(photos: Path) -> None:
    """More of a view's descriptors have a twin in it: another keypoint, elsewhere, that looks alike."""
    sources = (
        (PhotoViews.of_folder(photos, n_views=2), ViewSettings(photometric=0.0, tilt=20, zoom=(0.9, 1.1))),
        (SyntheticScenes.of_folder(photos, count=3, n_views=2), SceneSettings(photometric=0.0)),
    )
    for source, settings in sources:
        plain, repeating = (
            np.mean([twins(replace(source, settings=replace(settings, repeats=share)), item) for item in range(3)])
            for share in (0.0, 1.0)
        )
        assert repeating > plain + 0.1


def twins(source: PhotoViews | SyntheticScenes, item: int) -> float:
    """Share of the keypoints of an item's first view with a descriptor's angle below 20 degrees to another's."""
    features = source.views(item, Sift(max_keypoints=512), 512)[0].features
    alike = (features.descriptors @ features.descriptors.T).fill_diagonal_(-1).amax(1)
    return float((alike > np.cos(np.radians(20))).float().mean())


def test_a_share_is_asked_for(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for settings in (ViewSettings, SceneSettings):
        with pytest.raises(InputError, match=r"repeats is 1\.5; give a number from 0 to 1"):
            settings(repeats=1.5)
        with pytest.raises(InputError, match=r"any_roll is -0\.1; give a number from 0 to 1"):
            settings(any_roll=-0.1)
    assert main(["dataset", "homographies", str(photos), "-o", str(tmp_path / "dataset.h5"), "--repeats", "-1"]) == 2
    assert "repeats is -1" in capsys.readouterr().err
