"""Which files of a folder are photos, and in which order."""

import os
import random
from pathlib import Path

import pytest

from lumiglue import InputError
from lumiglue.images import IMAGE_SUFFIXES
from lumiglue.io.listing import image_names, list_images, natural_key

pytestmark = pytest.mark.portable


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no images; looked for \.avif, \.bmp"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        list_images(tmp_path / "none")
    put(tmp_path, "a.mov", "b.MOV", "c.cr2")
    with pytest.raises(InputError, match=r"has no images \(it has 2 \.mov, 1 \.cr2\)"):
        list_images(tmp_path)


def test_every_suffix_is_listed_in_any_case(tmp_path: Path) -> None:
    names = [f"photo{suffix}" for suffix in IMAGE_SUFFIXES] + ["photo.HEIC", "photo.JPG"]
    put(tmp_path, *names)
    assert {".heic", ".avif", ".jfif", ".jpe", ".gif", ".jp2"} < IMAGE_SUFFIXES
    assert sorted(image_names(tmp_path)) == sorted(names)


def test_natural_order(tmp_path: Path) -> None:
    ordered = [
        "b.JPG", "cam2/frame1.jpg", "cam2/frame2.jpg", "cam2/frame02b.jpg", "cam2/frame10.jpg", "cam10/frame1.jpg",
        "frame1.jpg", "frame01x9.jpg", "frame1x10.jpg", "frame2.jpg", "frame10.jpg",
    ]  # fmt: skip
    put(tmp_path, *random.Random(0).sample(ordered, len(ordered)))
    assert image_names(tmp_path) == ordered
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == ordered
    assert sorted(["1", "01", "x", ""], key=natural_key) == ["", "01", "1", "x"]  # equal numbers: by the name
    assert natural_key("9" * 5000) < natural_key("1" + "0" * 5000)  # of any length


def test_clutter_is_left_out_quietly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clutter = ("._a.jpg", "__MACOSX/a.jpg", "@eaDir/a.jpg/SYNO.jpg", ".thumbnails/a.jpg", ".hidden.jpg", "sub/Thumbs.db")
    put(tmp_path, "a.jpg", "sub/b.jpg", *clutter)
    assert image_names(tmp_path) == ["a.jpg", "sub/b.jpg"]
    assert not caplog.records


def test_what_is_passed_over_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "a.jpg", "b.mov", "sub/c.MOV", "notes.txt", "README")
    assert image_names(tmp_path) == ["a.jpg"]
    (said,) = caplog.messages
    assert "ignored 2 .mov, " in said
    assert "1 .txt" in said
    assert "1 without a suffix" in said


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_are_followed_and_loops_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    put(photos, "a.jpg", "z/b.jpg")
    put(elsewhere, "deep/c.jpg")
    targets = {"linked": elsewhere, "again": elsewhere, "best": photos / "z", "loop": photos, "up": tmp_path}
    for link, target in (targets | {"z/self": photos / "z"}).items():
        (photos / link).symlink_to(target, target_is_directory=True)
    (elsewhere / "back").symlink_to(photos, target_is_directory=True)
    (photos / "one.jpg").symlink_to(elsewhere / "deep" / "c.jpg")
    (photos / "gone.jpg").symlink_to(elsewhere / "none.jpg")
    assert image_names(photos) == ["a.jpg", "again/deep/c.jpg", "one.jpg", "z/b.jpg"]
    assert "ignored 1 broken links" in caplog.text
