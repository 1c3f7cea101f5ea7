"""Reconstruction from photos, cameras, poses, pairs and matches as people have them."""

import shutil
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image

import lumiglue
from helpers import draw_photo
from lumiglue import InputError, Pipeline, collection
from lumiglue.cli import main
from lumiglue.collection.pairs import exhaustive, read_names
from lumiglue.images import image_names, read_image

pytest.importorskip("pycolmap")

import pycolmap

from lumiglue.collection.cameras import CameraSettings, group_photos, read_cameras, read_model
from lumiglue.collection.colmap import refine
from lumiglue.collection.database import add_posed_image

Scene = tuple[Path, dict[str, np.ndarray]]
# Of the scene's photos, in COLMAP's pixels.
PINHOLE = [520.0, 520.0, 240.0, 180.0]


@pytest.fixture(scope="module")
def matched(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Features and matches of all pairs of the scene."""
    out = tmp_path_factory.mktemp("matched")
    pipeline = Pipeline.pretrained("sift", max_keypoints=400, precision="fp32")
    collection.extract_features(scene[0], out / "f.h5", pipeline.extractor)
    collection.match_pairs(out / "f.h5", exhaustive(image_names(scene[0])), out / "m.h5", pipeline)
    return out / "f.h5", out / "m.h5"


def poses_of(scene: Scene, folder: Path, names: list[str]) -> Path:
    """A model with the true cameras and poses of some photos, and no points."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(camera_id=7, model="PINHOLE", width=480, height=360, params=PINHOLE)
    for number, name in enumerate(names, start=10):
        centre = scene[1][name]
        forward = -centre / np.linalg.norm(centre)
        right = np.cross([0.0, 1.0, 0.0], forward)
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ centre)
        add_posed_image(model, camera, name, number, pose)
    folder.mkdir()
    model.write(folder)
    return folder


def distance_to_truth(model: Any, centres: dict[str, np.ndarray]) -> float:
    """The largest distance of a camera from its true place, after the best similarity (Umeyama 1991)."""
    images = sorted(model.images.values(), key=lambda image: image.name)
    found = np.array([image.projection_center() for image in images])
    true = np.array([centres[image.name] for image in images])
    a, b = found - found.mean(0), true - true.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    flip = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    aligned = (s * np.diag(flip)).sum() / (a**2).sum() * a @ (u @ flip @ vt).T
    return float(np.linalg.norm(aligned - b, axis=1).max())


# -- what is left out --------------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_named_before_the_matching(
    scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two photos of another size, a WebP named .jpg, a text, a photo that was deleted, one that fits nowhere."""
    photos, out = Path(shutil.copytree(scene[0], tmp_path / "photos")), tmp_path / "out"
    for name in ("0.png", "5.png"):
        assert cv2.imwrite(str(photos / name), cv2.resize(read_image(photos / name), (240, 180)))
    Image.fromarray(read_image(photos / "1.png")).save(photos / "1.jpg", "WEBP")
    (photos / "text.jpg").write_text("text")
    assert cv2.imwrite(str(photos / "odd.png"), draw_photo(99, 480, 360))
    shutil.copy(photos / "2.png", photos / "gone.png")
    pipeline = Pipeline.pretrained("sift", max_keypoints=400, precision="fp32")
    names = ["2.png", "gone.png"]
    out.mkdir()
    list(
        collection.features.extract_in_parts(photos, names, pipeline.extractor, out / "features.h5")  # pyright: ignore
    )
    (photos / "gone.png").unlink()
    assert main(["sfm", str(photos), "-o", str(out), "--single-camera", "--max-keypoints", "400"]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    size = "it has 240 x 180 pixels, but most photos of its camera have 480 x 360"
    for line in (
        f"left out: 0.png: {size}",
        f"left out: 5.png: {size}",
        "left out: 1.jpg: COLMAP cannot read it (WEBP); convert it to JPEG or PNG",
        f"left out: gone.png: {out}/features.h5 has features of it, but the photo is not in {photos}",
    ):
        assert line in lines
        assert lines.index(line) < next(number for number, text in enumerate(lines) if text.startswith("pairs "))
    assert any(line.startswith(f"left out: text.jpg: {photos}/text.jpg is not an image; give a") for line in lines)
    assert "error: 5 photos or pairs were left out" in lines
    assert "note: not placed in the model: odd.png" in lines
    assert "6 of 7 images" in captured.out
    assert "E2" not in captured.err  # COLMAP's own log


# -- known poses, lists, the database ----------------------------------------------------------------------------------


def test_points_are_triangulated_from_known_poses(scene: Scene, matched: tuple[Path, Path], tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(7)]
    poses, out = poses_of(scene, tmp_path / "poses", names), tmp_path / "out"
    before = pycolmap.Reconstruction(poses)
    files: dict[str, Any] = {"features": matched[0], "matches": matched[1]}
    lumiglue.reconstruct(scene[0], out, poses=poses, **files)
    made = lumiglue.reconstruct(scene[0], out, poses=poses, **files)  # replaces the first one's model
    assert made.left_out == (("7.png", f"{poses} has no pose for it"),)
    assert (made.images, made.unplaced, len(made.models)) == (7, (), 1)
    after = pycolmap.Reconstruction(out / "0")
    assert after.num_points3D() > 150
    assert after.compute_mean_reprojection_error() < 0.7
    for image in after.images.values():
        assert image.name == before.images[image.image_id].name
        matrix = before.images[image.image_id].cam_from_world().matrix()
        np.testing.assert_allclose(image.cam_from_world().matrix(), matrix, rtol=0, atol=1e-12)
    assert after.cameras[7].params.tolist() == PINHOLE
    assert main(["sfm", str(scene[0]), "-o", str(out), "--poses", str(poses), "--single-camera"]) == 2
    (tmp_path / "other").mkdir()
    shutil.copy(scene[0] / "0.png", tmp_path / "other" / "x.png")
    with pytest.raises(InputError, match=r"has no pose of any photo; its names are like '0\.png'"):
        lumiglue.reconstruct(tmp_path / "other", tmp_path / "o", poses=poses)
    with pytest.raises(InputError, match="has no COLMAP model"):
        lumiglue.reconstruct(scene[0], tmp_path / "o", poses=scene[0])


def test_the_folder_that_sfm_wrote_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "model" / "0").mkdir(parents=True)
    model = pycolmap.Reconstruction()
    model.add_camera(pycolmap.Camera(camera_id=3, model="PINHOLE", width=480, height=360, params=PINHOLE))
    model.write(tmp_path / "model" / "0")
    for folder in ("model", "model/0"):
        assert list(read_model(tmp_path / folder).cameras) == [3]


def test_lists_of_photos_and_pairs(
    scene: Scene, matched: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line and Python do the same with the same lists."""
    names, pairs = [f"{number}.png" for number in range(1, 6)], tmp_path / "pairs.txt"
    (tmp_path / "names.txt").write_text("# some\n" + "\n".join(names) + "\n\n")
    chosen = [(a, b) for a, b in exhaustive(names) if int(b[0]) - int(a[0]) <= 2]
    collection.write_pairs(pairs, [*chosen, ("0.png", "1.png")])
    out, files = tmp_path / "out", ["--features", str(matched[0]), "--matches", str(matched[1])]
    command = ["sfm", str(scene[0]), "-o", str(out), "--images", str(tmp_path / "names.txt"), "--single-camera"]
    assert main([*command, "--pairs", str(pairs), *files]) == 0
    assert "5 of 5 images" in capsys.readouterr().out
    assert collection.read_pairs(out / "pairs.txt") == chosen
    assert not (out / "features.h5").exists()
    made = lumiglue.reconstruct(
        scene[0], tmp_path / "out2", images=names, pairs=chosen, features=matched[0], matches=matched[1], single_camera=True
    )
    assert (made.images, made.pairs, made.left_out) == (5, 7, ())
    one, two = (pycolmap.Reconstruction(folder / "0") for folder in (out, tmp_path / "out2"))
    assert {image.name for image in one.images.values()} == {image.name for image in two.images.values()}
    assert len(one.points3D) == pytest.approx(len(two.points3D), rel=0.05)  # COLMAP's threads sum in any order
    assert main([*command, "--matches", str(matched[1])]) == 2
    assert "--matches needs the features of these matches" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("1.png\nlost.png\n")
    assert main([*command, *files]) == 2
    assert "names.txt, line 2: 'lost.png' is not among the images" in capsys.readouterr().err
    wrong: dict[str, Any]
    for wrong in ({"images": ["lost.png"]}, {"pairs": [("0.png", "lost.png")]}):
        with pytest.raises(InputError, match=r"'lost\.png' is not among the photos"):
            lumiglue.reconstruct(scene[0], out, features=matched[0], matches=matched[1], **wrong)


def test_names_in_a_list_may_have_spaces(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("my photo.jpg  # mine\n#none\nb.jpg\nb.jpg\n")
    assert read_names(tmp_path / "l.txt", ["b.jpg", "my photo.jpg", "c.jpg"]) == ["my photo.jpg", "b.jpg"]


def test_the_database_is_exported_by_itself(
    scene: Scene, matched: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """COLMAP maps what it holds; the command and the function write the same."""
    out, photos = tmp_path / "d.db", scene[0]
    command = ["export", "colmap", str(photos), "--features", str(matched[0]), "--matches", str(matched[1])]
    assert main([*command, "-o", str(out), "--camera-model", "PINHOLE", "--camera-params", "520,520,240,180"]) == 0
    assert "8 images, 2" in capsys.readouterr().out
    made = collection.export_colmap(
        photos, *matched, tmp_path / "e.db", camera_model="PINHOLE", camera_params=PINHOLE, pairs=[("0.png", "1.png")]
    )
    assert (made.images, made.pairs, made.verified, made.left_out) == (8, 1, 1, ())
    with collection.FeaturesFile(matched[0]) as features, collection.MatchesReader(matched[1]) as matches:
        keypoints, rows = features.read("3.png").keypoints.numpy(), matches.read("0.png", "1.png")
    for path in (out, tmp_path / "e.db"):
        database = pycolmap.Database.open(path)
        ids = {image.name: image.image_id for image in database.read_all_images()}
        assert [camera.params.tolist() for camera in database.read_all_cameras()] == [PINHOLE] * 8
        assert np.allclose(np.asarray(database.read_keypoints(ids["3.png"]))[:, :2], keypoints + 0.5)
        assert database.read_matches(ids["0.png"], ids["1.png"]).tolist() == rows.tolist()
        database.close()
    again = tmp_path / "again.db"  # the same matches have the same geometry: the random samples are seeded
    collection.export_colmap(photos, *matched, again, camera_model="PINHOLE", camera_params=PINHOLE)
    geometries = [pycolmap.Database.open(path).read_two_view_geometries() for path in (out, again)]
    inliers = [[geometry.inlier_matches.tolist() for geometry in found[1]] for found in geometries]
    assert inliers[0] == inliers[1]
    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.random_seed = 0
    mapped = pycolmap.incremental_mapping(out, photos, tmp_path, mapping)
    assert max(model.num_reg_images() for model in mapped.values()) == 8
    assert main([*command, "-o", str(out)]) == 2
    assert "exists; delete it, or choose another name" in capsys.readouterr().err
    with h5py.File(tmp_path / "none.h5", "w"):
        pass
    with pytest.raises(InputError, match="no pair has 15 matches"):
        collection.export_colmap(photos, matched[0], tmp_path / "none.h5", tmp_path / "f.db")
    assert not (tmp_path / "f.db").exists()


# -- cameras -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Small photos in folders, of two makes, and two sizes."""
    folder, image = tmp_path / "album", Image.fromarray(draw_photo(1, 64, 48))
    for name, make, focal, size in (
        ("a/1.jpg", "Canon", 35, (64, 48)), ("a/2.jpg", "Canon", 35, (64, 48)), ("a/3.jpg", "Canon", 50, (64, 48)),
        ("b/1.jpg", "Canon", 35, (64, 48)), ("b/2.jpg", "Nikon", 35, (64, 48)), ("b/c/3.jpg", "", 0, (64, 48)),
        ("b/c/4.jpg", "", 0, (32, 24)),
    ):  # fmt: skip
        exif = Image.Exif()
        if make:
            exif[0x010F], exif[0x0110] = make, "One"
            exif.get_ifd(0x8769)[0x920A] = float(focal)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.resize(size).save(folder / name, exif=exif)
    return folder


def groups_of(album: Path, **settings: Any) -> tuple[list[list[str]], list[str]]:
    groups, left_out = group_photos(album, image_names(album), CameraSettings(**settings))
    return sorted(sorted(group.names) for group in groups), [name for name, _ in left_out]


def test_photos_that_share_a_camera(album: Path) -> None:
    names = image_names(album)
    assert groups_of(album) == ([[name] for name in names], [])
    assert groups_of(album, mode="single") == ([[name for name in names if name != "b/c/4.jpg"]], ["b/c/4.jpg"])
    in_folders = [["a/1.jpg", "a/2.jpg", "a/3.jpg"], ["b/1.jpg", "b/2.jpg"], ["b/c/3.jpg"]]
    assert groups_of(album, mode="folder") == (in_folders, ["b/c/4.jpg"])
    of_makes = [["a/1.jpg", "a/2.jpg", "b/1.jpg"], ["a/3.jpg"], ["b/2.jpg"], ["b/c/3.jpg"], ["b/c/4.jpg"]]
    assert groups_of(album, mode="exif") == (of_makes, [])


def test_cameras_of_a_list(album: Path, tmp_path: Path) -> None:
    file, names = tmp_path / "cameras.txt", image_names(album)
    file.write_text("# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS\n1 PINHOLE 64 48 50 50 32 24\n2 PINHOLE 32 24 25 25 16 12\n")
    cameras = read_cameras(file, album, names)
    assert {name: camera.width for name, camera in cameras.items()} == {
        name: 32 if name == "b/c/4.jpg" else 64 for name in names
    }
    assert groups_of(album, file=file) == ([[name for name in names if name != "b/c/4.jpg"], ["b/c/4.jpg"]], [])
    file.write_text("a\tSIMPLE_PINHOLE 64 48 50 32 24\na/2.jpg SIMPLE_PINHOLE 64 48 60 32 24\nb PINHOLE 64 48 7 7 32 24\n")
    focal = {name: camera.params[0] for name, camera in read_cameras(file, album, names).items()}
    assert focal == {"a/2.jpg": 60, **dict.fromkeys(("a/1.jpg", "a/3.jpg"), 50), **dict.fromkeys(names[3:], 7)}
    assert groups_of(album, file=file) == ([["a/1.jpg", "a/3.jpg"], ["a/2.jpg"], names[3:-1]], ["b/c/4.jpg"])
    file.write_text("my photo 1.jpg SIMPLE_PINHOLE 64 48 50 32 24  # by name\nphoto#2.jpg\tSIMPLE_PINHOLE 64 48 60 32 24\n")
    assert [camera.params[0] for camera in read_cameras(file, album, ["my photo 1.jpg", "photo#2.jpg"]).values()] == [50, 60]
    for text, message in (
        ("1 PINHOLE 64 48 50 50 32\n", r"line 1: PINHOLE has 4 parameters \(fx, fy, cx, cy\), 3 were given"),
        ("1 PINHOLE 64 48 50 50 32 nan\n", "line 1: parameters must be finite numbers"),
        ("1 NOTHING 64 48 50\n", "line 1 has no COLMAP camera model; give the name of a photo"),
        ("1 PINHOLE 64\n", "line 1 has no width and height after PINHOLE"),
        ("1 PINHOLE 64 48 5 5 5 5\n1 PINHOLE 64 48 5 5 5 5\n", "line 2: 1 already has a camera"),
        ("1 PINHOLE 64 48 5 5 5 5\n2 PINHOLE 64 48 6 6 5 5\n", "two cameras of 64 x 48 pixels; give names"),
        ("lost.jpg PINHOLE 64 48 5 5 5 5\n", "lost.jpg is neither a photo nor a folder of"),
        ("# nothing\n", "has no camera"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_cameras(file, album, names)
    wrong: dict[str, Any]
    for wrong in ({"params": [1.0]}, {"file": file, "params": PINHOLE, "model": "PINHOLE"}):
        with pytest.raises(InputError):
            CameraSettings(**wrong)


def test_each_folder_has_its_camera(scene: Scene, tmp_path: Path) -> None:
    """Every other photo is made smaller, as by another camera; both focal lengths are found, and those of a list kept."""
    photos = tmp_path / "photos"
    for number, path in enumerate(sorted(scene[0].glob("*.png"))):
        (photos / ("ab"[number % 2])).mkdir(parents=True, exist_ok=True)
        image = read_image(path)[..., ::-1]
        resized = cv2.resize(image, (360, 270), interpolation=cv2.INTER_AREA) if number % 2 else image
        assert cv2.imwrite(str(photos / "ab"[number % 2] / path.name), resized)
    out, command = tmp_path / "out", ["--max-keypoints", "400"]
    assert main(["sfm", str(photos), "-o", str(out), "--camera-mode", "folder", *command]) == 0
    model = pycolmap.Reconstruction(out / "0")
    focal = {camera.width: camera.focal_length for camera in model.cameras.values()}
    assert model.num_reg_images() == 8
    assert focal == {480: pytest.approx(520, rel=0.1), 360: pytest.approx(390, rel=0.1)}
    (tmp_path / "cameras.txt").write_text("a PINHOLE 480 360 520 520 240 180\nb PINHOLE 360 270 390 390 180 135\n")
    cameras = ["--cameras", str(tmp_path / "cameras.txt")]
    assert main(["sfm", str(photos), "-o", str(out), *cameras, *command]) == 0
    model = pycolmap.Reconstruction(out / "0")
    known = {(480, 520.0, 520.0, 240.0, 180.0), (360, 390.0, 390.0, 180.0, 135.0)}
    assert {(camera.width, *camera.params.tolist()) for camera in model.cameras.values()} == known
    centres = {f"{'ab'[int(name[0]) % 2]}/{name}": centre for name, centre in scene[1].items()}
    assert distance_to_truth(model, centres) < 0.04  # of an arc 6 across


def test_a_fisheye_with_known_parameters(scene: Scene, tmp_path: Path) -> None:
    """Photos seen through an equidistant fisheye with distortion; its camera stays as it was given."""
    fisheye = pycolmap.Camera(model="OPENCV_FISHEYE", width=480, height=360, params=[330, 330, 240, 180, 0.05, -0.02, 0, 0])
    grid: Any = fisheye.cam_from_img(np.mgrid[:480, :360].reshape(2, -1).T + 0.5)
    rays = grid.reshape(480, 360, 2).transpose(1, 0, 2)
    pixels = (rays * 520 + [239.5, 179.5]).astype(np.float32)
    (tmp_path / "photos").mkdir()
    for path in scene[0].glob("*.png"):
        seen = cv2.remap(read_image(path)[..., ::-1], pixels[..., 0], pixels[..., 1], cv2.INTER_LINEAR)
        assert cv2.imwrite(str(tmp_path / "photos" / path.name), seen)
    known = fisheye.params.tolist()
    command = ["sfm", str(tmp_path / "photos"), "-o", str(tmp_path / "out"), "--max-keypoints", "400", "--single-camera"]
    command += ["--camera-model", "OPENCV_FISHEYE", "--camera-params"]
    assert main([*command, ",".join(map(str, known))]) == 0
    model = pycolmap.Reconstruction(tmp_path / "out" / "0")
    (camera,) = model.cameras.values()
    assert camera.model_name == "OPENCV_FISHEYE"
    assert camera.params.tolist() == fisheye.params.tolist()
    assert model.num_reg_images() == 8
    assert distance_to_truth(model, scene[1]) < 0.15  # 0.04 to 0.08 in six runs, of an arc 6 across


@pytest.mark.parametrize("distortion", [False, True])
def test_a_rough_focal_length_is_refined(distortion: bool) -> None:
    """On points without noise the true camera comes back; the distortion is left alone unless it is asked for."""
    options: Any = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 1, 1, 8, 100
    options.camera_width, options.camera_height = 480, 360
    options.camera_model_id = pycolmap.CameraModelId.OPENCV_FISHEYE
    options.camera_params = [330, 330, 240, 180, 0.05, -0.02, 0, 0]
    pycolmap.set_random_seed(0)
    model: Any = pycolmap.synthesize_dataset(options)
    camera = next(iter(model.cameras.values()))
    camera.params = [1.05 * 330, 1.05 * 330, 240, 180, 0.06 if distortion else 0.05, -0.02, 0, 0]
    refine(model, distortion=distortion)
    camera = next(iter(model.cameras.values()))
    assert camera.params[:2] == pytest.approx([330, 330], rel=1e-3)
    assert camera.params[2:4].tolist() == [240, 180]
    if distortion:
        assert camera.params[4] == pytest.approx(0.05, abs=5e-3)
    else:
        assert camera.params[4:].tolist() == [0.05, -0.02, 0, 0]
