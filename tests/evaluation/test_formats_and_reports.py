"""Benchmarks in the field's formats: ground truth that the tests make, read back; estimators; results that go on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import lumiglue
from helpers import draw_photo, make_features
from lumiglue import Features, InputError, Matches, Pipeline, Sift
from lumiglue.cli import main
from lumiglue.evaluation.baselines import BASELINES, opencv_ratio
from lumiglue.evaluation.formats import read_hpatches, read_pose_pairs, read_strecha, turned_intrinsics
from lumiglue.evaluation.pairs import HomographyPair, only_groups
from lumiglue.evaluation.report import Run, examples
from lumiglue.evaluation.scores import ScoresFile, read_scores
from lumiglue.evaluation.scoring import PairScore, Protocol, intervals, score_pairs, summarise
from lumiglue.geometry.robust import homography_by_dlt, relative_pose, relative_pose_opencv
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.training.data.homographies import ViewSettings, sample_view, warp
from lumiglue.training.data.synthetic_scenes import Camera, SceneSettings, aim_camera, build_scene, render
from lumiglue.weights.files import load_weights, pretrained_path, save_weights

GENTLE = ViewSettings(any_roll=0, roll=5, tilt=20, zoom=(0.9, 1.1), shift=0.05)


# -- estimators -------------------------------------------------------------------------------------------------------


def test_dlt_recovers_a_homography_and_heeds_weights() -> None:
    rng = np.random.default_rng(0)
    true = sample_view(rng, (640, 480), ViewSettings())
    points = rng.uniform(0, 480, (30, 2))
    mapped = cv2.perspectiveTransform(points[None], true)[0]

    def off(homography: np.ndarray | None) -> float:
        assert homography is not None
        return float(np.abs(cv2.perspectiveTransform(points[None], homography)[0] - mapped).max())

    assert off(homography_by_dlt(points, mapped)) < 1e-6
    assert off(homography_by_dlt(points[:4], mapped[:4])) < 1e-3
    wrong, weights = mapped.copy(), np.ones(30)
    wrong[:5] += 200
    weights[:5] = 0
    assert off(homography_by_dlt(points, wrong, weights)) < 1e-6
    assert off(homography_by_dlt(points, wrong)) > 10
    assert homography_by_dlt(points[:3], mapped[:3]) is None
    assert homography_by_dlt(points, mapped, np.zeros(30)) is None


def test_opencv_finds_the_pose_that_poselib_finds() -> None:
    rng = np.random.default_rng(1)
    rotation = cv2.Rodrigues(np.array([0.1, -0.25, 0.05]))[0]
    translation = np.array([0.6, 0.1, -0.2])
    world = rng.uniform([-2, -1.5, 3], [2, 1.5, 8], (200, 3))
    k0, k1 = (np.array([[f, 0, 320], [0, f, 240], [0, 0, 1.0]]) for f in (500.0, 620.0))
    pixels = []
    for k, points in ((k0, world), (k1, world @ rotation.T + translation)):
        seen = points @ k.T
        pixels.append(seen[:, :2] / seen[:, 2:] + rng.normal(0, 0.2, (200, 2)))
    pixels[1][:60] = rng.uniform(0, 480, (60, 2))
    for estimator in (relative_pose, relative_pose_opencv):
        pose = estimator(pixels[0], pixels[1], k0, k1)
        assert pose is not None
        assert np.abs(pose[0] - rotation).max() < 0.01
        assert pose[1] / np.linalg.norm(pose[1]) @ translation / np.linalg.norm(translation) > 0.999
        assert pose[2][60:].mean() > 0.9
        assert pose[2][:60].mean() < 0.2
    assert relative_pose_opencv(pixels[0][:4], pixels[1][:4], k0, k1) is None


# -- formats ----------------------------------------------------------------------------------------------------------


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture
def hpatches(tmp_path: Path) -> Path:
    return write_hpatches(tmp_path / "hpatches")


def write_hpatches(root: Path) -> Path:
    """Two sequences, one that moves and one that only darkens."""
    photo = draw_photo(3)
    rng = np.random.default_rng(0)
    for k in (2, 3, 10):
        view = sample_view(rng, (320, 240), GENTLE)
        write(root / "v_wall" / f"{k}.ppm", warp(torch.from_numpy(photo), view).numpy())
        np.savetxt(root / "v_wall" / f"H_1_{k}", view)
    write(root / "v_wall" / "1.ppm", photo)
    write(root / "i_lamp" / "1.ppm", photo)
    write(root / "i_lamp" / "2.ppm", (photo * 0.6).astype(np.uint8))
    np.savetxt(root / "i_lamp" / "H_1_2", np.eye(3))
    return root


def test_hpatches_pairs_are_found_and_matched(hpatches: Path) -> None:
    pairs = read_hpatches(hpatches)
    wall = [("v_wall/1.ppm", f"v_wall/{k}.ppm") for k in (2, 3, 10)]
    assert [(pair.a, pair.b) for pair in pairs] == [("i_lamp/1.ppm", "i_lamp/2.ppm"), *wall]
    assert len(only_groups(pairs, ["v_"])) == 3
    methods = {"nn": BASELINES["nn"], "ratio": BASELINES["ratio-0.8"]}
    scores = list(score_pairs(hpatches, pairs, Sift(max_keypoints=300, resize=None), methods, Protocol(factors=(1.0, 0.5))))
    assert len(scores) == 4 * 2 * 2
    by_name = {(row.method, row.factor): row for row in summarise(scores)}
    ratio, half = by_name["ratio", 1.0], by_name["ratio", 0.5]
    assert ratio.precision > 85
    assert ratio.precision > by_name["nn", 1.0].precision
    assert ratio.precision_1px < ratio.precision
    assert ratio.corner_auc[2] > 60
    assert ratio.corner_auc_dlt[2] < ratio.corner_auc[2]  # outliers count in full
    assert half.inliers < ratio.inliers
    assert half.precision == ratio.precision
    low, high = intervals([s for s in scores if (s.method, s.factor) == ("ratio", 1.0)])["planar F1"]
    assert low <= ratio.f1 <= high


def test_layers_per_point_are_a_mean_over_the_points_of_both_images(hpatches: Path) -> None:
    def layered(a: Features, b: Features) -> Matches:
        nothing = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0)
        return Matches(*nothing, stop_layer=3, layers0=torch.full((len(a),), 3), layers1=torch.full((len(b),), 1))

    pairs = only_groups(read_hpatches(hpatches), ["v_"])
    methods = {"layered": layered, "nn": BASELINES["nn"]}
    scores = list(score_pairs(hpatches, pairs, Sift(max_keypoints=300, resize=None), methods))
    expected = [(3 * s.keypoints_a + s.keypoints_b) / (s.keypoints_a + s.keypoints_b) for s in scores[::2]]
    assert [s.layers_per_point for s in scores[::2]] == pytest.approx(expected)
    of_layered, of_nn = summarise(scores)
    assert of_layered.layers_per_point == pytest.approx(np.mean(expected))
    assert of_nn.layers_per_point == 0


def test_damaged_hpatches_are_refused(hpatches: Path, tmp_path: Path) -> None:
    (hpatches / "v_wall" / "H_1_4").write_text("1 0 0 0 1 0 0 0 1")
    with pytest.raises(InputError, match="has H_1_4 but no image 4"):
        read_hpatches(hpatches)
    (hpatches / "v_wall" / "H_1_4").unlink()
    (hpatches / "v_wall" / "H_1_2").write_text("1 0 0 0 1 zero")
    with pytest.raises(InputError, match="give numbers"):
        read_hpatches(hpatches)
    with pytest.raises(InputError, match=r"has no folders v_\* or i_\*"):
        read_hpatches(tmp_path)


@pytest.fixture
def world_views() -> tuple[list[np.ndarray], list[Camera]]:
    """Two views of a synthetic scene with their cameras."""
    rng = np.random.default_rng(4)
    settings = SceneSettings(objects=(1, 2), spread=6.0, any_roll=0.0, roll=2.0, distance=(0.95, 1.05), focal=(0.9, 1.0))
    world = build_scene(rng, (draw_photo(seed, 160, 120) for seed in range(10_000)), settings)
    cameras = [aim_camera(rng, settings) for _ in range(2)]
    return [render(world, camera).image for camera in cameras], cameras


def test_pose_pairs_upright_and_turned(world_views: tuple[list[np.ndarray], list[Camera]], tmp_path: Path) -> None:
    """An image stored on its side with its count of quarter turns gives the pose of the image stored upright."""
    images, cameras = world_views
    b_from_a = cameras[1].camera_from_world @ np.linalg.inv(cameras[0].camera_from_world)
    write(tmp_path / "scene" / "a.png", images[0])
    write(tmp_path / "scene" / "b.png", images[1])
    write(tmp_path / "scene" / "lying.png", np.rot90(images[1], -1))
    lying_k = turned_intrinsics(cameras[1].intrinsics, (480, 360), 3)
    clockwise = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])  # (x, y) -> (-y, x)
    lines = []
    for name, turns, k, pose in (("b", 0, cameras[1].intrinsics, b_from_a), ("lying", 1, lying_k, clockwise @ b_from_a)):
        numbers = [*cameras[0].intrinsics.ravel(), *k.ravel(), *pose.ravel()]
        lines.append(f"scene/a.png scene/{name}.png 0 {turns} " + " ".join(f"{n:.10g}" for n in numbers))
    (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n\n")
    pairs = read_pose_pairs(tmp_path / "pairs.txt", tmp_path)
    for key in ("intrinsics_a", "intrinsics_b", "rotation", "translation"):
        assert np.allclose(getattr(pairs[0], key), getattr(pairs[1], key), atol=1e-6), key
    scores = list(score_pairs(tmp_path, pairs, Sift(max_keypoints=600, resize=None), {"ratio": BASELINES["ratio-0.8"]}))
    assert scores[0].matches > 60
    assert scores[0].precision > 0.7
    assert scores[0].error < 3
    assert scores[0].error_plain < 15  # plain RANSAC
    assert scores[1].error == pytest.approx(scores[0].error, abs=0.2)


@pytest.mark.parametrize(("text", "message"), [("a b 0 0 1", "line 1 has 5 words"), ("", "has no pair")])
def test_damaged_pair_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_pose_pairs(tmp_path / "pairs.txt", tmp_path)
    with pytest.raises(InputError, match=r"missing.txt does not exist"):
        read_pose_pairs(tmp_path / "missing.txt", tmp_path)


def test_turned_intrinsics_follow_the_pixels() -> None:
    k = np.array([[400.0, 0, 150], [0, 410, 130], [0, 0, 1]])
    image = np.zeros((240, 320))
    u, v = 190, 110
    image[v, u] = 1
    ray = np.array([(u - 150) / 400, (v - 130) / 410, 1.0])
    once = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    for turns in range(4):
        row, column = np.argwhere(np.rot90(image, turns))[0]
        turned = turned_intrinsics(k, (320, 240), turns) @ np.linalg.matrix_power(once, turns)
        assert (turned @ ray)[:2] == pytest.approx([column, row])


def test_strechas_cameras(world_views: tuple[list[np.ndarray], list[Camera]], tmp_path: Path) -> None:
    images, cameras = world_views
    for number, (image, camera) in enumerate(zip(images, cameras, strict=True)):
        write(tmp_path / "set" / f"{number:04d}.png", image)
        world_from_camera = np.linalg.inv(camera.camera_from_world)
        rows = [*camera.intrinsics, np.zeros(3), *world_from_camera[:3, :3], world_from_camera[:3, 3], [480, 360]]
        text = "\n".join(" ".join(f"{n:.10g}" for n in row) for row in rows)
        (tmp_path / "set" / f"{number:04d}.png.camera").write_text(text)
    (pair,) = read_strecha(tmp_path / "set")
    expected = cameras[1].camera_from_world @ np.linalg.inv(cameras[0].camera_from_world)
    assert np.allclose(pair.rotation, expected[:3, :3])
    assert np.allclose(pair.translation, expected[:3, 3])
    assert read_strecha(tmp_path / "set", largest_gap=0) == []
    (tmp_path / "set" / "0001.png").unlink()
    with pytest.raises(InputError, match=r"has no image 0001.png"):
        read_strecha(tmp_path / "set")


# -- baselines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flann", [False, True])
def test_opencvs_ratio_test_by_definition(flann: bool) -> None:
    a = make_features(60, 1, dim=64)
    b = make_features(70, 2, dim=64, like=a)
    matches = opencv_ratio(a, b, flann=flann, ratio=0.8)
    distance = torch.cdist(a.descriptors.double(), b.descriptors.double())
    expected: dict[int, int] = {}
    for i, row in enumerate(distance):
        (first, second), nearest = row.sort().values[:2], int(row.argmin())
        if first < 0.8 * second and (nearest not in expected or first < distance[expected[nearest], nearest]):
            expected[nearest] = i
    both = {(i, j) for j, i in expected.items()}
    assert len(both) > 15
    assert len(both & {(i, j) for i, j in matches.pairs.tolist()}) >= (0.95 if flann else 1.0) * len(both)
    assert len({j for _, j in matches.pairs.tolist()}) == len(matches)


# -- results on disk --------------------------------------------------------------------------------------------------


def score(a: str, method: str, error: float = 1.0) -> PairScore:
    return PairScore(
        method, "pose", "g", a, "z", 10, 20, 5, 1.5, 3, error, 0.5, 0.25,
        precision_1px=0.25, recall_1px=0.125, error_plain=2.0, inliers=4, pruned=2, layers_per_point=2.75,
    )  # fmt: skip


def test_an_interrupted_evaluation_goes_on_with_whole_pairs(tmp_path: Path) -> None:
    path, record = tmp_path / "scores.csv", {"protocol": {"pose_px": 1.5}}
    file = ScoresFile(path, record, 2)
    file.append([score("p", "one"), score("p", "two", float("inf"))])
    file.append([score("q", "one")])  # killed before the second method
    again = ScoresFile(path, record, 2)
    assert [(s.a, s.method) for s in again.scores] == [("p", "one"), ("p", "two")]
    p, q = (HomographyPair(group="g", a=a, b="z", b_from_a=np.eye(3)) for a in "pq")
    assert again.missing([p, q]) == [q]
    again.append([score("q", "one"), score("q", "two")])
    expected = [score("p", "one"), score("p", "two", float("inf")), score("q", "one"), score("q", "two")]
    assert read_scores(path) == expected
    assert read_scores(path)[0] != replace(expected[0], inliers=5)
    assert json.loads(path.with_suffix(".json").read_text()) == record
    with pytest.raises(InputError, match="has results of another protocol, set or matcher"):
        ScoresFile(path, {"protocol": {"pose_px": 2.0}}, 2)
    path.write_text("one,two\n1,2\n")
    with pytest.raises(InputError, match="is not a file of scores"):
        read_scores(path)


def test_the_command_prints_its_protocol_and_goes_on(hpatches: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["eval", "homography", str(hpatches), "--max-keypoints", "200", "--methods", "lumiglue", "nn", "opencv-bf",
               "--groups", "v_", "--out", str(tmp_path / "scores.csv"), "--thresholds", "1", "0.5"]  # fmt: skip
    assert main(command) == 0
    first = capsys.readouterr()
    assert "PoseLib homography 2 px" in first.out
    assert "times 1, 0.5" in first.out
    assert "lumiglue x 0.5" in first.out
    assert "95 % bootstrap intervals" in first.out
    assert len(read_scores(tmp_path / "scores.csv")) == 3 * 3 * 2
    assert main(command) == 0
    second = capsys.readouterr()
    assert "3 pairs are already in" in second.err
    assert second.out == first.out


def test_python_evaluates_as_the_command_does(hpatches: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The same scores but for the times, with every seed; and one call resumes what the other began."""
    out, seeds = tmp_path / "scores.csv", (0, 3)
    command = ["eval", "homography", str(hpatches), "--max-keypoints", "200", "--methods", "lumiglue", "nn"]
    assert main([*command, "--seeds", "0", "3", "--out", str(out)]) == 0
    assert "seeds 0, 3" in capsys.readouterr().out
    pipeline, pairs = Pipeline.pretrained("sift", max_keypoints=200, precision="fp32"), read_hpatches(hpatches)
    calls: list[tuple[int, int]] = []
    scores = lumiglue.evaluate(
        hpatches, pipeline, pairs=pairs, methods=["lumiglue", "nn"], seeds=seeds, progress=lambda *count: calls.append(count)
    )
    assert calls == [(done, 4) for done in range(5)]
    assert len(scores) == 4 * 2 * 2
    assert [replace(s, milliseconds=0.0) for s in scores] == [replace(s, milliseconds=0.0) for s in read_scores(out)]
    matching = json.loads(out.with_suffix(".json").read_text())["matching"]
    again = lumiglue.evaluate(
        hpatches, pipeline, pairs=pairs, methods=["lumiglue", "nn"], seeds=seeds, out=out, matching=matching
    )
    assert again == read_scores(out)
    with pytest.raises(InputError, match="has results of another protocol, set or matcher"):
        lumiglue.evaluate(hpatches, pipeline, pairs=pairs, methods=["lumiglue", "nn"], seeds=seeds, out=out)


def test_scores_of_weights_that_were_trained_further_are_not_those_of_before(
    hpatches: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The same path to other weights, or to the same with other thresholds of their own, is another matcher."""
    weights, out = tmp_path / "weights.safetensors", tmp_path / "scores.csv"
    command = ["eval", "homography", str(hpatches), "--max-keypoints", "100", "--weights", str(weights)]
    command += ["--methods", "lumiglue", "--out", str(out)]
    model = load_weights(pretrained_path("sift-compact"))
    assert isinstance(model, LightGlue)
    save_weights(model, weights, {})
    assert main(command) == 0
    before = out.read_bytes()
    assert main(command) == 0  # nothing has changed: resumed
    assert out.read_bytes() == before
    stricter = LightGlue(replace(model.config, exit_ratio=0.99))
    stricter.load_state_dict(model.state_dict())
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    for other in (stricter, model):
        save_weights(other, weights, {})
        capsys.readouterr()
        assert main(command) == 2
        assert "has results of another protocol, set or matcher" in capsys.readouterr().err
    assert out.read_bytes() == before
    report = ["eval", "report", str(out), "-o", str(tmp_path / "page.html"), "--pictures"]
    assert main([*report, "1"]) == 2  # it would draw other matches than those that were scored
    assert "the weights or the features of the first run have changed since" in capsys.readouterr().err
    assert main([*report, "0"]) == 0


# -- report -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs of the same pairs, of many and of few keypoints."""
    folder = tmp_path_factory.mktemp("report")
    photos = str(write_hpatches(folder / "hpatches"))
    for name, points in (("many", "300"), ("few", "40")):
        command = ["eval", "homography", photos, "--max-keypoints", points, "--methods", "lumiglue", "nn"]
        assert main([*command, "--out", str(folder / f"{name}.csv")]) == 0
    page = folder / "report.html"
    files = [str(folder / f"{name}.csv") for name in ("many", "few")]
    assert main(["eval", "report", *files, "-o", str(page), "--pictures", "2"]) == 0
    return page


def test_the_report_says_what_the_scores_say(report: Path) -> None:
    text = report.read_text()
    for name in ("many", "few"):
        row = summarise(read_scores(report.with_name(f"{name}.csv")))[0]
        assert f"<td>{name}: lumiglue</td>" in text
        assert f">{row.precision:.1f}</td>" in text
        assert f">{row.corner_auc[2]:.1f}</td>" in text
    assert "300 sift keypoints, long side 1024 px; PoseLib homography 2 px" in text
    for loads in ("<script", "<link", 'src="http', "url(http"):  # SVG has names that look like addresses
        assert loads not in text, loads
    assert main(["eval", "report", str(report), "-o", str(report)]) == 2
    assert main(["eval", "report", str(report.with_name("many.csv")), "--method", "magic"]) == 2


def test_examples_are_the_worst_and_the_most_improved() -> None:
    def run(name: str, errors: dict[str, float], method: str = "lumiglue") -> Run:
        return Run(name, [score(a, method, error) for a, error in errors.items()], {})

    new, old = run("new", {"p": 1.0, "q": 18.0, "r": 3.0}), run("old", {"p": float("inf"), "q": 17.0, "r": 4.0})
    chosen = [(e.score.a, e.why) for e in examples([new, old], "lumiglue", "nn", 1)]
    assert chosen == [("q", "among the worst"), ("p", "gains most over old: inf degrees there")]
    alone = Run("one", [*new.scores, score("r", "nn", 9.0)], {})
    chosen = [(e.score.a, e.why) for e in examples([alone], "lumiglue", "nn", 3)][-1]
    assert chosen == ("r", "gains most over nn: 9.00 degrees there")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian's chromium is not installed")
def test_a_browser_shows_the_report(report: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        messages: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("request", lambda request: messages.append(request.url) if request.url.startswith("http") else None)
        page.goto(report.as_uri())
        assert page.title() == "many and few"
        assert page.locator("table").count() == 3
        assert page.locator("table").first.locator("tbody tr").count() == 4
        assert page.locator("figure svg").count() == 2
        pictures = page.locator("figure img")
        assert pictures.count() == 4
        widths = pictures.evaluate_all("all => all.map(one => one.naturalWidth)")
        assert all(width > 500 for width in widths), widths
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0
        assert messages == []
        browser.close()
