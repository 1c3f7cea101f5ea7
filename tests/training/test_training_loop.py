"""The training loop: it learns, resumes to the same losses, is the same run in one process or two, and says why it stops."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from torch import Tensor

from helpers import draw_photo, make_features, make_model
from lumiglue import DatasetError, Features, Pipeline, Sift, TrainingError
from lumiglue.cli import main
from lumiglue.matcher import precision
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.models import PRESETS, Size, build, preset
from lumiglue.training import loop
from lumiglue.training.config import RECIPES, OptimizerName, TrainSettings, recipe
from lumiglue.training.data.build import DatasetSettings, build_dataset
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.data.homographies import PhotoViews
from lumiglue.training.distributed import Processes
from lumiglue.training.figures import draw_learning_curves, draw_training_matches
from lumiglue.training.learner import Learner
from lumiglue.training.loop import TrainProgress, train
from lumiglue.training.loss import confidence_loss, matcher_loss
from lumiglue.training.sampling import PairSampler
from lumiglue.training.validation import predict_layers, truth_of, validate
from lumiglue.weights.files import load_weights, read_metadata, save_weights

TINY = TrainSettings(
    preset="tiny", pairs=24, confidence_pairs=8, batch_size=4, points=24, long_points=32, warmup_pairs=4, evaluate_every=12,
    checkpoint_every=8, precision="fp32",
)  # fmt: skip


class Plain(Sift):
    """SIFT that keeps scale and orientation to itself."""

    def __call__(self, image: np.ndarray) -> Features:
        features = super().__call__(image)
        return replace(features, scales=None, orientations=None)


def make_dataset(folder: Path, extractor: Sift, seed: int = 0) -> Path:
    for number in range(8):
        path = folder / "photos" / f"set{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw_photo(number, 160, 120))
    source = PhotoViews.of_folder(folder / "photos", n_views=3, long_side=128, seed=seed)
    dataset = folder / f"dataset-{extractor.name}-{seed}.h5"
    finish(build_dataset(source, dataset, extractor, DatasetSettings(max_keypoints=48), workers=1))
    return dataset


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of SIFT."""
    folder = tmp_path_factory.mktemp("datasets")
    return [make_dataset(folder, Sift(max_keypoints=80), seed) for seed in (0, 1)]


@pytest.fixture
def dataset(datasets: list[Path]) -> Path:
    return datasets[0]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small matcher, and a validation that is as long as a few steps."""
    monkeypatch.setitem(PRESETS, "tiny", Size(32, 2, 3))
    monkeypatch.setattr("lumiglue.training.validation.BATCHES", 2)


@pytest.fixture
def start(tmp_path: Path) -> str:
    """Weights to start from."""
    save_weights(make_model(**asdict(preset("tiny", "sift", 128, "xy-logscale-angle"))), tmp_path / "start.safetensors", {})
    return str(tmp_path / "start.safetensors")


def finish(steps: Any) -> list:
    return list(steps)


def losses(progress: list[TrainProgress]) -> list[float]:
    return [p.loss for p in progress]


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_weights(one: Path, two: Path) -> bool:
    states = [load_weights(run / "weights.safetensors").state_dict() for run in (one, two)]
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# -- settings ---------------------------------------------------------------------------------------------------------


OF_A_TEACHER = {"teacher", "imitation", "forced_pairs"}


def test_every_setting_has_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {
        "model": "lightglue", "ablation": "no-matchability", "deep_supervision": False, "preset": "base", "encoding": "xy",
        "start_from": "sift-compact", "pairs": 32, "confidence_pairs": 16, "batch_size": 8, "points": 64, "long_points": 96,
        "long_share": 0.5, "lengths": (32, 64), "distillation": 0.25, "schedule": "paper", "learning_rate": 0.1,
        "confidence_learning_rate": 0.2, "warmup_pairs": 6,
        "optimizer": "muon", "weight_decay": 0.3,
        "clip": 0.4, "negative_pair_ratio": 0.6, "ema": 7.0, "precision": "fp32", "compile": True,
        "evaluate_every": 9, "checkpoint_every": 10, "draw_every": 11, "keep_every": 12, "seed": 13,
    }  # fmt: skip
    expected = TrainSettings(**values)
    usual = asdict(TrainSettings())
    unchanged = {name for name, value in asdict(expected).items() if value == usual[name]}
    assert unchanged == {"model", *OF_A_TEACHER}
    with_teacher = {"teacher": "sift-deep", "imitation": 0.75, "forced_pairs": 14}  # which excludes an ablation and compile
    assert with_teacher.keys() == OF_A_TEACHER
    received: list[TrainSettings] = []

    def run(_: object, __: object, settings: TrainSettings, **___: object) -> Iterator[TrainProgress]:
        received.append(settings)
        return iter(())

    monkeypatch.setattr(loop, "train", run)
    # --lengths takes the place of --points and --long-points
    for left_out in ({"points", "long_points"}, {"lengths"}):
        flags: list[str] = []
        for name in values.keys() - left_out:
            value = values[name]
            flags += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
        assert main(["train", "dataset.h5", "-o", str(tmp_path), *flags]) == 0
        assert received.pop() == replace(expected, **{name: usual[name] for name in left_out})
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in with_teacher.items()]
    assert main(["train", "dataset.h5", "-o", str(tmp_path), *flags]) == 0
    assert received.pop() == TrainSettings(**with_teacher)


def test_cosine_schedule() -> None:
    settings = TrainSettings(pairs=1600, confidence_pairs=160, batch_size=16, warmup_pairs=160, learning_rate=1.0)
    assert settings.matcher_steps == 100
    assert settings.steps == 110
    assert settings.learning_rate_at(0) == pytest.approx(0.1)
    assert settings.learning_rate_at(9) > 0.95
    assert settings.learning_rate_at(50) == pytest.approx(0.505)
    assert settings.learning_rate_at(99) < 0.02
    assert settings.learning_rate_at(100) == settings.confidence_learning_rate
    assert settings.points_at(79) == settings.points
    assert settings.points_at(80) == settings.late_points == 384
    halves = replace(settings, batch_size=8)  # the schedule is over pairs
    assert halves.learning_rate_at(100) == pytest.approx(settings.learning_rate_at(50))


def test_the_papers_schedule() -> None:
    """30 epochs: 20 at a constant rate, then a tenth per 10 epochs."""
    settings = TrainSettings(pairs=30 * 160, batch_size=16, warmup_pairs=16, learning_rate=1e-4, schedule="paper")
    for epoch, rate in ((0, 1e-4), (10, 1e-4), (20, 1e-4), (25, 1e-4 * 0.1**0.5), (29, 1e-4 * 0.1**0.9)):
        assert settings.learning_rate_at(10 * epoch) == pytest.approx(rate), epoch


def test_recipes() -> None:
    assert recipe("standard") == TrainSettings()
    for name in sorted(RECIPES.keys() - {"finetune"}):  # that has no shape of its own
        config = preset(recipe(name).preset, "sift", 128, "xy")
        assert config.n_layers == (9 if name in ("default", "student", "gpu_30min", "paper") else 5)
    gpu = recipe("gpu_30min")
    n = gpu.points
    forward = 2.5e6 * 9 * 2 * n + 14 * 9 * 256 * n**2
    assert 3 * forward / 1e9 == pytest.approx(95, rel=0.03)  # GFLOP a pair, as its docstring says
    assert gpu.pairs / 2500 == 25 * 60
    with pytest.raises(TrainingError, match="unknown recipe 'fast'; choose from"):
        recipe("fast")


def test_fine_tuning_keeps_the_shape_and_the_thresholds_of_its_start(dataset: Path, tmp_path: Path) -> None:
    settings = recipe("finetune", pairs=8, confidence_pairs=4, lengths=(24,), evaluate_every=8)
    with pytest.raises(TrainingError, match="shape of the weights to start from; give start_from"):
        finish(train(dataset, tmp_path / "alone", settings))
    start = make_model(d=32, n_layers=3, extractor="sift", descriptor_dim=128, exit_ratio=0.7, prune_below=0.1)
    save_weights(start, tmp_path / "start.safetensors", {})
    finish(train(dataset, tmp_path / "run", replace(settings, start_from=str(tmp_path / "start.safetensors"))))
    tuned = load_weights(tmp_path / "run" / "weights.safetensors")
    assert tuned.config == start.config
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), tuned.parameters(), strict=True))


def test_points_replace_the_lengths_of_a_recipe() -> None:
    """Else `--points` would be ignored without a word: all steps take their keypoints from `lengths`."""
    assert recipe("default").lengths is not None
    for changes in ({"points": 300}, {"long_points": 300}, {"points": 200, "long_points": 300}):
        settings = recipe("default", **changes)
        assert settings == replace(recipe("default"), lengths=None, **changes)
        assert 300 in {settings.points_at(step) for step in range(settings.steps)}
    assert recipe("default", lengths=(100, 200), long_points=None).lengths == (100, 200)
    with pytest.raises(TrainingError, match="points has no effect beside lengths; give one of the two"):
        recipe("standard", points=300, lengths=(100, 200))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pairs": 0}, "pairs is 0; it must be positive"),
        ({"ema": 0.0}, "ema is 0.0"),
        ({"draw_every": -1}, "draw_every is -1"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"warmup_pairs": -1}, "must not be negative"),
        ({"negative_pair_ratio": 1.0}, "negative_pair_ratio is 1.0; give at least 0 and less than 1"),
        ({"optimizer": "sgd"}, r"unknown optimizer 'sgd'; choose from \['adamw', 'muon'\]"),
        ({"schedule": "step"}, "unknown schedule 'step'; choose from"),
        ({"pairs": 0, "confidence_pairs": 0, "start_from": "sift-compact"}, "nothing to train"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], message: str, unchecked: None) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainSettings(**wrong)


# -- learning ---------------------------------------------------------------------------------------------------------


def test_training_learns_and_its_weights_match_photos(dataset: Path, tmp_path: Path) -> None:
    settings = replace(TINY, pairs=240, batch_size=8, learning_rate=5e-3)
    progress = finish(train(dataset, tmp_path / "run", settings))
    trained = load_weights(tmp_path / "run" / "weights.safetensors")
    sampler = PairSampler([FeatureDataset(dataset)], trained.config, split="training", seed=9, negative_pair_ratio=0.0)
    batch = sampler.batch(0, 64, 24)
    with torch.no_grad():
        before, after = (float(matcher_loss(m, batch.pairs, batch.labels())) for m in (build(trained.config), trained))
    assert after < 0.8 * before
    assert [p.stage for p in progress] == [1] * 30 + [2]
    lines = lines_of(tmp_path / "run")
    assert [line["loss"] for line in lines] == losses(progress)
    assert [line["learning_rate"] for line in lines] == [settings.learning_rate_at(step) for step in range(31)]
    assert all(line["gradient_norm"] > 0 and line["pairs_per_second"] > 0 for line in lines)
    assert len(lines[-1]["layers"]) == 3
    assert set(lines[-1]["layers"][0]) == {"recall", "precision", "average_precision", "confident", "confident_right"}
    assert set(lines[29]["layers"][0]) == {"recall", "precision", "average_precision"}
    weights = tmp_path / "run" / "weights.safetensors"
    assert read_metadata(weights)[1]["recipe"]["pairs"] == 240
    photo = draw_photo(50)
    result = Pipeline(Sift(max_keypoints=100), load_weights(weights)).match(photo, photo)
    same = np.linalg.norm(result.points0 - result.points1, axis=1) < 1
    assert same.sum() > 20
    assert same.mean() > 0.9
    assert len(draw_learning_curves(tmp_path / "run" / "metrics.jsonl").axes) == 3


def test_muon_moves_matrices_along_all_of_their_directions_alike() -> None:
    """Even if some are weak in the gradient; other parameters are AdamW's, and move as they do with it alone."""
    learners = [
        Learner(make_model(), replace(TINY, optimizer=optimizer, weight_decay=0.0), torch.device("cpu"))
        for optimizer in ("adamw", "muon")
    ]
    before = {name: parameter.detach().clone() for name, parameter in learners[0].model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for name, *parameters in zip(before, *(learner.model.parameters() for learner in learners), strict=True):
        gradient = torch.randn(before[name].shape, generator=generator)
        if gradient.ndim == 2:
            u, s, v = torch.linalg.svd(gradient, full_matrices=False)
            gradient = u @ torch.diag(torch.linspace(1.0, 0.1, len(s))) @ v
        for parameter in parameters:
            parameter.grad = gradient.clone()
    for learner in learners:
        learner.update(1, 1e-2)
    adamw, muon = (dict(learner.model.named_parameters()) for learner in learners)
    matrices = [name for name in before if not torch.equal(adamw[name], muon[name])]
    assert len(matrices) > 10
    for name in matrices:
        step, gradient = (muon[name] - before[name]).detach(), muon[name].grad
        assert gradient is not None
        spreads = [float(values.max() / values.min()) for values in map(torch.linalg.svdvals, (step, gradient))]
        assert spreads[0] < 3 < 5 < spreads[1], name  # as Newton-Schulz leaves them
        assert float(step.square().mean().sqrt()) == pytest.approx(2e-3, rel=0.3)  # AdamW's usual step at this rate
    alone = [name for name in before if before[name].ndim != 2 or 1 in before[name].shape or "frequencies" in name]
    assert not set(alone) & set(matrices)
    assert set(alone) | set(matrices) == set(before)


def test_muon_needs_a_pytorch_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(TrainingError, match=r"muon needs PyTorch 2\.9 or newer; this is "):
        Learner(make_model(), replace(TINY, optimizer="muon"), torch.device("cpu"))


def test_the_running_mean_is_the_sum_it_claims_to_be() -> None:
    """A constant pull of the weights has a mean in closed form; half of a start is forgotten in a half-life."""
    settings = replace(TINY, ema=20.0, batch_size=4)  # 5 steps
    learner = Learner(make_model(), settings, torch.device("cpu"))
    weight = learner.parameters[0][0]
    with torch.no_grad():
        weight.zero_()
    assert learner.ema is not None
    learner.ema[0].fill_(1.0)
    for _ in range(5):
        learner.update(1, 0.0)  # no gradient: the weights stay at 0
    assert float(learner.ema[0].mean()) == pytest.approx(0.5, rel=1e-5)
    with learner.averaged():
        assert float(weight.detach().mean()) == pytest.approx(0.5, rel=1e-5)
    assert bool((weight == 0).all())
    learner.settle(take_ema=True)
    assert float(weight.detach().mean()) == pytest.approx(0.5, rel=1e-5)
    assert learner.ema is None


def test_the_better_of_weights_and_running_mean_is_shipped(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shipped, sign in (("ema", 1), ("last", -1)):
        scores = iter([1.0, 2.0])  # the running mean is judged first
        monkeypatch.setattr(loop, "quality", lambda _, scores=scores, sign=sign: -sign * next(scores))
        finish(train(dataset, tmp_path / shipped, replace(TINY, ema=16.0)))
        assert read_metadata(tmp_path / shipped / "weights.safetensors")[1]["weights"] == shipped
        assert lines_of(tmp_path / shipped)[5]["ema_layers"] is not None
        assert lines_of(tmp_path / shipped)[-1]["ema_layers"] is None
    assert not same_weights(tmp_path / "ema", tmp_path / "last")


def test_snapshots_are_the_weights_on_the_way(dataset: Path, tmp_path: Path) -> None:
    """Each is what a run that is stopped there has; with a running mean, the mean."""
    settings = replace(TINY, keep_every=8)
    finish(train(dataset, tmp_path / "plain", settings))
    names = sorted(path.name for path in (tmp_path / "plain" / "snapshots").iterdir())
    assert names == [f"pairs-{pairs:09d}.safetensors" for pairs in (8, 16, 24)]
    last = load_weights(tmp_path / "plain" / "snapshots" / names[-1]).state_dict()
    shipped = load_weights(tmp_path / "plain" / "weights.safetensors").state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in last.items() if not name.startswith("confidences."))

    stopped = train(dataset, tmp_path / "mean", replace(settings, ema=16.0), stop=lambda: True)
    assert len(finish(stopped)) == 1
    next(train(dataset, tmp_path / "mean", replace(settings, ema=16.0)))  # the second step: 8 pairs
    plain, mean = (tmp_path / run / "snapshots" / names[0] for run in ("plain", "mean"))
    assert not torch.equal(
        *(load_weights(path).state_dict()["layers.0.self_attention.qkv.weight"] for path in (plain, mean))
    )


def test_the_faster_precision_is_measured_once_and_kept(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, choices = replace(TINY, precision="auto"), iter(["bf16"])
    monkeypatch.setattr("lumiglue.training.learner.faster_precision", lambda _: next(choices))
    stops = iter([False, False, True])
    before = finish(train(dataset, tmp_path / "auto", settings, stop=lambda: next(stops)))
    after = finish(train(dataset, tmp_path / "auto", settings))  # measures nothing: the choices are used up
    given = finish(train(dataset, tmp_path / "given", replace(TINY, precision="bf16")))
    assert losses(before + after) == losses(given)
    assert read_metadata(tmp_path / "auto" / "weights.safetensors")[1]["recipe"]["precision"] == "bf16"


def test_the_faster_precision_is_that_of_the_shorter_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_tiles", lambda: False)
    for bf16, faster in ((1.0, "bf16"), (1.3, "fp32"), (2.0, "fp32")):  # 1.3: conversions would eat what is gained
        seconds = {torch.bfloat16: bf16, torch.float32: 1.5}
        monkeypatch.setattr(precision, "product_seconds", lambda dtype, seconds=seconds: seconds[dtype])
        assert precision.faster_precision(torch.device("cpu")) == faster
    monkeypatch.undo()
    assert precision.faster_precision(torch.device("cpu")) in ("bf16", "fp32")


def test_fine_tuning_starts_from_the_given_weights(dataset: Path, tmp_path: Path) -> None:
    finish(train(dataset, tmp_path / "first", replace(TINY, pairs=40)))
    start = tmp_path / "first" / "weights.safetensors"
    tuning = replace(TINY, start_from=str(start), pairs=0, seed=5)
    finish(train(dataset, tmp_path / "second", tuning))  # stage 2 alone: the matcher stays
    before, after = load_weights(start).state_dict(), load_weights(tmp_path / "second" / "weights.safetensors").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("confidences.") for name in changed)
    record = json.loads((tmp_path / "second" / "settings.json").read_text())
    assert len(record["start_from"]["sha256"]) == 64

    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(start.read_bytes())
    assert finish(train(dataset, tmp_path / "second", replace(tuning, start_from=str(moved)))) == []  # the same weights
    other = replace(tuning, start_from=str(tmp_path / "other.safetensors"))
    save_weights(make_model(**asdict(load_weights(start).config)), tmp_path / "other.safetensors", {})
    with pytest.raises(TrainingError, match="other settings or datasets"):
        finish(train(dataset, tmp_path / "second", other))
    with pytest.raises(TrainingError, match="n_layers 3 for 9"):
        finish(train(dataset, tmp_path / "third", replace(tuning, preset="base")))
    with pytest.raises(TrainingError, match="encoding 'xy-logscale-angle' for 'xy'"):
        finish(train(dataset, tmp_path / "third", replace(tuning, encoding="xy")))
    save_weights(make_model(extractor="disk"), tmp_path / "disk.safetensors", {})
    with pytest.raises(TrainingError, match="extractor 'disk' for 'sift'"):
        finish(train(dataset, tmp_path / "third", replace(tuning, start_from=str(tmp_path / "disk.safetensors"))))


def test_features_without_scale_and_orientation_get_the_plain_encoding(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, Plain(max_keypoints=80))
    finish(train(dataset, tmp_path / "run", replace(TINY, pairs=4, confidence_pairs=0)))
    assert read_metadata(tmp_path / "run" / "weights.safetensors")[0].encoding == "xy"
    with pytest.raises(TrainingError, match="needs scales and orientations, which the datasets lack"):
        finish(train(dataset, tmp_path / "other", replace(TINY, encoding="xy-logscale-angle")))


def test_batches_drawn_ahead_are_the_same_batches(dataset: Path) -> None:
    config = preset("compact", "sift", 128, "xy-logscale-angle")
    learner = Learner(make_model(), TINY, torch.device("cpu"))
    sampler = PairSampler([FeatureDataset(dataset)], config, split="training", seed=0, negative_pair_ratio=0.2)
    arguments = (sampler, learner, Processes())
    one, two = (list(loop._batches(*arguments, ahead=ahead)) for ahead in (False, True))
    assert len(one) == len(two) == TINY.steps
    assert all(torch.equal(a.pairs.descriptors, b.pairs.descriptors) for a, b in zip(one, two, strict=True))


# -- validation -------------------------------------------------------------------------------------------------------


def test_validation_against_a_slow_twin(dataset: Path) -> None:
    """Loops over points and matches; average precision as the mean over the true matches of the precision at their rank."""
    model = make_model(descriptor_dim=128, encoding="xy-logscale-angle", n_layers=3)
    sampler = PairSampler([FeatureDataset(dataset)], model.config, split="validation", seed=0, negative_pair_ratio=0.0)
    figures = validate(model, sampler, TINY, stage=2)
    batches = [sampler.batch(step, 8, TINY.validation_points) for step in range(2)]
    for layer in range(3):
        ranked, true, confident, agree = [], 0, 0, 0
        points = 0
        for batch in batches:
            truth, labelled = truth_of(batch)
            true += int((truth >= 0).sum())
            predictions = predict_layers(model, batch, "fp32")
            now, last = predictions[layer], predictions[-1]
            for pair in range(8):
                for i in range(TINY.validation_points):
                    if now.partner0[pair, i] >= 0 and labelled[pair, i]:
                        ranked.append((float(now.score0[pair, i]), int(now.partner0[pair, i] == truth[pair, i])))
            if now.confident is not None:
                points += now.confident.numel()
                confident += int(now.confident.sum())
                agree += int((now.confident & (now.matches == last.matches)).sum())
        ranked.sort(key=lambda match: -match[0])
        above = [right for score, right in ranked if score > 0.1]
        hits, area = 0, 0.0
        for rank, (_, right) in enumerate(ranked, start=1):
            hits += right
            area += right * hits / rank
        assert figures[layer]["recall"] == pytest.approx(100 * sum(above) / true)
        assert figures[layer]["precision"] == pytest.approx(100 * sum(above) / max(len(above), 1))
        assert figures[layer]["average_precision"] == pytest.approx(100 * area / true)
        if layer < 2:
            assert figures[layer]["confident"] == pytest.approx(100 * confident / points)
            assert figures[layer]["confident_right"] == pytest.approx(100 * agree / max(confident, 1))
            assert 0 < confident < points
        else:
            assert "confident" not in figures[layer]


def test_pictures_of_held_out_pairs(dataset: Path, tmp_path: Path) -> None:
    finish(train(dataset, tmp_path / "run", replace(TINY, pairs=16, draw_every=8)))
    names = sorted(path.name for path in (tmp_path / "run" / "matches").iterdir())
    assert names == ["pairs-000000008.png", "pairs-000000016.png", "pairs-000000024.png"]


def test_right_matches_are_drawn_green_and_wrong_ones_red() -> None:
    points = np.array([[10.0, 10.0], [90.0, 50.0], [40.0, 60.0]])
    matches = np.array([[0, 0], [1, 1], [2, 2]])
    figure = draw_training_matches([(points, (100, 80), points + 2, (120, 60), matches, np.array([1, 0, -1]), 2)], "title")
    (axes,) = figure.axes
    drawn = {}
    for lines in axes.collections:
        if isinstance(lines, LineCollection) and len(lines.get_segments()):
            red, green, blue = to_rgb(lines.get_edgecolor()[0])  # pyright: ignore[reportIndexIssue, reportArgumentType]
            kind = 1 if green > max(red, blue) else 0 if red > max(green, blue) else -1
            drawn[kind] = np.asarray(lines.get_segments()[0])
    for row, kind in ((0, 1), (1, 0), (2, -1)):
        assert drawn[kind][0] == pytest.approx(points[row])
        assert drawn[kind][1] == pytest.approx(points[row] + 2 + [104, 0])  # the second view is to the right
    assert axes.get_title() == "1 of 2 true matches found, 1 wrong"


def test_tensorboard_has_the_figures_of_the_log(dataset: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stopping = iter([False] * 4 + [True])
    finish(train(dataset, tmp_path / "run", TINY, stop=lambda: next(stopping)))
    finish(train(dataset, tmp_path / "run", TINY))
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = lines_of(tmp_path / "run")
    for name in ("loss", "learning_rate", "gradient_norm", "pairs_per_second"):
        recorded = {event.step: event.value for event in events.Scalars(name)}
        assert recorded == pytest.approx({line["pairs"]: line[name] for line in lines}, rel=1e-5)
    recorded = {event.step: event.value for event in events.Scalars("validation/layer_3/precision")}
    expected = {line["pairs"]: line["layers"][2]["precision"] for line in lines if line["layers"]}
    assert recorded == pytest.approx(expected, rel=1e-5)


# -- going on ---------------------------------------------------------------------------------------------------------

RICH = replace(TINY, ema=16.0, negative_pair_ratio=0.2)  # everything that has a state of its own


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_run_goes_on_to_the_same_losses(
    datasets: list[Path], tmp_path: Path, start: str, optimizer: OptimizerName
) -> None:
    """Closed between checkpoints, as if killed; asked to stop; then to the end: as in one go."""
    rich = replace(RICH, start_from=start, optimizer=optimizer)
    whole = losses(finish(train(datasets, tmp_path / "whole", rich, sampling_weights=[1, 2])))
    steps = train(datasets, tmp_path / "cut", rich, sampling_weights=[1, 2])
    first = [next(steps).loss for _ in range(3)]
    steps.close()  # pyright: ignore[reportAttributeAccessIssue]
    stopping = iter([False] * 2 + [True])
    second = losses(finish(train(datasets, tmp_path / "cut", rich, sampling_weights=[1, 2], stop=lambda: next(stopping))))
    rest = losses(finish(train(datasets, tmp_path / "cut", rich, sampling_weights=[1, 2])))
    assert first == whole[:3]
    assert second == whole[2:5]  # from the checkpoint after step 2
    assert rest == whole[5:]
    assert [line["loss"] for line in lines_of(tmp_path / "cut")] == whole
    assert [line["ema_layers"] for line in lines_of(tmp_path / "cut")] == [
        line["ema_layers"] for line in lines_of(tmp_path / "whole")
    ]
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lumiglue", "train", *(str(argument) for argument in arguments)]


FLAGS = (
    "--pairs", 24, "--confidence-pairs", 8, "--batch-size", 4, "--points", 24, "--long-points", 32,
    "--precision", "fp32", "--checkpoint-every", 8, "--evaluate-every", 100,
)  # fmt: skip
FROM_FLAGS = replace(TINY, preset="compact", warmup_pairs=2_000, evaluate_every=100)


@pytest.fixture(scope="module")
def whole_run(datasets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A run of FROM_FLAGS in one go, and its losses."""
    run = tmp_path_factory.mktemp("run") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lumiglue.training.validation.BATCHES", 2)
        return run, losses(finish(train(datasets[0], run, FROM_FLAGS)))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_ended_goes_on_to_the_same_losses(
    dataset: Path, whole_run: tuple[Path, list[float]], tmp_path: Path, end: signal.Signals
) -> None:
    """SIGKILL falls at any moment; after SIGTERM a checkpoint of the last step is there, and a sentence on what to do."""
    whole_folder, whole = whole_run
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = tmp_path / "run"
    process = subprocess.Popen(command(dataset, "-o", run, *FLAGS), stderr=subprocess.PIPE, text=True, env=environment)
    log = run / "metrics.jsonl"
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < 3):
        time.sleep(0.02)
    process.send_signal(end)
    printed = process.communicate()[1]
    if end is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, printed
        assert re.search(r"stopped after step \d+ of 8; run the same command again to resume", printed)
        state = torch.load(run / "checkpoint.pt", weights_only=True)
        assert state["step"] == len(lines_of(run)) < 8
    rest = finish(train(dataset, run, FROM_FLAGS))
    assert losses(rest) == whole[len(whole) - len(rest) :]
    assert [line["loss"] for line in lines_of(run)] == whole
    assert same_weights(whole_folder, run)


# -- several processes ------------------------------------------------------------------------------------------------


def test_slices_of_a_batch_average_to_the_loss_of_the_whole() -> None:
    """Stage 2 weighs points over the whole batch: the counts are averaged, and so are losses and gradients."""
    model = make_model(n_layers=3)
    pairs = []
    for seed in range(4):
        a = make_features(30, seed)
        pairs.append((a, make_features(30, seed + 50, like=a)))

    def loss_and_gradient(chosen: list, average: Callable[[Tensor], None] | None) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        loss = confidence_loss(model, pack(chosen, model.config), average=average)
        loss.backward()
        return loss.detach(), torch.cat([c.weight.grad.flatten() for c in model.confidences])  # pyright: ignore

    def set_to(counts: Tensor, value: Tensor) -> None:
        counts.copy_(value)

    whole = loss_and_gradient(pairs, None)
    counts: list[Tensor] = []
    halves = [pairs[:2], pairs[2:]]
    for half in halves:
        loss_and_gradient(half, lambda t: counts.append(t.clone()))
    mean = torch.stack(counts).mean(0)
    averaged = [loss_and_gradient(half, lambda t: set_to(t, mean)) for half in halves]
    for index in (0, 1):
        torch.testing.assert_close(torch.stack([f[index] for f in averaged]).mean(0), whole[index], rtol=1e-5, atol=1e-7)


def torchrun(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lumiglue"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*start, "train", *(str(argument) for argument in arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=timeout, check=False)


def test_two_processes_are_the_same_run_as_one(datasets: list[Path], tmp_path: Path) -> None:
    flags = ["--pairs", 16, "--confidence-pairs", 8, *FLAGS[4:]]  # 6 steps
    assert main([str(word) for word in ("train", *datasets, "-o", tmp_path / "one", *flags)]) == 0
    done = torchrun(*datasets, "-o", tmp_path / "two", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained weights") == 1
    one, two = lines_of(tmp_path / "one"), lines_of(tmp_path / "two")
    assert len(one) == len(two) == 6
    for name in ("loss", "gradient_norm"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-5), name
    assert [line["pairs"] for line in two] == [line["pairs"] for line in one]


def test_one_process_fails_and_all_stop_with_one_sentence(dataset: Path, tmp_path: Path) -> None:
    """The folder holds another run: the first process alone finds that out, and the other waits for it."""
    (tmp_path / "settings.json").write_text("{}")
    done = torchrun(dataset, "-o", tmp_path, *FLAGS)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "contains a run with other settings" in done.stderr


def test_a_batch_must_be_shared_evenly() -> None:
    assert [Processes(rank, 3).part_of(6) for rank in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    with pytest.raises(TrainingError, match="batch_size 16 is not divisible by the 3 processes; choose a multiple of 3"):
        Processes(0, 3).part_of(16)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable = loop.matcher_loss
    calls = iter(range(1000))
    monkeypatch.setattr(loop, "matcher_loss", lambda *a, **k: real(*a, **k) * (float("nan") if next(calls) == 4 else 1.0))
    with pytest.raises(TrainingError, match="the loss is nan at step 4"):
        finish(train(dataset, tmp_path / "run", TINY))
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state["model"].values())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    steps = train(dataset, run, TINY)
    next(steps)
    (run / "checkpoint.pt.unfinished").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"the disk of .* is full, nothing is lost yet; make room and run the same"):
        finish(steps)
    assert not (run / "checkpoint.pt.unfinished").is_symlink()
    steps = train(dataset, run, TINY)
    whole = [next(steps).loss for _ in range(2)]  # a checkpoint is there
    (run / "checkpoint.pt.unfinished").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match="is full, its last checkpoint is intact"):
        finish(steps)
    (run / "metrics.jsonl.unfinished").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match="is full, its last checkpoint is intact"):
        finish(train(dataset, run, TINY))
    rest = losses(finish(train(dataset, run, TINY)))
    assert [line["loss"] for line in lines_of(run)] == whole + rest


def test_a_disk_that_fills_while_the_log_is_written(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = train(dataset, tmp_path / "run", TINY)
    next(steps)

    def full(_: str) -> int:
        raise OSError(28, "No space left on device")

    log = steps.gi_frame.f_locals["log"]  # pyright: ignore[reportAttributeAccessIssue]
    log.lines.close()
    monkeypatch.setattr(log, "lines", type("Full", (), {"write": staticmethod(full), "close": lambda _: None})())
    with pytest.raises(TrainingError, match=r"the disk of .* is full"):
        finish(steps)


def test_two_processes_do_not_train_in_one_folder(dataset: Path, tmp_path: Path) -> None:
    first = train(dataset, tmp_path / "run", TINY)
    next(first)
    with pytest.raises(TrainingError, match=r"another process is training in .*; wait for it, or choose another folder"):
        next(train(dataset, tmp_path / "run", TINY))
    finish(first)
    assert len(lines_of(tmp_path / "run")) == TINY.steps
    finish(train(dataset, tmp_path / "run", TINY))  # the folder is free again


def test_what_would_give_nan_gradients_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="compile in bf16 gives NaN gradients on CPUs"):
        next(train(dataset, tmp_path / "run", replace(TINY, compile=True, precision="bf16")))


def test_datasets_and_folders_that_do_not_fit(datasets: list[Path], tmp_path: Path) -> None:
    finish(train(datasets[0], tmp_path / "run", TINY, stop=lambda: True))
    for other in (lambda: train(datasets[1], tmp_path / "run", TINY), lambda: train(datasets, tmp_path / "run", TINY)):
        with pytest.raises(TrainingError, match="contains a run with other settings or datasets"):
            finish(other())
    with pytest.raises(TrainingError, match="other settings"):
        finish(train(datasets[0], tmp_path / "run", replace(TINY, seed=9)))
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(TrainingError, match=r"checkpoint.pt cannot be read .*; delete .* to start again"):
        finish(train(datasets[0], tmp_path / "run", TINY))
    (tmp_path / "run" / "settings.json").write_text("half")
    with pytest.raises(TrainingError, match=r"settings.json is not a run's record"):
        finish(train(datasets[0], tmp_path / "run", TINY))
    plainer = make_dataset(tmp_path, Sift(max_keypoints=80, rootsift=False))
    with pytest.raises(DatasetError, match="train on datasets with the same features"):
        finish(train([datasets[0], plainer], tmp_path / "new", TINY))
    with pytest.raises(DatasetError, match="no dataset was given"):
        finish(train([], tmp_path / "new", TINY))
    with pytest.raises(DatasetError, match=r"has 5000 keypoints in both views; .* set --points to"):
        finish(train(datasets[0], tmp_path / "new", replace(TINY, points=5000)))
    assert not (tmp_path / "new").exists()


REFUSALS: list[tuple[str, str]] = [
    ("", "no dataset was given; build one with `lumiglue dataset homographies PHOTOS -o dataset.h5`"),
    ("none.h5", "none.h5 does not exist; build it with `lumiglue dataset homographies PHOTOS -o"),
    ("FOLDER", "is a folder; give the .h5 file of `lumiglue dataset`"),
    ("TEXT", r"text cannot be read as a dataset \(.*file signature not found.*\); build it again"),
    ("DATA PLAIN", "has features .* and .*; train on datasets with the same features"),
    (
        "DATA",
        r"no training pair of .* has 256 keypoints in both views; half .* have at least (\d+): set --points to \1 or less",
    ),
    (
        "DATA --points 40",
        r"has 60 keypoints in both views; half of them have at least (\d+): set --long-points to \1 or less",
    ),
    (
        "DATA --lengths 24 500",
        r"has 500 keypoints in both views; half of them have at least (\d+): set --lengths to \1 or less",
    ),
    ("LONELY --points 16", "none of the 1 pairs of views in .* can be used for training; build it from more photos"),
    ("DATA --points 24 --sampling-weights 1 2", r"1 datasets need 1 sampling weights, none negative; got \[1.0, 2.0\]"),
    ("DATA --points 24 --sampling-weights 0", "1 datasets need 1 sampling weights"),
    ("DATA --points 24 --preset huge", "unknown preset 'huge'; choose from"),
    ("DATA --points 0", "points is 0; it must be positive"),
    ("DATA --points 24 --pairs 0", "pairs is 0; it must be positive"),
    ("DATA --points 24 --distillation -1", "distillation is -1.0; it must not be negative"),
    ("DATA --points 24 --negative-pair-ratio 1", "negative_pair_ratio is 1.0; give at least 0 and less than 1"),
    ("DATA --points 24 --long-share 2", "long_share is 2.0; give 0 to 1"),
    ("DATA --lengths 0", r"lengths is \(0,\); give numbers of keypoints"),
    (
        "DATA --points 24 --model superglue --ablation no-matchability",
        "ablation and deep_supervision need the model lightglue; it is superglue",
    ),
    ("DATA --points 24 --start-from nothing", "nothing"),
    ("DATA --points 24 --start-from TEXT", "text"),
    ("DATA --points 24 --start-from sift-deep --preset base", "the weights sift-deep do not fit this .*d 128 for 256"),
    (
        "DATA --points 24 --start-from sift-deep --model superglue",
        "weights sift-deep are for lightglue, the run trains superglue",
    ),
    (
        "DATA --points 24 --start-from aliked-n16rot-deep",
        "the weights aliked-n16rot-deep do not fit this run: they have .*extractor 'aliked-n16rot'",
    ),
    (
        "PLAIN --points 24 --encoding xy-logscale-angle",
        "encoding 'xy-logscale-angle' needs scales and orientations, which the datasets lack; use 'xy'",
    ),
    (
        "DATA --points 24 --compile True --precision bf16",
        "compile in bf16 gives NaN gradients on CPUs .*; use precision fp32 or no compile",
    ),
    ("DATA --points 24 -o TEXT", "text"),
]


@pytest.fixture(scope="module")
def words(datasets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the capital words of REFUSALS stand for."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "text").write_text("no dataset")
    (folder / "photos").mkdir()
    cv2.imwrite(str(folder / "photos" / "0.png"), draw_photo(0, 160, 120))
    source = PhotoViews.of_folder(folder / "photos", n_views=2, long_side=128)
    finish(build_dataset(source, folder / "lonely.h5", Sift(max_keypoints=80), DatasetSettings(max_keypoints=48), workers=1))
    paths = {
        "DATA": datasets[0], "PLAIN": make_dataset(folder / "plain", Plain(max_keypoints=80, rootsift=False)),
        "LONELY": folder / "lonely.h5", "FOLDER": folder, "TEXT": folder / "text",
    }  # fmt: skip
    return {word: str(path) for word, path in paths.items()}


@pytest.mark.parametrize(("line", "message"), REFUSALS, ids=[line or "nothing" for line, _ in REFUSALS])
def test_each_refusal_is_one_sentence_with_a_remedy(
    line: str, message: str, words: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [words.get(word, word) for word in line.split()]
    run = [] if "-o" in arguments else ["-o", str(tmp_path / "run")]
    assert main(["train", *arguments, *run]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert error.count("\n") == 0
    assert re.search(message, error), error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_long_length_follows_the_points(dataset: Path, tmp_path: Path) -> None:
    """Fewer points than usual also means fewer in the last part, and the run's record states the number."""
    settings = replace(TINY, long_points=None)
    assert [replace(settings, points=points).late_points for points in (16, 24, 256)] == [24, 36, 384]
    assert {settings.points_at(step) for step in range(settings.steps)} == {24, 36}
    next(train(dataset, tmp_path / "run", settings))
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["settings"]["long_points"] == 36


def test_flags_override_the_recipe(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[TrainSettings] = []

    def note(datasets: Any, run: Any, settings: TrainSettings, **_: Any) -> Iterator[TrainProgress]:
        taken.append(settings)
        yield from ()

    monkeypatch.setattr(loop, "train", note)
    for name in ("laptop", "default"):
        words = ["train", str(dataset), "-o", str(tmp_path), "--recipe", name, "--points", "100", "--compile", "True"]
        assert main(words) == 0
    expected = [replace(recipe(name), points=100, lengths=None, compile=True) for name in ("laptop", "default")]
    assert taken == expected
    assert asdict(taken[0])["pairs"] == 16_000
