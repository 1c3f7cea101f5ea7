"""Views, labels, losses and banks."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from conftest import draw_photo, make_features, make_model
from lumiglue import BankError, InputError, Sift
from lumiglue.geometry import transform
from lumiglue.matcher.assignment import log_assignment
from lumiglue.matcher.lightglue import pack
from lumiglue.matcher.presets import PRESETS, preset
from lumiglue.training.bank import Bank, BankSettings, build_bank
from lumiglue.training.homographies import ViewSettings, change_light, plane_homography, sample_view, warp
from lumiglue.training.labels import labels_from_homographies, mutual_nearest
from lumiglue.training.loss import confidence_loss, correspondence_loss, layer_scores, predictions
from lumiglue.training.sampling import PairSampler

SMALL_BANK = BankSettings(views=3, max_keypoints=48, long_side=128, photos_per_part=2)


# -- views ------------------------------------------------------------------------------------------------------------


def test_a_straight_camera_sees_the_photo_itself() -> None:
    centre = np.array([319 / 2, 239 / 2])
    straight = plane_homography((320, 240), 0, 0, 0, 1.0, 300, centre)
    assert np.allclose(straight / straight[2, 2], np.eye(3), atol=1e-9)
    doubled = plane_homography((320, 240), 0, 0, 0, 2.0, 300, centre)
    corner = transform(torch.tensor(doubled), torch.tensor([[0.0, 0.0]], dtype=torch.float64))
    assert corner.numpy() == pytest.approx(centre[None] - 2 * centre[None])


def test_views_have_no_horizon_inside_the_photo_and_cover_the_rolls() -> None:
    rng = np.random.default_rng(0)
    rolls = []
    for _ in range(300):
        view = sample_view(rng, (320, 240), ViewSettings(any_roll=1.0))
        corners = np.array([[0, 0, 1], [319, 0, 1], [319, 239, 1], [0, 239, 1.0]]) @ view.T
        assert (corners[:, 2] > 0).all()
        assert np.linalg.det(view) > 0  # never a mirror image
        rolls.append(np.arctan2(view[1, 0], view[0, 0]))
    assert np.histogram(rolls, bins=8, range=(-np.pi, np.pi))[0].min() > 10


def test_warped_pixels_are_where_the_homography_says() -> None:
    photo = np.zeros((120, 160, 3), np.uint8)
    cv2.circle(photo, (70, 50), 4, (255, 255, 255), -1)
    view = sample_view(np.random.default_rng(5), (160, 120), ViewSettings(any_roll=0, tilt=30, zoom=(1.0, 1.2), shift=0.05))
    weights = warp(photo, view)[..., 0].astype(float)
    y, x = np.mgrid[0:120, 0:160]
    found = np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()
    expected = transform(torch.tensor(view), torch.tensor([[70.0, 50.0]], dtype=torch.float64))[0].numpy()
    assert found == pytest.approx(expected, abs=0.5)


def test_light_changes_with_its_strength_only() -> None:
    photo = draw_photo(0)
    assert change_light(np.random.default_rng(0), photo, 0.0) is photo
    changes = [np.abs(change_light(np.random.default_rng(s), photo, 1.0).astype(int) - photo).mean() for s in range(10)]
    assert np.mean(changes) > 10
    again = change_light(np.random.default_rng(3), photo, 1.0)
    assert np.array_equal(again, change_light(np.random.default_rng(3), photo, 1.0))


# -- labels and losses ------------------------------------------------------------------------------------------------


def test_labels_against_a_slow_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    keypoints0 = torch.rand(2, 60, 2, generator=generator) * 300
    homography = torch.tensor([[0.9, -0.2, 30.0], [0.15, 1.1, -12.0], [2e-4, -1e-4, 1.0]]).expand(2, 3, 3)
    keypoints1 = transform(homography, keypoints0) + torch.randn(2, 60, 2, generator=generator) * 2
    related = torch.tensor([True, False])
    labels = labels_from_homographies(keypoints0, keypoints1, homography, related)
    there, back = transform(homography, keypoints0), transform(torch.linalg.inv(homography), keypoints1)
    expected, alone = [], set(range(60))
    worst = [
        [
            max(float((there[0, i] - keypoints1[0, j]).norm()), float((keypoints0[0, i] - back[0, j]).norm()))
            for j in range(60)
        ]
        for i in range(60)
    ]
    for i in range(60):
        j = min(range(60), key=lambda j: worst[i][j])
        if worst[i][j] <= 3 and min(range(60), key=lambda k: worst[k][j]) == i:
            expected.append([0, i, j])
        near = [
            j
            for j in range(60)
            if (there[0, i] - keypoints1[0, j]).norm() <= 3 or (keypoints0[0, i] - back[0, j]).norm() <= 3
        ]
        if near:
            alone.discard(i)
    assert labels.matches.tolist() == expected
    assert len(expected) > 20
    assert set(labels.unmatchable0[0].nonzero()[:, 0].tolist()) == alone
    assert bool(labels.unmatchable0[1].all())  # two photos: nothing matches
    assert bool(labels.unmatchable1[1].all())
    assert not bool(labels.unmatchable0[0, labels.matches[:, 1]].any())


def test_mutual_nearest_respects_the_limit() -> None:
    distance = torch.tensor([[[1.0, 5.0], [0.5, 9.0], [7.0, 2.0]]])
    assert mutual_nearest(distance, 3.0).tolist() == [[0, 1, 0], [0, 2, 1]]
    assert mutual_nearest(distance, 1.0).tolist() == [[0, 1, 0]]


def test_the_loss_is_the_papers_sum() -> None:
    generator = torch.Generator().manual_seed(1)
    keypoints = torch.rand(2, 12, 2, generator=generator) * 100
    labels = labels_from_homographies(keypoints, keypoints + 1.0, torch.eye(3).expand(2, 3, 3), torch.tensor([True, False]))
    similarity = torch.randn(2, 12, 12, generator=generator, requires_grad=True)
    z0, z1 = torch.randn(2, 12, generator=generator), torch.randn(2, 12, generator=generator)
    log_p = log_assignment(similarity, z0, z1)
    total = torch.zeros(())
    for pair in range(2):
        matched = [log_p[pair, i, j] for p, i, j in labels.matches.tolist() if p == pair]
        if matched:
            total = total + torch.stack(matched).mean()
        for z, where in ((z0, labels.unmatchable0), (z1, labels.unmatchable1)):
            alone = [torch.log(1 - z[pair, i].sigmoid()) for i in where[pair].nonzero()[:, 0].tolist()]
            if alone:
                total = total + torch.stack(alone).mean() / 2
    assert_close(correspondence_loss(similarity, z0, z1, labels), -total / 2)
    assert torch.autograd.gradcheck(
        lambda s: correspondence_loss(s, z0.double(), z1.double(), labels), similarity.detach().double().requires_grad_()
    )


def test_predictions_agree_with_the_matcher() -> None:
    """What stage 2 calls a layer's prediction is what `match` would return after that layer."""
    model = make_model(n_layers=1)
    a = make_features(30, 1)
    b = make_features(30, 2, like=a)
    packed = pack([(a, b)], model.config)
    with torch.no_grad():
        (x,) = model.states(packed)
        said0, said1 = predictions(*layer_scores(model.heads[0], x, 1), threshold=0.1)
    result = model.match(packed)[0]
    assert {(i, j) for i, j in enumerate(said0[0].tolist()) if j >= 0} == {tuple(p) for p in result.pairs.tolist()}
    assert {(i, j) for j, i in enumerate(said1[0].tolist()) if i >= 0} == {tuple(p) for p in result.pairs.tolist()}


def test_the_confidence_stage_touches_only_the_confidences() -> None:
    model = make_model()
    a = make_features(30, 1)
    confidence_loss(model, pack([(a, make_features(30, 2, like=a))], model.config)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("confidences."), name


def test_the_confidence_loss_weighs_matched_and_unmatched_points_alike() -> None:
    """A twin with loops over layers and points."""
    model = make_model(n_layers=3)
    a = make_features(30, 1)
    packed = pack([(a, make_features(30, 2, like=a))], model.config)
    with torch.no_grad():
        states = list(model.states(packed))
        said = [
            torch.cat(predictions(*layer_scores(h, x, 1), 0.1), 1)[0].tolist()
            for h, x in zip(model.heads, states, strict=True)
        ]
        parts = []
        for layer in range(2):
            logits = model.confidences[layer](states[layer])[:, 0].tolist()
            groups: dict[bool, list[float]] = {True: [], False: []}
            for i, (now, last) in enumerate(zip(said[layer], said[-1], strict=True)):
                groups[now >= 0 or last >= 0].append(np.logaddexp(0, -logits[i] if now == last else logits[i]))
            assert groups[True]
            assert groups[False]
            parts += [np.mean(group) for group in groups.values()]
        assert any(now != last for now, last in zip(said[0], said[-1], strict=True))
        assert float(confidence_loss(model, packed)) == pytest.approx(np.mean(parts), rel=1e-4)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets(name: str) -> None:
    config = preset(name, "sift", 128, "xy")
    assert (config.n_layers, config.d, config.heads) == {"base": (9, 256, 4), "compact": (5, 128, 4)}[name]
    with pytest.raises(InputError, match="unknown preset 'huge'"):
        preset("huge", "sift", 128, "xy")


# -- bank -------------------------------------------------------------------------------------------------------------


def photo_folder(folder: Path, count: int = 5) -> Path:
    for number in range(count):
        path = folder / f"set{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw_photo(number, 160, 120))
    return folder


def finish(steps: object) -> list:
    return list(steps)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank")
    finish(build_bank(photo_folder(folder / "photos", 8), folder / "bank.h5", Sift(max_keypoints=80), SMALL_BANK, workers=1))
    return folder / "bank.h5"


def contents(path: Path) -> list[np.ndarray]:
    bank = Bank(path)
    views = [bank.rows(v, slice(None)) for v in range(len(bank))]
    return [bank.homographies, bank.view_photos, *(array for view in views for array in view.values())]


def test_bank_keypoints_correspond_across_views(bank: Path) -> None:
    """Keypoints of one view, carried by the stored homographies, land on keypoints of another far more than by chance."""
    opened = Bank(bank)
    hits, chance = [], []
    for a, b in [(v, v + 1) for v in range(0, len(opened), 3)]:
        points0, points1 = (torch.from_numpy(opened.rows(v, slice(None))["keypoints"]).double() for v in (a, b))
        b_from_a = torch.tensor(opened.homographies[b] @ np.linalg.inv(opened.homographies[a]))
        hits.append((torch.cdist(transform(b_from_a, points0), points1).amin(1) < 3).double().mean())
        chance.append((torch.cdist(points0, points1).amin(1) < 3).double().mean())
    assert np.mean(hits) > 0.2
    assert np.mean(hits) > 2 * np.mean(chance)


def test_bank_descriptors_survive_eight_bits(bank: Path) -> None:
    opened = Bank(bank)
    rows = opened.rows(0, slice(None))
    assert rows["descriptors"].shape == (opened.counts[0], 128)
    assert np.linalg.norm(rows["descriptors"], axis=1) == pytest.approx(np.ones(opened.counts[0]), abs=0.01)
    assert (np.diff(rows["scores"]) <= 0).all()
    assert (rows["scales"] > 0).all()


def test_bank_does_not_depend_on_workers(bank: Path, tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 8)
    finish(build_bank(photos, tmp_path / "two.h5", Sift(max_keypoints=80), SMALL_BANK, workers=2))
    for one, two in zip(contents(bank), contents(tmp_path / "two.h5"), strict=True):
        assert np.array_equal(one, two)


def test_a_stopped_build_goes_on_where_it_was(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 6)
    steps = build_bank(photos, tmp_path / "bank.h5", Sift(max_keypoints=80), SMALL_BANK, workers=1)
    next(steps)
    next(steps)
    del steps  # the generator is closed: as if the process had stopped
    assert not (tmp_path / "bank.h5").exists()
    with pytest.raises(BankError, match="unfinished"):
        Bank(tmp_path / "bank.h5")
    with pytest.raises(BankError, match="other photos or settings"):
        finish(build_bank(photos, tmp_path / "bank.h5", Sift(max_keypoints=80), replace(SMALL_BANK, seed=1), workers=1))
    progress = finish(build_bank(photos, tmp_path / "bank.h5", Sift(max_keypoints=80), SMALL_BANK, workers=1))
    assert progress[0].photos_done == 2
    assert progress[-1].photos_done == 6
    again = finish(build_bank(photos, tmp_path / "bank.h5", Sift(max_keypoints=80), SMALL_BANK, workers=1))
    assert [p.photos_done for p in again] == [6]  # a finished bank is left alone
    with pytest.raises(BankError, match="holds a bank of other photos or settings"):
        finish(build_bank(photos, tmp_path / "bank.h5", Sift(max_keypoints=80), replace(SMALL_BANK, seed=1), workers=1))
    finish(build_bank(photos, tmp_path / "whole.h5", Sift(max_keypoints=80), SMALL_BANK, workers=1))
    for one, two in zip(contents(tmp_path / "bank.h5"), contents(tmp_path / "whole.h5"), strict=True):
        assert np.array_equal(one, two)


def test_unreadable_photos_are_skipped_and_named(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 3)
    (photos / "broken.jpg").write_bytes(b"no photo")
    progress = finish(build_bank(photos, tmp_path / "bank.h5", Sift(max_keypoints=80), SMALL_BANK, workers=1))
    assert progress[-1].skipped == ("broken.jpg",)
    assert len(Bank(tmp_path / "bank.h5")) == 9
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_bytes(b"no photo")
    with pytest.raises(BankError, match="none of the 1 photos can be read"):
        finish(build_bank(tmp_path / "bad", tmp_path / "b2.h5", Sift(), SMALL_BANK, workers=1))
    (tmp_path / "text.h5").write_text("x")
    with pytest.raises(BankError, match="cannot be read as HDF5"):
        Bank(tmp_path / "text.h5")
    with pytest.raises(BankError, match="does not exist; build it"):
        Bank(tmp_path / "none.h5")


# -- sampling ---------------------------------------------------------------------------------------------------------

def test_batches_are_a_function_of_the_step(bank: Path) -> None:
    config = preset("compact", "sift", 128, "xy-logscale-angle")
    samplers = [PairSampler(Bank(bank), config, split="training", seed=3, negatives=0.3) for _ in range(2)]
    samplers[0].batch(0, 4, 24)
    a, b = samplers[0].batch(7, 6, 24), samplers[1].batch(7, 6, 24)
    assert torch.equal(a.pairs.descriptors, b.pairs.descriptors)
    assert torch.equal(a.keypoints1, b.keypoints1)
    assert a.pairs.lengths == (24,) * 12
    other = samplers[0].batch(8, 6, 24)
    assert not torch.equal(a.keypoints0, other.keypoints0)
    related = torch.cat([samplers[0].batch(s, 16, 24).related for s in range(10)])
    assert 0.15 < float((~related).float().mean()) < 0.45
    held_out = PairSampler(Bank(bank), config, split="validation", seed=3, negatives=0.0)
    assert not set(held_out.views) & set(samplers[0].views)
    with pytest.raises(BankError, match="two views of 5000 keypoints"):
        samplers[0].batch(0, 4, 5000)
