"""The formats that people have, and files that lack their end."""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from helpers import draw_photo
from lumiglue import ImageError
from lumiglue.images import IMAGE_SUFFIXES, decode_untrusted, exif_orientation, read_image
from lumiglue.io import decoding
from lumiglue.io.decoding import upright

PHOTO = draw_photo(5, 320, 240)


def encoded(suffix: str, photo: np.ndarray = PHOTO, **how: object) -> bytes:
    file = io.BytesIO()
    if suffix in (".heic", ".heif", ".hif"):
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.from_pillow(Image.fromarray(photo)).save(file, quality=95, **how)
    else:
        Image.init()
        Image.fromarray(photo).save(file, "JPEG" if suffix == ".jfif" else Image.EXTENSION[suffix], **how)
    return file.getvalue()


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_listed_format_is_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(encoded(suffix))
    read = read_image(path)
    colours = 1 if suffix in (".pgm", ".pbm") else 3
    assert np.abs(read.astype(int) - PHOTO).mean() < (12 if colours == 3 else 60)
    assert np.array_equal(decode_untrusted(path.read_bytes(), "a", 320 * 240), read)
    renamed = tmp_path / "photo.jpg"  # by content, as phones and messengers rename files
    renamed.write_bytes(path.read_bytes())
    assert np.array_equal(read_image(renamed), read)


def test_a_heic_photo_is_upright(tmp_path: Path) -> None:
    """Its decoder turns it: the EXIF orientation is not applied a second time."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone.heic"
    path.write_bytes(encoded(".heic", np.ascontiguousarray(np.rot90(PHOTO)), exif=exif.tobytes()))
    assert np.abs(read_image(path).astype(int) - PHOTO).mean() < 12
    assert exif_orientation(path) == 1


def test_formats_without_their_package_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(decoding, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match=re.escape("a.heic is a HEIC photo; this needs the package pillow_heif; pip inst")):
        read_image(path)
    path = tmp_path / "a.avif"
    path.write_bytes(b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(99))
    monkeypatch.setattr(decoding.pillow_features, "check", lambda name: False)
    with pytest.raises(ImageError, match=r"a\.avif is an AVIF photo, which this Pillow does not read; pip install"):
        read_image(path)
    path = tmp_path / "a.mov"
    path.write_bytes(b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(99))
    with pytest.raises(ImageError, match="is not an image"):
        read_image(path)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.4, 0.7, 0.95, 1.0])
def test_a_jpeg_that_lacks_its_last_bytes_is_read_as_far_as_it_goes(
    tmp_path: Path, share: float, progressive: bool, caplog: pytest.LogCaptureFixture
) -> None:
    data = encoded(".jpg", quality=95, progressive=progressive)
    path = tmp_path / "cut.jpg"
    path.write_bytes(data)
    whole = read_image(path)
    assert not caplog.records
    path.write_bytes(data[: int(share * len(data)) - 2])
    with pytest.raises(ImageError, match=r"a is damaged .*; send it again"):  # nobody would see the note
        decode_untrusted(path.read_bytes(), "a", 320 * 240)
    read = read_image(path)
    assert read.shape == whole.shape
    (said,) = caplog.messages
    if progressive:
        assert "details may be missing" in said
        assert np.abs(read.astype(int) - whole).mean() < 30
        return
    missing = float(found[1]) / 100 if (found := re.search(r"the lower (\d+) % of it", said)) else 0.0
    assert missing == pytest.approx(1 - share, abs=0.2)
    rows = int((1 - missing) * len(read)) - 24  # without the row of blocks that is incomplete
    assert np.array_equal(read[:rows], whole[:rows])


def test_a_jpeg_without_pixels_is_damaged(tmp_path: Path) -> None:
    data = encoded(".jpg")
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: data.index(b"\xff\xda") + 20])
    with pytest.raises(ImageError, match=r"cut.jpg is damaged \(it ends before its pixels begin\); copy it again"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_pillow(orientation: int) -> None:
    from PIL import ImageOps

    image = Image.fromarray(PHOTO)
    image.getexif()[0x0112] = orientation
    assert np.array_equal(upright(PHOTO, orientation), np.asarray(ImageOps.exif_transpose(image)))


def test_an_unknown_orientation_is_none(save_photo: Callable[[str, np.ndarray], Path]) -> None:
    assert np.array_equal(upright(PHOTO, 0), PHOTO)
    assert exif_orientation(save_photo("a.png", PHOTO)) == 1
