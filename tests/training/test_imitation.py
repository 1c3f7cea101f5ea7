"""A student follows a teacher's states: the targets are the teacher's, and training brings the student nearer to them."""

from dataclasses import asdict, replace
from pathlib import Path

import cv2
import pytest
import torch

from helpers import draw_photo, make_model
from lumiglue import LightGlue, Sift, TrainingError
from lumiglue.matcher.models import PRESETS, Size
from lumiglue.matcher.packed import PackedPairs
from lumiglue.training.config import TrainSettings, recipe
from lumiglue.training.data.build import DatasetSettings, build_dataset
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.data.homographies import PhotoViews
from lumiglue.training.data.teacher import Teacher
from lumiglue.training.distillation import distillation_loss
from lumiglue.training.imitation import StateTeacher, attention_logits, forced_states, unit_states
from lumiglue.training.loop import train
from lumiglue.training.loss import matcher_loss
from lumiglue.training.sampling import PairSampler
from lumiglue.training.scores import LayerScores, layer_scores
from lumiglue.training.subspace import directions_of, fit_linear
from lumiglue.weights.files import load_weights, save_weights

SETTINGS = TrainSettings(
    preset="tiny", pairs=24, confidence_pairs=4, batch_size=4, lengths=(24,), warmup_pairs=4, evaluate_every=12,
    checkpoint_every=4, precision="fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imitation")
    (folder / "photos").mkdir()
    for number in range(8):
        cv2.imwrite(str(folder / "photos" / f"{number}.png"), draw_photo(number, 160, 120))
    source = PhotoViews.of_folder(folder / "photos", n_views=3, long_side=128, seed=0)
    for _ in build_dataset(
        source, folder / "views.h5", Sift(max_keypoints=80), DatasetSettings(max_keypoints=48), workers=1
    ):
        pass
    return folder / "views.h5"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", Size(32, 2, 3))
    monkeypatch.setattr("lumiglue.training.validation.BATCHES", 2)


def wide_model(seed: int = 0, **changes: object) -> LightGlue:
    config = {"descriptor_dim": 128, "d": 64, "n_layers": 3, "heads": 2, "encoding": "xy-logscale-angle"}
    return make_model(seed, **(config | changes))


@pytest.fixture(scope="module")
def pairs(dataset: Path) -> list[PackedPairs]:
    sampler = PairSampler([FeatureDataset(dataset)], wide_model().config, split="training", seed=0, negative_pair_ratio=0.0)
    return [sampler.batch(step, 4, 24).pairs for step in range(4)]


@pytest.fixture(scope="module")
def teacher(pairs: list[PackedPairs]) -> StateTeacher:
    return StateTeacher.of(wide_model(), student_model(), pairs, fresh=True)


def student_model() -> LightGlue:
    return wide_model(d=32)


def test_units_end_in_the_states_of_layers(pairs: list[PackedPairs]) -> None:
    model = wide_model()
    start, *rest = unit_states(model, pairs[0])
    assert torch.equal(start, model.begin(pairs[0])[0])
    torch.testing.assert_close(rest[1::2], list(model.states(pairs[0])), rtol=0, atol=0)


def test_a_teacher_that_is_the_student_has_nothing_to_teach(pairs: list[PackedPairs]) -> None:
    """With as many channels the directions only turn the states; a student with these very states has no loss."""
    model = wide_model()
    same = StateTeacher(model, torch.eye(64), torch.ones(7, 64))
    lesson = same.lesson(pairs[0])
    for states in (list(unit_states(model, pairs[0])), list(forced_states(model, pairs[0], lesson))):
        assert float(same.loss(states, lesson)) == pytest.approx(0, abs=1e-10)
    moved = [x + 2 for x in unit_states(model, pairs[0])]
    assert float(same.loss(moved, lesson)) == pytest.approx(4, rel=1e-5)
    assert float(StateTeacher(model, torch.eye(64), torch.full((7, 64), 4.0)).loss(moved, lesson)) == pytest.approx(0.25)


def test_the_attention_that_is_compared_is_that_of_the_units(pairs: list[PackedPairs]) -> None:
    """Its softmax, times the values, gives the states that the units give."""
    model, segments = wide_model(), 8
    with torch.no_grad():
        states = list(unit_states(model, pairs[0]))
        logits = list(attention_logits(model, pairs[0], states))
        for number, layer in enumerate(model.layers):
            before = states[2 * number : 2 * number + 2]
            units = (layer.self_attention, layer.cross_attention)
            heads, outputs = units[0].heads, (units[0].qkv(before[0])[:, 128:], units[1].v(before[1]))
            for k, (unit, output, x) in enumerate(zip(units, outputs, before, strict=True)):
                values = output.unflatten(0, (segments, -1)).unflatten(-1, (heads, -1)).transpose(1, 2)  # 2P, h, n, c
                if unit is layer.cross_attention:
                    values = values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
                message = unit.out((logits[2 * number + k].softmax(-1) @ values).transpose(1, 2).flatten(2).flatten(0, 1))
                after = x + unit.ffn(torch.cat([x, message], dim=1))
                torch.testing.assert_close(after, states[2 * number + k + 1], rtol=0, atol=1e-4)


def test_attention_elsewhere_costs(pairs: list[PackedPairs]) -> None:
    model, other = wide_model(), wide_model(seed=1)
    same = StateTeacher(model, torch.eye(64), torch.ones(7, 64))
    lesson = same.lesson(pairs[0])
    with torch.no_grad():
        assert float(same.attention_loss(model, pairs[0], lesson.states, lesson)) == pytest.approx(0, abs=1e-6)
        assert float(same.attention_loss(other, pairs[0], lesson.states, lesson)) > 0.01


def test_the_attention_of_some_points_is_a_part_of_all(pairs: list[PackedPairs]) -> None:
    model, other = wide_model(), wide_model(seed=1)
    with torch.no_grad():
        states = list(unit_states(model, pairs[0]))
        for few, every in zip(
            attention_logits(model, pairs[0], states, 5), attention_logits(model, pairs[0], states), strict=True
        ):
            assert few.shape[-2:] == (5, 24)
            torch.testing.assert_close(few, every[:, :, :5], rtol=0, atol=1e-5)
        same = StateTeacher(model, torch.eye(64), torch.ones(7, 64))
        lesson = same.lesson(pairs[0])
        few, most, every = (
            float(same.attention_loss(other, pairs[0], lesson.states, lesson, queries)) for queries in (5, 24, None)
        )
        assert most == pytest.approx(every)
        assert few != pytest.approx(every, rel=1e-3)


def test_forced_units_do_not_see_the_errors_before_them(pairs: list[PackedPairs], teacher: StateTeacher) -> None:
    student = student_model()
    lesson = teacher.lesson(pairs[0])
    before = list(forced_states(student, pairs[0], lesson))
    with torch.no_grad():
        for parameter in student.layers[0].parameters():
            parameter.add_(0.1)
    after = list(forced_states(student, pairs[0], lesson))
    changed = [not torch.equal(x, y) for x, y in zip(before, after, strict=True)]
    assert changed == [False, True, True, False, False, False, False]


def test_targets_are_coordinates_of_the_teachers_states(pairs: list[PackedPairs], teacher: StateTeacher) -> None:
    """They keep most of the energy; in units of their deviations, a constant is off by the variance, which is 1."""
    with torch.no_grad():
        states = [torch.cat(x) for x in zip(*(unit_states(wide_model(), batch) for batch in pairs), strict=True)]
    lessons = [teacher.lesson(batch) for batch in pairs]
    targets = [torch.cat(x) for x in zip(*(lesson.states for lesson in lessons), strict=True)]
    for wide, narrow in zip(states, targets, strict=True):
        torch.testing.assert_close(narrow, wide @ teacher.basis)
        assert float(narrow.square().sum() / wide.square().sum()) > 0.6  # of random directions: a half
    whole = replace(lessons[0], wide=states, states=targets)
    constant = [x.mean(0).expand_as(x) for x in targets]
    assert float(teacher.loss(constant, whole)) == pytest.approx(1, abs=0.01)


def test_the_teachers_assignment_is_the_one_that_datasets_store(
    pairs: list[PackedPairs], teacher: StateTeacher, dataset: Path
) -> None:
    """A student with the teacher's own scores has the smallest distillation loss; another one has a larger one."""
    soft = teacher.lesson(pairs[0]).soft
    scores: dict[str, LayerScores] = {}
    for name, model in (("own", wide_model()), ("other", wide_model(seed=1))):
        *_, x = model.states(pairs[0])
        scores[name] = layer_scores(model.heads[-1], x, pairs[0].n_pairs)
    assert soft.pairs == 4
    torch.testing.assert_close(soft.unmatchable0, 1 - scores["own"].logits0.sigmoid())
    assert distillation_loss(scores["own"], soft) < distillation_loss(scores["other"], soft)


def test_the_input_projection_is_fitted(pairs: list[PackedPairs]) -> None:
    student = student_model()
    teacher = StateTeacher.of(wide_model(), student, pairs, fresh=True)
    with torch.no_grad():
        first, target = student.begin(pairs[0])[0], teacher.lesson(pairs[0]).states[0]
    assert float((first - target).square().sum() / target.square().sum()) < 1e-3  # a linear map of the descriptors


def test_a_trained_student_keeps_its_coordinates(pairs: list[PackedPairs]) -> None:
    """The teacher itself is its own student: each state is its own coordinate. A narrow copy has the directions it was cut
    along."""
    model = wide_model()
    teacher = StateTeacher.of(model, wide_model(), pairs, fresh=False)
    torch.testing.assert_close(teacher.basis, torch.eye(64), rtol=0, atol=0.02)
    torch.manual_seed(0)
    states = [torch.randn(300, 64) * torch.linspace(0.3, 3, 64) for _ in range(3)]
    basis, _ = torch.linalg.qr(torch.randn(64, 16))
    seen = [x @ basis + 0.1 * torch.randn(300, 16) for x in states]
    torch.testing.assert_close(directions_of(states, seen), basis, rtol=0, atol=0.05)


def test_least_squares_find_the_map() -> None:
    torch.manual_seed(0)
    true, fitted = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
    x = torch.randn(500, 6) + 3
    fit_linear(fitted, x, true(x).detach())
    torch.testing.assert_close(fitted.weight, true.weight, rtol=0, atol=1e-3)
    torch.testing.assert_close(fitted(x), true(x), rtol=0, atol=1e-2)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    save_weights(wide_model(extractor="sift"), tmp_path / "teacher.safetensors", {})
    return str(tmp_path / "teacher.safetensors")


def test_training_brings_the_states_nearer(dataset: Path, pairs: list[PackedPairs], tmp_path: Path, weights: str) -> None:
    settings = replace(SETTINGS, teacher=weights, pairs=800, forced_pairs=400, learning_rate=5e-3, evaluate_every=800)
    for _ in train(dataset, tmp_path / "run", settings):
        pass
    trained = load_weights(tmp_path / "run" / "weights.safetensors")
    assert isinstance(trained, LightGlue)
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    teacher = StateTeacher.of(Teacher.named(weights).model(), trained, pairs, fresh=False)
    teacher.load(checkpoint["teacher"])
    lesson = teacher.lesson(pairs[0])
    fresh = make_model(**asdict(trained.config))
    with torch.no_grad():
        after, before = (float(teacher.loss(list(unit_states(m, pairs[0])), lesson)) for m in (trained, fresh))
    assert after < 0.8  # a constant has 1
    assert after < before / 2


def test_the_recipe_needs_no_flag_but_takes_another_teacher() -> None:
    settings = recipe("student")
    assert settings.teacher == "aliked-lightglue"
    assert [settings.forced_at(step) for step in (0, 3_999, 4_000)] == [True, True, False]
    assert recipe("student", teacher="x.safetensors", pairs=100) == replace(settings, teacher="x.safetensors", pairs=100)


def test_a_stopped_run_keeps_its_directions(dataset: Path, tmp_path: Path, weights: str) -> None:
    settings = replace(SETTINGS, teacher=weights, forced_pairs=12)
    whole = [p.loss for p in train(dataset, tmp_path / "whole", settings)]
    stopping = iter([False, False, False, True])
    first = [p.loss for p in train(dataset, tmp_path / "cut", settings, stop=lambda: next(stopping))]
    rest = [p.loss for p in train(dataset, tmp_path / "cut", settings)]
    assert first + rest == whole


def test_without_weight_the_states_are_free(dataset: Path, pairs: list[PackedPairs], teacher: StateTeacher) -> None:
    """`matcher_loss` takes the states that imitation has computed, and gives the loss of its own."""
    sampler = PairSampler([FeatureDataset(dataset)], wide_model().config, split="training", seed=0, negative_pair_ratio=0.0)
    batch, student = sampler.batch(0, 4, 24), student_model()
    with torch.no_grad():
        states = list(unit_states(student, batch.pairs))[2::2]
        given = matcher_loss(student, batch.pairs, batch.labels(), states=states)
        assert float(given) == pytest.approx(float(matcher_loss(student, batch.pairs, batch.labels())))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 2}, "a student with 3 layers of 32 channels cannot follow the states of a teacher with 2 of 64"),
        ({"d": 16}, "with 3 of 16; use as many layers and no more channels"),
        ({"extractor": "disk"}, "is for disk, the datasets have sift"),
    ],
)
def test_teachers_that_do_not_fit(dataset: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    save_weights(wide_model(0, **({"extractor": "sift"} | changes)), tmp_path / "other.safetensors", {})
    with pytest.raises(TrainingError, match=message):
        next(iter(train(dataset, tmp_path / "run", replace(SETTINGS, teacher=str(tmp_path / "other.safetensors")))))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"forced_pairs": 5}, "forced_pairs is 5; it needs a teacher"),
        ({"teacher": "x.safetensors", "imitation": -1.0}, "imitation is -1.0; it must not be negative"),
        ({"teacher": "x.safetensors", "model": "superglue"}, "a teacher needs the model lightglue without an ablation"),
        ({"teacher": "x.safetensors", "ablation": "no-matchability"}, "without an ablation"),
        ({"teacher": "x.safetensors", "compile": True}, "compile has no effect with a teacher"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainSettings(**wrong)  # pyright: ignore[reportArgumentType]
