"""Files of features have pixels of photos as stored; the matcher gets them upright."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from helpers import draw_photo, make_features
from lumiglue import Sift
from lumiglue.collection import FeaturesFile, extract_features
from lumiglue.collection.orientation import stored_features, upright_features
from lumiglue.images import as_stored, exif_orientation, read_image

pytestmark = pytest.mark.portable


def save_turned(path: Path, upright: np.ndarray, orientation: int) -> None:
    """Saves a photo that is stored so that its EXIF orientation turns it upright again."""
    undo = {
        1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: np.swapaxes(x, 0, 1),
        6: lambda x: np.rot90(x, 1), 7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2), 8: lambda x: np.rot90(x, 3),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.ascontiguousarray(undo(upright))).save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_features_are_turned_with_their_pixels(orientation: int, tmp_path: Path) -> None:
    photo = draw_photo(2, 64, 48)
    save_turned(tmp_path / "a.png", photo, orientation)
    stored = np.asarray(Image.open(tmp_path / "a.png"))
    upright = make_features(50, 0)
    columns, rows = torch.randint(64, (50,)), torch.randint(48, (50,))
    upright = upright.__class__(
        keypoints=torch.stack([columns, rows], dim=1).float(), descriptors=upright.descriptors, image_size=(64, 48),
        scores=upright.scores, scales=upright.scales, orientations=upright.orientations,
    )  # fmt: skip
    turned = stored_features(upright, orientation)
    assert turned.image_size == stored.shape[1::-1]
    x, y = turned.keypoints.round().long().T.tolist()
    assert np.array_equal(stored[y, x], photo[rows, columns])
    in_numpy = as_stored(tmp_path / "a.png", upright.keypoints.numpy(), (64, 48))
    assert np.allclose(turned.keypoints.numpy(), in_numpy, atol=1e-4)
    # an orientation is the direction of a point nearby
    assert upright.orientations is not None
    assert turned.orientations is not None
    step = torch.stack([upright.orientations.cos(), upright.orientations.sin()], dim=1)
    moved = as_stored(tmp_path / "a.png", (upright.keypoints + step).numpy(), (64, 48)) - in_numpy
    direction = torch.stack([turned.orientations.cos(), turned.orientations.sin()], dim=1)
    assert np.allclose(direction.numpy(), moved, atol=1e-4)
    again = upright_features(turned, orientation)
    assert again.image_size == upright.image_size
    assert torch.allclose(again.keypoints, upright.keypoints, atol=1e-4)
    assert torch.equal(again.descriptors, upright.descriptors)


def test_a_file_of_features_fits_the_stored_photo(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for orientation in range(1, 9):
        save_turned(photos / f"{orientation}.png", draw_photo(orientation), orientation)
    extract_features(photos, tmp_path / "f.h5", Sift(max_keypoints=60))
    with FeaturesFile(tmp_path / "f.h5") as features, h5py.File(tmp_path / "f.h5") as raw:
        for name in features.names():
            path = photos / name
            expected = Sift(max_keypoints=60)(read_image(path))
            read, stored = features.read(name), features.read(name, stored=True)
            assert read.image_size == expected.image_size
            assert torch.allclose(read.keypoints, expected.keypoints, atol=1e-3)
            with Image.open(path) as image:
                assert tuple(raw[name]["image_size"][()]) == image.size == stored.image_size  # pyright: ignore
            there = as_stored(path, expected.keypoints.numpy(), expected.image_size)
            assert np.allclose(raw[name]["keypoints"][()], there, atol=1e-3)  # pyright: ignore
            assert raw[name].attrs["exif_orientation"] == exif_orientation(path) == int(Path(name).stem)
