"""Every kind of photo is read upright as 8-bit RGB, or refused in one sentence."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from helpers import draw_photo
from lumiglue import ImageError, InputError
from lumiglue.errors import TooLargeError
from lumiglue.images import as_rgb8, decode_untrusted, list_images, read_image, resize_long_side

pytestmark = pytest.mark.portable

PHOTO = draw_photo(0, 60, 40)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(PHOTO).save(path, lossless=True)  # of these only WebP asks
    assert np.array_equal(read_image(path), PHOTO)


def test_jpeg_comes_back_nearly(tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "photo.jpg", quality=98, subsampling=0)
    assert np.abs(read_image(tmp_path / "photo.jpg").astype(int) - PHOTO).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """Stored pixels are the upright photo undone by each of the eight orientations."""
    undo = {
        1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: np.swapaxes(x, 0, 1),
        6: lambda x: np.rot90(x, 1), 7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2), 8: lambda x: np.rot90(x, 3),
    }[orientation]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(undo(PHOTO)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "photo.png"), PHOTO)


def test_unusual_modes(tmp_path: Path) -> None:
    grey = PHOTO[..., 0]
    deep = grey.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "grey16.png"), deep)
    cv2.imwrite(str(tmp_path / "rgb16.png"), PHOTO[..., ::-1].astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "rgb16.tif"), PHOTO[..., ::-1].astype(np.uint16) * 257)
    Image.fromarray(grey).save(tmp_path / "grey8.png")
    Image.fromarray(PHOTO).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    Image.fromarray(PHOTO).quantize(256).save(tmp_path / "palette.png")
    alpha = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])
    alpha[:10, :, 3] = 0
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    assert np.array_equal(read_image(tmp_path / "grey16.png")[..., 1], grey)
    assert np.array_equal(read_image(tmp_path / "grey8.png")[..., 2], grey)
    assert np.abs(read_image(tmp_path / "rgb16.png").astype(int) - PHOTO).max() <= 1
    assert np.abs(read_image(tmp_path / "rgb16.tif").astype(int) - PHOTO).max() <= 1
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - PHOTO).mean() < 6
    assert np.abs(read_image(tmp_path / "palette.png").astype(int) - PHOTO).mean() < 12
    read = read_image(tmp_path / "alpha.png")
    assert (read[:10] == 255).all()
    assert np.array_equal(read[10:], PHOTO[10:])


def test_broken_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    Image.fromarray(draw_photo(1)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a photo")
    for name, message in [
        ("half.jpg", "damaged"), ("empty.jpg", "0 bytes"), ("text.jpg", "not an image"), ("none.jpg", "does not exist"),
        (".", "folder"),
    ]:  # fmt: skip
        with pytest.raises(ImageError, match=message) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # the photo has 2400: large, yet no bomb
    assert read_image(tmp_path / "photo.png").shape == PHOTO.shape
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="megapixels; downscale it first"):
        read_image(tmp_path / "photo.png")


def test_arrays_of_each_accepted_kind() -> None:
    assert np.array_equal(as_rgb8(PHOTO), PHOTO)
    assert np.array_equal(as_rgb8(PHOTO.astype(np.uint16) * 257), PHOTO)
    assert np.array_equal(as_rgb8(PHOTO / 255.0), PHOTO)
    assert np.array_equal(as_rgb8(PHOTO[..., 0])[..., 2], PHOTO[..., 0])
    for bad, message in [
        (PHOTO.astype(np.float32), r"\[0, 1\]"), (PHOTO.astype(np.int64), "dtype int64"), (np.zeros(7), "shape"),
        (np.zeros((3, 40, 60), np.uint8), "H x W x 3"), (np.full((4, 4), np.nan), "finite"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            as_rgb8(bad)


def test_resizing_keeps_the_aspect_and_never_enlarges() -> None:
    assert resize_long_side(PHOTO, 30).shape == (20, 30, 3)
    assert resize_long_side(PHOTO, 600) is PHOTO
    assert resize_long_side(PHOTO, None) is PHOTO
    assert resize_long_side(np.zeros((1, 500, 3), np.uint8), 100).shape == (1, 100, 3)


def test_listing_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no images"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        list_images(tmp_path / "none")
    for name in ("b.JPG", "sub/a.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in list_images(tmp_path)] == ["b.JPG", "a.png"]


def test_untrusted_photos_are_the_same_as_read_or_refused(save_photo: Callable[[str, np.ndarray], Path]) -> None:
    path = save_photo("a.png", draw_photo(1, 400, 300))
    data = path.read_bytes()
    np.testing.assert_array_equal(decode_untrusted(data, "a", 120_000), read_image(path))
    with pytest.raises(TooLargeError, match="a has 400 x 300 pixels"):
        decode_untrusted(data, "a", 119_999)
    for suffix in (".tiff", ".webp", ".bmp", ".ppm", ".jpg"):
        sent = cv2.imencode(suffix, read_image(path))[1].tobytes()
        assert decode_untrusted(sent, "a", 120_000).shape == (300, 400, 3), suffix
    with pytest.raises(ImageError, match="b is not an image"):
        decode_untrusted(b"GIF89a, no longer", "b", 10)
