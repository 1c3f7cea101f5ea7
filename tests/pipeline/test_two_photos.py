"""Two photos, the whole answer: relative poses, focal lengths, registration, and one photo against a folder."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from helpers import draw_photo, run
from lumiglue import InputError, Pipeline
from lumiglue.geometry.projective import direction_angle, rotation_angle, skew
from lumiglue.geometry.robust import estimate
from lumiglue.pipeline.cameras import photo_camera, read_focal
from lumiglue.pipeline.ranking import rank_images
from lumiglue.pipeline.registration import checkerboard, save_warp, warp_onto
from lumiglue.types import CAMERA_MODELS, Camera

pytestmark = pytest.mark.portable
Save = Callable[[str, np.ndarray], Path]


def turn(degrees: float) -> np.ndarray:
    """A rotation about the y axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


# -- poses ------------------------------------------------------------------------------------------------------------


def test_a_known_pose_is_recovered_with_distortion() -> None:
    """Rays are bent by each camera's own distortion, which the estimate removes; a fifth of the matches is wrong."""
    rng = np.random.default_rng(0)
    rotation, translation = turn(12.0), np.array([1.0, 0.1, -0.2])
    points = rng.uniform((-2, -1.5, 4), (2, 1.5, 8), (300, 3))
    cameras = Camera.parse("SIMPLE_RADIAL,600,320.5,240.5,-0.4"), Camera.parse("PINHOLE,500,510,300.5,200.5")
    pixels = []
    for camera, seen, k in zip(cameras, (points, points @ rotation.T + translation), (-0.4, 0.0), strict=True):
        xy = seen[:, :2] / seen[:, 2:]
        xy = xy * (1 + k * (xy**2).sum(1, keepdims=True))
        intrinsics = camera.intrinsics.numpy()
        pixels.append(xy * intrinsics[[0, 1], [0, 1]] + intrinsics[:2, 2])
    pixels[1][:60] = rng.uniform(0, 480, (60, 2))
    geometry = estimate("essential", *pixels, cameras=cameras)
    assert geometry.rotation is not None
    assert geometry.translation is not None
    assert geometry.matrix is not None
    assert rotation_angle(geometry.rotation.double(), torch.tensor(rotation)) < 0.05
    assert direction_angle(geometry.translation.double(), torch.tensor(translation)) < 0.1
    assert float(geometry.translation.norm()) == pytest.approx(1)
    torch.testing.assert_close(geometry.matrix, skew(geometry.translation) @ geometry.rotation, atol=1e-5, rtol=0)
    assert geometry.inliers[60:].all()
    assert geometry.inliers[:60].sum() < 6
    ignored = estimate("essential", *pixels, cameras=(Camera.parse("SIMPLE_PINHOLE,600,320.5,240.5"), cameras[1]))
    assert ignored.rotation is not None
    assert rotation_angle(ignored.rotation.double(), torch.tensor(rotation)) > 0.3


def test_cameras_are_read_and_written_in_colmaps_pixels() -> None:
    for model, names in CAMERA_MODELS.items():
        text = ",".join([model, *(str(100 + 10 * i) for i in range(len(names.split(","))))])
        assert str(Camera.parse(text)) == text
    camera = Camera.parse("PINHOLE,500,510,320,240")
    assert camera.intrinsics.tolist() == [[500, 0, 319.5], [0, 510, 239.5], [0, 0, 1]]
    assert Camera.from_focal(500, (640, 480)) == Camera.parse("SIMPLE_PINHOLE,500,320,240")
    for text, message in (
        ("FISHY,1", "unknown camera model 'FISHY'"),
        ("PINHOLE,1,2", "PINHOLE has the parameters fx, fy, cx, cy"),
        ("PINHOLE,a,b,c,d", "is not MODEL,parameters"),
        ("SIMPLE_PINHOLE,-5,3,4", "focal length is -5"),
    ):
        with pytest.raises(InputError, match=message):
            Camera.parse(text)


def test_an_essential_matrix_needs_cameras() -> None:
    with pytest.raises(InputError, match="needs the cameras; give their focal length"):
        estimate("essential", np.zeros((9, 2)), np.zeros((9, 2)))


@pytest.mark.parametrize(
    ("tags", "focal"),
    [
        ({ExifTags.Base.FocalLengthIn35mmFilm: 43}, 43 / 43.2666 * 500),  # about the diagonal
        (
            {
                ExifTags.Base.FocalLength: 50.0,
                ExifTags.Base.FocalPlaneXResolution: 4000.0,
                ExifTags.Base.FocalPlaneResolutionUnit: 2,  # inches
                ExifTags.Base.ExifImageWidth: 4000,
                ExifTags.Base.ExifImageHeight: 3000,
            },
            50 * 4000 / 25.4 / 10,  # the photo has a tenth of the sensor's width
        ),
        ({ExifTags.Base.FocalLength: 50.0}, None),
        ({ExifTags.Base.FocalLengthIn35mmFilm: 0}, None),
        ({}, None),
    ],
)
def test_focal_lengths_of_exif(tmp_path: Path, tags: dict, focal: float | None) -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update(tags)
    Image.new("RGB", (400, 300)).save(tmp_path / "a.jpg", exif=exif)
    assert read_focal(tmp_path / "a.jpg", (400, 300)) == (None if focal is None else pytest.approx(focal, rel=1e-4))
    camera, source = photo_camera(tmp_path / "a.jpg", (400, 300))
    assert source == ("estimated" if focal is None else "exif")
    assert camera.params == pytest.approx((focal or 480.0, 199.5, 149.5), rel=1e-4)


def test_a_damaged_photo_has_no_focal_length(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    assert read_focal(tmp_path / "a.jpg", (400, 300)) is None


# -- registration -----------------------------------------------------------------------------------------------------


def test_a_warped_photo_lies_on_the_first() -> None:
    """Cropped, doubled and mirrored parts come back on the pixel; where the second photo does not reach is transparent."""
    photo = draw_photo(3)
    shift = np.array([[1.0, 0, -40], [0, 1, -30], [0, 0, 1]])
    warped = warp_onto(photo[30:, 40:], shift, (320, 240))
    assert np.array_equal(warped[30:, 40:, :3], photo[30:, 40:])
    assert (warped[30:, 40:, 3] == 255).all()
    assert not warped[:29, :, 3].any()
    assert not warped[:, :39, 3].any()
    double = np.kron(photo, np.ones((2, 2, 1), np.uint8))
    centres = np.array([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])  # pixel centres: x1 + 0.5 = 2 (x0 + 0.5)
    assert np.array_equal(warp_onto(double, centres, (320, 240))[..., :3], photo)
    horizon = np.array([[1.0, 0, 0], [0, 1, 0], [-0.01, 0, 1]])
    assert not warp_onto(photo, horizon, (320, 240))[:, 100:, 3].any()


def test_a_checkerboard_has_both_photos() -> None:
    white, black = np.full((64, 80, 3), 255, np.uint8), np.zeros((64, 80, 4), np.uint8)
    black[:, :60, 3] = 255
    board = checkerboard(white, black)
    assert board[0, 0, 0] == 255
    assert board[0, 10, 0] == 0
    assert board[10, 0, 0] == 0
    assert (board[:, 60:] == 255).all()  # the second photo does not reach there
    assert board[:, :60].mean() == pytest.approx(127.5, abs=4)


def test_the_suffix_chooses_how_a_warp_is_written(tmp_path: Path) -> None:
    photo, other = draw_photo(1), np.dstack([draw_photo(2), np.full((240, 320), 255, np.uint8)])
    other[:, 200:, 3] = 0
    for suffix in ("png", "tif", "webp", "jpg", "gif"):
        save_warp(tmp_path / f"w.{suffix}", photo, other)
    with Image.open(tmp_path / "w.png") as image:
        assert np.array_equal(np.asarray(image), other)
    with Image.open(tmp_path / "w.jpg") as image:
        assert np.abs(np.asarray(image)[:, 220:].astype(int) - photo[:, 220:]).mean() < 6
    with Image.open(tmp_path / "w.gif") as image:
        assert image.n_frames == 2  # pyright: ignore[reportAttributeAccessIssue]
        image.seek(1)
        assert np.abs(np.asarray(image.convert("RGB"))[:, :180].astype(int) - other[:, :180, :3]).mean() < 20
    with pytest.raises(InputError, match="has none of the suffixes"):
        save_warp(tmp_path / "w.pdf", photo, other)


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(save_photo: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photo, its lower right part, and others."""
    monkeypatch.chdir(tmp_path)
    photo = draw_photo(0)
    save_photo("photos/a.png", photo)
    save_photo("photos/part.png", photo[30:, 40:])
    save_photo("photos/other.png", draw_photo(5))
    return tmp_path


def test_match_registers_and_finds_poses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, few = ("photos/a.png", "photos/part.png"), ("--max-keypoints", 300)
    assert run("match", *photos, "--geometry", "homography", "--warp", "w.png", "--checkerboard", "c.png", *few) == 0
    assert "saved w.png" in capsys.readouterr().out
    warped, photo = np.asarray(Image.open("w.png")), np.asarray(Image.open("photos/a.png"))
    inside = warped[..., 3] == 255
    assert 0.7 < inside.mean() < 0.85
    assert np.abs(warped[inside][:, :3].astype(int) - photo[inside]).mean() < 3
    assert run("match", *photos, "--geometry", "essential", "--focal", 300, "-o", "p.json", *few) == 0
    captured = capsys.readouterr()
    assert "inliers (essential)" in captured.out
    assert "note" not in captured.err
    content = json.loads(Path("p.json").read_text())
    assert content["camera1"] == "SIMPLE_PINHOLE,300,140,105"
    assert np.linalg.norm(content["translation"]) == pytest.approx(1, abs=1e-5)
    assert np.array(content["rotation"]) @ np.array(content["rotation"]).T == pytest.approx(np.eye(3), abs=1e-5)
    assert run("match", *photos, "--geometry", "essential", "-o", "p.json", *few) == 0
    assert "note: a.png: focal length 384 pixels, a guess, because EXIF has none" in capsys.readouterr().err


def test_a_folder_is_ranked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photos/text.png").write_text("hello")
    for out in ("r.csv", "r.json"):
        assert run("match", "photos/a.png", "photos", "-o", out, "--max-keypoints", 300) == 2  # one photo was left out
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[1].split()[2] == "photos/part.png"
    assert int(lines[1].split()[0]) > 100 > 15 > int(lines[2].split()[0])
    assert "left out: photos/text.png: photos/text.png is not an image" in captured.err
    with Path("r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["photos/part.png", "photos/other.png", "photos/text.png"]
    assert [str(row["inliers"]) for row in json.loads(Path("r.json").read_text())] == [row["inliers"] for row in rows]
    alone = Pipeline.pretrained("sift", max_keypoints=300)
    assert len(alone.match("photos/a.png", "photos/part.png")) == int(rows[0]["matches"])


def test_ranking_reads_the_query_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, read = Pipeline.pretrained("sift", max_keypoints=100), []
    extract = pipeline.extract
    monkeypatch.setattr(pipeline, "extract", lambda image: read.append(image) or extract(image))
    rank_images(pipeline, "photos/a.png", ["photos/part.png", "photos/other.png"], workers=1)
    assert sorted(read) == ["photos/a.png", "photos/other.png", "photos/part.png"]


def test_what_does_not_go_together_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = ("photos/a.png", "photos/part.png")
    for words, message in (
        ((*photos, "--focal", 300), "--focal and --camera are for --geometry essential"),
        ((*photos, "--geometry", "essential", "--focal", -3), "--focal is -3.0; give a number of pixels"),
        ((*photos, "--geometry", "essential", "--focal", 3, "--camera", "PINHOLE,1,1,1,1"), "give one of them"),
        ((*photos, "--geometry", "essential", "--camera", "PINHOLE,1"), "has the parameters fx, fy, cx, cy"),
        ((*photos, "--warp", "w.png"), "--warp needs --geometry homography"),
        ((*photos, "--geometry", "homography", "--warp", "w.pdf"), "has the suffix '.pdf'"),
        ((*photos, "--geometry", "homography", "--checkerboard", "w.gif"), "has the suffix '.gif'"),
        ((*photos, "--geometry", "homography", "--warp", "w.png", "-o", "w.png"), "--out and --warp both name w.png"),
        (("photos/a.png", "photos", "--warp", "w.png"), "--warp is for two photos; leave it out for a folder"),
        (("photos/a.png", "photos", "-o", "r.txt"), "give a file that ends in .csv or .json"),
        (("photos/a.png", "photos", "--geometry", "essential"), "--geometry essential cannot rank a folder"),
        (("photos/gone.png", "photos"), "photos/gone.png does not exist"),
    ):
        assert run("match", *words) == 2, words
        said = capsys.readouterr().err.strip()
        assert message in said, words
        assert len(said.splitlines()) == 1, said
