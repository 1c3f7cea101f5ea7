"""Metrics against closed forms, baselines against definitions, and the sample's ground truth."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import draw_photo, make_features
from lumiglue import InputError, Pipeline, Sift
from lumiglue.evaluation.baselines import BASELINES, adalam, mutual_nearest_neighbours
from lumiglue.evaluation.calibration import Bin, expected_calibration_error, reliability, roc_auc
from lumiglue.evaluation.metrics import auc, bootstrap_interval, corner_error, homography_precision_recall, pose_error
from lumiglue.evaluation.pairs import HomographyPair, read_pairs
from lumiglue.evaluation.scoring import score_pairs, summarise
from lumiglue.evaluation.synthetic import shrunk, turned
from lumiglue.geometry.projective import transform
from lumiglue.geometry.robust import relative_pose

pytestmark = pytest.mark.portable


def test_auc_of_known_errors() -> None:
    assert auc([0.0, 0.0], [5.0]) == [pytest.approx(100)]
    assert auc([np.inf, 9.0], [5.0]) == [0.0]
    assert auc([], [5.0]) == [0.0]
    # one pair of error 2: recall rises 0 -> 1 along [0, 2], then stays: (1 + 3) / 5
    assert auc([2.0], [5.0]) == [pytest.approx(80)]
    assert auc([2.0, np.inf], [5.0]) == [pytest.approx(40)]


def test_precision_and_recall_by_counting() -> None:
    points0 = torch.tensor([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0], [30.0, 0.0]])
    points1 = torch.tensor([[1.0, 0.0], [10.0, 2.0], [90.0, 0.0], [30.0, 4.0]])
    pairs = torch.tensor([[0, 0], [2, 2], [3, 3]])  # right, wrong, 4 px off
    assert homography_precision_recall(points0, points1, pairs, torch.eye(3)) == (pytest.approx(1 / 3), pytest.approx(1 / 2))
    precision, recall = homography_precision_recall(points0, points1, pairs[:0], torch.eye(3))
    assert np.isnan(precision)
    assert recall == 0.0


def test_corner_and_pose_errors() -> None:
    shift = torch.eye(3)
    shift[0, 2] = 3.0
    assert corner_error(shift, torch.eye(3), (100, 80)) == pytest.approx(3.0)
    assert corner_error(None, torch.eye(3), (100, 80)) == np.inf
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    x, y = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])
    assert pose_error(quarter, x, torch.eye(3), x) == pytest.approx(90, abs=1e-3)
    assert pose_error(torch.eye(3), -x, torch.eye(3), x) == pytest.approx(0, abs=1e-3)
    assert pose_error(torch.eye(3), y, torch.eye(3), x) == pytest.approx(90, abs=1e-3)


def test_bootstrap_interval_covers_the_mean() -> None:
    values = np.random.default_rng(0).normal(5, 1, 400).tolist()
    low, high = bootstrap_interval(values, lambda v: float(np.mean(v)))
    assert low < np.mean(values) < high
    assert 0.1 < high - low < 0.3


def test_nearest_neighbours_by_definition() -> None:
    a = make_features(40, 1)
    b = make_features(50, 2, like=a)
    distance = torch.cdist(a.descriptors.double(), b.descriptors.double())
    expected = [[i, int(row.argmin())] for i, row in enumerate(distance) if int(distance[:, row.argmin()].argmin()) == i]
    assert mutual_nearest_neighbours(a, b).pairs.tolist() == expected
    distinct = [[i, j] for i, j in expected if distance[i, j] <= 0.8 * distance[i].sort().values[1]]
    assert mutual_nearest_neighbours(a, b, 0.8).pairs.tolist() == distinct
    assert 0 < len(distinct) < len(expected)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_baselines_accept_empty_images(name: str) -> None:
    pytest.importorskip("kornia")
    for m, n in ((0, 9), (9, 0), (1, 1)):
        assert len(BASELINES[name](make_features(m, 1), make_features(n, 2))) == 0


def test_adalam_without_scales_is_adalam_that_does_not_test_them() -> None:
    photo = draw_photo(0)
    a, b = Sift(max_keypoints=300)(photo), Sift(max_keypoints=300)(turned(photo, 90)[0])
    plain_a, plain_b = (replace(features, scales=None, orientations=None) for features in (a, b))
    true = torch.from_numpy(turned(photo, 90)[1])
    for first, second in ((a, b), (plain_a, plain_b)):
        matches = adalam(first, second)
        precision, _ = homography_precision_recall(first.keypoints, second.keypoints, matches.pairs, true)
        assert len(matches) > 50
        assert precision > 0.9


def test_reliability_of_known_scores() -> None:
    bins = reliability([0.95, 0.91, 1.0, 0.15, 0.12], [True, True, False, False, True])
    assert [(b.low, b.count) for b in bins] == [(pytest.approx(0.1), 2), (pytest.approx(0.9), 3)]
    assert [b.right for b in bins] == [pytest.approx(0.5), pytest.approx(2 / 3)]
    assert bins[1].score == pytest.approx(2.86 / 3)
    gap = (2 * abs(0.135 - 0.5) + 3 * abs(2.86 / 3 - 2 / 3)) / 5
    assert expected_calibration_error(bins) == pytest.approx(gap)
    assert np.isnan(expected_calibration_error([]))
    assert expected_calibration_error([Bin(0, 1, 7, 0.25, 0.25)]) == 0


def test_roc_auc_counts_pairs_in_order() -> None:
    assert roc_auc([3, 2], [1, 0]) == 1
    assert roc_auc([1, 1], [1]) == 0.5
    assert roc_auc([5, 0], [1, 2, 3, 4]) == 0.5
    assert np.isnan(roc_auc([], [1]))


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 180])
def test_turned_photos_are_where_the_homography_says(degrees: int) -> None:
    photo = np.zeros((90, 121, 3), np.uint8)
    photo[20:23, 100:103] = 255
    image, image_from_photo = turned(photo, degrees)
    weights = image[..., 0].astype(float) * (image[..., 0] > 150)  # the canvas is grey, the photo black
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    centroid = [(weights * x).sum() / weights.sum(), (weights * y).sum() / weights.sum()]
    expected = transform(torch.from_numpy(image_from_photo), torch.tensor([[101.0, 21.0]], dtype=torch.float64))
    assert centroid == pytest.approx(expected[0].tolist(), abs=0.2)  # grey mixes in at its rim
    corners = transform(torch.from_numpy(image_from_photo), torch.tensor([[0.0, 0], [120, 0], [120, 89], [0, 89]]).double())
    assert float(corners.min()) >= -0.5
    assert (corners.amax(0) <= torch.tensor([image.shape[1] - 0.5, image.shape[0] - 0.5])).all()


def test_shrunk_photos_are_where_the_homography_says() -> None:
    photo = np.zeros((90, 120, 3), np.uint8)
    photo[30:36, 60:66] = 255
    image, image_from_photo = shrunk(photo, 3)
    assert image.shape == (30, 40, 3)
    assert (image[10:12, 20:22] == 255).all()
    assert image.sum() == 4 * 255 * 3
    mapped = transform(torch.from_numpy(image_from_photo), torch.tensor([[62.5, 32.5]], dtype=torch.float64))[0]
    assert mapped.tolist() == pytest.approx([20.5, 10.5])
    with pytest.raises(InputError, match=r"factor is 0\.5; give 1 or more"):
        shrunk(photo, 0.5)


def test_each_type_of_pair_is_scored(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), draw_photo(0))
    k = [[300.0, 0, 160], [0, 300, 120], [0, 0, 1]]
    common = {"group": "g", "a": "a.png", "b": "a.png"}
    points = np.random.default_rng(0).uniform(20, 200, (12, 2)).tolist()
    pairs = [
        {"type": "homography", "H": np.eye(3).tolist(), **common},
        {"type": "pose", "K_a": k, "K_b": k, "R": np.eye(3).tolist(), "t": [1.0, 0, 0], **common},
        {"type": "correspondences", "pts_a": points, "pts_b": points, **common},
    ]
    (tmp_path / "pairs.json").write_text(json.dumps({"images": {}, "pairs": pairs}))
    methods = {"nn": BASELINES["nn"]}
    scores = list(score_pairs(tmp_path, read_pairs(tmp_path), Sift(max_keypoints=200), methods))
    assert [s.type for s in scores] == ["homography", "pose", "correspondences"]
    assert scores[0].error < 0.01
    assert scores[0].precision > 0.99
    (summary,) = summarise(scores)
    assert summary.f1 > 99
    assert summary.corner_auc[0] > 99
    (tmp_path / "pairs.json").write_text(json.dumps({"pairs": [{"type": "odd", **common}]}))
    with pytest.raises(InputError, match="unknown type"):
        read_pairs(tmp_path)
    (tmp_path / "pairs.json").write_text("[]")
    with pytest.raises(InputError, match=r"not in the pairs\.json format"):
        read_pairs(tmp_path)


def test_sample_truth_agrees_with_its_pixels() -> None:
    """Pixels carried by a plane's homography look alike in both images, and a shifted match is not right."""
    pytest.importorskip("skimage")
    from lumiglue.samples import sample_pair

    pair = sample_pair()
    rng = np.random.default_rng(0)
    points0 = rng.uniform([20, 20], [780, 580], (4000, 2))
    planes = pair.planes0[np.rint(points0[:, 1]).astype(int), np.rint(points0[:, 0]).astype(int)]
    mapped = np.einsum("kij,kj->ki", pair.homographies[planes], np.column_stack([points0, np.ones(4000)]))
    points1 = mapped[:, :2] / mapped[:, 2:]
    seen = pair.is_right(points0, points1) & (points1 > 2).all(1) & (points1 < (797, 597)).all(1)
    assert seen.mean() > 0.4
    assert not pair.is_right(points0, points1 + np.array([4.0, 0.0])).any()
    grey0, grey1 = (image.mean(2) for image in (pair.image0, pair.image1))
    a = grey0[np.rint(points0[seen, 1]).astype(int), np.rint(points0[seen, 0]).astype(int)]
    b = grey1[np.rint(points1[seen, 1]).astype(int), np.rint(points1[seen, 0]).astype(int)]
    assert np.corrcoef(a, b)[0, 1] > 0.8


@pytest.mark.shared
def test_the_default_beats_the_baselines_on_real_planes(shared: Path) -> None:
    """The claim of the README on all planar pairs: F1 above nearest neighbours, the ratio test and AdaLAM."""
    pytest.importorskip("kornia")
    pipeline = Pipeline.pretrained("sift", max_keypoints=512, resize=640)
    others = {name: BASELINES[name] for name in ("nn", "ratio-0.8", "ratio-0.9", "adalam")}
    methods = {"ours": lambda a, b: pipeline.match_features([(a, b)])[0], **others}
    pairs = [pair for pair in read_pairs(shared / "eval") if pair.type == "homography"]
    assert len(pairs) == 25
    scores = list(score_pairs(shared / "eval", pairs, pipeline.extractor, methods))
    f1 = {summary.method: summary.f1 for summary in summarise(scores)}
    assert f1["ours"] > max(f1[name] for name in others) + 2


def test_homographies_of_either_sign_are_one(tmp_path: Path) -> None:
    """A file may have a homography with any factor; as -H all points would lie behind the camera."""
    matrix = np.array([[0.9, -0.2, 50], [0.2, 0.9, -20], [1e-4, 0, 1]])
    for factor in (1, -1, -3):
        pair = {"type": "homography", "group": "g", "a": "a.png", "b": "b.png", "H": (factor * matrix).tolist()}
        (tmp_path / "pairs.json").write_text(json.dumps({"pairs": [pair]}))
        (read,) = (pair.b_from_a for pair in read_pairs(tmp_path) if isinstance(pair, HomographyPair))
        assert np.allclose(read / read[2, 2], matrix)
        assert read[2, 2] > 0
    mirror = np.diag([-1.0, 1, 1]) + np.array([[0, 0, 99], [0, 0, 0], [0, 0, 0]])
    pair = {"type": "homography", "group": "g", "a": "a.png", "b": "b.png", "H": mirror.tolist()}
    (tmp_path / "pairs.json").write_text(json.dumps({"pairs": [pair]}))
    (read,) = (pair.b_from_a for pair in read_pairs(tmp_path) if isinstance(pair, HomographyPair))
    assert read.tolist() == mirror.tolist()


def test_a_pose_that_was_not_found_is_none() -> None:
    """PoseLib answers with no turn and no step; read as a pose, only the true turn would count as its error."""
    rng = np.random.default_rng(0)
    intrinsics = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    points = rng.uniform(0, 480, (8, 2, 5, 2))
    poses = [relative_pose(a, b, intrinsics, intrinsics) for a, b in points]
    assert any(pose is None for pose in poses)
    for pose in poses:
        assert pose is None or (pose[2].sum() >= 5 and np.linalg.norm(pose[1]) > 0.5)
    assert pose_error(torch.eye(3), torch.zeros(3), torch.eye(3), torch.tensor([1.0, 0, 0])) == float("inf")
