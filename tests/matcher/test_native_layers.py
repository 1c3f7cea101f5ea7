"""The kernels for float32 against the layers by PyTorch, on the same inputs."""

import copy
import math
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from helpers import make_features, make_model
from lumiglue import InputError, LightGlue, MatchSettings
from lumiglue.matcher.execution import execution_layers, folded_layers
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.ops import native
from lumiglue.matcher.ops.native.layers import NativeLayer
from lumiglue.matcher.packed import Lengths, rows_of_pairs

pytestmark = [pytest.mark.numeric, pytest.mark.portable]

needs_kernels = pytest.mark.skipif(isinstance(native.library(), str), reason=f"no kernels here: {native.library()}")
LENGTHS = [
    ((5, 9),), ((4, 4), (4, 4)), ((0, 3), (6, 0), (0, 0), (7, 2)), ((1, 1),), ((300, 280), (7, 30)), ((530, 97), (16, 48)),
]  # fmt: skip
SHAPES = [(32, 2), (96, 1), (128, 4), (64, 1), (40, 2)]  # channels of a head: 16, 96, 32, 64, 20


def setup(d: int, heads: int, lengths: Lengths, gain: float = 1.0) -> tuple[LightGlue, Tensor, tuple[Tensor, Tensor]]:
    """A matcher of two layers whose logits `gain` stretches, states and rotations."""
    model = make_model(d=d, heads=heads, n_layers=2)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attention.qkv.weight[: 2 * d] *= gain
            layer.cross_attention.qk.weight *= gain
    tokens = sum(map(sum, lengths))
    generator = torch.Generator().manual_seed(1)
    x, positions = torch.randn(tokens, d, generator=generator), torch.rand(tokens, 2, generator=generator)
    with torch.no_grad():
        return model, x, model.position_encoding(positions)


def native_of(model: LightGlue) -> list[NativeLayer]:
    layers = execution_layers(model, "fp32")
    assert isinstance(layers, list)
    return layers


@needs_kernels
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("d", "heads"), SHAPES)
def test_a_layer_is_the_layer_by_pytorch(d: int, heads: int, lengths: Lengths) -> None:
    model, x, rotation = setup(d, heads, lengths)
    exact = folded_layers(model.double(), "fp32")[0](x.double(), (rotation[0].double(), rotation[1].double()), lengths)
    rounded = folded_layers(model.float(), "fp32")[0](x, rotation, lengths)
    found = native_of(model)[0](x, rotation, lengths)
    error = float((rounded - exact).abs().max())
    assert_close(found.double(), exact, rtol=0, atol=2 * error + 2e-6)


@needs_kernels
@pytest.mark.parametrize("gain", [4.0, 12.0, 40.0])
def test_logits_that_no_single_offset_serves(gain: float) -> None:
    """Of hundreds: each direction then has the maxima of its rows."""
    lengths = ((530, 300),)
    model, x, rotation = setup(64, 2, lengths, gain)
    exact = folded_layers(model.double(), "fp32")[0](x.double(), (rotation[0].double(), rotation[1].double()), lengths)
    rounded = folded_layers(model.float(), "fp32")[0](x, rotation, lengths)
    found = native_of(model)[0](x, rotation, lengths)
    error = float((rounded - exact).abs().max())
    assert_close(found.double(), exact, rtol=0, atol=4 * error + 1e-5)


@needs_kernels
def test_powers_of_two_and_gelu_by_a_layer_that_does_little_else() -> None:
    """One point attends to itself alone: what remains is the feed-forward part, at arguments from -30 to 30."""
    model, _, rotation = setup(64, 2, ((1, 1),))
    layer: Any = folded_layers(model, "fp32")[0]
    own: Any = model.layers[0]
    for scale in (1e-3, 1.0, 30.0):
        for unit in (layer.self_attention, layer.cross_attention):
            nn.init.constant_(unit.ffn[1].weight, scale)
        with torch.no_grad():
            own.self_attention.ffn[1].weight.fill_(scale)
            own.cross_attention.ffn[1].weight.fill_(scale)
        x = torch.randn(2, 64)
        exact = copy.deepcopy(layer).double()(x.double(), (rotation[0].double(), rotation[1].double()), ((1, 1),))
        found = native_of(model)[0](x, rotation, ((1, 1),))
        assert_close(found.double(), exact, rtol=2e-6, atol=2e-5 * max(scale, 1.0))


@needs_kernels
def test_a_pair_is_the_same_to_the_bit_in_any_batch_and_on_any_threads() -> None:
    lengths = ((300, 280), (0, 4), (7, 530), (1, 1))
    model, x, rotation = setup(64, 2, lengths, 6.0)
    layer = native_of(model)[0]
    together = layer(x, rotation, lengths)
    for pair in range(len(lengths)):
        rows = rows_of_pairs(lengths, [pair], x.device)
        own = rotation[0][rows], rotation[1][rows]
        assert torch.equal(layer(x[rows], own, [lengths[pair]]), together[rows])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(layer(x, rotation, lengths), together)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: layer(x, rotation, lengths), range(16)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found, together) for found in results)


@needs_kernels
def test_what_is_not_finite_stays_in_its_pair() -> None:
    lengths = ((60, 50), (40, 30))
    model, x, rotation = setup(64, 2, lengths)
    layer = native_of(model)[0]
    expected = layer(x, rotation, lengths)
    for value in (math.nan, math.inf):
        spoilt = x.clone()
        spoilt[3] = value
        found = layer(spoilt, rotation, lengths)
        assert torch.equal(found[110:], expected[110:])
        assert bool(found[3].isnan().all())


@needs_kernels
@pytest.mark.parametrize("settings", [MatchSettings(), MatchSettings(exit_ratio=0, prune_below=0)])
def test_matches_are_those_of_pytorch(settings: MatchSettings) -> None:
    model = make_model()
    a = make_features(400, 0)
    pairs = pack([(a, make_features(350, 1, like=a)), (make_features(90, 2), a)], model.config)
    mine = model.match(pairs, settings, layers=execution_layers(model, "fp32"))
    for found, expected in zip(mine, model.match(pairs, settings, layers=folded_layers(model, "fp32")), strict=True):
        assert torch.equal(found.pairs, expected.pairs)
        assert_close(found.scores, expected.scores, rtol=0, atol=5e-5)
        assert found.stop_layer == expected.stop_layer
        assert torch.equal(found.layers0, expected.layers0)


@needs_kernels
def test_layers_are_copied_and_pickled() -> None:
    model, x, rotation = setup(32, 2, ((20, 30),))
    layers = native_of(model)
    for other in (copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):
        assert torch.equal(other[1](x, rotation, ((20, 30),)), layers[1](x, rotation, ((20, 30),)))


@pytest.mark.parametrize("config", [{"ablation": "full-cross-attention"}, {"d": 36, "heads": 2}])
def test_what_the_kernels_do_not_serve_is_left_to_pytorch(config: dict) -> None:
    assert isinstance(execution_layers(make_model(**config), "fp32"), nn.ModuleList)
    assert isinstance(execution_layers(make_model().double(), "fp32"), nn.ModuleList)


def test_a_forked_process_has_threads_of_its_own() -> None:
    """The parent's are not there any more, and nobody waits for them."""
    code = """
import os, torch
from helpers import make_features, make_model
from lumiglue.matcher.inputs import pack
torch.set_num_threads(2)
model = make_model(n_layers=2)
pairs = pack([(make_features(200, 0), make_features(200, 1))], model.config)
before = model.match(pairs)[0].scores
child = os.fork()
if not child:
    torch.set_num_threads(1)
    layers = list(__import__("lumiglue").matcher.execution.current_layers(model))
    x, rotation = model.begin(pairs)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=True, timeout=60)


# -- which one is taken -----------------------------------------------------------------------------------------------


def fresh() -> tuple[str, object] | str:
    native.library.cache_clear()
    try:
        return native.library()
    finally:
        native.library.cache_clear()


def test_the_switch_and_the_reasons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    assert fresh() == "LUMIGLUE_KERNEL is 0"
    monkeypatch.setenv(native.SWITCH, "sse9")
    with pytest.raises(InputError, match="LUMIGLUE_KERNEL is 'sse9', but the processor has no sse9; leave it out"):
        fresh()
    monkeypatch.delenv(native.SWITCH)
    monkeypatch.setattr(native, "instruction_sets", list)
    assert fresh() == "the processor has no AVX2"
    monkeypatch.setattr(native, "instruction_sets", lambda: ["avx2"])
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    assert fresh() == "this installation was built without a C++ compiler"
    (tmp_path / "avx2.so").write_bytes(b"damaged")
    assert str(fresh()).startswith("avx2.so cannot be loaded")


@needs_kernels
def test_a_kernel_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in native.instruction_sets():
        monkeypatch.setenv(native.SWITCH, name)
        if native.file_of(name).exists():
            found = fresh()
            assert not isinstance(found, str)
            assert found[0] == name
