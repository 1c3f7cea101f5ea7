"""Tiles see what the whole photo shows, within bounds; masks leave regions out and nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from helpers import draw_photo
from lumiglue import Features, ImageError, InputError, Pipeline, Sift
from lumiglue.cli import main
from lumiglue.collection.features import mask_file
from lumiglue.extractors import Tiled
from lumiglue.extractors.regions import extract_inside

# Sides in multiples of 64: else OpenCV halves odd octaves by a little less than two, and its points drift.
LARGE = cv2.resize(draw_photo(3), (1920, 1280), interpolation=cv2.INTER_CUBIC)
LARGE = np.clip(LARGE + np.random.default_rng(0).normal(0, 6, LARGE.shape), 0, 255).astype(np.uint8)
PHOTO = draw_photo(4)


class Grid:
    """A point every 10 pixels of the photo it is shown, with the pixel's colour; counts the pixels of what it saw."""

    name, descriptor_dim = "grid", 3

    def __init__(self, scored: bool = True) -> None:
        self.seen: list[tuple[int, int]] = []
        self.scored = scored

    def config(self) -> dict[str, Any]:
        return {"name": self.name}

    def __call__(self, image: np.ndarray) -> Features:
        self.seen.append(image.shape[:2])
        y, x = (part.ravel() for part in np.mgrid[0 : image.shape[0] : 10, 0 : image.shape[1] : 10])
        colours = torch.from_numpy(image[y, x].astype(np.float32))
        size = (image.shape[1], image.shape[0])
        points = torch.from_numpy(np.stack([x, y], axis=1).astype(np.float32))
        return Features(points, colours, size, scores=colours.sum(1) if self.scored else None)


def rows(features: Features) -> set[tuple[float, ...]]:
    return {tuple(row) for row in features.keypoints.round(decimals=1).tolist()}


def test_tiles_cover_each_pixel_once_and_stay_small() -> None:
    """Every pixel is a point of an extractor that finds them all, whatever the size of the photo."""

    class Every(Grid):
        def __call__(self, image: np.ndarray) -> Features:
            self.seen.append(image.shape[:2])
            y, x = (part.ravel() for part in np.mgrid[0 : image.shape[0], 0 : image.shape[1]])
            points = torch.from_numpy(np.stack([x, y], axis=1).astype(np.float32))
            return Features(
                points, torch.zeros(len(points), 3), (image.shape[1], image.shape[0]), scores=torch.ones(len(points))
            )

    for height, width in ((512, 512), (513, 700), (900, 300)):
        extractor = Every()
        features = Tiled(extractor=extractor, tile=512, max_keypoints=10**7)(np.zeros((height, width, 3), np.uint8))
        assert len(features) == height * width
        assert len(torch.unique(features.keypoints, dim=0)) == height * width
        assert features.image_size == (width, height)
        assert max(max(shape) for shape in extractor.seen) <= 512


def test_sift_in_tiles_finds_the_points_of_the_whole_photo() -> None:
    plain = Sift(max_keypoints=800, resize=None)
    whole, tiled = plain(LARGE), Tiled(extractor=plain, tile=832, max_keypoints=800)(LARGE)
    assert len(tiled) == 800
    distance, row = torch.cdist(whole.keypoints.double(), tiled.keypoints.double()).min(1)
    assert whole.scales is not None
    same = distance < 0.1
    assert same[whole.scales < 8].float().mean() > 0.99  # a descriptor reaches 13 scales far, a margin is 128 pixels
    assert same.float().mean() > 0.9
    similarity = (whole.descriptors[same] * tiled.descriptors[row[same]]).sum(1)
    assert similarity.median() > 0.999
    assert (similarity > 0.95).float().mean() > 0.95  # at a few points another of several orientations is the strongest


def test_a_photo_of_one_tile_is_shown_whole_and_a_larger_one_may_be_shrunk_first() -> None:
    plain = Sift(max_keypoints=100, resize=None)
    small = Tiled(extractor=plain, tile=512, max_keypoints=100)(PHOTO)
    assert torch.equal(small.keypoints, plain(PHOTO).keypoints)
    shrunk = Tiled(extractor=plain, tile=1024, max_keypoints=300, resize=1000)(LARGE)
    expected = Sift(max_keypoints=300, resize=1000)(LARGE)
    assert torch.allclose(shrunk.keypoints, expected.keypoints, atol=1e-3)
    assert shrunk.scales is not None
    assert expected.scales is not None
    assert torch.allclose(shrunk.scales, expected.scales, rtol=1e-4)


def test_tiles_refuse_what_they_cannot_do() -> None:
    with pytest.raises(InputError, match="at least 512"):
        Pipeline.pretrained(tile=100)
    with pytest.raises(InputError, match="no scores"):
        Tiled(extractor=Grid(scored=False), tile=512, max_keypoints=10)(LARGE)


def test_a_mask_keeps_the_points_of_the_whole_photo_inside() -> None:
    mask = np.zeros(PHOTO.shape[:2], dtype=bool)
    mask[60:180, 100:250] = True
    sift = Sift(max_keypoints=60, resize=None)
    masked, everything = extract_inside(sift, PHOTO, mask), replace(sift, max_keypoints=5000)(PHOTO)
    x, y = (masked.keypoints + 0.5).floor().long().unbind(1)
    assert mask[y.numpy(), x.numpy()].all()
    column, row = (everything.keypoints + 0.5).floor().long().unbind(1)
    inside = everything[torch.nonzero(torch.from_numpy(mask[row.numpy(), column.numpy()]))[:, 0]]
    assert len(masked) == min(60, len(inside))
    assert rows(masked) <= rows(inside)
    assert len(extract_inside(sift, PHOTO, np.zeros_like(mask))) == 0
    assert torch.equal(extract_inside(sift, PHOTO, np.ones_like(mask)).keypoints, sift(PHOTO).keypoints)
    tiled = Tiled(extractor=sift, tile=512, max_keypoints=60)
    assert rows(extract_inside(tiled, PHOTO, mask)) == rows(masked)


def test_own_extractors_are_masked_too() -> None:
    mask = np.zeros(PHOTO.shape[:2], dtype=bool)
    mask[:101, :51] = True
    assert len(extract_inside(Grid(), PHOTO, mask)) == 11 * 6


def test_matching_with_masks(tmp_path: Path) -> None:
    mask = np.zeros(PHOTO.shape[:2], dtype=np.uint8)
    mask[:, :160] = 255
    Image.fromarray(mask).save(tmp_path / "left.png")
    pipeline = Pipeline.pretrained(max_keypoints=150)
    result = pipeline.match(PHOTO, PHOTO, mask0=tmp_path / "left.png", mask1=torch.from_numpy(mask))
    assert len(result) > 100
    assert result.points0[:, 0].max() < 159.5
    assert result.points1[:, 0].max() < 159.5
    turned = pipeline.match(PHOTO, PHOTO, mask1=mask, rotation="search")
    assert turned.points1[:, 0].max() < 159.5
    with pytest.raises(InputError, match="the mask has 320 x 100 pixels, the image 320 x 240"):
        pipeline.extract(PHOTO, mask=mask[:100])
    with pytest.raises(InputError, match="h x w"):
        pipeline.extract(PHOTO, mask=PHOTO)
    with pytest.raises(ImageError, match="does not exist"):
        pipeline.extract(PHOTO, mask=tmp_path / "right.png")


def test_masks_and_tiles_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("photos/a", "masks/a", "other"):
        (tmp_path / folder).mkdir(parents=True)
    mask = np.full(PHOTO.shape[:2], 255, np.uint8)
    mask[:, 160:] = 0
    Image.fromarray(mask).save(tmp_path / "masks" / "a" / "one.jpg.png")
    for name in ("one", "two"):
        Image.fromarray(PHOTO).save(tmp_path / "photos" / "a" / f"{name}.jpg")
    assert mask_file(tmp_path / "masks", "a/one.jpg") == tmp_path / "masks" / "a" / "one.jpg.png"
    assert mask_file(tmp_path / "masks", "a/two.jpg") is None
    photos, out = str(tmp_path / "photos"), str(tmp_path / "f.h5")
    assert (
        main(["features", photos, "-o", out, "--masks", str(tmp_path / "masks"), "--max-keypoints", "80", "--tile", "512"])
        == 0
    )
    assert "1 of 2 photos have a mask" in capsys.readouterr().out
    from lumiglue.collection.hloc import FeaturesFile

    with FeaturesFile(out) as file:
        assert file.read("a/one.jpg").keypoints[:, 0].max() < 159.5
        assert file.read("a/two.jpg").keypoints[:, 0].max() > 200
    assert main(["features", photos, "-o", out, "--max-keypoints", "80", "--tile", "512"]) == 2  # other settings
    assert main(["features", photos, "-o", str(tmp_path / "g.h5"), "--masks", str(tmp_path / "other")]) == 2
    assert "has no mask for any photo" in capsys.readouterr().err.replace("\n", " ")
    one, same = str(tmp_path / "photos" / "a" / "one.jpg"), str(tmp_path / "masks" / "a" / "one.jpg.png")
    picture = str(tmp_path / "m.png")
    assert main(["match", one, one, "--masks", same, same, "--out", picture, "--max-keypoints", "80"]) == 0
