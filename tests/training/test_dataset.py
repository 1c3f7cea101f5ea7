"""Views of photos, datasets of them, and batches from datasets."""

import errno
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import torch

from helpers import draw_photo
from lumiglue import DatasetError, Features, InputError, Sift
from lumiglue.extractors import Extractor
from lumiglue.geometry.projective import transform
from lumiglue.matcher.models import preset
from lumiglue.training.data import build as building
from lumiglue.training.data.build import DatasetProgress, DatasetSettings, build_dataset
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.data.homographies import PhotoViews, ViewSettings, plane_homography, sample_view, view_preset, warp
from lumiglue.training.data.photometric import augment_photometric, gaussian_blur
from lumiglue.training.data.synthetic_scenes import SceneSettings, SyntheticScenes
from lumiglue.training.sampling import PairSampler

SMALL_DATASET = DatasetSettings(max_keypoints=48, items_per_part=2)
VIEWS = ViewSettings(any_roll=0.15, tilt=50, zoom=(0.7, 2.2), shift=0.25)


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


def test_view_presets_bound_the_roll_and_reach_a_fourfold_scale() -> None:
    rng = np.random.default_rng(0)
    upright = ViewSettings(any_roll=0.0, tilt=0.0)
    views = [sample_view(rng, (320, 240), upright) for _ in range(400)]
    rolls = np.degrees([np.arctan2(view[1, 0], view[0, 0]) for view in views])
    assert 35 < np.abs(rolls).max() <= 45.0001
    zooms = [np.sqrt(np.linalg.det(view[:2, :2])) for view in views]
    assert 3.5 < max(zooms) / min(zooms) <= 4.0001
    assert view_preset("upright").any_roll == 0
    assert view_preset("any").any_roll > 0
    with pytest.raises(InputError, match="unknown views 'sideways'; choose from \\['any', 'upright'\\]"):
        view_preset("sideways")


def test_warped_pixels_are_where_the_homography_says() -> None:
    photo = np.zeros((120, 160, 3), np.uint8)
    cv2.circle(photo, (70, 50), 4, (255, 255, 255), -1)
    view = sample_view(np.random.default_rng(5), (160, 120), ViewSettings(any_roll=0, tilt=30, zoom=(1.0, 1.2), shift=0.05))
    weights = warp(torch.from_numpy(photo), view)[..., 0].numpy().astype(float)
    y, x = np.mgrid[0:120, 0:160]
    centroid = np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()
    expected = transform(torch.tensor(view), torch.tensor([[70.0, 50.0]], dtype=torch.float64))[0].numpy()
    assert centroid == pytest.approx(expected, abs=0.5)


def test_warping_is_opencvs() -> None:
    """Beside cv2.warpPerspective, which rounds places to a 32nd of a pixel; far views are blurred first."""
    photo = draw_photo(0)
    rng, errors = np.random.default_rng(0), []
    for _ in range(12):
        view = sample_view(rng, (320, 240), ViewSettings())
        zoom_out, source = np.sqrt(np.linalg.det(view[:2, :2])), photo
        if zoom_out < 0.8:
            source = cv2.GaussianBlur(photo, (0, 0), 0.5 * np.sqrt(1 / zoom_out**2 - 1))
        twin = cv2.warpPerspective(source, view, (320, 240), borderMode=cv2.BORDER_REFLECT_101)
        errors.append(np.abs(warp(torch.from_numpy(photo), view).numpy().astype(int) - twin))
    assert np.mean(errors) < 0.6
    assert np.quantile(errors, 0.999) <= 8
    still = warp(torch.from_numpy(photo), np.eye(3))
    assert np.array_equal(still.numpy(), photo)


def test_blur_is_opencvs() -> None:
    values = np.random.default_rng(0).random((40, 50), dtype=np.float32)
    for sigma in (0.5, 1.3, 3.0):
        side = 2 * round(4 * sigma) + 1
        twin = cv2.GaussianBlur(values, (side, side), sigma)
        assert np.allclose(gaussian_blur(torch.from_numpy(values)[None], sigma)[0].numpy(), twin, atol=1e-5)
    small = torch.rand(1, 3, 4)
    assert gaussian_blur(small, 5.0).shape == small.shape  # the kernel reaches beyond the mirror image


def test_light_changes_with_its_strength_only() -> None:
    photo = torch.from_numpy(draw_photo(0))
    assert augment_photometric(np.random.default_rng(0), photo, 0.0) is photo
    views = [augment_photometric(np.random.default_rng(s), photo, 1.0) for s in range(40)]  # among them all kinds of change
    assert np.mean([(view.float() - photo.float()).abs().mean() for view in views]) > 10
    assert torch.equal(views[3], augment_photometric(np.random.default_rng(3), photo, 1.0))


@pytest.mark.gpu
def test_views_on_a_gpu_are_the_cpus() -> None:
    """Up to a grey level; JPEG blows a level up to a few."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    photo = torch.from_numpy(draw_photo(0))
    for seed in range(20):
        views = []
        for device in ("cpu", "cuda"):
            rng = np.random.default_rng(seed)
            view = sample_view(rng, (320, 240), ViewSettings())
            views.append(augment_photometric(rng, warp(photo.to(device), view), 1.0).cpu().float())
        assert float((views[0] - views[1]).abs().mean()) < 0.5


# -- dataset -------------------------------------------------------------------------------------------------------------


def photo_folder(folder: Path, count: int = 5) -> Path:
    for number in range(count):
        path = folder / f"set{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw_photo(number, 160, 120))
    return folder


def finish(steps: object) -> list:
    return list(steps)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    finish(build(photo_folder(folder / "photos", 8), folder / "dataset.h5"))
    return folder / "dataset.h5"


def build(
    photos: Path, out: Path, *, seed: int = 0, workers: int = 1, extractor: Extractor | None = None
) -> Iterator[DatasetProgress]:
    source = PhotoViews.of_folder(photos, n_views=3, long_side=128, seed=seed, settings=VIEWS)
    return build_dataset(source, out, extractor or Sift(max_keypoints=80), SMALL_DATASET, workers=workers)


def contents(path: Path) -> list[np.ndarray]:
    dataset = FeatureDataset(path)
    views = [dataset.view(v) for v in range(len(dataset))]
    return [
        dataset.homographies,
        dataset.view_scenes,
        dataset.pairs,
        dataset.overlaps,
        *(array for view in views for array in view.values()),
    ]


def test_dataset_keypoints_correspond_across_views(dataset: Path) -> None:
    """Keypoints of one view, carried by the stored homographies, land on keypoints of another far more than by chance."""
    opened = FeatureDataset(dataset)
    hits, chance = [], []
    for a, b in [(v, v + 1) for v in range(0, len(opened), 3)]:
        points0, points1 = (torch.from_numpy(opened.view(v)["keypoints"]).double() for v in (a, b))
        b_from_a = torch.tensor(opened.homographies[b] @ np.linalg.inv(opened.homographies[a]))
        hits.append((torch.cdist(transform(b_from_a, points0), points1).amin(1) < 3).double().mean())
        chance.append((torch.cdist(points0, points1).amin(1) < 3).double().mean())
    assert np.mean(hits) > 0.2
    assert np.mean(hits) > 2 * np.mean(chance)


def test_dataset_descriptors_survive_eight_bits(dataset: Path) -> None:
    opened = FeatureDataset(dataset)
    rows = opened.view(0)
    assert rows["descriptors"].shape == (opened.counts[0], 128)
    assert np.linalg.norm(rows["descriptors"], axis=1) == pytest.approx(np.ones(opened.counts[0]), abs=0.01)
    assert (np.diff(rows["scores"]) <= 0).all()
    assert (rows["scales"] > 0).all()


def test_dataset_does_not_depend_on_workers(dataset: Path, tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 8)
    finish(build(photos, tmp_path / "two.h5", workers=2))
    for one, two in zip(contents(dataset), contents(tmp_path / "two.h5"), strict=True):
        assert np.array_equal(one, two, equal_nan=True)


def test_a_stopped_build_goes_on_where_it_was(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 6)
    steps = build(photos, tmp_path / "dataset.h5")
    next(steps)
    next(steps)
    del steps  # the generator is closed: as if the process had stopped
    assert not (tmp_path / "dataset.h5").exists()
    with pytest.raises(DatasetError, match="unfinished"):
        FeatureDataset(tmp_path / "dataset.h5")
    with pytest.raises(DatasetError, match=r"unfinished build of other photos or settings \(settings.seed 0, now 1\)"):
        finish(build(photos, tmp_path / "dataset.h5", seed=1))
    progress = finish(build(photos, tmp_path / "dataset.h5"))
    assert progress[0].items_done == 2
    assert progress[-1].items_done == 6
    again = finish(build(photos, tmp_path / "dataset.h5"))
    assert [p.items_done for p in again] == [6]  # a finished dataset is left alone
    with pytest.raises(DatasetError, match="is a dataset of other photos or settings"):
        finish(build(photos, tmp_path / "dataset.h5", seed=1))
    finish(build(photos, tmp_path / "whole.h5"))
    for one, two in zip(contents(tmp_path / "dataset.h5"), contents(tmp_path / "whole.h5"), strict=True):
        assert np.array_equal(one, two, equal_nan=True)


@pytest.mark.parametrize("kind", [PhotoViews, SyntheticScenes])
def test_a_folder_whose_photos_have_the_same_names_is_another(kind: Any, tmp_path: Path) -> None:
    plans = []
    for folder, side in (("one", 120), ("two", 140), ("one again", 120)):
        (tmp_path / folder).mkdir()
        for number in range(2):
            cv2.imwrite(str(tmp_path / folder / f"{number}.png"), np.full((side, side, 3), 40 * number, np.uint8))
        plans.append(kind.of_folder(tmp_path / folder).plan())
    assert plans[0] != plans[1]
    assert plans[0] == plans[2]


def test_a_photo_whose_name_is_not_text_is_left_out(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 2)
    odd = os.fsdecode(b"\xff.png")
    (photos / "set0/0.png").rename(photos / "set0" / odd)
    progress = finish(build(photos, tmp_path / "dataset.h5"))
    assert progress[-1].skipped == ("set0/\\udcff.png",)
    assert len(FeatureDataset(tmp_path / "dataset.h5").scenes) == 1


def test_two_processes_do_not_build_one_dataset(tmp_path: Path) -> None:
    """Their parts would be joined by both at once, into a file of zeros."""
    source = PhotoViews.of_folder(photo_folder(tmp_path / "photos"), n_views=2, long_side=128)
    settings = DatasetSettings(max_keypoints=40, items_per_part=2)
    first = build_dataset(source, tmp_path / "dataset.h5", Sift(max_keypoints=60), settings, workers=1)
    next(first)
    second = build_dataset(source, tmp_path / "dataset.h5", Sift(max_keypoints=60), settings, workers=1)
    with pytest.raises(DatasetError, match=r"another process is building .*dataset.h5; wait for it, or stop it"):
        next(second)
    assert list(first)[-1].items_done == 5
    assert len(FeatureDataset(tmp_path / "dataset.h5")) == 10


def test_unreadable_photos_are_skipped_and_named(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 3)
    (photos / "broken.jpg").write_bytes(b"no photo")
    progress = finish(build(photos, tmp_path / "dataset.h5"))
    assert progress[-1].skipped == ("broken.jpg",)
    assert len(FeatureDataset(tmp_path / "dataset.h5")) == 9
    assert FeatureDataset(tmp_path / "dataset.h5").skipped == ["broken.jpg"]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_bytes(b"no photo")
    with pytest.raises(DatasetError, match="none of the 1 photos can be read"):
        finish(build(tmp_path / "bad", tmp_path / "b2.h5"))
    (tmp_path / "text.h5").write_text("x")
    with pytest.raises(DatasetError, match="cannot be read as a dataset"):
        FeatureDataset(tmp_path / "text.h5")
    with pytest.raises(DatasetError, match="does not exist; build it"):
        FeatureDataset(tmp_path / "none.h5")


def test_a_pairs_overlap_is_what_the_other_view_sees(dataset: Path) -> None:
    opened = FeatureDataset(dataset)
    assert len(opened.pairs) == 8 * 3  # each photo's three views pair up
    for (a, b), overlap in zip(opened.pairs[:6].tolist(), opened.overlaps, strict=False):
        shares = []
        for first, second in ((a, b), (b, a)):
            way = opened.homographies[second] @ np.linalg.inv(opened.homographies[first])
            points = np.column_stack([opened.view(first)["keypoints"], np.ones(opened.counts[first])]) @ way.T
            x, y = (points[:, :2] / points[:, 2:]).T
            width, height = opened.view_sizes[second]
            shares.append(np.mean((x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)))
        assert overlap == pytest.approx(min(shares), abs=1e-6)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(building, "_write_part", full)
    with pytest.raises(DatasetError, match=r"the disk of .* is full; make room and run the same command again"):
        finish(build(photo_folder(tmp_path / "photos", 2), tmp_path / "dataset.h5"))


@dataclass(frozen=True)
class Upright:
    """SIFT without its scales and orientations, as many features are."""

    name: str = "plain"
    descriptor_dim: int = 128

    def config(self) -> dict[str, Any]:
        return {"name": self.name}

    def __call__(self, image: np.ndarray) -> Features:
        return replace(Sift(max_keypoints=80)(image), scales=None, orientations=None, extractor="plain")


def test_a_dataset_knows_whether_its_features_have_scale_and_orientation(dataset: Path, tmp_path: Path) -> None:
    finish(build(photo_folder(tmp_path / "photos", 2), tmp_path / "dataset.h5", extractor=Upright()))
    assert FeatureDataset(dataset).has_orientation
    assert not FeatureDataset(tmp_path / "dataset.h5").has_orientation
    config = preset("compact", "plain", 128, "xy-logscale-angle")
    sampler = PairSampler([FeatureDataset(tmp_path / "dataset.h5")], config, split="training", seed=0, negative_pair_ratio=0)
    with pytest.raises(InputError, match="needs scales and orientations"):
        sampler.batch(0, 2, 16)


# -- batches ----------------------------------------------------------------------------------------------------------

SIFT = preset("compact", "sift", 128, "xy-logscale-angle")


@pytest.fixture(scope="module")
def synthetic(dataset: Path) -> Path:
    source = SyntheticScenes.of_folder(
        dataset.parent / "photos", count=4, n_views=3, settings=SceneSettings(size=(160, 120))
    )
    finish(build_dataset(source, dataset.parent / "scenes.h5", Sift(max_keypoints=80), SMALL_DATASET, workers=1))
    return dataset.parent / "scenes.h5"


def test_batches_are_a_function_of_the_step(dataset: Path) -> None:
    samplers = [
        PairSampler([FeatureDataset(dataset)], SIFT, split="training", seed=3, negative_pair_ratio=0.3) for _ in range(2)
    ]
    samplers[0].batch(0, 4, 24)
    a, b = samplers[0].batch(7, 6, 24), samplers[1].batch(7, 6, 24)
    assert torch.equal(a.pairs.descriptors, b.pairs.descriptors)
    assert torch.equal(a.keypoints1, b.keypoints1)
    assert a.pairs.lengths == ((24, 24),) * 6
    other = samplers[0].batch(8, 6, 24)
    assert not torch.equal(a.keypoints0, other.keypoints0)
    related = torch.cat([samplers[0].batch(s, 16, 24).related for s in range(10)])
    assert 0.15 < float((~related).float().mean()) < 0.45
    with pytest.raises(DatasetError, match="has 5000 keypoints in both views"):
        samplers[0].batch(0, 4, 5000)


def test_parts_of_a_batch_are_the_batch(dataset: Path, synthetic: Path) -> None:
    """Processes that share a batch, each assembling its slice, see together what one process sees."""
    sampler = PairSampler(
        [FeatureDataset(dataset), FeatureDataset(synthetic)], SIFT, split="training", seed=1, negative_pair_ratio=0.2
    )
    whole = sampler.batch(5, 6, 24)
    parts = [sampler.batch(5, 6, 24, part=slice(start, start + 2)) for start in (0, 2, 4)]
    assert torch.equal(whole.pairs.descriptors, torch.cat([part.pairs.descriptors for part in parts]))
    assert torch.equal(whole.planar, torch.cat([part.planar for part in parts]))
    labels = [part.labels() for part in parts]
    assert torch.equal(whole.labels().unmatchable1, torch.cat([part.unmatchable1 for part in labels]))
    shifted = torch.cat([part.matches + torch.tensor([2 * k, 0, 0]) for k, part in enumerate(labels)])
    assert sorted(whole.labels().matches.tolist()) == sorted(shifted.tolist())


def test_a_batch_holds_what_the_dataset_holds(dataset: Path) -> None:
    """Every drawn keypoint is a keypoint of one view, with that view's descriptor and position."""
    opened = FeatureDataset(dataset)
    batch = PairSampler([opened], SIFT, split="training", seed=0, negative_pair_ratio=0.0).batch(0, 3, 24)
    descriptors = batch.pairs.descriptors.unflatten(0, (3, 2, 24))
    for pair in range(3):
        for side, keypoints in enumerate((batch.keypoints0[pair], batch.keypoints1[pair])):
            owners = [v for v in range(len(opened)) if (opened.view(v)["keypoints"] == keypoints[0].numpy()).all(1).any()]
            assert len(owners) == 1
            view = opened.view(owners[0])
            for row in range(24):
                at = np.flatnonzero((view["keypoints"] == keypoints[row].numpy()).all(1))
                assert any(np.allclose(view["descriptors"][k], descriptors[pair, side, row]) for k in at)
    assert len(torch.unique(batch.keypoints0[0], dim=0)) == 24  # no keypoint twice


def test_labels_of_a_batch_map_keypoints_onto_each_other(dataset: Path) -> None:
    batch = PairSampler([FeatureDataset(dataset)], SIFT, split="training", seed=0, negative_pair_ratio=0.5).batch(2, 12, 24)
    labels = batch.labels()
    negatives = (~batch.related).nonzero()[:, 0].tolist()
    assert negatives
    assert not set(labels.matches[:, 0].tolist()) & set(negatives)
    assert bool(labels.unmatchable0[negatives].all())
    assert len(labels.matches) > 10
    for pair, i, j in labels.matches.tolist():
        way = batch.side1.view_from_scene[pair] @ torch.linalg.inv(batch.side0.view_from_scene[pair])
        there = transform(way, batch.keypoints0[pair, i].double()[None])[0]
        assert float((there - batch.keypoints1[pair, j]).norm()) <= 3.01


def test_negatives_come_from_other_folders(dataset: Path) -> None:
    """Photos of one folder may show one place: only another folder is surely another scene."""
    opened = FeatureDataset(dataset)
    batch = PairSampler([opened], SIFT, split="training", seed=0, negative_pair_ratio=0.9).batch(0, 24, 24)
    owner = {tuple(point): view for view in range(len(opened)) for point in opened.view(view)["keypoints"].tolist()}
    folders = [
        [opened.scenes[opened.view_scenes[owner[tuple(side[pair, 0].tolist())]]].split("/")[0] for pair in range(24)]
        for side in (batch.keypoints0, batch.keypoints1)
    ]
    negatives = (~batch.related).tolist()
    assert sum(negatives) > 12
    assert all((a != b) == negative for a, b, negative in zip(*folders, negatives, strict=True))


def test_weights_choose_among_datasets(dataset: Path, synthetic: Path) -> None:
    datasets = [FeatureDataset(dataset), FeatureDataset(synthetic)]
    only_scenes = PairSampler(
        datasets, SIFT, split="training", seed=0, negative_pair_ratio=0, sampling_weights=[0, 1]
    ).batch(0, 8, 24)
    assert not bool(only_scenes.planar.any())
    both = PairSampler(datasets, SIFT, split="training", seed=0, negative_pair_ratio=0, sampling_weights=[3, 1])
    share = torch.cat([both.batch(step, 32, 24).planar for step in range(8)]).float().mean()
    assert 0.65 < float(share) < 0.85
    with pytest.raises(DatasetError, match="2 datasets need 2 sampling weights, none negative"):
        PairSampler(datasets, SIFT, split="training", seed=0, negative_pair_ratio=0, sampling_weights=[1])


def pairs_of_split(dataset: FeatureDataset, split: Literal["training", "validation"]) -> np.ndarray:
    """Rows of views, P x 2."""
    return dataset.pairs[PairSampler([dataset], SIFT, split=split, seed=0, negative_pair_ratio=0).numbers[0]]


def test_validation_holds_out_whole_scenes_where_there_are_many(tmp_path: Path, dataset: Path) -> None:
    finish(build(photo_folder(tmp_path / "photos", 20), tmp_path / "dataset.h5"))
    many = FeatureDataset(tmp_path / "dataset.h5")
    splits = [pairs_of_split(many, split) for split in ("training", "validation")]
    scenes = [set(many.view_scenes[pairs].flatten().tolist()) for pairs in splits]
    assert len(scenes[1]) == 1
    assert not scenes[0] & scenes[1]
    few = FeatureDataset(dataset)
    splits = [pairs_of_split(few, split) for split in ("training", "validation")]
    assert len(splits[1]) == 1
    assert not {tuple(pair) for pair in splits[0].tolist()} & {tuple(pair) for pair in splits[1].tolist()}


def test_a_scene_without_keypoints_is_not_the_one_that_is_held_out(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 20)
    for number, photo in enumerate(sorted(photos.rglob("*.png"))):
        if number % 2:  # half of them are blank
            cv2.imwrite(str(photo), np.full((240, 320, 3), 90, np.uint8))
    finish(build(photos, tmp_path / "dataset.h5"))
    held_out = PairSampler(
        [FeatureDataset(tmp_path / "dataset.h5")], SIFT, split="validation", seed=0, negative_pair_ratio=0
    )
    assert held_out.batch(0, 4, 24).pairs.n_pairs == 4


def test_a_dataset_held_in_memory_gives_the_same(dataset: Path) -> None:
    opened = FeatureDataset(dataset)
    rows = np.array([5, 3, 200, 7])
    before = opened.gather(rows)
    opened.hold_on("cpu")
    for name, array in opened.gather(rows).items():
        assert torch.equal(array.nan_to_num(-1), before[name].nan_to_num(-1))


def test_scenes_are_drawn_as_the_square_root_of_their_pairs(dataset: Path) -> None:
    sampler = PairSampler([FeatureDataset(dataset)], SIFT, split="training", seed=0, negative_pair_ratio=0.0)
    opened = sampler.datasets[0]
    numbers = sampler.numbers[0]
    scene0 = opened.view_scenes[opened.pairs[numbers, 0]] == 0
    sampler.numbers[0] = np.concatenate([np.repeat(numbers[scene0][:1], 400), numbers[~scene0][:4]])
    pool = sampler._pairs_of(16)[0]
    rng = np.random.default_rng(0)
    drawn = [opened.view_scenes[pool.draw(rng)[0]] for _ in range(2000)]
    others = opened.view_scenes[opened.pairs[sampler.numbers[0][400:], 0]]
    _, counts = np.unique(others, return_counts=True)
    expected = 20 / (20 + np.sqrt(counts).sum())
    assert np.mean(np.array(drawn) == 0) == pytest.approx(expected, abs=0.03)


# -- labels are exact --------------------------------------------------------------------------------------------------


def test_labels_do_not_depend_on_autocast(dataset: Path, synthetic: Path) -> None:
    """In bfloat16 points would move by pixels: of synthetic scenes a third of the matches would be lost, of posed photos
    all."""
    sampler = PairSampler(
        [FeatureDataset(dataset), FeatureDataset(synthetic)], SIFT, split="training", seed=4, negative_pair_ratio=0.1
    )
    batch = sampler.batch(0, 16, 32)
    exact = batch.labels()
    with torch.autocast("cpu", torch.bfloat16):
        inside = batch.labels()
    assert len(exact.matches) > 20
    assert torch.equal(inside.matches, exact.matches)
    assert torch.equal(inside.unmatchable0, exact.unmatchable0)
    assert torch.equal(inside.unmatchable1, exact.unmatchable1)


def test_labels_where_a_corner_lies_behind_the_camera(dataset: Path) -> None:
    """The last entry of a homography between two views is the depth of a corner pixel, which may be negative."""
    batch = PairSampler([FeatureDataset(dataset)], SIFT, split="training", seed=0, negative_pair_ratio=0.0).batch(0, 1, 24)
    points = torch.stack(torch.meshgrid(torch.arange(200.0, 320, 24), torch.arange(150.0, 240, 18), indexing="ij"), -1)
    points = points.flatten(0, 1)[:24][None]
    way = torch.tensor([[1.0, 0.02, 30], [0.01, 1.1, 20], [0.008, 0.008, -1.0]], dtype=torch.float64)
    there = transform(way, points[0].double())
    assert bool(torch.isfinite(there).all())
    side0 = replace(batch.side0, keypoints=points, view_from_scene=torch.eye(3, dtype=torch.float64)[None])
    side1 = replace(batch.side1, keypoints=there.float()[None], view_from_scene=way[None])
    labels = replace(batch, side0=side0, side1=side1).labels()
    assert labels.matches[:, 1:].tolist() == [[row, row] for row in range(24)]


def test_scenes_make_no_negative_pairs(synthetic: Path, dataset: Path) -> None:
    """A synthetic scene has dozens of the photos, so two of them, or a scene and a photo, may show the same place."""
    alone = PairSampler([FeatureDataset(synthetic)], SIFT, split="training", seed=0, negative_pair_ratio=0.9).batch(
        0, 16, 24
    )
    assert bool(alone.related.all())
    both = PairSampler(
        [FeatureDataset(dataset), FeatureDataset(synthetic)], SIFT, split="training", seed=0, negative_pair_ratio=0.9
    ).batch(0, 32, 24)
    assert float((~both.related).float().mean()) > 0.6
    assert bool(both.planar[~both.related].all())


class Killed(SyntheticScenes):
    """A source whose third item ends the process that makes it, as a system without memory does."""

    def views(self, item: int, extractor: Any, max_keypoints: int) -> Any:
        if item == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().views(item, extractor, max_keypoints)


def test_a_killed_worker_ends_the_build_with_a_sentence(dataset: Path, tmp_path: Path) -> None:
    source = Killed.of_folder(dataset.parent / "photos", count=4, n_views=2, settings=SceneSettings(size=(160, 120)))
    one_each = replace(SMALL_DATASET, items_per_part=1)
    with pytest.raises(DatasetError, match="was killed, perhaps because memory ran out; run again with fewer --workers"):
        finish(build_dataset(source, tmp_path / "w.h5", Sift(max_keypoints=80), one_each, workers=2))
