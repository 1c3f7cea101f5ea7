"""Whatever features are handed to a matcher: a legal result that obeys the laws, or one sentence that says what is wrong."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import make_features, make_model
from lumiglue import Features, InputError, Matches, MatchSettings, Pipeline, Sift
from lumiglue.matcher.execution import execution_layers
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.models import MatcherModel
from lumiglue.matcher.superglue import SuperGlue, SuperGlueConfig
from lumiglue.pipeline.result import MatchResult

pytestmark = pytest.mark.numeric

DIM = 8
FULL = MatchSettings(exit_ratio=0, prune_below=0, score_threshold=0.0)
ADAPTIVE = MatchSettings(score_threshold=0.0)


def superglue() -> SuperGlue:
    torch.manual_seed(1)
    model = SuperGlue(
        SuperGlueConfig(descriptor_dim=DIM, d=16, heads=2, n_layers=2, encoder_widths=(8,), project_input=True)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mlp.3" in name:
                parameter.normal_(std=0.15)
    return model.eval()


MATCHERS: dict[str, tuple[MatcherModel, MatchSettings]] = {
    "adaptive": (make_model(descriptor_dim=DIM), ADAPTIVE),
    "full": (make_model(descriptor_dim=DIM), FULL),
    "scales": (make_model(descriptor_dim=DIM, encoding="xy-logscale-angle"), ADAPTIVE),
    "bf16": (make_model(descriptor_dim=DIM), ADAPTIVE),
    "superglue": (superglue(), FULL),
}
EACH = pytest.mark.parametrize("name", MATCHERS)


@st.composite
def images(draw: st.DrawFn, *, distinct: bool = False) -> Features:
    """0 to 12 points of every kind that is legal; distinct: no two alike, so that no result hangs on a tie."""
    n, seed = draw(st.sampled_from([0, 1, 2, 3, 12])), draw(st.integers(0, 2**16))
    a = make_features(n, seed, dim=DIM)
    width, height = draw(st.sampled_from([(640, 480), (480, 640), (1, 1), (10**6, 3), (64.0, 48.0)]))
    keypoints = a.keypoints * draw(st.sampled_from([1.0, -1.0, 1e3, 1e-3])) + draw(st.sampled_from([0.0, 700.0]))
    descriptors = a.descriptors * draw(st.sampled_from([1.0, 10.0] if distinct else [1.0, 1e-6, 100.0]))
    if not distinct:
        match draw(st.sampled_from(["as they are", "all alike", "zero", "twins", "large"])):
            case "all alike":
                descriptors = descriptors[:1].expand_as(descriptors)
            case "zero":
                descriptors = descriptors * 0
            case "twins":
                rows = torch.arange(n) // 2
                keypoints, descriptors = keypoints[rows], descriptors[rows]
            case "large":
                descriptors = descriptors * 9e3
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    if not distinct:
        dtype = draw(st.sampled_from([dtype, torch.bfloat16]))
    keypoints, descriptors = keypoints.to(dtype), descriptors.to(dtype)
    if draw(st.booleans()):
        keypoints, descriptors = (x.T.contiguous().T for x in (keypoints, descriptors))
    if draw(st.booleans()):
        keypoints, descriptors = keypoints.detach().requires_grad_(), descriptors.detach().requires_grad_()
    return replace(a, keypoints=keypoints, descriptors=descriptors, image_size=(width, height))


def match(name: str, pairs: list[tuple[Features, Features]]) -> list[Matches]:
    model, settings = MATCHERS[name]
    layers = execution_layers(model, "bf16" if name == "bf16" else "fp32")
    return model.match(pack(pairs, model.config), settings, layers=layers)


def rows_of(matches: Matches) -> dict[tuple[int, int], float]:
    return {(int(i), int(j)): float(s) for (i, j), s in zip(matches.pairs.tolist(), matches.scores.tolist(), strict=True)}


def assert_legal(matches: Matches, a: Features, b: Features) -> None:
    assert not matches.scores.requires_grad
    assert matches.scores.dtype == torch.float32
    assert bool(((matches.scores > 0) & (matches.scores <= 1)).all())  # so they are finite
    for side, features in enumerate((a, b)):
        rows = matches.pairs[:, side].tolist()
        assert len(set(rows)) == len(rows)
        assert all(0 <= row < len(features) for row in rows)
        layers = (matches.layers0, matches.layers1)[side]
        assert layers.shape == (len(features),)
        assert bool((layers <= matches.stop_layer).all())


def assert_same(actual: dict[tuple[int, int], float], expected: dict[tuple[int, int], float], tolerance: float) -> None:
    """Equal but for what lies within the tolerance of the threshold, 0."""
    for pair in actual.keys() | expected.keys():
        assert actual.get(pair, 0.0) == pytest.approx(expected.get(pair, 0.0), abs=tolerance), pair


@EACH
@given(pairs=st.lists(st.tuples(images(), images()), min_size=1, max_size=3), good=st.tuples(*[images(distinct=True)] * 2))
def test_results_are_legal_and_what_else_is_in_the_batch_changes_nothing(
    name: str, pairs: list[tuple[Features, Features]], good: tuple[Features, Features], unchecked: None
) -> None:
    *others, last = match(name, [*pairs, good])
    for (a, b), matches in zip(pairs, others, strict=True):
        assert_legal(matches, a, b)
    (alone,) = match(name, [good])
    assert_legal(alone, *good)
    same_exits = (last.stop_layer, last.layers0.tolist()) == (alone.stop_layer, alone.layers0.tolist())
    if name == "bf16":  # products of up to five rows in float32 end in other last bits, which bfloat16 rounds apart
        if same_exits:
            assert_same(rows_of(last), rows_of(alone), 0.02)
        return
    assert same_exits
    assert_same(rows_of(last), rows_of(alone), 5e-5)


@EACH
@given(a=images(distinct=True), b=images(distinct=True), seed=st.integers(0, 99))
def test_swapping_images_and_permuting_points(name: str, a: Features, b: Features, seed: int, unchecked: None) -> None:
    """Up to rounding: an exit or a pruning that hangs on it may differ, so the exits are compared first."""
    if max(*a.image_size, *b.image_size) / min(*a.image_size, *b.image_size) > 2:
        return  # positions of 10^6 image sizes leave float32 too few digits for the laws
    (matches,) = match(name, [(a, b)])
    (swapped,) = match(name, [(b, a)])
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    (permuted,) = match(name, [(a[order], b)])
    tolerance = 0.02 if name == "bf16" else 2e-4
    if (swapped.stop_layer, swapped.layers0.tolist()) == (matches.stop_layer, matches.layers1.tolist()):
        assert_same({(i, j): s for (j, i), s in rows_of(swapped).items()}, rows_of(matches), tolerance)
    if (permuted.stop_layer, permuted.layers1.tolist()) == (matches.stop_layer, matches.layers1.tolist()):
        assert_same({(int(order[i]), j): s for (i, j), s in rows_of(permuted).items()}, rows_of(matches), tolerance)
    if name != "bf16":
        assert swapped.stop_layer == permuted.stop_layer == matches.stop_layer


def broken(**changes: Any) -> Callable[[], Features]:
    return lambda: replace(make_features(4, 0, dim=DIM), **changes)


def with_one(name: str, value: float, dtype: torch.dtype = torch.float32) -> Callable[[], Features]:
    features = make_features(4, 0, dim=DIM)
    tensor = getattr(features, name).to(dtype).clone()
    tensor.view(-1)[3] = value
    return broken(**{name: tensor})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *[(with_one(name, value), f"{name} contain NaN or infinity .first at row .*drop such")
          for name in ("keypoints", "descriptors", "scores", "scales", "orientations")
          for value in (float("nan"), float("inf"), float("-inf"))],
        (with_one("descriptors", 1e39, torch.float64), "descriptors contain NaN or infinity"),  # in float32
        (with_one("scales", 1e-60, torch.float64), "scales must be positive pixels; the smallest is 1e-60"),
        (with_one("scales", -2), "scales must be positive pixels; the smallest is -2"),
        (broken(keypoints=torch.zeros(4, 3)), r"keypoints have shape \(4, 3\); give n x 2"),
        (broken(keypoints=torch.zeros(())), r"keypoints have shape \(\); give n x 2"),
        (broken(keypoints=torch.zeros(5, 2)), r"descriptors have shape \(4, 8\); give 5 x d"),
        (broken(descriptors=torch.zeros(4, 2, 2)), r"descriptors have shape \(4, 2, 2\)"),
        (broken(scores=torch.zeros(4, 1)), r"scores have shape \(4, 1\); give one number for each of 4"),
        (broken(keypoints=np.zeros((4, 2))), "keypoints are of type ndarray; give a torch tensor"),
        (broken(descriptors=None), "descriptors are of type NoneType"),
        (broken(keypoints=torch.zeros(4, 2, device="meta")), "keypoints are of torch.float32 on meta; give real numbers"),
        (broken(scores=torch.zeros(4, device="meta")), "scores are of torch.float32 on meta"),
        (broken(descriptors=torch.zeros(4, DIM, dtype=torch.complex64)), "descriptors are of torch.complex64"),
        (broken(descriptors=torch.zeros(4, DIM, dtype=torch.bool)), "descriptors are of torch.bool"),
        *[(broken(image_size=size), r"image_size is .*; give \(width, height\)")
          for size in ((0, 480), (640, -1), (640,), (1, 2, 3), None, 5, ("a", "b"), (float("nan"), 3), (10**30, 2))],
    ],
)  # fmt: skip
def test_features_that_cannot_be_are_refused(make: Callable[[], Features], message: str, unchecked: None) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_one("keypoints", 1e30), r"a keypoint is at 1e\+30 in an image of \(640, 480\); drop such"),
        (with_one("descriptors", 1e30), r"descriptors have values of 1e\+30; scale them to unit length"),
        (with_one("orientations", 1e30), r"orientations have values of 1e\+30; drop such"),
        (broken(descriptors=torch.zeros(4, 5)), "descriptors have 5 channels; this matcher takes 8"),
        (broken(descriptors=torch.zeros(4, 0)), "descriptors have 0 channels; this matcher takes 8"),
        (broken(scales=None), "needs scales and orientations, which the features lack"),
    ],
)
def test_features_that_a_matcher_cannot_use_are_refused(make: Callable[[], Features], message: str, unchecked: None) -> None:
    good = make_features(5, 1, dim=DIM), make_features(6, 2, dim=DIM)
    with pytest.raises(InputError, match=message):
        match("scales", [good, (good[0], make())])
    (alone,) = match("scales", [good])
    assert_legal(alone, *good)


def test_a_bad_pair_leaves_the_others_of_a_run_as_they_are(unchecked: None) -> None:
    model = MATCHERS["scales"][0]
    images = {"a": make_features(9, 1, dim=DIM), "b": make_features(7, 2, dim=DIM), "bad": with_one("keypoints", 1e30)()}
    pipeline = object.__new__(Pipeline)
    pipeline.extractor, pipeline.matcher, pipeline.settings, pipeline._layers = Sift(), model, ADAPTIVE, None
    messages: list[str] = []
    todo = [("a", "b"), ("a", "bad"), ("bad", "b"), ("b", "a")]
    results = list(
        pipeline.match_extracted(
            todo, images.__getitem__, workers=2, on_error=lambda k, error: messages.append(f"{k} {error}")
        )
    )
    assert [one is None for one in results] == [False, True, True, False]
    assert [text[:14] for text in messages] == ["1 a keypoint i", "2 a keypoint i"]
    (alone,) = match("scales", [(images["a"], images["b"])])
    assert results[0] is not None
    assert torch.equal(results[0].matches.pairs, alone.pairs)
    assert torch.allclose(results[0].matches.scores, alone.scores, rtol=0, atol=5e-5)  # on one thread there, on several here


def test_scores_of_one_are_no_larger_than_one() -> None:
    """S of 10^8: log P is a difference of numbers whose last digit is 8, so rounding alone may lift it far above 0."""
    from lumiglue.matcher.assignment import assign

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, 4, generator=generator) * 1e4
    pairs, scores = assign(features, features, torch.full((20,), 9.0), torch.full((20,), 9.0), 0.1)
    assert len(pairs) > 5
    assert float(scores.max()) <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_points_of_any_precision_come_back_as_arrays(dtype: torch.dtype, unchecked: None) -> None:
    a = make_features(6, 1, dim=DIM)
    a = replace(a, keypoints=a.keypoints.to(dtype).requires_grad_(), descriptors=a.descriptors.to(dtype))
    (matches,) = match("full", [(a, a)])
    result = MatchResult(a, a, matches)
    assert len(result) == 6
    assert np.array_equal(result.points0, result.points1)
    assert result.points0.dtype == (np.float64 if dtype == torch.float64 else np.float32)
