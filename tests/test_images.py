"""Every kind of photo is read upright as 8-bit RGB, or refused in one sentence."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from helpers import draw_photo
from lumiglue import ImageError, InputError, Pipeline, Sift
from lumiglue.errors import TooLargeError
from lumiglue.images import (
    as_rgb8,
    decode_untrusted,
    exif_orientation,
    load_image,
    load_mask,
    read_image,
    read_mask,
    resize_long_side,
)
from lumiglue.visualization import draw_matches, figure_bytes

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
    assert np.array_equal(read_image(tmp_path / "grey16.png", stretch="never")[..., 1], grey)
    assert np.array_equal(read_image(tmp_path / "grey8.png")[..., 2], grey)
    assert np.abs(read_image(tmp_path / "rgb16.png", stretch="never").astype(int) - PHOTO).max() <= 1
    assert np.abs(read_image(tmp_path / "rgb16.tif", stretch="never").astype(int) - PHOTO).max() <= 1
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - PHOTO).mean() < 6
    assert np.abs(read_image(tmp_path / "palette.png").astype(int) - PHOTO).mean() < 12
    read = read_image(tmp_path / "alpha.png")
    assert (read[:10] == 255).all()
    assert np.array_equal(read[10:], PHOTO[10:])


def test_broken_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    Image.fromarray(draw_photo(1)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: data.index(b"\xff\xda") + 14])  # no pixel
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
    assert np.array_equal(as_rgb8(PHOTO.astype(np.uint16) * 257, stretch="never"), PHOTO)
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


def twelve_bits(photo: np.ndarray) -> np.ndarray:
    return photo.astype(np.uint16) * 16


def centikelvin(photo: np.ndarray) -> np.ndarray:
    return 29315 + photo[..., 1].astype(np.uint16) * 4


def kelvin(photo: np.ndarray) -> np.ndarray:
    return (290 + photo[..., 1] / 255 * 12).astype(np.float32)


def kelvin_with_flaws(photo: np.ndarray) -> np.ndarray:
    """A corner without data, and one hot pixel."""
    values = kelvin(photo)
    values[:20, :30], values[100, 100], values[101, 100] = np.nan, 1e6, -np.inf
    return values


def small_float_colours(photo: np.ndarray) -> np.ndarray:
    return (0.5 + photo / 255 * 0.02).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("colour.png", twelve_bits), ("colour.tif", twelve_bits), ("grey.png", centikelvin), ("grey.tif", centikelvin),
        ("float.tif", kelvin), ("flaws.tif", kelvin_with_flaws), ("colour_float.tif", small_float_colours),
    ],
)  # fmt: skip
def test_photos_that_use_part_of_their_range_are_stretched(
    tmp_path: Path, name: str, values: Callable[[np.ndarray], np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    """They have the keypoints of the 8-bit photo, where unstretched they have next to none, which is said."""
    photo, path = draw_photo(3), tmp_path / name
    array = values(photo)
    cv2.imwrite(str(path), array if array.ndim == 2 else array[..., ::-1])
    read = read_image(path)
    assert np.array_equal(read, read_image(path))
    levels = np.percentile(read, (1, 99))
    assert levels[0] <= 2
    assert levels[1] >= 253
    assert not caplog.records
    detect = Sift(max_keypoints=400)
    assert len(detect(read)) > 0.8 * len(detect(photo))
    if array.ndim == 3:  # the lower bits are not lost, and colours keep their order
        scaled = photo.astype(float) - np.percentile(photo, 1)
        scaled = (scaled * 255 / (np.percentile(photo, 99) - np.percentile(photo, 1))).clip(0, 255)
        assert np.abs(read - scaled).max() <= 1
    unstretched = read_image(path, stretch="never")
    assert len(detect(unstretched)) < 0.25 * len(detect(photo))
    assert "has low contrast: 98 % of its values are" in caplog.text


def test_dark_photos_of_8_bits_are_said_and_stretched_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, photo = tmp_path / "night.png", draw_photo(3)
    Image.fromarray((photo / 255 * 9 + 2).astype(np.uint8)).save(path)
    dark = read_image(path)
    assert dark.max() <= 11
    assert "night.png has low contrast: 98 % of its values are 2 to 10 of 255" in caplog.text
    assert "--stretch always" in caplog.text
    stretched = read_image(path, stretch="always")
    assert len(Sift(max_keypoints=400)(stretched)) > 100 > len(Sift(max_keypoints=400)(dark))
    assert np.array_equal(load_image(dark, stretch="always"), stretched)


def test_the_stretch_maps_percentiles_and_keeps_what_cannot_be_stretched() -> None:
    ramp = np.linspace(1000, 1100, 101 * 101).reshape(101, 101).astype(np.float32)
    read = as_rgb8(ramp, stretch="always")
    expected = ((ramp - 1001) / 98 * 255).clip(0, 255)
    assert np.abs(read[..., 0] - expected).max() <= 0.5 + 1e-3
    stars = np.zeros((100, 100), np.uint16)
    stars[::25, ::25] = 4000  # less than one in a hundred pixels: minimum and maximum count
    assert np.array_equal(as_rgb8(stars)[..., 0], (stars > 0) * np.uint8(255))
    assert not as_rgb8(np.full((9, 9), 77, np.uint16)).any()
    assert not as_rgb8(np.full((9, 9), np.nan), stretch="always").any()
    clear = np.dstack([twelve_bits(PHOTO), np.full(PHOTO.shape[:2], 65535, np.uint16)])
    assert np.array_equal(as_rgb8(clear), as_rgb8(twelve_bits(PHOTO)))  # opaque
    clear[..., 3] = 0
    assert (as_rgb8(clear) == 255).all()


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_stretch_is_refused() -> None:
    with pytest.raises(InputError, match="unknown stretch 'yes'"):
        load_image(PHOTO, stretch="yes")  # pyright: ignore[reportArgumentType]


def test_masks_are_never_stretched(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint16)
    mask[5:, 7:] = 1
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), mask > 0)
    assert np.array_equal(load_mask(Image.open(tmp_path / "mask.png")), mask > 0)
    assert np.array_equal(load_mask(Image.fromarray(mask > 0)), mask > 0)


def test_floats_a_hair_outside_are_clipped_and_others_refused() -> None:
    for low, high in ((-0.01, 1.0), (0.0, 1.01), (-1e-7, 1 + 1e-7)):
        array = PHOTO / 255.0
        array[0, 0], array[0, 1] = low, high
        read = as_rgb8(array)
        assert (read[0, 0] == 0).all()
        assert (read[0, 1] == 255).all()
        assert np.array_equal(read[1:], PHOTO[1:])
    with pytest.raises(InputError, match=r"numbers in \[0, 1\], but these are 0 to 1.02; divide by 255 first"):
        as_rgb8(np.linspace(0, 1.02, 100).reshape(10, 10))
    with pytest.raises(InputError, match=r"these are -0.5 to 0.5; .*stretch=\"always\""):
        as_rgb8(np.linspace(-0.5, 0.5, 100).reshape(10, 10))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "I;16", "F"])
def test_pillow_images_are_what_their_file_is(tmp_path: Path, mode: str) -> None:
    if mode in ("I;16", "F"):
        image = Image.fromarray(twelve_bits(PHOTO)[..., 1] if mode == "I;16" else kelvin(PHOTO))
    else:
        image = Image.fromarray(PHOTO).convert(mode)
    path = tmp_path / "photo.tif"
    image.save(path)
    assert np.array_equal(load_image(image), read_image(path))


def test_pillow_images_can_be_matched_masked_and_drawn(tmp_path: Path) -> None:
    photo = draw_photo(4)
    pipeline, image, mask = Pipeline.pretrained("sift", max_keypoints=60), Image.fromarray(photo), np.ones((240, 320), bool)
    mask[:, :160] = False
    given = pipeline.match(image, Image.fromarray(photo.copy()), mask0=Image.fromarray(mask))
    expected = pipeline.match(photo, photo, mask0=mask)
    assert np.array_equal(given.points0, expected.points0)
    (many,) = pipeline.match_many([(image, photo)])
    assert many is not None
    assert len(many) > 20
    drawn, as_arrays = (
        figure_bytes(draw_matches(*two, given.features0, given.features1, given.matches), "png")
        for two in ((image, image), (photo, photo))
    )
    assert drawn == as_arrays


def test_pillow_images_are_not_turned(tmp_path: Path) -> None:
    """Keypoints are in pixels of the given image, whose size the caller sees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PHOTO).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as image:
        assert np.array_equal(load_image(image), PHOTO)
    assert exif_orientation(tmp_path / "photo.png") == 6


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
