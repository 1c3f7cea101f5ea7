"""The exported graph against the matcher itself: the same matches, stop layers and pruning, whatever runs it."""

import copy
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

from helpers import make_features, make_model
from lumiglue import Features, InputError, LightGlue, Matches, Pipeline, Sift
from lumiglue.cli import main
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.models import build, superglue_preset, weights_sha256
from lumiglue.matcher.settings import MatchSettings
from lumiglue.onnx import runtime as runtime_module
from lumiglue.onnx.export import OnnxSettings, export_onnx, read_onnx_metadata
from lumiglue.onnx.runtime import OnnxMatcher, Runtime
from lumiglue.samples import sample_pair
from lumiglue.system.extras import require
from lumiglue.weights.files import load_weights, pretrained_path

FULL = MatchSettings(exit_ratio=0, prune_below=0)
EAGER = MatchSettings(exit_ratio=0.6, prune_below=0.4)
RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


def by_torch(model: LightGlue, pair: tuple[Features, Features], settings: MatchSettings) -> Matches:
    return model.match(pack([pair], model.config), settings)[0]


def assert_same(mine: Matches, theirs: Matches) -> None:
    assert mine.pairs.tolist() == theirs.pairs.tolist()
    torch.testing.assert_close(mine.scores, theirs.scores, atol=1e-4, rtol=0)
    assert mine.stop_layer == theirs.stop_layer
    assert torch.equal(mine.layers0, theirs.layers0)
    assert torch.equal(mine.layers1, theirs.layers1)


@pytest.fixture(scope="module")
def photos() -> list[tuple[Features, Features]]:
    """SIFT on the real sample pair, whole and in unequal parts."""
    sample = sample_pair()
    a, b = (Sift(max_keypoints=400)(image) for image in (sample.image0, sample.image1))
    return [(a, b), (b, a), (a[:300], b[100:150]), (a[:7], b)]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("settings", [MatchSettings(), FULL, EAGER, MatchSettings(score_threshold=0.0, prune_below=0)])
def test_random_matchers_adapt_alike(
    pairs: list[tuple[Features, Features]], runtime: Runtime, settings: MatchSettings
) -> None:
    model = make_model()
    actual = OnnxMatcher(model, runtime).match_features(pairs, settings)
    expected = [by_torch(model, pair, settings) for pair in pairs]
    for mine, theirs in zip(actual, expected, strict=True):
        assert_same(mine, theirs)
    if settings == EAGER:
        assert len({matches.stop_layer for matches in expected}) > 2  # pairs stop at several layers
        assert any(m.layers0.unique().numel() > 1 for m in expected)  # and points leave before


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("encoding", ["xy", "xy-scale-orientation", "xy-logscale-angle"])
def test_every_encoding(runtime: Runtime, encoding: str) -> None:
    model = make_model(encoding=encoding, ablation=None)
    a = make_features(90, 0)
    pair = (a, make_features(70, 1, like=a))
    assert_same(OnnxMatcher(model, runtime).match_features([pair])[0], by_torch(model, pair, MatchSettings()))


def test_ablations_that_are_layers() -> None:
    a = make_features(60, 0)
    pair = (a, make_features(50, 1, like=a))
    for ablation in ("no-matchability", "full-cross-attention"):
        model = make_model(ablation=ablation)
        assert_same(OnnxMatcher(model).match_features([pair])[0], by_torch(model, pair, MatchSettings()))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_default_weights_on_real_photos(photos: list[tuple[Features, Features]], runtime: Runtime) -> None:
    model = load_weights(pretrained_path("sift-compact"))
    assert isinstance(model, LightGlue)
    for settings in (MatchSettings(), FULL, MatchSettings(exit_ratio=0.9, prune_below=0.1)):
        actual = OnnxMatcher(model, runtime).match_features(photos, settings)
        for mine, pair in zip(actual, photos, strict=True):
            assert_same(mine, by_torch(model, pair, settings))
    assert len(actual[0]) > 100


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.995), ("int8", 0.95)])
def test_low_precision(photos: list[tuple[Features, Features]], tmp_path: Path, precision: str, least: float) -> None:
    model = load_weights(pretrained_path("sift-compact"))
    assert isinstance(model, LightGlue)
    file = tmp_path / "low.onnx"
    export_onnx(model, tmp_path / "full.onnx")
    export_onnx(model, file, OnnxSettings(precision=precision))  # pyright: ignore[reportArgumentType]
    assert file.stat().st_size < 0.6 * (tmp_path / "full.onnx").stat().st_size
    mine, theirs = OnnxMatcher(file).match_features(photos[:1])[0], by_torch(model, photos[0], MatchSettings())
    one, other = (set(map(tuple, matches.pairs.tolist())) for matches in (mine, theirs))
    assert len(one & other) >= least * len(one | other)


@pytest.fixture(scope="module")
def batch_of_random(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a matcher in the batch layout."""

    def write(model: LightGlue, settings: MatchSettings) -> Path:
        file = tmp_path_factory.mktemp("batch") / "m.onnx"
        export_onnx(model, file, OnnxSettings(layout="batch", match=settings))
        return file

    return write


@pytest.mark.parametrize("settings", [MatchSettings(), FULL, EAGER, MatchSettings(score_threshold=0.0, prune_below=0)])
def test_a_batch_equals_its_pairs(
    pairs: list[tuple[Features, Features]], settings: MatchSettings, batch_of_random: Callable[..., Path]
) -> None:
    """Unequal and zero counts, exit and pruning at mixed layers: each pair has the result that it has alone."""
    model = make_model()
    matcher = OnnxMatcher(batch_of_random(model, settings))
    some = [*pairs, (pairs[0][0][:0], pairs[0][1]), (pairs[0][0], pairs[0][1][:0]), (pairs[0][0][:1], pairs[0][1][:3])]
    for batch in (some, some[-3:-2]):  # also a batch in which no image has a keypoint
        found = matcher.match_features(batch)
        for mine, pair in zip(found, batch, strict=True):
            assert_same(mine, by_torch(model, pair, settings))


def test_a_batch_of_real_photos(photos: list[tuple[Features, Features]], batch_of_random: Callable[..., Path]) -> None:
    model = load_weights(pretrained_path("sift-compact"))
    assert isinstance(model, LightGlue)
    a, b = photos[0]
    batch = [*photos, (a[:0], b), (a, b[:0])]
    for settings in (MatchSettings(), MatchSettings(exit_ratio=0.9, prune_below=0.1)):
        found = OnnxMatcher(batch_of_random(model, settings)).match_features(batch)
        for mine, pair in zip(found, batch, strict=True):
            assert_same(mine, by_torch(model, pair, settings))
    assert len(found[0]) > 100


def test_padding_may_hold_anything(batch_of_random: Callable[..., Path]) -> None:
    model = make_model(encoding="xy-logscale-angle")
    a, b = make_features(30, 0), make_features(20, 1, like=make_features(30, 0))
    session = onnxruntime.InferenceSession(str(batch_of_random(model, EAGER)))
    outputs = []
    for padding in (0.0, np.nan, 1e30):
        feed: dict[str, np.ndarray] = {}
        for side, features in enumerate((a, b)):
            for name in ("keypoints", "descriptors", "scales", "orientations"):
                array = getattr(features, name)[None].numpy()
                edges = [(0, 0), (0, 7), *[(0, 0)] * (array.ndim - 2)]
                feed[f"{name}{side}"] = np.pad(array, edges, constant_values=padding)
            feed[f"image_size{side}"] = np.array([features.image_size], np.float32)
            feed[f"counts{side}"] = np.array([len(features)])
        outputs.append(session.run(None, feed))
    expected = by_torch(model, (a, b), EAGER)
    for matches, scores, stop, layers0, layers1 in outputs:
        assert matches[:, 1:].tolist() == expected.pairs.tolist()
        np.testing.assert_allclose(scores, expected.scores.numpy(), atol=1e-4)
        assert stop.tolist() == [expected.stop_layer]
        assert layers0[0].tolist() == [*expected.layers0.tolist(), *[0] * 7]
        assert layers1[0].tolist() == [*expected.layers1.tolist(), *[0] * 7]


def test_batches_have_like_sizes_and_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_module, "BATCH_ENTRIES", 2 * 100**2)
    pairs = [(make_features(n, n), make_features(5, 0)) for n in (100, 10, 90, 50, 300, 20)]
    assert list(runtime_module._batches(pairs)) == [[1, 5, 3], [2, 0], [4]]


def test_a_batch_in_low_precision(photos: list[tuple[Features, Features]], tmp_path: Path) -> None:
    model = load_weights(pretrained_path("sift-compact"))
    assert isinstance(model, LightGlue)
    export_onnx(model, tmp_path / "half.onnx", OnnxSettings(layout="batch", precision="fp16"))
    export_onnx(model, tmp_path / "alone.onnx", OnnxSettings(precision="fp16"))
    found, alone = (OnnxMatcher(tmp_path / f"{name}.onnx").match_features(photos[1:3]) for name in ("half", "alone"))
    for mine, theirs in zip(found, alone, strict=True):
        one, other = (set(map(tuple, matches.pairs.tolist())) for matches in (mine, theirs))
        assert len(one & other) >= 0.97 * len(one | other)
    with pytest.raises(InputError, match="with which OpenVINO loses matches; choose onnxruntime"):
        OnnxMatcher(tmp_path / "half.onnx", "openvino")
    with pytest.raises(InputError, match="the layout 'batch' has no int8"):
        export_onnx(model, tmp_path / "m.onnx", OnnxSettings(layout="batch", precision="int8"))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_share_a_matcher(runtime: Runtime) -> None:
    model, images = make_model(), [make_features(20 + 10 * k, k) for k in range(9)]
    todo = list(pairwise(images))
    matcher = OnnxMatcher(model, runtime)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda pair: matcher.match_features([pair])[0], todo * 3))
    for mine, pair in zip(results, todo * 3, strict=True):
        assert_same(mine, by_torch(model, pair, MatchSettings()))


def test_opencv_matches_with_the_file(tmp_path: Path) -> None:
    """OpenCV scales x and y each by its own half size; told a square image, it feeds what LightGlue wants."""
    model, file = load_weights(pretrained_path("aliked-n16rot-deep")), tmp_path / "opencv.onnx"
    assert isinstance(model, LightGlue)
    a = make_features(220, 0, dim=128)
    b = make_features(180, 1, dim=128, like=a)
    export_onnx(model, file, OnnxSettings(layout="opencv"))
    matcher = cv2.LightGlueMatcher.create(str(file), 0.0)
    square = (max(a.image_size),) * 2
    matcher.setPairInfo(a.keypoints.numpy(), b.keypoints.numpy(), square, square)
    scores = {(m.queryIdx, m.trainIdx): 1 - m.distance for m in matcher.match(a.descriptors.numpy(), b.descriptors.numpy())}
    expected = by_torch(model, (a, b), FULL)
    assert list(scores) == list(map(tuple, expected.pairs.tolist()))
    np.testing.assert_allclose(list(scores.values()), expected.scores.numpy(), atol=1e-4)
    assert len(scores) > 50


@pytest.mark.parametrize(("name", "dim"), [("aliked-n16rot-deep", 128), ("sift-deep", 128)])
def test_colmaps_layout(tmp_path: Path, name: str, dim: int) -> None:
    """Names, ranks and types as COLMAP 4 checks them when it loads a LightGlue file, and what it reads from the outputs."""
    model, file = load_weights(pretrained_path(name)), tmp_path / "colmap.onnx"
    assert isinstance(model, LightGlue)
    export_onnx(model, file, OnnxSettings(layout="colmap"))
    session = onnxruntime.InferenceSession(str(file))
    inputs = ["kpts0", "kpts1", "desc0", "desc1", "image_size0", "image_size1"]
    inputs += ["scales0", "scales1", "oris0", "oris1"] if name == "sift-deep" else []
    assert [i.name for i in session.get_inputs()] == inputs
    ranks = [3, 3, 3, 3, 2, 2, 2, 2, 2, 2]
    for value, rank in zip(session.get_inputs(), ranks, strict=False):
        assert value.type == "tensor(float)"
        assert len(value.shape) == rank
        assert all(isinstance(size, str) for size in value.shape)  # COLMAP wants -1 for every size
    outputs = [(o.name, o.type, len(o.shape)) for o in session.get_outputs()]
    assert outputs == [("matches0", "tensor(int64)", 1), ("mscores0", "tensor(float)", 1)]
    a = make_features(120, 0, dim=dim)
    b = make_features(90, 1, dim=dim, like=a)
    feed = {}
    for side, features in enumerate((a, b)):
        feed[f"kpts{side}"], feed[f"desc{side}"] = features.keypoints[None].numpy(), features.descriptors[None].numpy()
        feed[f"image_size{side}"] = np.array([features.image_size], np.float32)
        if name == "sift-deep" and features.scales is not None and features.orientations is not None:
            feed[f"scales{side}"], feed[f"oris{side}"] = features.scales[None].numpy(), features.orientations[None].numpy()
    matches, scores = map(np.asarray, session.run(None, feed))
    expected = by_torch(model, (a, b), MatchSettings())
    np.testing.assert_array_equal(matches, expected.matches0(120).numpy())
    np.testing.assert_allclose(scores, expected.scores0(120).numpy(), atol=1e-4)


def test_positions_are_normalised_as_in_the_matcher() -> None:
    """Another image size is another position, in the graph as in the matcher."""
    model = make_model(seed=3)
    a = make_features(60, 5)
    b = make_features(60, 6, like=a)
    wide = replace(b, image_size=(1280, 960))
    scores = []
    for other in (b, wide):
        mine = OnnxMatcher(model).match_features([(a, other)], FULL)[0]
        assert_same(mine, by_torch(model, (a, other), FULL))
        scores.append(mine.scores0(60))
    assert (scores[0] - scores[1]).abs().max() > 0.01


def test_the_file_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = make_model(), tmp_path / "folder" / "m.onnx"
    settings = MatchSettings(score_threshold=0.3, exit_ratio=0.9, prune_below=0)
    export_onnx(model, file, OnnxSettings(match=settings))
    metadata = read_onnx_metadata(file)
    assert main(["weights", "show", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == metadata
    assert metadata["config"]["n_layers"] == 5
    assert MatchSettings(**metadata["match"]) == settings
    assert "top-left pixel at (0, 0)" in metadata["pixels"]
    matcher = OnnxMatcher(file)
    assert matcher.config == model.config
    pair = (make_features(30, 0), make_features(30, 1))
    assert_same(matcher.match_features([pair])[0], by_torch(model, pair, settings))
    assert_same(matcher.match_features([pair], MatchSettings())[0], by_torch(model, pair, settings))  # the file's own
    with pytest.raises(InputError, match="was exported with"):
        matcher.match_features([pair], MatchSettings(exit_ratio=0.95))
    with pytest.raises(InputError, match="this matcher takes 32"):
        matcher.match_features([(make_features(5, 0, dim=64), pair[1])])


def test_what_cannot_be_exported_is_refused(tmp_path: Path, unchecked: None) -> None:
    model = make_model()
    with pytest.raises(InputError, match="only LightGlue is exported, not superglue"):
        export_onnx(build(superglue_preset("compact", "sift", 128)), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"does not end in \.onnx; rename it"):
        export_onnx(model, tmp_path / "m.bin")
    with pytest.raises(InputError, match=r"cv2\.LightGlueMatcher passes positions only"):
        export_onnx(make_model(encoding="xy-logscale-angle"), tmp_path / "m.onnx", OnnxSettings(layout="opencv"))
    with pytest.raises(InputError, match="absolute positions"):
        export_onnx(make_model(ablation="absolute-positions"), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="absolute positions"):
        OnnxMatcher(make_model(ablation="absolute-positions")).match_features([(make_features(5, 0), make_features(5, 1))])
    with pytest.raises(InputError, match="unknown layout 'tensorrt'"):
        OnnxSettings(layout="tensorrt")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="unknown precision 'int4'"):
        OnnxSettings(precision="int4")  # pyright: ignore[reportArgumentType]
    export_onnx(model, tmp_path / "colmap.onnx", OnnxSettings(layout="colmap"))
    with pytest.raises(InputError, match="has the layout 'colmap'"):
        OnnxMatcher(tmp_path / "colmap.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"\x08\x01noise")
    with pytest.raises(InputError, match="was not written by"):
        read_onnx_metadata(tmp_path / "noise.onnx")
    with pytest.raises(InputError, match="does not exist"):
        OnnxMatcher(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="ONNX Runtime has no bf16"):
        OnnxMatcher(model, precision="bf16").match_features([(make_features(5, 0), make_features(5, 1))])
    with pytest.raises(InputError, match="needs the package not_there; pip install not_there"):
        require("onnx_ir", "not_there")


def test_the_command_line_exports_and_matches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = sample_pair()
    for name, image in (("a.png", sample.image0), ("b.png", sample.image1)):
        assert cv2.imwrite(str(tmp_path / name), image[..., ::-1])
    file, photos = tmp_path / "sift.onnx", [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert main(["export", "onnx", "-o", str(file), "--exit-ratio", "0.9"]) == 0
    printed = capsys.readouterr().out.replace("\n", " ")
    assert f"sift-deep, layout lumiglue, fp32, {file.stat().st_size / 1e6:.1f} MB" in printed
    results = {}
    for name, more in {
        "torch": ["--exit-ratio", "0.9"],
        "file": ["--weights", str(file)],
        "openvino": ["--backend", "openvino", "--exit-ratio", "0.9"],
    }.items():
        out = tmp_path / f"{name}.npz"
        assert main(["match", *photos, "--precision", "fp32", "--max-keypoints", "300", "--out", str(out), *more]) == 0
        results[name] = np.load(out)["matches"]
    assert len(results["torch"]) > 80
    np.testing.assert_array_equal(results["file"], results["torch"])
    np.testing.assert_array_equal(results["openvino"], results["torch"])
    assert main(["match", *photos, "--weights", str(file), "--backend", "torch"]) == 2
    assert "runs on onnxruntime or openvino" in capsys.readouterr().err.replace("\n", " ")


def test_the_pipeline_takes_a_files_settings(tmp_path: Path, unchecked: None) -> None:
    file, settings = tmp_path / "m.onnx", MatchSettings(exit_ratio=0.8)
    model = load_weights(pretrained_path("sift-compact"))
    export_onnx(model, file, OnnxSettings(match=settings))
    pipeline = Pipeline.pretrained("sift", weights=file)
    assert pipeline.settings == settings.completed(model.own_settings)
    with pytest.raises(InputError, match="unknown backend 'tvm'"):
        Pipeline.pretrained("sift", backend="tvm")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_lone_keypoint_first_changes_no_later_pair(runtime: Runtime, photos: list[tuple[Features, Features]]) -> None:
    """OpenVINO computes wrongly from then on where the first image of all has one keypoint."""
    model = load_weights(pretrained_path("sift-compact"))
    assert isinstance(model, LightGlue)
    a, b = photos[0]
    actual = OnnxMatcher(model, runtime).match_features([(a[:1], b), (a, b)], FULL)
    for mine, pair in zip(actual, [(a[:1], b), (a, b)], strict=True):
        assert_same(mine, by_torch(model, pair, FULL))


def test_a_matcher_travels_to_other_processes(photos: list[tuple[Features, Features]]) -> None:
    model = load_weights(pretrained_path("sift-compact"))
    assert isinstance(model, LightGlue)
    matcher = OnnxMatcher(model, "onnxruntime")
    before = matcher.match_features(photos[:1], MatchSettings())[0]
    for other in (pickle.loads(pickle.dumps(matcher)), copy.deepcopy(matcher)):
        assert_same(other.match_features(photos[:1], MatchSettings())[0], before)


def test_pipelines_in_bf16_export_exact_weights(tmp_path: Path) -> None:
    model, matcher = make_model(extractor="sift", descriptor_dim=128), make_model(extractor="sift", descriptor_dim=128)
    pipeline = Pipeline(Sift(), matcher, precision="bf16")
    assert pipeline.matcher is matcher
    export_onnx(model, tmp_path / "exact.onnx")
    export_onnx(matcher, tmp_path / "of_bf16.onnx")
    assert (tmp_path / "exact.onnx").read_bytes() == (tmp_path / "of_bf16.onnx").read_bytes()
    assert pipeline.fingerprint() == weights_sha256(model)
