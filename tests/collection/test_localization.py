"""Localisation: poses in closed form, cameras as people give them, and queries of a scene whose cameras are known."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import lumiglue
from helpers import draw_photo, make_features
from lumiglue import InputError, Pipeline
from lumiglue.cli import main
from lumiglue.evaluation.pairs import PosePair, read_pairs
from lumiglue.images import image_names
from lumiglue.training.data.synthetic_scenes import Camera, SceneSettings, build_scene, render

pytest.importorskip("pycolmap")
pytest.importorskip("faiss")

import pycolmap

from lumiglue.collection import localization
from lumiglue.collection.absolute_pose import estimate_absolute_pose
from lumiglue.collection.cameras import make_camera
from lumiglue.collection.export import export_colmap
from lumiglue.collection.features import extract_in_parts
from lumiglue.collection.hloc import FeaturesFile
from lumiglue.collection.localizer import QueryPose
from lumiglue.collection.matching import match_in_parts
from lumiglue.collection.pairs import exhaustive
from lumiglue.collection.query_cameras import QueryCameras
from lumiglue.collection.sparse_model import SparseModel

CAMERAS = {
    "SIMPLE_PINHOLE": [800.0, 321, 239],
    "SIMPLE_RADIAL": [800.0, 320, 240, -0.05],
    "OPENCV": [800.0, 810, 320, 240, -0.1, 0.02, 0.001, -0.001],
    "OPENCV_FISHEYE": [250.0, 250, 320, 240, 0.01, -0.002, 0, 0],
}


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """Degrees between two rotations."""
    return float(np.degrees(np.linalg.norm(cv2.Rodrigues(a @ b.T)[0])))


def points_and_pose(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of the world, and a rotation and translation that see them all."""
    rng = np.random.default_rng(seed)
    rotation = cv2.Rodrigues(rng.uniform(-0.5, 0.5, 3))[0]
    translation = rng.uniform(-3, 3, 3)
    seen = np.column_stack([rng.uniform(-1.5, 1.5, (count, 2)), rng.uniform(4, 8, count)])
    return (seen - translation) @ rotation, rotation, translation


def project(camera: pycolmap.Camera, world: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    return np.asarray(camera.img_from_cam(world @ rotation.T + translation))


# -- poses in closed form ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", CAMERAS)
def test_a_known_camera_is_found_exactly_among_outliers(model: str) -> None:
    world, rotation, translation = points_and_pose(60)
    camera = pycolmap.Camera(model=model, width=640, height=480, params=CAMERAS[model])
    pixels = project(camera, world, rotation, translation)
    wrong = np.arange(60) < 25
    pixels[wrong] += np.random.default_rng(1).uniform(30, 200, (25, 2))
    pose = estimate_absolute_pose(pixels, world, camera, "given", threshold=4.0)
    assert pose is not None
    assert np.array_equal(pose.inliers, ~wrong)
    assert np.abs(pose.centre + rotation.T @ translation).max() < 1e-5
    assert angle(pose.rotation, rotation) < 1e-4
    assert pose.error < 1e-3
    assert list(pose.camera.params) == CAMERAS[model]


@pytest.mark.parametrize(("source", "guess"), [("estimated", 768.0), ("exif", 830.0)])
def test_a_focal_length_that_is_not_known_is_found(source: str, guess: float) -> None:
    world, rotation, translation = points_and_pose(80, seed=2)
    pixels = project(
        pycolmap.Camera(model="SIMPLE_PINHOLE", width=640, height=480, params=[800.0, 320, 240]),
        world,
        rotation,
        translation,
    )
    pixels[:20] += np.random.default_rng(1).uniform(30, 200, (20, 2))
    camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=640, height=480, params=[guess, 320, 240, 0])
    pose = estimate_absolute_pose(pixels, world, camera, source, threshold=12.0)  # pyright: ignore[reportArgumentType]
    assert pose is not None
    assert pose.camera.params[0] == pytest.approx(800, rel=1e-3)
    assert np.linalg.norm(pose.centre + rotation.T @ translation) < 0.01


def test_no_pose_without_agreement() -> None:
    world, rotation, translation = points_and_pose(40)
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=640, height=480, params=CAMERAS["SIMPLE_PINHOLE"])
    pixels = project(camera, world, rotation, translation)
    assert estimate_absolute_pose(pixels[:3], world[:3], camera, "given", threshold=4.0) is None
    assert estimate_absolute_pose(pixels[:0], world[:0], camera, "given", threshold=4.0) is None
    noise = np.random.default_rng(0).uniform(0, 480, (40, 2))
    pose = estimate_absolute_pose(noise, world, camera, "given", threshold=1.0)
    assert pose is None or pose.inliers.sum() < 10


def test_the_covariance_is_that_of_repeated_measurements() -> None:
    """Of the camera centre in the unit of the model, and of the rotation in radians (the whole angle)."""
    world, rotation, translation = points_and_pose(80)
    camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=640, height=480, params=CAMERAS["SIMPLE_RADIAL"])
    pixels, rng = project(camera, world, rotation, translation), np.random.default_rng(0)
    deviations, covariances = [], []
    for _ in range(150):
        noisy = pixels + 0.3 * rng.standard_normal(pixels.shape)
        pose = estimate_absolute_pose(noisy, world, camera, "given", threshold=4.0)
        assert pose is not None
        turn = cv2.Rodrigues(pose.rotation @ rotation.T)[0][:, 0]
        deviations.append(np.concatenate([turn, pose.centre + rotation.T @ translation]))
        covariances.append(pose.covariance)
    expected = np.mean(covariances, axis=0)
    np.testing.assert_allclose(np.std(deviations, axis=0), np.sqrt(np.diag(expected)), rtol=0.25)
    scale = np.sqrt(np.diag(expected))
    assert np.abs(np.corrcoef(np.transpose(deviations)) - expected / np.outer(scale, scale)).max() < 0.3


# -- cameras -----------------------------------------------------------------------------------------------------------


def test_cameras_are_given_in_many_ways(tmp_path: Path) -> None:
    model = pycolmap.Reconstruction()
    model.add_camera(pycolmap.Camera(camera_id=1, model="PINHOLE", width=64, height=48, params=[60, 61, 32, 24]))
    lines = (
        "# comment\nmy photo 1.jpg SIMPLE_PINHOLE 64 48 77 32 24\n1 PINHOLE 64 48 50 51 32 24\n2 PINHOLE 640 480 5 5 3 2\n"
    )
    (tmp_path / "cameras.txt").write_text(lines)
    photo = tmp_path / "a.png"
    cv2.imwrite(str(photo), draw_photo(1, 64, 48))

    def first(camera: str | Path | None, focal: float | None = None, name: str = "a.png") -> tuple[str, float, str]:
        known, source = QueryCameras(camera, focal, model).of(name, photo, 64, 48)
        assert (known.width, known.height) == (64, 48)
        return known.model.name, float(known.params[0]), source

    assert first("PINHOLE, 70, 71, 32, 24") == ("PINHOLE", 70, "given")
    assert first(None, 90.0) == ("SIMPLE_PINHOLE", 90, "given")
    assert first("model") == ("PINHOLE", 60, "model")
    assert first(tmp_path / "cameras.txt", name="my photo 1.jpg") == ("SIMPLE_PINHOLE", 77, "given")  # hloc's, by name
    assert first(tmp_path / "cameras.txt") == ("PINHOLE", 50, "given")  # COLMAP's, by size
    assert first(None) == ("SIMPLE_RADIAL", pytest.approx(1.2 * 64), "estimated")
    known, _ = QueryCameras("model", None, model).of("a", photo, 64, 48)
    known.params = [1, 1, 1, 1]  # refining a query's camera must not change the model's
    assert list(model.cameras[1].params) == [60, 61, 32, 24]


def test_the_focal_length_comes_from_exif(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x8769] = {0xA405: 50}  # FocalLengthIn35mmFilm
    Image.fromarray(draw_photo(1, 360, 240)).save(tmp_path / "a.jpg", exif=exif)
    camera, source = QueryCameras(None, None, pycolmap.Reconstruction()).of("a.jpg", tmp_path / "a.jpg", 360, 240)
    assert source == "exif"
    assert camera.mean_focal_length() == pytest.approx(50 / 36 * 360, rel=0.05)


@pytest.mark.parametrize(
    ("camera", "focal", "message"),
    [
        ("PINHOLE,70,71", None, r"PINHOLE has 4 parameters \(fx, fy, cx, cy\), 2 were given"),
        ("pinhole,1,1,1,1", None, "unknown camera model 'pinhole'"),
        ("PINHOLE,a,b,c,d", None, "parameters must be numbers"),
        ("PINHOLE,nan,1,1,1", None, "finite numbers"),
        ("PINHOLE,1,1,1,1", 70.0, "give one of them"),
        (None, -1.0, "give a number of pixels above 0"),
        ("model", None, "the model has 0 cameras"),
        ("none.txt", None, "none.txt does not exist; give on each line"),
        ("bad.txt", None, "line 2 has no COLMAP camera model"),
    ],
)
def test_cameras_that_cannot_be_used(
    camera: str | None, focal: float | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.txt").write_text("1 PINHOLE 64 48 50 51 32 24\na.jpg 64 48\n")
    with pytest.raises(InputError, match=message):
        QueryCameras(camera, focal, pycolmap.Reconstruction())


def test_a_camera_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a.jpg PINHOLE 640 480 50 51 32 24\n")
    cameras = QueryCameras(tmp_path / "c.txt", None, pycolmap.Reconstruction())
    with pytest.raises(InputError, match=r"its camera in .*c\.txt is for 640 x 480 pixels, the photo is 64 x 48"):
        cameras.of("a.jpg", tmp_path / "a.jpg", 64, 48)
    with pytest.raises(InputError, match=r"has no camera for it, by its name or its size 64 x 48"):
        cameras.of("b.jpg", tmp_path / "b.jpg", 64, 48)


# -- a scene whose cameras are known -----------------------------------------------------------------------------------


@dataclass
class Place:
    """Photos in db/ and queries/, the model of db/ with known poses in model/, and the true camera from the world."""

    folder: Path
    truth: dict[str, np.ndarray]
    camera: str
    pipeline: Pipeline

    def pose_error(self, pose: QueryPose) -> tuple[float, float]:
        """Distance of the centres, and degrees."""
        true = self.truth[pose.name]
        assert pose.qvec is not None
        assert pose.centre is not None
        w, *xyz = pose.qvec
        rotation = pycolmap.Rotation3d(np.array([*xyz, w])).matrix()
        centre = -true[:3, :3].T @ true[:3, 3]
        return float(np.linalg.norm(np.array(pose.centre) - centre)), angle(rotation, true[:3, :3])


def triangulate(folder: Path, truth: dict[str, np.ndarray], camera: str, pipeline: Pipeline) -> Place:
    """A model of the photos in db/ with their true poses: only the points are computed."""
    photos, out = folder / "db", folder / "model"
    out.mkdir()
    names, (model, *params) = image_names(photos), camera.split(",")
    features, matches, pairs = out / "features.h5", out / "matches.h5", exhaustive(names)
    list(extract_in_parts(photos, names, pipeline.extractor, features))
    list(match_in_parts(features, pairs, pipeline, matches))
    export_colmap(photos, features, matches, out / "d.db", single_camera=True, camera_model=model)
    known = SparseModel(pycolmap.Reconstruction(), out)
    with FeaturesFile(features) as file:
        for name in names:
            read = file.read(name)
            pose = pycolmap.Rigid3d(pycolmap.Rotation3d(truth[name][:3, :3]), truth[name][:3, 3])
            one = make_camera(model, read.image_size, [float(value) for value in params], "")
            known.add(name, one, pose, read.keypoints.double().numpy() + 0.5, np.zeros((0, 2), np.int64))
    (out / "0").mkdir()
    made = pycolmap.triangulate_points(known.reconstruction, out / "d.db", photos, out / "0")
    made.write(out / "0")
    return Place(folder, truth, camera, pipeline)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Five photos on an arc around a synthetic scene and two queries between them, none of which is in the model."""
    folder = tmp_path_factory.mktemp("place")
    settings = SceneSettings(objects=(3, 3), spread=4.0)
    scene = build_scene(np.random.default_rng(3), (draw_photo(seed, 320, 240) for seed in range(10_000)), settings)
    truth, intrinsics = {}, np.array([[520.0, 0, 239.5], [0, 520.0, 179.5], [0, 0, 1]])
    for number in range(7):
        at = np.radians(-18 + 6 * number)
        centre = np.array([6 * np.sin(at), 0.15 * number, -6 * np.cos(at)])
        forward = -centre / np.linalg.norm(centre)
        right = np.cross([0.0, 1.0, 0.0], forward)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward])
        pose[:3, 3] = -pose[:3, :3] @ centre
        kind, name = ("queries", f"q{number}.png") if number in (1, 4) else ("db", f"{number}.png")
        (folder / kind).mkdir(exist_ok=True)
        image = render(scene, Camera(intrinsics, pose, (480, 360))).image
        assert cv2.imwrite(str(folder / kind / name), image[..., ::-1])
        truth[name] = pose
    pipeline = Pipeline.pretrained("sift", max_keypoints=400, precision="fp32")
    return triangulate(folder, truth, "SIMPLE_PINHOLE,520,240,180", pipeline)


@pytest.fixture
def place(built: Place, tmp_path: Path) -> Place:
    return replace(built, folder=Path(shutil.copytree(built.folder, tmp_path / "place")))


def test_queries_of_a_known_scene_are_localised(place: Place) -> None:
    """Known and estimated focal length; the text file has hloc's lines, the JSON the rest."""
    known, unknown = place.folder / "known", place.folder / "unknown"
    for out, camera, metres, degrees in ((known, place.camera, 0.03, 0.3), (unknown, None, 0.3, 1.0)):
        result = lumiglue.localize(
            place.folder / "queries", model=place.folder / "model", out=out, pipeline=place.pipeline, camera=camera
        )
        assert [pose.name for pose in result.poses] == ["q1.png", "q4.png"]
        assert result.left_out == ()
        for pose in result.poses:
            distance, rotation = place.pose_error(pose)
            assert distance < metres, (pose.name, camera)
            assert rotation < degrees
            assert pose.inliers > 60
            assert pose.camera_from == ("given" if camera else "estimated")
            assert sorted(pose.neighbours) == image_names(place.folder / "db")
        lines = [line.split() for line in (out / "poses.txt").read_text().splitlines()]
        assert [(line[0], *map(float, line[1:])) for line in lines] == [
            (pose.name, *(pose.qvec or ()), *(pose.tvec or ())) for pose in result.poses
        ]
        entries = json.loads((out / "poses.json").read_text())
        assert [entry["inliers"] for entry in entries] == [pose.inliers for pose in result.poses]
        assert np.shape([entry["covariance"] for entry in entries]) == (2, 6, 6)


def test_interrupted_queries_resume(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    out, extracted = place.folder / "out", []
    model = place.folder / "model"
    arguments = {"model": model, "out": out, "pipeline": place.pipeline, "camera": place.camera, "neighbours": 2}
    real = Pipeline.extract

    def extract(self: Pipeline, image: Path) -> lumiglue.Features:
        extracted.append(image.name)
        if len(extracted) == 2:
            raise KeyboardInterrupt
        return real(self, image)

    monkeypatch.setattr(Pipeline, "extract", extract)
    with pytest.raises(KeyboardInterrupt):
        lumiglue.localize(place.folder / "queries", **arguments)
    assert not (out / "poses.json").exists()
    result = lumiglue.localize(place.folder / "queries", **arguments)
    assert extracted == ["q1.png", "q4.png", "q4.png"]  # the first is in queries.h5
    assert lumiglue.localize(place.folder / "queries", **arguments) == result
    assert len(extracted) == 3
    with pytest.raises(InputError, match=r"was made with other settings \(neighbours 2, now 3\)"):
        lumiglue.localize(place.folder / "queries", **{**arguments, "neighbours": 3})
    shutil.copy(place.folder / "queries" / "q1.png", place.folder / "queries" / "q4.png")
    with pytest.raises(InputError, match=r"has the result of another photo q4\.png"):
        lumiglue.localize(place.folder / "queries", **arguments)


def test_queries_are_added_to_a_model(place: Place) -> None:
    """The observations fit, an equal camera is shared, and the new model localises further photos by the added one."""
    out, both, model = place.folder / "out", place.folder / "both", place.folder / "model"
    queries = [place.folder / "queries" / "q1.png", place.folder / "db" / "0.png"]
    arguments = {"camera": place.camera, "pipeline": place.pipeline}
    result = lumiglue.localize(queries, model=model, out=out, add_to=both, neighbours=3, **arguments)
    assert result.left_out == (("0.png", "not added to the model, which has an image of this name; rename the query"),)
    before, after = SparseModel.read(model), SparseModel.read(both)
    assert set(after.images) == {*before.images, "q1.png"}
    assert after.reconstruction.num_cameras() == before.reconstruction.num_cameras() == 1
    added = after.images["q1.png"]
    assert 60 < added.num_points3D <= result.poses[0].inliers
    for point in added.points2D:
        if point.has_point3D():
            projected = added.project_point(after.reconstruction.point3D(point.point3D_id).xyz)
            assert projected is not None
            assert np.linalg.norm(projected - point.xy) <= localization.THRESHOLD
    lone = lumiglue.localize(place.folder / "queries" / "q1.png", model=both, neighbours=1, **arguments)
    assert lone.poses[0].neighbours == ("q1.png",)
    assert place.pose_error(lone.poses[0])[0] < 0.05
    for folder in (model, model / "0", place.folder / "queries"):
        with pytest.raises(InputError, match=r"give another folder|choose another folder"):
            lumiglue.localize(queries, model=model, add_to=folder, **arguments)


def test_the_command_goes_on_past_bad_queries(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.folder / "bad.png").write_bytes(b"no")
    blank, elsewhere = np.full((360, 480, 3), 90, np.uint8), draw_photo(77, 480, 360)
    cv2.imwrite(str(place.folder / "blank.png"), blank)
    cv2.imwrite(str(place.folder / "elsewhere.png"), elsewhere)
    names = ["bad.png", "blank.png", "elsewhere.png", "gone.png", "queries/q4.png"]
    command = ["localize", *(str(place.folder / name) for name in names), "--model", str(place.folder / "model")]
    command += ["-o", str(place.folder / "out"), "--camera", "model", "--features", str(place.folder / "model/features.h5")]
    command += ["--neighbours", "2"]
    for _ in range(2):  # those without a pose are reported again
        assert main(command) == 2
        output = capsys.readouterr()
        assert "q4.png: " in output.out
        assert "(model)" in output.out
        assert "1 of 5 photos localised" in output.out
        for reason in ("bad.png is not an image", "blank.png: it has no keypoints", "gone.png does not exist"):
            assert reason in output.err
        assert "elsewhere.png: " in output.err
        assert "does it show this place?" in output.err
        assert "4 photos were left out" in output.err


def test_a_photo_on_its_side_has_colmaps_pose(place: Place) -> None:
    """The pose and the camera are those of the photo as stored."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    upright = cv2.imread(str(place.folder / "queries" / "q1.png"))
    assert upright is not None
    turned = place.folder / "turned.png"
    Image.fromarray(np.rot90(upright[..., ::-1]).copy()).save(turned, exif=exif)
    arguments = {"model": place.folder / "model", "pipeline": place.pipeline}
    (pose,) = lumiglue.localize(turned, camera="SIMPLE_PINHOLE,520,180,240", **arguments).poses
    assert pose.camera is not None
    assert (pose.camera["width"], pose.camera["height"]) == (360, 480)
    quarter = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    place.truth["turned.png"] = place.truth["q1.png"].copy()
    place.truth["turned.png"][:3] = quarter @ place.truth["q1.png"][:3]
    distance, rotation = place.pose_error(pose)
    assert distance < 0.03
    assert rotation < 0.3


def test_features_must_be_those_of_the_model(place: Place, tmp_path: Path) -> None:
    query, model = place.folder / "queries" / "q1.png", place.folder / "model"
    names = image_names(place.folder / "db")
    others = Pipeline.pretrained("sift", max_keypoints=390, precision="fp32")
    list(extract_in_parts(place.folder / "db", names, others.extractor, tmp_path / "others.h5"))
    with pytest.raises(InputError, match=r"the features are not those of the model: 0\.png has other keypoints"):
        lumiglue.localize(query, model=model, features=tmp_path / "others.h5")
    list(extract_in_parts(place.folder / "queries", ["q1.png"], others.extractor, tmp_path / "queries.h5"))
    with pytest.raises(InputError, match=r"has no features for the model's 5 images"):
        lumiglue.localize(query, model=model, features=tmp_path / "queries.h5")
    plain = replace(others.extractor, rootsift=False)  # pyright: ignore[reportArgumentType]
    other = Pipeline(plain, others.matcher)
    with pytest.raises(InputError, match=r"other features than the pipeline extracts \(rootsift true, now false\)"):
        lumiglue.localize(query, model=model, pipeline=other)
    with pytest.raises(InputError, match="has no COLMAP model"):
        lumiglue.localize(query, model=tmp_path)
    shutil.copy(query, tmp_path / "q1.png")
    with pytest.raises(InputError, match=r"two queries have the name q1\.png"):
        lumiglue.localize([query, tmp_path / "q1.png"], model=model)


def test_keypoints_of_a_model_are_recognised(place: Place) -> None:
    """In each orientation and with or without half a pixel, but not in another order."""
    scene = SparseModel.read(place.folder / "model")
    with FeaturesFile(scene.features_file()) as file:
        features = file.read("0.png")
    seen = scene.points_seen("0.png", features)
    assert (seen >= 0).sum() == scene.images["0.png"].num_points3D
    assert len(seen) == len(features)
    mirrored = replace(features, keypoints=(features.keypoints * -1).flip(1) + 480)
    again = SparseModel.read(place.folder / "model")
    assert np.array_equal(again.points_seen("0.png", mirrored), seen)
    for other in (features[:-1], make_features(len(features), 0)):
        with pytest.raises(InputError, match="has other keypoints"):
            SparseModel.read(place.folder / "model").points_seen("0.png", other)


@pytest.mark.shared
def test_a_real_photo_is_localised(shared: Path, tmp_path: Path) -> None:
    """Of Strecha's fountain four photos are the model; the fifth is a query."""
    truth = {"02.jpg": np.eye(4)}
    camera, names = "", ("03.jpg", "04.jpg", "05.jpg", "06.jpg")
    for pair in read_pairs(shared / "eval"):
        if isinstance(pair, PosePair) and pair.a.endswith("fountain-P11_02.jpg") and pair.b[-6:] in names:
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = pair.rotation, pair.translation
            truth[pair.b[-6:]] = pose
            k = pair.intrinsics_a
            camera = f"PINHOLE,{k[0, 0]},{k[1, 1]},{k[0, 2] + 0.5},{k[1, 2] + 0.5}"
    for name in truth:
        target = tmp_path / ("queries" if name == "04.jpg" else "db") / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(shared / "eval" / "strecha" / f"fountain-P11_{name}", target)
    pipeline = Pipeline.pretrained("sift", max_keypoints=512, precision="fp32")
    place = triangulate(tmp_path, truth, camera, pipeline)
    result = lumiglue.localize(tmp_path / "queries", model=tmp_path / "model", camera=camera, pipeline=pipeline)
    distance, rotation = place.pose_error(result.poses[0])
    assert distance < 0.02  # metres, 6 m from the fountain
    assert rotation < 0.1
