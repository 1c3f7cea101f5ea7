"""What adaptivity saves: thirds by difficulty, speed-ups of the same pair, and the command on real pixels."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from helpers import draw_photo
from lumiglue import InputError
from lumiglue.cli import main
from lumiglue.evaluation.adaptivity import FULL_DEPTH, by_difficulty, difficulties, saving, settings_name, sweep
from lumiglue.evaluation.scores import read_scores
from lumiglue.evaluation.scoring import PairScore
from lumiglue.matcher.settings import MatchSettings
from lumiglue.training.data.homographies import ViewSettings, sample_view, warp
from lumiglue.weights.files import load_weights, pretrained_path

USUAL = settings_name(MatchSettings(exit_ratio=0.95, prune_below=0.01))


def score(method: str, pair: int, **figures: float) -> PairScore:
    usual = {"matches": 50, "milliseconds": 10.0, "stop_layer": 9, "error": 1.0, "precision": 0.5, "recall": 0.5}
    return PairScore(
        method=method, type="homography", group="g", a=f"{pair}.jpg", b="b.jpg", keypoints_a=100, keypoints_b=80,
        **(usual | figures),  # pyright: ignore[reportArgumentType]  (counts and shares by name)
    )  # fmt: skip


def test_sweep_holds_each_setting_once() -> None:
    settings = sweep(MatchSettings(exit_ratio=0.95, prune_below=0.01), [0.9, 0.0], [0.0, 0.1])
    assert list(settings) == [
        FULL_DEPTH, "alpha 0.95, beta 0.01", "alpha 0.9, beta 0.01", "alpha off, beta 0.01", "alpha 0.95, beta off",
        "alpha 0.95, beta 0.1",
    ]  # fmt: skip
    assert settings[FULL_DEPTH] == MatchSettings(exit_ratio=0, prune_below=0)
    assert settings["alpha 0.9, beta 0.01"] == MatchSettings(exit_ratio=0.9, prune_below=0.01)
    assert settings["alpha 0.95, beta off"] == MatchSettings(exit_ratio=0.95, prune_below=0)


def test_difficulty_is_thirds_by_right_nearest_neighbours() -> None:
    rights = [0.1, 0.9, 0.5, 0.3, 0.7, float("nan")]  # NaN: a pair without matches is the hardest
    level = difficulties([score("nn", k, precision=right) for k, right in enumerate(rights)])
    assert [level[f"{k}.jpg", "b.jpg"] for k in range(6)] == ["hard", "easy", "medium", "medium", "easy", "hard"]
    many, few = score("nn", 0, precision=0.5, matches=60), score("nn", 1, precision=0.9, matches=10)
    assert difficulties([few, many]) == {("0.jpg", "b.jpg"): "easy", ("1.jpg", "b.jpg"): "medium"}
    with pytest.raises(InputError, match="no score of 'nn'"):
        difficulties([score(FULL_DEPTH, 0)])


def test_saving_compares_the_same_pairs() -> None:
    scores = []
    for pair, (mine, full) in enumerate([(5.0, 10.0), (10.0, 40.0), (10.0, 10.0)]):
        scores += [
            score("nn", pair, precision=0.9 - 0.3 * pair),
            score(FULL_DEPTH, pair, milliseconds=full, precision=0.8, recall=0.8),
            score(USUAL, pair, milliseconds=mine, stop_layer=3 + pair, pruned=18 * pair, precision=0.6, recall=0.6),
        ]
    everything = saving(scores, USUAL)
    assert (everything.stop_layer, everything.pruned, everything.speed_up) == (4, pytest.approx(10.0), 2.0)
    assert (everything.f1, everything.f1_full) == (pytest.approx(60), pytest.approx(80))
    levels = by_difficulty(scores, USUAL)
    assert {name: (row.pairs, row.stop_layer, row.speed_up) for name, row in levels.items()} == {
        "easy": (1, 3, 2.0), "medium": (1, 4, 4.0), "hard": (1, 5, 1.0), "all": (3, 4, 2.0),
    }  # fmt: skip
    with pytest.raises(InputError, match="no pairs of both"):
        saving(scores, "alpha 0.5, beta 0.01")


def test_command_measures_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, photo, rng = tmp_path / "set", draw_photo(3), np.random.default_rng(0)
    folder.mkdir()
    assert cv2.imwrite(str(folder / "0.png"), photo)
    pairs = []
    for k in range(1, 4):
        view = sample_view(rng, (320, 240), ViewSettings(any_roll=0, tilt=30, zoom=(0.9, 1.2), shift=0.05))
        assert cv2.imwrite(str(folder / f"{k}.png"), warp(torch.from_numpy(photo), view).numpy())
        pairs.append({"type": "homography", "group": "wall", "a": "0.png", "b": f"{k}.png", "H": view.tolist()})
    (folder / "pairs.json").write_text(json.dumps({"images": {}, "pairs": pairs}))
    out = tmp_path / "swept.csv"
    command = [
        "eval",
        "adaptivity",
        str(folder),
        "--max-keypoints",
        "128",
        "--alphas",
        "0.5",
        "--betas",
        "0",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    own = load_weights(pretrained_path("sift-deep")).own_settings
    assert f"by difficulty: {settings_name(own)} compared with full depth" in printed
    scores = read_scores(out)
    assert {s.method for s in scores} == {"nn", *sweep(own, [0.5], [0.0])}
    assert all(s.stop_layer == 9 for s in scores if s.method == FULL_DEPTH)
    assert main(command) == 0
    assert read_scores(out) == scores  # nothing was measured again
