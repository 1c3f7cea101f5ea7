"""Replayed layers give the results of layers that run. Without a GPU a substitute replays them: like a graph it has the
shapes of the recording and computes from the present content of its inputs' memory into one output."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers import make_features, make_model
from lumiglue import Features, InputError, LightGlue, MatchSettings, Pipeline
from lumiglue.backends.cuda_graphs import Recorded, ReplayedLayers, padded_length, replayed_layers
from lumiglue.matcher.execution import Layers, execution_layers
from lumiglue.matcher.inputs import pack
from lumiglue.types import Matches

pytestmark = pytest.mark.numeric

SETTINGS = [
    MatchSettings(exit_ratio=0, prune_below=0),
    MatchSettings(),
    MatchSettings(exit_ratio=0.6, prune_below=0.3),
]


class Recorder:
    """Counts what is recorded, and what is replayed."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, run: Callable[[], Tensor]) -> Recorded:
        self.recorded += 1
        output = run()

        def replay() -> None:
            self.replayed += 1
            output.copy_(run())

        return replay, output


def related(n: int, m: int, seed: int) -> tuple[Features, Features]:
    a = make_features(n, seed)
    return a, make_features(m, seed + 1, like=a)


def match(
    model: LightGlue, pair: tuple[Features, Features], settings: MatchSettings, layers: Layers | None = None
) -> Matches:
    """With the model's own layers by default: those that its copies for the CPU replace round otherwise."""
    return model.match(pack([pair], model.config), settings, layers=model.layers if layers is None else layers)[0]


def same(a: Matches, b: Matches) -> bool:
    layers = all(torch.equal(x, y) for x, y in ((a.layers0, b.layers0), (a.layers1, b.layers1)))
    return (
        torch.equal(a.pairs, b.pairs)
        and a.stop_layer == b.stop_layer
        and layers
        and torch.allclose(a.scores, b.scores, atol=5e-5)
    )


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("ablation", [None, "full-cross-attention"])
def test_replayed_layers_match_as_layers_do(settings: MatchSettings, ablation: str | None) -> None:
    """Small pairs after large ones, so that leftovers in memory would show; early exit and pruning in between."""
    recorder = Recorder()
    model = make_model(2, ablation=ablation)
    layers = ReplayedLayers(model.layers, recorder)
    stops = set()
    for n, m, seed in ((128, 120, 0), (100, 17, 4), (1, 90, 8), (300, 129, 12), (2, 2, 16), (100, 17, 20)):
        pair = related(n, m, seed)
        expected = match(model, pair, settings)
        stops.add(expected.stop_layer)
        assert same(match(model, pair, settings, layers), expected)
    assert recorder.replayed > recorder.recorded > 0
    assert recorder.recorded <= 3 * 5  # layers of images of up to 128, 256 and 384 points
    if settings.exit_ratio == 0.6:
        assert len(stops) > 1


def test_pairs_that_a_graph_cannot_hold_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    model = make_model(2)
    layers = ReplayedLayers(model.layers, recorder)
    pairs = [related(30, 40, 0), related(20, 10, 2)]
    matches = model.match(pack(pairs, model.config), layers=layers)
    assert all(same(a, b) for a, b in zip(matches, model.match(pack(pairs, model.config)), strict=True))
    assert len(match(model, (make_features(0, 1), make_features(9, 2)), MatchSettings(), layers)) == 0
    assert [padded_length(n) for n in (1, 128, 129, 513, 2048, 2049, 4096, 4097)] == [
        128, 128, 256, 768, 2048, 2560, 4096, None,
    ]  # fmt: skip
    recorded = recorder.recorded
    with monkeypatch.context() as patch:
        patch.setattr("lumiglue.backends.cuda_graphs.STEPS", ((8, 8),))  # so the images are too large
        assert same(match(model, pairs[0], MatchSettings(), layers), match(model, pairs[0], MatchSettings()))
    assert recorder.recorded == recorded
    assert same(match(model, pairs[0], MatchSettings(), copy.deepcopy(layers)), match(model, pairs[0], MatchSettings()))
    assert recorder.recorded > recorded  # the copy's own


def test_what_inference_mode_filled_can_be_filled_outside_of_it() -> None:
    model = make_model(2)
    layers = ReplayedLayers(model.layers, Recorder())
    with torch.inference_mode():
        match(model, related(30, 40, 0), MatchSettings(), layers)
    pair = related(20, 35, 2)
    assert same(match(model, pair, MatchSettings(), layers), match(model, pair, MatchSettings()))


def test_where_nothing_can_be_recorded_layers_run_without(caplog: pytest.LogCaptureFixture) -> None:
    attempts = []

    def broken(run: Callable[[], Tensor]) -> Recorded:
        attempts.append(run)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    model = make_model(2)
    layers = ReplayedLayers(model.layers, broken)
    pair = related(30, 40, 0)
    assert same(match(model, pair, MatchSettings(), layers), match(model, pair, MatchSettings()))
    assert len(attempts) == 1
    assert "cannot be recorded as CUDA graphs (operation not permitted when stream is capturing), so" in caplog.text


def test_graphs_need_a_gpu_and_lightglue() -> None:
    with pytest.raises(InputError, match="CUDA graphs need a GPU"):
        Pipeline.pretrained(backend="cudagraphs", device="cpu")
    with pytest.raises(InputError, match="only LightGlue runs as CUDA graphs"):
        replayed_layers(torch.nn.Linear(2, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", SETTINGS)
def test_cuda_graphs_match_as_the_gpu_does_without(settings: MatchSettings, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(2).cuda()
    layers = replayed_layers(model)
    for n, m, seed in ((128, 120, 0), (100, 17, 4), (300, 129, 12), (100, 17, 4)):
        a, b = related(n, m, seed)
        pair = a.to("cuda"), b.to("cuda")
        expected, replayed = (match(model, pair, settings, each) for each in (None, layers))
        assert torch.equal(replayed.pairs, expected.pairs)
        assert replayed.stop_layer == expected.stop_layer
        assert torch.allclose(replayed.scores, expected.scores, atol=1e-3)
    assert "cannot be recorded" not in caplog.text


def test_layers_that_were_changed_are_recorded_again() -> None:
    """A graph reads weights from where they were when it was recorded."""
    recorder = Recorder()
    model, pair, settings = make_model(2), related(100, 90, 3), MatchSettings()
    layers = ReplayedLayers(model.layers, recorder)
    assert same(match(model, pair, settings, layers), match(model, pair, settings))
    before = recorder.recorded
    model.load_state_dict(make_model(5).state_dict(), assign=True)
    assert same(match(model, pair, settings, layers), match(model, pair, settings))
    assert recorder.recorded > before


def test_layers_in_bf16_are_recorded_too() -> None:
    recorder = Recorder()
    model, pair, settings = make_model(2), related(100, 90, 3), MatchSettings()
    layers = execution_layers(model, "bf16")
    replayed, expected = (match(model, pair, settings, each) for each in (ReplayedLayers(layers, recorder), layers))
    common = set(map(tuple, replayed.pairs.tolist())) & set(map(tuple, expected.pairs.tolist()))
    assert len(common) >= 0.9 * len(expected) > 5
    assert recorder.replayed > 0


def test_pickled_layers_have_no_graphs() -> None:
    model = make_model(2)
    other, layers = pickle.loads(pickle.dumps((model, ReplayedLayers(model.layers, Recorder()))))
    assert layers is other.layers
    pair = related(60, 50, 1)
    assert same(match(other, pair, MatchSettings(), layers), match(model, pair, MatchSettings()))
