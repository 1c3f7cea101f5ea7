"""Metrics against closed forms, baselines against definitions, and the sample's ground truth."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import draw_photo, make_features
from lumiglue import InputError, Pipeline, Sift
from lumiglue.evaluation.baselines import BASELINES, mutual_nearest_neighbours
from lumiglue.evaluation.metrics import (
    auc,
    bootstrap_interval,
    corner_error,
    homography_precision_recall,
    pose_error,
)
from lumiglue.evaluation.pairs import evaluate, read_pairs, summarise


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
    kept = [[i, j] for i, j in expected if distance[i, j] <= 0.8 * distance[i].sort().values[1]]
    assert mutual_nearest_neighbours(a, b, 0.8).pairs.tolist() == kept
    assert 0 < len(kept) < len(expected)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_baselines_accept_empty_images(name: str) -> None:
    pytest.importorskip("kornia")
    for m, n in ((0, 9), (9, 0), (1, 1)):
        assert len(BASELINES[name](make_features(m, 1), make_features(n, 2))) == 0


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
    scores = list(evaluate(tmp_path, read_pairs(tmp_path), Sift(max_keypoints=200), methods))
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
    pipeline = Pipeline.pretrained("sift", max_keypoints=1024, resize=None)
    others = {name: BASELINES[name] for name in ("nn", "ratio-0.8", "ratio-0.9", "adalam")}
    methods = {"ours": lambda a, b: pipeline.match_features([(a, b)])[0], **others}
    pairs = [pair for pair in read_pairs(shared / "eval") if pair["type"] == "homography"]
    assert len(pairs) == 25
    scores = list(evaluate(shared / "eval", pairs, pipeline.extractor, methods))
    f1 = {summary.method: summary.f1 for summary in summarise(scores)}
    assert f1["ours"] > max(f1[name] for name in others) + 2
