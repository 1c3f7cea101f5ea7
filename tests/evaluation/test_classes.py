"""Figures by class: the same as over all pairs, resampled by scene; and what RANSAC's seed changes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import draw_photo
from lumiglue import InputError, Sift
from lumiglue.evaluation.baselines import BASELINES
from lumiglue.evaluation.classes import FEWEST_SCENES, by_class, class_of, figures
from lumiglue.evaluation.pairs import HomographyPair, read_pairs
from lumiglue.evaluation.scoring import PairScore, Protocol, score_features, score_pairs, summarise
from lumiglue.types import Features


def score(pair: int, scene: str, error: float, seed: int = 0, kind: str = "pose", precision: float = 0.5) -> PairScore:
    return PairScore(
        "m", kind, scene, f"{pair}.jpg", "b.jpg", 10, 10, 5, 1.0, 0, error, precision, 0.25, seed=seed
    )  # fmt: skip


def random_scores(seeds: int = 3) -> list[PairScore]:
    rng = np.random.default_rng(0)
    kinds = ["homography", "pose", "correspondences"]
    scores = []
    for pair in range(60):
        base = score(pair, f"indoor/{pair % 7}", 0.0, kind=kinds[pair % 3], precision=float(rng.random()))
        scores += [replace(base, error=float(rng.exponential(6)), seed=seed) for seed in range(seeds)]
    return scores


def test_figures_are_those_of_the_summary_and_lie_in_their_intervals() -> None:
    scores = random_scores()
    measured = figures(scores, rounds=200)
    (summary,) = summarise(scores)
    assert summary.pairs == 60
    expected = {"planar F1": summary.f1}
    expected |= {f"pose AUC@{t}": v for t, v in zip((5, 10, 20), summary.pose_auc, strict=True)}
    expected |= {f"epipolar AUC@{t}": v for t, v in zip((3, 10, 20), summary.epipolar_auc, strict=True)}
    assert {name: pytest.approx(figure.value) for name, figure in measured.items()} == expected
    assert all(figure.low < figure.value < figure.high for figure in measured.values())
    assert figures(scores[::-1], rounds=200) == measured  # the order of the scores is of no matter


def test_auc_over_seeds_is_the_mean_of_each_seeds_auc() -> None:
    scores = random_scores()
    alone = [figures([s for s in scores if s.seed == seed], rounds=1)["pose AUC@10"].value for seed in range(3)]
    assert figures(scores, rounds=1)["pose AUC@10"].value == pytest.approx(np.mean(alone))


def test_scenes_are_resampled_whole() -> None:
    """All pairs of a scene are alike: the interval is that of resampling the scenes' own figures."""
    levels = [0.5, 1.0, 2.0, 3.0, 4.0, 4.5]
    scores = [score(20 * k + n, f"indoor/{k}", level) for k, level in enumerate(levels) for n in range(20)]
    figure = figures(scores, rounds=2000)["pose AUC@5"]
    # the area of equal errors e under threshold 5, by the trapezoid rule, is nearly 1 - e / 5 for each
    means = [np.mean(1 - np.random.default_rng(k).choice(levels, len(levels)) / 5) * 100 for k in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5])
    assert figure.low == pytest.approx(low, abs=3)
    assert figure.high == pytest.approx(high, abs=3)
    single = [replace(s, group="indoor/one") for s in scores]  # one scene: pairs are resampled, which is far narrower
    narrow = figures(single, rounds=500)["pose AUC@5"]
    assert narrow.high - narrow.low < 0.4 * (figure.high - figure.low)
    assert len(levels) >= FEWEST_SCENES


def test_gains_are_paired() -> None:
    scores = random_scores()
    same = figures(scores, against=scores, rounds=50)
    assert all((figure.value, figure.low, figure.high) == (0, 0, 0) for figure in same.values())
    better = [replace(s, method="better", error=s.error * 0.9) for s in scores]
    gain = figures(better, against=scores, rounds=200)["pose AUC@10"]
    assert 0 < gain.low < gain.value < gain.high
    whole = figures(better, rounds=1)["pose AUC@10"].value - figures(scores, rounds=1)["pose AUC@10"].value
    assert gain.value == pytest.approx(whole)


def test_what_cannot_be_compared_is_refused() -> None:
    scores = random_scores()
    with pytest.raises(InputError, match="there are no scores"):
        figures([])
    with pytest.raises(InputError, match="mix methods"):
        figures([*scores, replace(scores[0], method="other")])
    with pytest.raises(InputError, match="mix methods"):
        figures(scores[1:])
    with pytest.raises(InputError, match="different pairs"):
        figures(scores, against=scores[3:])


def test_classes_are_what_stands_before_the_slash() -> None:
    assert class_of("indoor/kitchen") == "indoor"
    assert class_of("fox") == "fox"
    scores = [score(k, group, 1.0) for k, group in enumerate(("b/x", "a/x", "b/y"))]
    assert {name: [s.group for s in of_class] for name, of_class in by_class(scores).items()} == {
        "b": ["b/x", "b/y"],
        "a": ["a/x"],
    }


def test_a_seed_is_ransacs_alone(tmp_path: Path) -> None:
    """Hard matches: the seeds differ in the model, never in the matches; seed 0 is what one gets without asking."""
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), draw_photo(0))
    cv2.imwrite(str(tmp_path / "b.png"), draw_photo(1))
    k = [[300.0, 0, 160], [0, 300, 120], [0, 0, 1]]
    pair = {"type": "pose", "K_a": k, "K_b": k, "R": np.eye(3).tolist(), "t": [1.0, 0, 0], "group": "g"}
    (tmp_path / "pairs.json").write_text(json.dumps({"pairs": [pair | {"a": "a.png", "b": "b.png"}]}))
    pairs, methods, sift = read_pairs(tmp_path), {"nn": BASELINES["nn"]}, Sift(max_keypoints=80)
    scores = list(score_pairs(tmp_path, pairs, sift, methods, Protocol(seeds=(0, 1, 2), factors=(1.0, 2.0))))
    assert [(s.factor, s.seed) for s in scores] == [(f, seed) for f in (1.0, 2.0) for seed in (0, 1, 2)]
    assert len({s.matches for s in scores}) == 1
    assert len({s.error for s in scores}) > 1
    (plain,) = score_pairs(tmp_path, pairs, sift, methods)
    assert replace(plain, milliseconds=0, precision=0, recall=0, precision_1px=0, recall_1px=0) == replace(
        scores[0], milliseconds=0, precision=0, recall=0, precision_1px=0, recall_1px=0
    )
    (summary, _) = summarise(scores)
    assert summary.pairs == 1
    with pytest.raises(InputError, match="seeds is"):
        Protocol(seeds=(1, 1))


def test_features_may_be_there_already() -> None:
    rng = np.random.default_rng(0)
    size = (200, 150)
    points = torch.from_numpy(rng.uniform(5, 145, (40, 2))).float()
    descriptors = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((40, 16))).float(), dim=1)
    features = {"a": Features(points, descriptors, size), "b": Features(points + 3, descriptors, size)}
    shift = np.array([[1.0, 0, 3], [0, 1, 3], [0, 0, 1]])
    pairs = [HomographyPair(group="g", a="a", b="b", b_from_a=shift)]
    requested: list[tuple[str, int]] = []

    def features_of(name: str, turns: int) -> Features:
        requested.append((name, turns))
        return features[name]

    (score,) = score_features(pairs, features_of, {"nn": BASELINES["nn"]})
    assert requested == [("a", 0), ("b", 0)]
    assert (score.matches, score.precision, score.layers_per_point) == (40, 1.0, 0.0)
    assert score.error < 1e-3
