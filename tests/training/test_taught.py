"""Labels from a teacher: transferred keypoints are where truth is, sparse labels are those of dense distances, and what is
stored, sampled and learned from is the same."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, cycle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from helpers import draw_photo, make_model
from lumiglue import InputError, LightGlue, Sift, TrainingError
from lumiglue.cli import main
from lumiglue.errors import ImageError
from lumiglue.extractors.networks import Aliked
from lumiglue.geometry.projective import transfer, transform
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import RotaryEncoding
from lumiglue.matcher.models import PRESETS, Size, preset
from lumiglue.matcher.packed import PackedPairs
from lumiglue.training.compression import compare, sample_pairs
from lumiglue.training.config import TrainSettings
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.data.multiview import map_matches
from lumiglue.training.data.synthetic_scenes import Rendering, SceneSettings, aim_camera, build_scene, depths_at, render
from lumiglue.training.data.taught import NEAR_PX, PairLabels, SparseAssignment
from lumiglue.training.data.teacher import Teacher
from lumiglue.training.data.teaching import SceneMatches, TaughtPhotos, scene_anchors
from lumiglue.training.data.transfer import (
    Anchors,
    TransferSettings,
    consistent_matches,
    find_anchors,
    label_pair,
    transfer_points,
)
from lumiglue.training.deepening import deepened
from lumiglue.training.distillation import SoftLabels, distillation_loss
from lumiglue.training.labels import Labels, mutual_nearest
from lumiglue.training.loop import train
from lumiglue.training.loss import correspondence_loss
from lumiglue.training.sampling import PairSampler
from lumiglue.training.scores import LayerScores, layer_scores
from lumiglue.training.slicing import sliced
from lumiglue.types import Features
from lumiglue.weights.files import load_weights, pretrained_path, save_weights

SIZE = (640, 480)
SETTINGS = TransferSettings()


def random_homography(rng: np.random.Generator) -> np.ndarray:
    """Of a camera that is turned, moved and tilted a little."""
    angle, scale = rng.uniform(-1, 1), np.exp(rng.uniform(-0.4, 0.4))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    homography = np.eye(3)
    homography[:2, :2] = turn
    homography[:2, 2] = np.array(SIZE) / 2 - turn @ np.array(SIZE) / 2 + rng.uniform(-60, 60, 2)
    homography[2, :2] = rng.uniform(-3e-4, 3e-4, 2)
    return homography


def mapped(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    return transform(torch.from_numpy(homography), torch.from_numpy(points)).numpy()


def anchors_of(
    rng: np.random.Generator, places: np.ndarray, true: np.ndarray, noise: float = 0.6, outliers: int = 40
) -> Anchors | None:
    """From a teacher's matches: true ones with noise, and some at random."""
    wrong = [rng.uniform([0, 0], SIZE, (outliers, 2)) for _ in range(2)]
    ends1 = np.concatenate([true + rng.normal(0, noise, true.shape), wrong[1]])
    return find_anchors(np.concatenate([places, wrong[0]]), ends1, SETTINGS)


@pytest.mark.parametrize("seed", range(6))
def test_labels_of_a_plane_are_right(seed: int) -> None:
    """Keypoints of either photo are noisy copies of places of the other's, or have no partner."""
    rng = np.random.default_rng(seed)
    homography = random_homography(rng)
    places = rng.uniform([0, 0], SIZE, (400, 2))
    anchors = anchors_of(rng, places, mapped(homography, places))
    assert anchors is not None
    assert anchors.fundamental is None
    keypoints0 = rng.uniform([0, 0], SIZE, (900, 2))
    copies = mapped(homography, keypoints0[:500]) + rng.normal(0, 0.5, (500, 2))
    keypoints1 = np.concatenate([copies, rng.uniform([0, 0], SIZE, (400, 2))])
    labels = label_pair(keypoints0, keypoints1, (SIZE, SIZE), anchors, SETTINGS)
    true = mapped(homography, keypoints0)
    matches = labels.matches()
    errors = np.linalg.norm(true[matches[:, 0]] - keypoints1[matches[:, 1]], axis=1)
    assert len(matches) > 100
    assert np.median(errors) < 1.0
    assert (errors > 4).mean() < 0.005
    distances = np.linalg.norm(true[:, None] - keypoints1[None], axis=2)
    lonely, _ = labels.unmatchable()
    inside = np.all((true >= 0) & (true <= np.array(SIZE) - 1), axis=1)
    assert lonely.sum() > 5
    assert (distances[lonely].min(1) < 3).mean() < 0.01
    assert inside[labels.judged0].mean() > 0.99


def scene_pair(seed: int) -> tuple[list[Rendering], list[np.ndarray], np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Two renderings of a synthetic scene; intrinsics; camera 1 from camera 0; random points and their depths."""
    rng = np.random.default_rng(seed)
    settings = SceneSettings(size=SIZE, any_roll=0.0, spread=9.0)
    scene = build_scene(rng, cycle([draw_photo(k, 160, 120) for k in range(8)]), settings)
    cameras = [aim_camera(rng, settings) for _ in range(2)]
    renderings = [render(scene, camera) for camera in cameras]
    points = [rng.uniform([2, 2], np.array(SIZE) - 3, (1500, 2)) for _ in range(2)]
    depths = [depths_at(rendering, place) for rendering, place in zip(renderings, points, strict=True)]
    known = [np.isfinite(depth) for depth in depths]
    pose = cameras[1].camera_from_world @ np.linalg.inv(cameras[0].camera_from_world)
    return (
        renderings,
        [camera.intrinsics for camera in cameras],
        pose,
        [place[k] for place, k in zip(points, known, strict=True)],
        [depth[k] for depth, k in zip(depths, known, strict=True)],
    )


def carried(
    points: np.ndarray, depths: np.ndarray, k0: np.ndarray, k1: np.ndarray, pose: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Places in the other photo, their depths there."""
    there, depth = transfer(*(torch.from_numpy(array) for array in (points, depths, k0, k1, pose)))
    return there.numpy(), depth.numpy()


def test_transfer_in_scenes_with_parallax_and_occlusion() -> None:
    """Over several scenes: what counts as transferred is where the surface is seen, within three pixels."""
    errors, counted, hidden = [], 0, 0
    for seed in range(8):
        renderings, (k0, k1), pose, (points, _), (depths, _) = scene_pair(seed)
        there, depth_there = carried(points, depths, k0, k1, pose)
        inside = np.all((there > 3) & (there < np.array(SIZE) - 4), axis=1)
        seen = np.where(inside, depths_at(renderings[1], np.where(inside[:, None], there, 3.0)), np.nan)
        visible = np.abs(seen - depth_there) < 0.02 * depth_there
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(np.flatnonzero(visible))[:400]
        anchors = anchors_of(rng, points[chosen], there[chosen])
        if anchors is None:
            continue
        assert anchors.fundamental is not None or len(chosen) < 100
        others = np.setdiff1d(np.flatnonzero(np.isfinite(seen)), chosen)
        predicted, sure = transfer_points(points[others], anchors, SETTINGS)
        off = np.linalg.norm(predicted - there[others], axis=1)[sure]
        errors.append(off)
        counted, hidden = counted + len(off), hidden + int((~visible[others])[sure].sum())
    every = np.concatenate(errors)
    assert counted > 1000
    assert np.median(every) < 1.0
    assert (every > 3).mean() < 0.01
    assert hidden / counted < 0.01


def test_matches_that_a_third_photo_contradicts_are_left_out() -> None:
    """Three photos of 60 places, with rows in another order in each. Ten matches of one pair jump to the next place, as on
    a wall that repeats: those go, and so do the matches of the other pairs that the jump cannot be told from."""
    rng = np.random.default_rng(0)
    places = rng.uniform([0, 0], SIZE, (60, 2))
    orders = {name: rng.permutation(60) for name in "abc"}  # row -> place
    keypoints = {name: places[order] + rng.normal(0, 0.3, (60, 2)) for name, order in orders.items()}
    row_of = {name: np.argsort(order) for name, order in orders.items()}  # place -> row
    pairs = {(a, b): np.column_stack([row_of[a], row_of[b]]) for a, b in (("a", "b"), ("a", "c"), ("b", "c"))}
    assert {pair: len(kept) for pair, kept in consistent_matches(keypoints, pairs, SETTINGS).items()} == dict.fromkeys(
        pairs, 60
    )
    jumping = np.arange(10)
    pairs["a", "b"][jumping, 1] = row_of["b"][(jumping + 1) % 10]
    kept = consistent_matches(keypoints, pairs, SETTINGS)
    assert np.array_equal(kept["a", "b"], pairs["a", "b"][10:])
    assert len(kept["a", "c"]) == len(kept["b", "c"]) == 50
    two_photos = {("a", "b"): pairs["a", "b"]}
    assert len(consistent_matches(keypoints, two_photos, SETTINGS)["a", "b"]) == 60  # nobody else saw it


def test_photos_that_mostly_agree_overrule_one_match() -> None:
    """With a fourth photo, only the wrong match goes."""
    places = np.random.default_rng(1).uniform([0, 0], SIZE, (40, 2))
    keypoints = dict.fromkeys("abcd", places)
    rows = np.arange(40)
    pairs = {(a, b): np.column_stack([rows, rows]) for a, b in combinations("abcd", 2)}
    pairs["a", "b"][[3, 4], 1] = [4, 3]
    kept = consistent_matches(keypoints, pairs, SETTINGS)
    assert {pair: len(matches) for pair, matches in kept.items()} == dict.fromkeys(pairs, 40) | {("a", "b"): 38}


def wall_and_yard(count: int = 4) -> tuple[dict[str, Features], dict[tuple[str, str], np.ndarray], np.ndarray]:
    """Photos of a wall and of a slope beside it, all matched; a tenth of the first pair's matches jump. Pixels of all points
    in all photos."""
    rng = np.random.default_rng(5)
    flat = rng.uniform([-2, -2], [0, 2], (150, 2)), rng.uniform([0, -2], [2, 2], (100, 2))
    world = np.concatenate([np.column_stack([flat[0], np.full(150, 8.0)]), np.column_stack([flat[1], 8 - flat[1][:, 0]])])
    intrinsics = np.array([[600.0, 0, 319.5], [0, 600.0, 239.5], [0, 0, 1]])
    seen, features = [], {}
    for number in range(count):
        angle = 0.12 * number
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        camera = world @ turn.T + np.array([-0.9 * number, 0.1 * number, 0.05 * number])
        pixels = camera @ intrinsics.T
        seen.append(pixels[:, :2] / pixels[:, 2:])
        noisy = torch.from_numpy(seen[-1] + rng.normal(0, 0.3, (len(world), 2))).float()
        features[f"{number}.jpg"] = Features(keypoints=noisy, descriptors=torch.zeros(len(world), 4), image_size=SIZE)
    rows = np.arange(len(world))
    pairs = {pair: np.column_stack([rows, rows]) for pair in combinations(features, 2)}
    first = pairs["0.jpg", "1.jpg"]
    first[:25, 1] = first[:25, 1][::-1]
    return features, pairs, np.array(seen)


def test_poses_of_many_photos_replace_the_geometry_of_two() -> None:
    """The model's epipolar lines pass through the true places, and the pair whose matches jumped gets the tracks."""
    features, pairs, seen = wall_and_yard()
    keypoints = {name: one.keypoints.numpy() for name, one in features.items()}
    sizes = dict.fromkeys(features, SIZE)
    (model,) = map_matches(keypoints, sizes, pairs)
    assert set(model.projections) == set(features)
    for a, b in combinations(range(4), 2):
        matrix = model.fundamental(f"{a}.jpg", f"{b}.jpg")
        lines = np.column_stack([seen[a], np.ones(len(seen[a]))]) @ matrix.T
        off = (lines * np.column_stack([seen[b], np.ones(len(seen[b]))])).sum(1) / np.linalg.norm(lines[:, :2], axis=1)
        assert np.median(np.abs(off)) < 0.5
    revised = model.revise("0.jpg", "1.jpg", pairs["0.jpg", "1.jpg"])
    assert len(revised) > 220
    assert (revised[:, 0] == revised[:, 1]).mean() > 0.99
    anchors = scene_anchors(SceneMatches(features, pairs, None), SETTINGS, poses=True)
    assert set(anchors) == set(pairs)
    assert all(usable.fundamental is not None for usable in anchors.values())


def test_photos_of_a_plane_alone_determine_no_epipolar_geometry() -> None:
    """COLMAP finds poses with wrong focal lengths, which fit the plane as well as the right ones: they are not used."""
    features, pairs, _ = wall_and_yard()
    plane = {name: one[torch.arange(150)] for name, one in features.items()}
    pairs = {pair: matches[25:150] for pair, matches in pairs.items()}
    anchors = scene_anchors(SceneMatches(plane, pairs, None), SETTINGS, poses=True)
    assert anchors.keys() == pairs.keys()
    assert all(usable.fundamental is None for usable in anchors.values())


def test_two_photos_have_no_model() -> None:
    features, pairs, _ = wall_and_yard(2)
    keypoints = {name: one.keypoints.numpy() for name, one in features.items()}
    assert map_matches(keypoints, dict.fromkeys(features, SIZE), pairs) == []


def test_too_few_or_random_matches_give_no_anchors() -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform([0, 0], SIZE, (20, 2))
    assert find_anchors(places, mapped(random_homography(rng), places), SETTINGS) is None
    places0, places1 = (rng.uniform([0, 0], SIZE, (200, 2)) for _ in range(2))
    assert find_anchors(places0, places1, SETTINGS) is None


# -- sparse labels ---------------------------------------------------------------------------------------------------------


def random_labels(seed: int, m: int = 40, n: int = 30) -> tuple[PairLabels, np.ndarray, np.ndarray]:
    """Labels, and the dense distances that they come from: the larger of the two images', and the smaller."""
    rng = np.random.default_rng(seed)
    smaller = rng.uniform(0, 60, (m, n))
    larger = smaller + rng.uniform(0, 2, (m, n))
    near = np.argwhere(smaller <= NEAR_PX)
    p = rng.uniform(0.01, 1, len(near)) / 5
    assignment = SparseAssignment(
        near, np.log(p).astype(np.float32), *(rng.uniform(0, 1, k).astype(np.float32) for k in (m, n))
    )
    judged = (rng.random(m) < 0.8, rng.random(n) < 0.8)
    return PairLabels(near, larger[tuple(near.T)], *judged, assignment), larger, smaller


@pytest.mark.parametrize("seed", range(8))
def test_labels_of_some_keypoints_are_those_of_their_dense_distances(seed: int) -> None:
    labels, larger, smaller = random_labels(seed)
    rng = np.random.default_rng(seed)
    rows0, rows1 = rng.permutation(40)[:25], rng.permutation(30)[:25]
    some = labels.select(rows0, rows1)
    far = larger.copy()
    far[smaller > NEAR_PX] = np.inf
    dense = mutual_nearest(torch.from_numpy(far[np.ix_(rows0, rows1)])[None], 3.0)[:, 1:].numpy()
    matches = some.matches()
    assert sorted(map(tuple, matches)) == sorted(map(tuple, dense))
    lonely0, lonely1 = some.unmatchable()
    assert (lonely0 == labels.judged0[rows0] & (smaller[np.ix_(rows0, rows1)] > NEAR_PX).all(1)).all()
    assert (lonely1 == labels.judged1[rows1] & (smaller[np.ix_(rows0, rows1)] > NEAR_PX).all(0)).all()
    back = some.reversed()
    assert sorted(map(tuple, back.matches()[:, ::-1])) == sorted(map(tuple, matches))
    assert (back.unmatchable()[0] == lonely1).all()
    assert (back.unmatchable()[1] == lonely0).all()


def test_what_was_assigned_to_left_out_keypoints_is_not_matchable() -> None:
    assignment = random_labels(3)[0].assignment
    assert assignment is not None
    rows0, rows1 = np.arange(40), np.arange(10)
    positions = [np.full(count, -1) for count in (40, 30)]
    positions[0][rows0], positions[1][rows1] = rows0, rows1
    some = assignment.select(*positions)
    p = np.zeros((40, 30))
    p[tuple(assignment.entries.T)] = np.exp(assignment.log_p)
    share = np.divide(p[:, :10].sum(1), p.sum(1), out=np.ones(40), where=p.sum(1) > 0)
    assert some.matchability0 == pytest.approx(assignment.matchability0 * share, abs=1e-5)
    assert some.matchability1 == pytest.approx(assignment.matchability1[:10])
    assert (some.entries == assignment.entries[assignment.entries[:, 1] < 10]).all()


# -- a dataset ---------------------------------------------------------------------------------------------------------


def views_of_planes(folder: Path, save_photo: Callable[[str, np.ndarray], Path]) -> None:
    """Two scenes of three photos each, which are homographies of one picture."""
    for scene in range(2):
        picture = draw_photo(scene, 500, 400)
        for view, shift in enumerate(((0, 0), (25, -12), (-18, 30))):
            homography = np.array([[1.0, 0.04 * view, shift[0]], [-0.04 * view, 1.0, shift[1]], [1e-4 * view, 0, 1]])
            image = cv2.warpPerspective(picture, homography, (500, 400), flags=cv2.INTER_AREA)[40:-40, 40:-40]
            save_photo(f"{folder.name}/scene-{scene}/{view}.png", image)


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("taught")


@pytest.fixture(scope="module")
def taught(module_folder: Path) -> Path:
    """A dataset that the SIFT matcher of the package teaches for its own features."""
    photos = module_folder / "photos"

    def save(name: str, image: np.ndarray) -> Path:
        path = module_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image[..., ::-1])
        return path

    views_of_planes(photos, save)
    (photos / "alone").mkdir()
    save("photos/alone/one.png", draw_photo(9))
    out = module_folder / "taught.h5"
    matches = str(module_folder / "matches")
    flags = ["--teacher", "sift-compact", "--teacher-keypoints", "400", "--max-keypoints", "300", "--workers", "1"]
    assert main(["dataset", "teach", str(photos), "-o", str(out), "--teacher-matches", matches, *flags]) == 0
    return out


def test_a_dataset_has_the_truth_of_its_photos(taught: Path) -> None:
    dataset = FeatureDataset(taught)
    assert dataset.kind == "taught"
    assert dataset.scenes == ["scene-0", "scene-1"]
    assert len(dataset) == 6
    assert len(dataset.pairs) == 6
    assert dataset.taught is not None
    for pair, (a, b) in enumerate(dataset.pairs):
        maps = []
        for view in (a % 3, b % 3):
            shift = ((0, 0), (25, -12), (-18, 30))[view]
            homography = np.array([[1.0, 0.04 * view, shift[0]], [-0.04 * view, 1.0, shift[1]], [1e-4 * view, 0, 1]])
            maps.append(np.array([[1, 0, -40], [0, 1, -40], [0, 0, 1.0]]) @ homography)
        labels = dataset.taught.labels(pair)
        keypoints = [dataset.view(int(view))["keypoints"].astype(np.float64) for view in (a, b)]
        true = mapped(maps[1] @ np.linalg.inv(maps[0]), keypoints[0])
        matches = labels.matches()
        errors = np.linalg.norm(true[matches[:, 0]] - keypoints[1][matches[:, 1]], axis=1)
        assert len(matches) > 60
        assert (errors > 3.5).mean() < 0.02
        lonely, _ = labels.unmatchable()
        assert (np.linalg.norm(true[lonely][:, None] - keypoints[1][None], axis=2).min(1, initial=np.inf) > 3).mean() > 0.98


def test_other_features_take_the_same_matches_from_the_folder(
    taught: Path, module_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second dataset reads the matches: the teacher is not asked again, and the labels are the same."""

    def refuse(*_: object) -> None:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(Teacher, "assign", refuse)
    monkeypatch.setattr(Teacher, "match", refuse)
    flags = ["--teacher", "sift-compact", "--teacher-keypoints", "400", "--teacher-matches", str(module_folder / "matches")]
    out = module_folder / "again.h5"
    photos = str(module_folder / "photos")
    assert main(["dataset", "teach", photos, "-o", str(out), "--workers", "1", "--max-keypoints", "300", *flags]) == 0
    one, two = (FeatureDataset(path).taught for path in (taught, out))
    assert one is not None
    assert two is not None
    for pair in range(6):
        assert (one.labels(pair).near == two.labels(pair).near).all()
        first, second = one.labels(pair).assignment, two.labels(pair).assignment
        assert first is not None
        assert second is not None
        assert (first.entries == second.entries).all()


def test_the_teacher_assigns_keypoints_of_other_features(
    taught: Path, module_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its network describes them: what it is asked to assign is the dataset's keypoints, and its answer is stored."""
    asked: list[tuple[Features, Features]] = []
    sift, matcher = Sift(max_keypoints=400, resize=None), load_weights(pretrained_path("sift-compact"))

    def detect(_: Aliked, image: np.ndarray) -> Features:
        return sift(image)

    def describe(_: Aliked, image: np.ndarray, keypoints: torch.Tensor) -> torch.Tensor:
        assert image.shape[:2] == (320, 420)
        return torch.cat([keypoints, torch.zeros(len(keypoints), 62)], dim=1)

    def match(_: Teacher, a: Features, b: Features) -> np.ndarray:
        return matcher.match(pack([(a, b)], matcher.config))[0].pairs.numpy()

    def assign(_: Teacher, a: Features, b: Features) -> tuple[np.ndarray, SparseAssignment]:
        asked.append((a, b))
        sides = (np.full(len(side), 0.25, np.float32) for side in (a, b))
        return np.zeros((0, 2), np.int64), SparseAssignment(np.array([[5, 7]]), np.array([-0.5], np.float32), *sides)

    monkeypatch.setattr(Aliked, "__call__", detect)
    monkeypatch.setattr(Aliked, "describe", describe)
    monkeypatch.setattr(Teacher, "match", match)
    monkeypatch.setattr(Teacher, "assign", assign)
    weights = module_folder / "aliked.safetensors"
    save_weights(make_model(extractor="aliked-t16", descriptor_dim=64, d=64), weights, {})
    photos, out = str(module_folder / "photos"), module_folder / "assigned.h5"
    flags = ["--teacher", str(weights), "--teacher-keypoints", "400", "--features", "sift", "--max-keypoints", "300"]
    assert main(["dataset", "teach", photos, "-o", str(out), "--workers", "1", "--assignments", *flags]) == 0
    dataset = FeatureDataset(out)
    assert dataset.taught is not None
    assert dataset.plan["settings"]["assignments"] is True
    assert len(asked) == len(dataset.pairs) == 6
    for number, ((a, b), views) in enumerate(zip(asked, dataset.pairs, strict=True)):
        assert a.extractor == b.extractor == "aliked-t16"
        for side, view in zip((a, b), views, strict=True):
            stored = torch.from_numpy(np.asarray(dataset.view(int(view))["keypoints"])).float()
            torch.testing.assert_close(side.keypoints, stored, rtol=0, atol=0.05)
            torch.testing.assert_close(side.descriptors[:, :2], side.keypoints)
        assignment = dataset.taught.labels(number).assignment
        assert assignment is not None
        assert assignment.entries.tolist() == [[5, 7]]
        assert float(assignment.matchability0.max()) == 0.25


def test_a_photo_without_keypoints_belongs_to_no_pair(
    taught: Path, module_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher matches it, but the features to train for find nothing in it."""
    usual, seen = Sift.__call__, []

    def blind(extractor: Sift, image: np.ndarray) -> Features:
        seen.append(image)
        return usual(extractor, image)[: 0 if len(seen) == 2 else None]

    photos = TaughtPhotos.of_folder(
        module_folder / "photos", Teacher.named("sift-compact", max_keypoints=400), matches=module_folder / "matches"
    )
    extractor = Sift(max_keypoints=300, resize=None)
    monkeypatch.setattr(Sift, "__call__", blind)
    monkeypatch.setattr(Sift, "name", "other")
    names, views, pairs = photos.labelled_photos(photos.items.index("scene-0"), extractor, 300)
    assert len(seen) == 3
    assert names == ["scene-0/0.png", "scene-0/2.png"]
    assert all(len(view.features) for view in views)
    assert [pair[:2] for pair in pairs] == [(0, 1)]
    monkeypatch.setattr(Sift, "__call__", lambda extractor, image: usual(extractor, image)[:0])
    with pytest.raises(ImageError, match="no two photos of scene-0 that overlap have keypoints"):
        photos.labelled_photos(photos.items.index("scene-0"), extractor, 300)


def test_features_that_describe_no_given_keypoints_are_refused(
    taught: Path, module_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = str(module_folder / "photos"), str(module_folder / "refused.h5")
    command = ["dataset", "teach", photos, "-o", out, "--teacher", "sift-compact", "--features", "sift"]
    assert main([*command, "--assignments"]) == 2
    assert "sift cannot describe the keypoints of other features; use a teacher for ALIKED" in capsys.readouterr().err


def test_the_record_of_a_dataset_says_whether_scenes_were_reconstructed(taught: Path, module_folder: Path) -> None:
    out, photos = module_folder / "posed.h5", str(module_folder / "photos")
    flags = ["--teacher", "sift-compact", "--teacher-keypoints", "400", "--teacher-matches", str(module_folder / "matches")]
    sizes = ["--workers", "1", "--max-keypoints", "300"]
    assert main(["dataset", "teach", photos, "-o", str(out), "--poses", *sizes, *flags]) == 0
    for path, poses in ((taught, False), (out, True)):
        dataset = FeatureDataset(path)
        assert dataset.plan["settings"]["poses"] is poses
        assert len(dataset.pairs) == 6


def test_a_folder_without_two_photos_is_refused(tmp_path: Path, save_photo: Callable[[str, np.ndarray], Path]) -> None:
    save_photo("photos/a/one.png", draw_photo(0))
    save_photo("photos/b/one.png", draw_photo(1))
    photos, out = str(tmp_path / "photos"), str(tmp_path / "x.h5")
    assert main(["dataset", "teach", photos, "-o", out, "--teacher", "sift-compact"]) == 2


def test_a_released_teacher_needs_the_name_of_its_features(tmp_path: Path) -> None:
    (tmp_path / "released.pth").touch()
    with pytest.raises(InputError, match="--teacher-features"):
        Teacher.named(str(tmp_path / "released.pth"))


def test_the_precision_of_a_teacher_is_that_of_its_layers() -> None:
    """float32 gives what the trained layers give; bfloat16 nearly that, and is in the plan, so that no labels are mixed."""
    teacher = Teacher.named("sift-compact", max_keypoints=400)
    photo = draw_photo(3)
    a, b = (teacher.extractor()(image) for image in (photo, photo[20:, 30:]))
    matches, assignment = teacher.assign(a, b)
    model = teacher.model()
    with torch.inference_mode():
        *_, x = model.states(pack([(a, b)], model.config))
        expected = model.heads[-1].matchability_logits(x).sigmoid().numpy()
    given = np.concatenate([assignment.matchability0, assignment.matchability1])
    np.testing.assert_allclose(given, expected, atol=1e-3)
    lower = replace(teacher, precision="bf16")
    rounded, other = lower.assign(a, b)
    assert np.abs(other.matchability0 - assignment.matchability0).max() > 1e-5
    assert len(matches) > 100
    common = set(map(tuple, matches.tolist())) & set(map(tuple, rounded.tolist()))
    assert len(common) > 0.9 * max(len(matches), len(rounded))
    assert lower.plan() != teacher.plan()
    assert set(map(tuple, lower.match(a, b).tolist())) != set()


def test_batches_hold_the_labels_of_the_sampled_keypoints(taught: Path) -> None:
    """Each label of a batch is one of its pair's, found by position; so are the teacher's assignments."""
    dataset = FeatureDataset(taught)
    sampler = PairSampler(
        [dataset], preset("compact", "sift", 128, "xy-logscale-angle"), split="training", seed=1, negative_pair_ratio=0
    )
    assert dataset.taught is not None
    reversed_pairs = 0
    for step in range(6):
        batch = sampler.batch(step, 3, 120)
        labels, soft = batch.labels(), batch.soft_labels()
        assert soft is not None
        assert soft.pairs == 3
        assert len(batch.taught) == 3
        assert not (labels.unmatchable0[labels.matches[:, 0], labels.matches[:, 1]]).any()
        for number in range(3):
            ends = [side.keypoints[number].numpy() for side in (batch.side0, batch.side1)]
            for pair, (a, b) in enumerate(dataset.pairs):
                views = [dataset.view(int(view))["keypoints"] for view in (a, b)]
                way = [
                    all(set(map(tuple, e)) <= set(map(tuple, v)) for e, v in zip(ends, vs, strict=True))
                    for vs in (views, views[::-1])
                ]
                if not any(way):
                    continue
                reversed_pairs += way[1]
                full = dataset.taught.labels(pair).reversed() if way[1] else dataset.taught.labels(pair)
                first, second = views[::-1] if way[1] else views
                near = {(tuple(first[i]), tuple(second[j])): d for (i, j), d in zip(full.near, full.distances, strict=True)}
                rows = labels.matches[labels.matches[:, 0] == number, 1:].numpy()
                assert len(rows) > 5
                assert all(near[tuple(ends[0][i]), tuple(ends[1][j])] <= 3 for i, j in rows)
    assert 0 < reversed_pairs < 18


def test_a_run_learns_from_a_taught_dataset(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and the teacher's assignments alone bring a fresh matcher's loss down; a run that is interrupted resumes."""
    monkeypatch.setitem(PRESETS, "tiny", Size(64, 2, 3))
    settings = TrainSettings(
        preset="tiny", pairs=36, confidence_pairs=6, batch_size=6, lengths=(32, 64), warmup_pairs=6, evaluate_every=30,
        checkpoint_every=9, negative_pair_ratio=0.0, precision="fp32",
    )  # fmt: skip
    whole = [now.loss for now in train(taught, tmp_path / "whole", settings)]
    assert np.mean(whole[4:8]) < np.mean(whole[:2])
    steps: list[int] = []
    for now in train(taught, tmp_path / "parts", settings, stop=lambda: len(steps) >= 3):
        steps.append(now.step)
    rest = [now.loss for now in train(taught, tmp_path / "parts", settings)]
    assert whole[steps[-1] :] == rest


# -- distillation ------------------------------------------------------------------------------------------------------


def test_a_teacher_that_is_always_sure_gives_the_loss_of_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 8, 4), (2, 9, 4), (2, 8), (2, 9))
    scores = LayerScores(*(torch.randn(shape, generator=generator) for shape in shapes))
    matches = torch.tensor([[0, 1, 2], [0, 3, 3], [1, 0, 8]])
    unmatchable = (torch.rand(2, 8, generator=generator) < 0.4, torch.rand(2, 9, generator=generator) < 0.4)
    unmatchable[0][matches[:, 0], matches[:, 1]] = False
    soft = SoftLabels(matches, torch.ones(3), unmatchable[0].float(), unmatchable[1].float(), 2)
    expected = correspondence_loss(scores, Labels(matches, *unmatchable))
    assert distillation_loss(scores, soft) == pytest.approx(float(expected), rel=1e-5)


def test_matches_and_unmatchable_points_pull_on_the_matchability() -> None:
    """With one point on a side P is sigma_0 sigma_1: both means pull on one number, each with its own weight."""
    soft = SoftLabels(torch.tensor([[0, 0, 0]]), torch.tensor([0.7]), torch.tensor([[0.3]]), torch.tensor([[0.3]]), 1)
    point, x = torch.zeros(1, 1, 1), torch.zeros(1, 1, requires_grad=True)
    loss = distillation_loss(LayerScores(point, point, x, torch.full((1, 1), 20.0)), soft)
    loss.backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(-0.5 + 0.5 * 0.5, abs=1e-5)


# -- depth -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layers", [5, 6, 9])
def test_new_layers_change_nothing(n_layers: int, pairs: list) -> None:
    model = make_model(3)
    deeper = deepened(model, n_layers)
    packed = pack([pair for pair in pairs if min(map(len, pair))], model.config)
    with torch.no_grad():
        before, after = list(model.states(packed)), list(deeper.states(packed))
    assert deeper.config.n_layers == len(after) == n_layers
    for x, y in zip(before, after, strict=False):
        assert torch.equal(x, y)
    for layer in range(5, n_layers):
        assert torch.equal(after[layer], before[-1])
        with torch.no_grad():
            one, two = (m.heads[k].features(x) for m, k, x in ((model, 4, before[-1]), (deeper, layer, after[layer])))
        assert torch.equal(one, two)
    assert all(p.requires_grad for p in deeper.parameters())


def test_a_deepened_matcher_learns_in_its_new_layers(pairs: list) -> None:
    model = deepened(make_model(3), 7)
    packed = pack(pairs[:1], model.config)
    *_, x = model.states(packed)
    x.square().sum().backward()
    last = model.layers[6].cross_attention.ffn[3]
    assert isinstance(last, torch.nn.Linear)
    assert last.weight.grad is not None
    assert float(last.weight.grad.abs().max()) > 0


def test_a_matcher_is_not_made_shallower() -> None:
    with pytest.raises(TrainingError, match="cannot be deepened"):
        deepened(make_model(3), 4)


def test_a_run_deepens_the_weights_that_it_starts_from(taught: Path, tmp_path: Path) -> None:
    """With a rate of nothing, its last head assigns as the shallow matcher's does."""
    settings = TrainSettings(
        preset="deep", start_from="sift-compact", pairs=2, confidence_pairs=0, batch_size=2, lengths=(64,),
        learning_rate=1e-12, weight_decay=0.0, precision="fp32",
    )  # fmt: skip
    list(train(taught, tmp_path / "run", settings))
    deep, shallow = load_weights(tmp_path / "run" / "weights.safetensors"), load_weights(pretrained_path("sift-compact"))
    assert isinstance(deep, LightGlue)
    assert isinstance(shallow, LightGlue)
    assert deep.config.n_layers == 9
    sampler = PairSampler([FeatureDataset(taught)], deep.config, split="training", seed=1, negative_pair_ratio=0)
    packed = sampler.batch(0, 1, 100).pairs
    with torch.inference_mode():
        both = (layer_scores(model.heads[-1], list(model.states(packed))[-1], 1) for model in (deep, shallow))
        one, two = (scores.features0 @ scores.features1.mT for scores in both)
    assert torch.allclose(one, two, atol=1e-4)


# -- slicing ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibration(taught: Path) -> list[PackedPairs]:
    model = load_weights(pretrained_path("sift-compact"))
    assert isinstance(model, LightGlue)
    return sample_pairs(FeatureDataset(taught), model, 200, "training")[:8]


def test_a_sliced_matcher_is_like_the_wide_one(taught: Path, calibration: list[PackedPairs]) -> None:
    """The wider, the more alike; a width that keeps most directions keeps most matches, with no training."""
    model = load_weights(pretrained_path("sift-compact"))
    assert isinstance(model, LightGlue)
    small = {str(d): sliced(model, d, calibration) for d in (32, 120)}
    assert [one.config.d for one in small.values()] == [32, 120]
    found = compare(model, small, sample_pairs(FeatureDataset(taught), model, 200, "validation")[:4])
    assert found["120"].kept > 0.8
    assert found["120"].shared > 0.8
    assert found["32"].kept < found["120"].kept
    assert found["32"].parameters < found["120"].parameters / 5


def test_slicing_keeps_the_fixed_frequencies_of_orientation(calibration: list[PackedPairs]) -> None:
    """Each plane's integer frequency is that of the plane whose learned ones it has."""
    model = load_weights(pretrained_path("sift-compact"))
    assert isinstance(model, LightGlue)
    wide, narrow = model.position_encoding, sliced(model, 64, calibration[:2]).position_encoding
    assert isinstance(wide, RotaryEncoding)
    assert isinstance(narrow, RotaryEncoding)
    same = (narrow.frequencies[:, None] == wide.frequencies[None]).all(2)
    assert (same.sum(1) == 1).all()
    assert torch.equal(wide.turns[same.float().argmax(1)], narrow.turns)


@pytest.mark.parametrize("d", [0, -8, 12, 128, 256])
def test_widths_that_cannot_be_sliced_are_refused(d: int) -> None:
    model = load_weights(pretrained_path("sift-compact"))
    assert isinstance(model, LightGlue)
    with pytest.raises(TrainingError, match="give a multiple of 8 below 128"):
        sliced(model, d, [])


def test_compress_slices_heals_and_resumes(taught: Path, module_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command; a second call takes what is there, and another number of pairs is another run."""
    assert taught.exists()  # the photos
    out = module_folder / "small.safetensors"
    command = ["compress", "sift-compact", str(module_folder / "photos"), "-o", str(out), "--width", "64", "--workers", "1"]
    assert main([*command, "--pairs", "8", "--max-keypoints", "128"]) == 0
    said = capsys.readouterr().out
    assert "sliced: " in said
    assert "healed: " in said
    assert "of the original's matches" in said
    small = load_weights(out)
    assert isinstance(small, LightGlue)
    assert (small.config.d, small.config.n_layers) == (64, 5)
    assert (small.config.exit_ratio, small.config.prune_below) == (0.8, 0.2)
    before = (out.stat().st_mtime_ns, (module_folder / "small.safetensors.run" / "sliced-64.safetensors").stat().st_mtime_ns)
    assert main([*command, "--pairs", "8", "--max-keypoints", "128"]) == 0
    assert (module_folder / "small.safetensors.run" / "sliced-64.safetensors").stat().st_mtime_ns == before[1]
    assert main([*command, "--pairs", "9", "--max-keypoints", "128"]) == 2
    assert main([*command[:-4], "--width", "100", "--pairs", "8", "--max-keypoints", "128"]) == 2
    assert main(["compress", "sift-compact", str(module_folder / "photos" / "alone"), "-o", str(module_folder / "no")]) == 2
    assert not (module_folder / "no.run").exists()


def test_a_run_of_the_same_shape_needs_weights_to_start_from(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="give start_from"):
        list(train(taught, tmp_path / "run", TrainSettings(preset="same", pairs=2)))


# -- lengths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [1, 15, 16, 17, 44, 45, 100, 1000])
def test_steps_of_several_lengths_see_the_pairs_that_were_asked_for(pairs: int) -> None:
    """Against a loop over steps; each step has about as many keypoints as the others."""
    settings = TrainSettings(pairs=pairs, confidence_pairs=30, batch_size=16, lengths=(512, 1024, 2048, 768))
    seen, step = 0, 0
    while seen < pairs:
        assert settings.pairs_before(step) == seen
        assert settings.stage_at(step) == 1
        assert settings.batch_size_at(step) * settings.points_at(step) == pytest.approx(16 * 512, rel=0.1)
        seen, step = seen + settings.batch_size_at(step), step + 1
    assert settings.matcher_steps == step
    after = 0
    while after < 30:
        after, step = after + settings.batch_size_at(step), step + 1
    assert settings.steps == step


def test_without_lengths_all_steps_have_as_many_pairs() -> None:
    settings = TrainSettings(pairs=100, confidence_pairs=20, batch_size=16)
    assert (settings.matcher_steps, settings.steps) == (7, 9)
    assert [settings.pairs_before(step) for step in (0, 1, 7)] == [0, 16, 112]
