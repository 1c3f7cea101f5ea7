"""Photos in, matches out: kinds of input, many pairs, pictures and files, threads."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from helpers import draw_photo, make_features
from lumiglue import Features, ImageError, InputError, MatchResult, MatchSettings, Pipeline, Sift
from lumiglue.collection.matching import match_photos
from lumiglue.geometry.projective import transform
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.pipeline import prefetch
from lumiglue.pipeline.result import save_result
from lumiglue.system.device import usable_device
from lumiglue.training.data.homographies import ViewSettings, sample_view, warp
from lumiglue.visualization import draw_adaptivity, draw_matches, save_figure

pytestmark = [pytest.mark.numeric, pytest.mark.portable]

Save = Callable[[str, np.ndarray], Path]
GENTLE = ViewSettings(any_roll=0, tilt=30, zoom=(0.9, 1.2), shift=0.05)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.pretrained("sift", max_keypoints=300)


@pytest.fixture(scope="module")
def views() -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """A photo, a view of it and the homography between them."""
    photo = draw_photo(11)
    homography = sample_view(np.random.default_rng(2), (320, 240), GENTLE)
    return photo, warp(torch.from_numpy(photo), homography).numpy(), torch.tensor(homography)


@pytest.fixture(scope="module")
def result(pipeline: Pipeline, views: tuple) -> MatchResult:
    return pipeline.match(views[0], views[1])


def test_a_known_homography_is_recovered(result: MatchResult, views: tuple) -> None:
    assert len(result) > 80
    assert result.points0.shape == result.points1.shape == (len(result), 2)
    assert result.scores.shape == (len(result),)
    assert result.scores.min() > 0.1
    error = (transform(views[2], torch.tensor(result.points0).double()) - torch.tensor(result.points1)).norm(dim=1)
    assert float((error < 3).double().mean()) > 0.95
    geometry = result.geometry("homography")
    assert geometry.matrix is not None
    corners = torch.tensor([[0.0, 0], [319, 0], [319, 239], [0, 239]])
    difference = transform(geometry.matrix, corners) - transform(views[2].float(), corners)
    assert float(difference.norm(dim=1).max()) < 2


def test_every_kind_of_image_gives_the_same_matches(
    pipeline: Pipeline, result: MatchResult, views: tuple, save_photo: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "stretch", "never")  # as uint16 is stretched otherwise, see tests/test_images.py
    a, b = views[:2]
    chw = torch.from_numpy(a).permute(2, 0, 1)
    kinds = [
        save_photo("a.png", a),
        str(save_photo("a.png", a)),
        chw,
        chw[None],
        chw.float() / 255,
        a.astype(np.uint16) * 257,
        np.asfortranarray(a),
    ]
    for image in kinds:
        again = pipeline.match(image, b)
        assert np.array_equal(again.points0, result.points0)
        assert np.array_equal(again.points1, result.points1)


def batches(pipeline: Pipeline, pairs: list, tokens: int) -> Iterator[MatchResult]:
    """As on a GPU: batches of about so many keypoints."""
    with prefetch.pool(2, one_thread_each=False) as threads:
        cache = prefetch.FeatureCache(pipeline.extract, threads, 4, str)
        for batch in prefetch.match_in_batches(pairs, cache, pipeline.match_features, None, tokens):
            assert batch is not None
            yield MatchResult(batch.features0, batch.features1, batch.matches, batch.seconds)


def test_an_image_is_described_once(pipeline: Pipeline, save_photo: Save) -> None:
    paths = [save_photo(f"{i}.png", draw_photo(i)) for i in range(5)]
    described: list[str] = []

    def describe(image: object) -> Features:
        described.append(str(image))
        return pipeline.extract(image)  # pyright: ignore[reportArgumentType]

    pairs = [(paths[0], path) for path in paths[1:]] * 2
    with prefetch.pool(3, one_thread_each=False) as threads:
        cache = prefetch.FeatureCache(describe, threads, 8, str)
        assert len(list(prefetch.match_in_threads(pairs, cache, pipeline.match_features, None, 3))) == 8
    assert sorted(described) == sorted(map(str, paths))


def test_many_pairs_may_be_left_early(pipeline: Pipeline, save_photo: Save) -> None:
    """Whoever stops asking leaves no thread behind, and pairs that were never asked for are not read."""
    threads, path = torch.get_num_threads(), save_photo("a.png", draw_photo(1))
    drawn: list[int] = []

    def endless() -> Iterator[tuple[Path, Path]]:
        for number in count():
            drawn.append(number)
            yield path, path

    results = pipeline.match_many(endless(), workers=2)
    assert next(results) is not None
    results.close()  # pyright: ignore[reportAttributeAccessIssue]  (a generator)
    assert len(drawn) < 10
    assert torch.get_num_threads() == threads


def test_many_pairs_equal_one_by_one(pipeline: Pipeline, save_photo: Save) -> None:
    photos = [draw_photo(s) for s in (1, 2)] + [np.zeros((60, 80, 3), np.uint8), draw_photo(1)[20:200, 30:250]]
    paths = [save_photo(f"{i}.png", photo) for i, photo in enumerate(photos)]
    pairs = [(paths[i], paths[j]) for i in range(4) for j in range(i, 4)]
    by_one = [pipeline.match(*pair) for pair in pairs]
    threads = torch.get_num_threads()
    runs = [pipeline.match_many(pairs, workers=workers, cached_images=2) for workers in (1, 2, 5)]
    runs += [batches(pipeline, pairs, tokens) for tokens in (1, 900, 10**6)]
    for run in runs:
        for alone, together in zip(by_one, run, strict=True):
            assert together is not None
            assert np.array_equal(together.matches.pairs, alone.matches.pairs)
            assert together.matches.stop_layer == alone.matches.stop_layer
            assert np.allclose(together.scores, alone.scores, atol=1e-5)
    assert torch.get_num_threads() == threads
    assert len(by_one[2]) == 0  # a black image: a valid empty result


def test_a_broken_image_stops_its_own_pairs_only(pipeline: Pipeline, save_photo: Save, tmp_path: Path) -> None:
    good = save_photo("good.png", draw_photo(1))
    (tmp_path / "bad.png").write_bytes(b"no")
    pairs = [(good, good), (good, tmp_path / "bad.png"), (good, good)]
    for workers in (1, 3):
        errors: list[int] = []
        results = list(pipeline.match_many(pairs, workers=workers, on_error=lambda n, _, e=errors: e.append(n)))
        assert errors == [1]
        assert [r is None for r in results] == [False, True, False]
    with pytest.raises(ImageError, match=r"bad.png is not an image"):
        list(pipeline.match_many(pairs))


def test_one_pipeline_in_many_threads(pipeline: Pipeline, result: MatchResult, views: tuple) -> None:
    with ThreadPoolExecutor(8) as pool:
        for again in pool.map(lambda _: pipeline.match(views[0], views[1]), range(16)):
            assert torch.equal(again.matches.pairs, result.matches.pairs)


def test_same_input_same_output_bit_for_bit(pipeline: Pipeline, result: MatchResult, views: tuple) -> None:
    again = pipeline.match(views[0], views[1])
    assert torch.equal(again.matches.scores, result.matches.scores)
    assert torch.equal(again.matches.pairs, result.matches.pairs)


def test_adaptivity_off_runs_all_layers(views: tuple) -> None:
    settings = MatchSettings(exit_ratio=0, prune_below=0)
    full = Pipeline.pretrained("sift", max_keypoints=300, settings=settings).match(views[0], views[1])
    assert full.matches.stop_layer == 9
    assert bool((full.matches.layers0 == 9).all())


def test_bfloat16_finds_nearly_the_same(result: MatchResult, views: tuple) -> None:
    rough = Pipeline.pretrained("sift", max_keypoints=300, precision="bf16").match(views[0], views[1])
    exact = {tuple(row) for row in result.matches.pairs.tolist()}
    assert len(exact & {tuple(row) for row in rough.matches.pairs.tolist()}) > 0.9 * len(exact)


@pytest.mark.usefixtures("unchecked")
def test_settings_that_make_no_sense_are_refused(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="unknown extractor 'sfit'"):
        Pipeline.pretrained("sfit")
    with pytest.raises(InputError, match="unknown precision 'fp8'"):
        Pipeline.pretrained("sift", precision="fp8")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="workers is 0"):
        pipeline.match_many([], workers=0)
    with pytest.raises(InputError, match="batch_tokens is -5"):
        pipeline.match_many([], batch_tokens=-5)
    with pytest.raises(InputError, match="a path, a Pillow image, an array or a tensor, not int"):
        pipeline.match(3, 4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="no pairs"):
        pipeline.match_features([])
    features = make_features(3, 0)
    for wrong, message in (([features, features], "pair 0 is Features"), ([(features,)], r"pair 0 is \(Features\)")):
        with pytest.raises(InputError, match=f"{message}; give a list of pairs"):
            pipeline.match_features(wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_pair_is_refused(pipeline: Pipeline, views: tuple) -> None:
    photo = views[0]
    for pair, shown in (
        ((photo,), "tuple of 1 entries"),
        ("ab", "'ab'"),
        (photo, "ndarray of 240 entries"),
        (3, "int of no"),
    ):
        with pytest.raises(InputError, match=f"pair 1 is {shown}.*; give pairs of two images"):
            list(pipeline.match_many([(photo, photo), pair]))  # pyright: ignore[reportArgumentType]
    (same,) = pipeline.match_many(np.array([[photo, photo]]))  # pyright: ignore[reportArgumentType]
    assert same is not None
    assert len(same) > 100


def test_all_keypoints_on_request(views: tuple) -> None:
    """None keeps what the largest number keeps, in the same order."""
    every, most = (Pipeline.pretrained("sift", max_keypoints=n).extract(views[0]) for n in (None, 10**5))
    assert len(every) > 400
    assert torch.equal(every.keypoints, most.keypoints)
    assert torch.equal(every.descriptors, most.descriptors)
    inside = Pipeline.pretrained("sift", max_keypoints=None).extract(views[0], mask=np.ones((240, 320), np.uint8))
    assert torch.equal(inside.keypoints, every.keypoints)


def test_descriptors_of_known_features_have_unit_length(pipeline: Pipeline, result: MatchResult) -> None:
    """OpenCV's own SIFT, say: refused by its name, or by the matcher's where features are anonymous. Rounding is not."""
    a, b = result.features0, result.features1
    raw = replace(b, descriptors=b.descriptors * 512)
    for name in ("sift", ""):
        with pytest.raises(InputError, match=r"'sift' must have unit length, not 512; take the square root .*RootSIFT"):
            pipeline.match_features([(a, replace(raw, extractor=name))])
    rounded = replace(b, descriptors=(b.descriptors * 512).round().clamp(max=255) / 512)
    (matches,) = pipeline.match_features([(a, rounded)])
    assert len(matches) > 0.9 * len(result)
    (nothing,) = pipeline.match_features([(a, b[:0])])
    assert len(nothing) == 0


def test_a_device_that_is_not_here_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mps.is_available():
        with pytest.raises(InputError, match=r"device 'mps' cannot be used \(.+\); choose 'cpu'"):
            Pipeline.pretrained("sift", device="mps")
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: None)
    assert usable_device("mps") == "mps"  # where PyTorch has it


def test_files_hold_what_was_found(result: MatchResult, tmp_path: Path) -> None:
    geometry = result.geometry("homography")
    save_result(tmp_path / "m.npz", result, geometry)
    save_result(tmp_path / "m.json", result, geometry)
    loaded = np.load(tmp_path / "m.npz")
    text = json.loads((tmp_path / "m.json").read_text())
    for name in ("points0", "points1", "scores", "matches", "keypoints0", "inliers", "homography", "image_size1"):
        assert np.allclose(loaded[name], np.array(text[name]), atol=1e-6), name
    assert np.array_equal(loaded["points0"], result.points0)
    assert np.array_equal(loaded["keypoints0"][loaded["matches"][:, 0]], loaded["points0"])
    assert text["pixels"].startswith("x right")
    with pytest.raises(InputError, match="has an unknown suffix; matches can be written to"):
        save_result(tmp_path / "m.txt", result)


def test_hloc_layout(pipeline: Pipeline, result: MatchResult, views: tuple, save_photo: Save, tmp_path: Path) -> None:
    save_photo("db/a.png", views[0])
    save_photo("b.png", views[1])
    assert match_photos([("db/a.png", "b.png")], tmp_path / "m.h5", pipeline, root=tmp_path, workers=1) == ()
    with h5py.File(tmp_path / "m.h5") as file:
        group: Any = file["db-a.png/b.png"]
        matches0: np.ndarray = group["matches0"][:]
        assert len(matches0) == len(result.features0)
        assert np.array_equal(np.flatnonzero(matches0 >= 0), result.matches.pairs[:, 0])
        assert np.array_equal(matches0[matches0 >= 0], result.matches.pairs[:, 1])
        assert group["matching_scores0"].dtype == np.float16
        assert np.array_equal(group["keypoints0"][:], result.points0)
        assert np.array_equal(group["keypoints1"][:], result.points1)


def test_pictures_show_the_matches(result: MatchResult, views: tuple, tmp_path: Path) -> None:
    """The picture holds both photos, and drawing the matches changes it where the matches are."""
    features = result.features0, result.features1
    figure = draw_matches(views[0], views[1], *features, result.matches, result.geometry("homography"), "title")
    save_figure(figure, tmp_path / "m.png")
    assert figure.axes[0].get_title() == "title"
    lines = [c for c in figure.axes[0].collections if len(c.get_paths()) == int(result.geometry("homography").inliers.sum())]
    assert lines
    canvas = np.asarray(figure.axes[0].images[0].get_array())
    assert np.array_equal(canvas[:240, :320], views[0])
    assert np.array_equal(canvas[:, -320:], views[1])
    save_figure(draw_adaptivity(views[0], views[1], *features, result.matches, 5), tmp_path / "a.png")
    for name in ("m.png", "a.png"):
        assert (tmp_path / name).stat().st_size > 20_000
    with pytest.raises(InputError, match="has an unsupported suffix for pictures"):
        save_figure(figure, tmp_path / "m.xyz")


def test_pictures_of_empty_results(pipeline: Pipeline, tmp_path: Path) -> None:
    black, photo = np.zeros((50, 90, 3), np.uint8), draw_photo(1)
    result = pipeline.match(black, photo)
    assert len(result) == 0
    assert result.matches.stop_layer == 0
    features = result.features0, result.features1
    save_figure(draw_matches(black, photo, *features, result.matches, result.geometry()), tmp_path / "m.png")
    save_figure(draw_adaptivity(black, photo, *features, result.matches, 5), tmp_path / "a.png")
    assert isinstance(Sift()(black).scales, torch.Tensor)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_long_title_stays_in_the_picture(result: MatchResult, views: tuple, stacked: bool) -> None:
    features = (result.features0, result.features1)
    title = f"{'holiday_' * 20}1.jpg and another_photo.jpg: 2048 and 2048 keypoints, 702 matches, 588 inliers (fundamental)"
    figure = draw_matches(views[0], views[1], *features, result.matches, None, title, stacked=stacked)
    FigureCanvasAgg(figure).draw()
    drawn = figure.axes[0].title
    assert drawn.get_text().replace("\n", "").replace(" ", "") == title.replace(" ", "")
    box, page = drawn.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert page.y0 <= box.y0 < box.y1 <= page.y1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_callers_autocast_changes_nothing(pipeline: Pipeline, result: MatchResult, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype):
        (again,) = pipeline.match_features([(result.features0, result.features1)])
        layers = pipeline.match_by_layer(result.features0, result.features1)
    assert torch.equal(again.pairs, result.matches.pairs)
    assert torch.equal(layers[-1].pairs, result.matches.pairs)


def test_positions_and_states_stay_float32_in_training(result: MatchResult) -> None:
    model = Pipeline.pretrained("sift", precision="fp32").matcher
    assert isinstance(model, LightGlue)
    packed = pack([(result.features0, result.features1)], model.config)
    exact, (cosine, _) = model.begin(packed)
    with torch.autocast("cpu", torch.bfloat16):
        begun, (rounded, _) = model.begin(packed)
        states = list(model.states(packed))
    assert torch.equal(begun, exact)
    assert torch.equal(rounded, cosine)
    assert {state.dtype for state in states} == {torch.float32}


def test_a_pair_that_cannot_be_matched_stops_no_batch(pipeline: Pipeline, result: MatchResult) -> None:
    """As on a GPU, where pairs are matched in batches."""
    good = (result.features0, result.features1)
    bare = replace(result.features0, scales=None, orientations=None)
    failed: list[tuple[int, str]] = []
    with prefetch.pool(2, one_thread_each=False) as threads:
        cache: prefetch.FeatureCache[Features] = prefetch.FeatureCache(lambda features: features, threads, 8, lambda _: None)
        pairs = [good, (bare, result.features1), good]
        results = list(
            prefetch.match_in_batches(
                pairs, cache, pipeline.match_features, lambda number, error: failed.append((number, str(error))), 10**6
            )
        )
    assert [number for number, _ in failed] == [1]
    assert results[1] is None
    for pair in (results[0], results[2]):
        assert pair is not None
        assert torch.equal(pair.matches.pairs, result.matches.pairs)


def test_pools_side_by_side_give_the_threads_back() -> None:
    before = torch.get_num_threads()
    with ThreadPoolExecutor(2) as outer:

        def run() -> None:
            with prefetch.pool(2, one_thread_each=True) as threads:
                list(threads.map(lambda _: torch.get_num_threads(), range(4)))

        list(outer.map(lambda _: run(), range(6)))
    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(torch.get_num_threads).result() == before
    assert torch.get_num_threads() == before


def test_a_dollar_in_a_name_is_no_formula(result: MatchResult, views: tuple, tmp_path: Path) -> None:
    figure = draw_matches(views[0], views[1], result.features0, result.features1, result.matches, title="cost$^$ 照片.jpg")
    save_figure(figure, tmp_path / "m.png")
    assert (tmp_path / "m.png").stat().st_size > 1000


def test_results_in_half_precision_are_written(result: MatchResult, tmp_path: Path) -> None:
    half = replace(result, features0=replace(result.features0, keypoints=result.features0.keypoints.bfloat16()))
    save_result(tmp_path / "m.NPZ", half)
    assert np.load(tmp_path / "m.NPZ")["keypoints0"].dtype == np.float32
