"""The matcher's laws: what a batch, an order, a swap or a switch must never change."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from helpers import make_features, make_model
from lumiglue import Features, InputError, LightGlue, LightGlueConfig, Matches, MatchSettings
from lumiglue.matcher.assignment import log_assignment
from lumiglue.matcher.execution import current_layers, execution_layers
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import AbsoluteEncoding, RotaryEncoding, rotate
from lumiglue.matcher.packed import PackedPairs
from lumiglue.matcher.settings import Encoding

pytestmark = [pytest.mark.numeric, pytest.mark.portable]

OFF = MatchSettings(exit_ratio=0, prune_below=0)
LOOSE = MatchSettings(exit_ratio=0.6, prune_below=0.3, score_threshold=0.0)
Pairs = list[tuple[Features, Features]]


def match(model: LightGlue, pairs: Pairs, settings: MatchSettings) -> list[Matches]:
    return model.match(pack(pairs, model.config), settings)


def same(a: Matches, b: Matches) -> None:
    assert torch.equal(a.pairs, b.pairs)
    assert a.stop_layer == b.stop_layer
    assert torch.equal(a.layers0, b.layers0)
    assert torch.equal(a.layers1, b.layers1)
    assert_close(a.scores, b.scores, rtol=0, atol=5e-5)


@pytest.mark.parametrize("settings", [OFF, LOOSE], ids=["full", "adaptive"])
@pytest.mark.parametrize("encoding", ["xy", "xy-scale-orientation", "xy-logscale-angle"])
def test_packed_equals_one_by_one(pairs: Pairs, settings: MatchSettings, encoding: str) -> None:
    model = make_model(encoding=encoding)
    packed = match(model, pairs, settings)
    for together, pair in zip(packed, pairs, strict=True):
        same(together, match(model, [pair], settings)[0])


def test_the_adaptive_fixture_really_adapts(pairs: Pairs) -> None:
    """Without this the laws of adaptivity would hold vacuously."""
    results = match(make_model(), pairs, LOOSE)
    stops = {result.stop_layer for result, (a, b) in zip(results, pairs, strict=True) if len(a) and len(b)}
    assert len(stops) >= 2
    assert any(bool((result.layers0 < result.stop_layer).any()) for result in results)
    assert sum(len(result) for result in results) > 20


def test_packed_is_bit_for_bit_the_single_call_in_float64(pairs: Pairs) -> None:
    """In float64 no rounding can hide a leak between pairs: differences would be large, not small."""
    model = make_model().double()
    packed = match(model, pairs, LOOSE)
    for together, pair in zip(packed, pairs, strict=True):
        alone = match(model, [pair], LOOSE)[0]
        same(together, alone)
        assert_close(together.scores, alone.scores, rtol=0, atol=1e-7)  # the assignment is taken in float32


def test_equal_sizes_take_the_dense_path_and_agree(pairs: Pairs) -> None:
    model = make_model()
    equal = [(make_features(40, s), make_features(40, s + 100)) for s in range(4)]
    for together, pair in zip(match(model, equal, LOOSE), equal, strict=True):
        same(together, match(model, [pair], LOOSE)[0])


def test_adding_a_pair_changes_no_other(pairs: Pairs) -> None:
    model = make_model()
    before = match(model, pairs, LOOSE)
    extra = (make_features(120, 77), make_features(11, 78))
    after = match(model, [*pairs[:2], extra, *pairs[2:]], LOOSE)
    for a, b in zip(before, [*after[:2], *after[3:]], strict=True):
        same(a, b)


@pytest.mark.parametrize("settings", [OFF, LOOSE], ids=["full", "adaptive"])
def test_swapping_the_images_flips_the_pairs(pairs: Pairs, settings: MatchSettings) -> None:
    model = make_model()
    for pair, swapped in zip(match(model, pairs, settings), match(model, [(b, a) for a, b in pairs], settings), strict=True):
        order = swapped.pairs[:, 1].argsort()
        assert torch.equal(swapped.pairs[order].flip(1), pair.pairs)
        assert_close(swapped.scores[order], pair.scores, rtol=0, atol=5e-5)
        assert swapped.stop_layer == pair.stop_layer
        assert torch.equal(swapped.layers0, pair.layers1)


@pytest.mark.parametrize("settings", [OFF, LOOSE], ids=["full", "adaptive"])
def test_permuting_the_points_permutes_the_result(pairs: Pairs, settings: MatchSettings) -> None:
    model = make_model()
    a, b = pairs[0]
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(3))
    plain, permuted = match(model, [(a, b), (a[order], b)], settings)
    back = torch.stack([order[permuted.pairs[:, 0]], permuted.pairs[:, 1]], dim=1)
    rows = back[:, 0].argsort()
    assert torch.equal(back[rows], plain.pairs)
    assert_close(permuted.scores[rows], plain.scores, rtol=0, atol=5e-5)
    assert torch.equal(permuted.layers0, plain.layers0[order])


def test_adaptivity_off_equals_the_plain_forward(pairs: Pairs) -> None:
    """A twin that reads like the equations: the last state, its head, the dense log assignment, mutual maxima."""
    model = make_model()
    a, b = pairs[0]
    packed = pack([(a, b)], model.config)
    with torch.inference_mode():
        *_, x = model.states(packed)
        head = model.heads[-1]
        f0, f1 = head.features(x).split(packed.lengths[0])
        z0, z1 = head.matchability_logits(x).split(packed.lengths[0])
        p = log_assignment(f0 @ f1.T, z0, z1).exp()
    matches = [
        (i, j)
        for i in range(len(a))
        for j in range(len(b))
        if p[i, j] > 0.1 and p[i, j] == p[i].max() and p[i, j] == p[:, j].max()
    ]
    result = match(model, [(a, b)], OFF)[0]
    assert [tuple(row) for row in result.pairs.tolist()] == matches
    assert result.stop_layer == model.config.n_layers
    assert bool((result.layers0 == model.config.n_layers).all())


def test_attention_units_follow_the_equations() -> None:
    """One layer against loops over points: relative rotary self-attention, then bidirectional cross-attention."""
    model = make_model(n_layers=1).double()
    a, b = make_features(5, 1), make_features(4, 2)
    packed = pack([(a, b)], model.config)
    packed = PackedPairs(packed.descriptors.double(), packed.positions.double(), packed.lengths)
    with torch.no_grad():
        got = next(iter(model.states(packed)))
        want = _layer_by_loops(model, packed)
    assert_close(got, want, rtol=0, atol=1e-6)


def _layer_by_loops(model: LightGlue, packed: PackedPairs) -> torch.Tensor:
    layer, heads, c = model.layers[0], model.config.heads, model.config.d // model.config.heads
    x = model.input_projection(packed.descriptors)
    n = packed.lengths[0][0]
    segments = [range(n), range(n, len(x))]
    unit, encoding = layer.self_attention, model.position_encoding
    assert isinstance(encoding, RotaryEncoding)
    weight, bias = unit.qkv.weight.view(3, heads, c, -1), unit.qkv.bias.view(3, heads, c)
    messages = torch.zeros_like(x).view(-1, heads, c)
    for segment in segments:
        for i in segment:
            for h in range(heads):
                scores = []
                for j in segment:
                    q, k = weight[0, h] @ x[i] + bias[0, h], weight[1, h] @ x[j] + bias[1, h]
                    offset = packed.positions[j] - packed.positions[i]
                    angles = encoding.frequencies @ offset
                    turned = rotate(k.view(1, 1, c), angles.cos()[None], angles.sin()[None]).view(c)
                    scores.append(q @ turned / math.sqrt(c))  # q_i^T R(p_j - p_i) k_j, Equation 3
                shares = torch.stack(scores).softmax(0)
                values = torch.stack([weight[2, h] @ x[j] + bias[2, h] for j in segment])
                messages[i, h] = shares @ values
    x = x + unit.ffn(torch.cat([x, unit.out(messages.flatten(1))], dim=1))
    unit = layer.cross_attention
    keys, values = unit.qk(x).view(-1, heads, c), unit.v(x).view(-1, heads, c)
    messages = torch.zeros_like(values)
    for segment, other in (segments, segments[::-1]):
        for i in segment:
            for h in range(heads):
                scores = torch.stack([keys[i, h] @ keys[j, h] / math.sqrt(c) for j in other])  # Equation 5
                messages[i, h] = scores.softmax(0) @ values[list(other), h]
    return x + unit.ffn(torch.cat([x, unit.out(messages.flatten(1))], dim=1))


def test_moving_all_points_of_an_image_changes_nothing() -> None:
    """Positions enter by differences alone (Section 3.1)."""
    model = make_model()
    a, b = make_features(30, 1), make_features(30, 2)
    positions = pack([(a, b)], model.config)
    moved = positions.positions.clone()
    moved[:30] += torch.tensor([0.4, -0.7])
    with torch.inference_mode():
        *_, x = model.states(positions)
        *_, y = model.states(PackedPairs(positions.descriptors, moved, positions.lengths))
    assert_close(x, y, rtol=0, atol=1e-4)


def test_periodic_encoding_does_not_see_a_full_turn() -> None:
    model = make_model(encoding="xy-logscale-angle")
    a, b = make_features(30, 1), make_features(30, 2)
    packed = pack([(a, b)], model.config)
    turned = packed.positions.clone()
    turned[::3, 3] += 2 * math.pi
    with torch.inference_mode():
        *_, x = model.states(packed)
        *_, y = model.states(PackedPairs(packed.descriptors, turned, packed.lengths))
    assert_close(x, y, rtol=0, atol=1e-4)


def test_exit_and_pruning_follow_their_definitions() -> None:
    """A twin with loops and sets decides layer by layer; it must stop and prune where the packed run does."""
    model = make_model(seed=4)
    settings = MatchSettings(exit_ratio=0.7, prune_below=0.4, score_threshold=0.0)
    a = make_features(40, 5)
    b = make_features(35, 6, like=a)
    result = match(model, [(a, b)], settings)[0]
    alive, layers = [list(range(40)), list(range(35))], [[0] * 40, [0] * 35]
    stop = 0
    with torch.inference_mode():
        x = [model.input_projection(f.descriptors) for f in (a, b)]
        positions = [pack([(f, f)], model.config).positions[: len(f)] for f in (a, b)]
        for number in range(model.config.n_layers):
            tables = model.position_encoding(torch.cat([p[rows] for p, rows in zip(positions, alive, strict=True)]))
            lengths = [len(rows) for rows in alive]
            x = list(model.layers[number](torch.cat(x), tables, [tuple(lengths)]).split(lengths))
            for side in (0, 1):
                for i in alive[side]:
                    layers[side][i] += 1
            stop = number + 1
            if stop == model.config.n_layers:
                break
            confident = [
                (model.confidences[number](s).squeeze(1).sigmoid() > model.exit_threshold(number)).tolist() for s in x
            ]
            gone = 75 - sum(lengths)
            if (gone + sum(map(sum, confident))) / 75 > 0.7:
                break
            head = model.heads[number]
            sigma = [head.matchability_logits(s).sigmoid().tolist() for s in x]
            for side in (0, 1):
                keep = [k for k in range(lengths[side]) if not (confident[side][k] and sigma[side][k] < 0.4)]
                alive[side], x[side] = [alive[side][k] for k in keep], x[side][keep]
    assert result.stop_layer == stop
    assert result.layers0.tolist() == layers[0]
    assert result.layers1.tolist() == layers[1]
    assert stop < 5 or min(layers[0]) < 5  # the case is not trivial


def test_exit_threshold_falls_from_0_9_towards_0_8() -> None:
    model = make_model(n_layers=9)
    assert model.exit_threshold(0) == pytest.approx(0.9)
    assert model.exit_threshold(8) == pytest.approx(0.8 + 0.1 * math.exp(-32 / 9))


def test_bfloat16_weights_match_nearly_the_same() -> None:
    a = make_features(80, 1)
    b = make_features(80, 2, like=a)
    model = make_model()
    exact = {tuple(row) for row in match(model, [(a, b)], OFF)[0].pairs.tolist()}
    rough = {tuple(row) for row in match(model.bfloat16(), [(a, b)], OFF)[0].pairs.tolist()}
    assert len(exact) > 10
    assert len(exact & rough) >= 0.8 * len(exact)


def test_a_new_matcher_is_a_nearest_neighbour_matcher() -> None:
    """The initial weights keep inner products, on the average where d is smaller than the descriptors: sensible matches."""
    torch.manual_seed(0)
    narrow = LightGlue(LightGlueConfig(descriptor_dim=256, d=64, heads=4, n_layers=1, project_input=True))
    states = narrow.input_projection(make_features(500, 1, dim=256).descriptors)
    assert float(states.detach().square().sum(1).mean()) == pytest.approx(64, rel=0.05)

    model = LightGlue(LightGlueConfig(descriptor_dim=32, d=64, heads=4, n_layers=2, project_input=True)).eval()
    a = make_features(50, 1)
    b = make_features(50, 2, like=a)
    matches = match(model, [(a, b)], MatchSettings(exit_ratio=0, prune_below=0, score_threshold=0.0))[0]
    cosine = a.descriptors @ b.descriptors.T
    mutual = {(i, int(j)) for i, j in enumerate(cosine.argmax(1)) if int(cosine[:, j].argmax()) == i}
    assert len({tuple(row) for row in matches.pairs.tolist()} & mutual) >= 25


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"d": 30, "heads": 4}, "multiple of 2 x heads"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"encoding": "polar"}, "unknown encoding"),
        ({"descriptor_dim": 128}, "project_input"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_impossible_configs_are_refused(config: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LightGlueConfig(**config)


def test_features_that_do_not_fit_are_refused() -> None:
    model = make_model(extractor="sift")
    a = make_features(4, 1)
    with pytest.raises(InputError, match="takes 32"):
        pack([(a, make_features(4, 2, dim=16))], model.config)
    bare = Features(a.keypoints, a.descriptors, a.image_size, extractor="sift")
    with pytest.raises(InputError, match="needs scales and orientations"):
        pack([(bare, bare)], make_model(encoding="xy-logscale-angle").config)
    other = Features(a.keypoints, a.descriptors, a.image_size, extractor="disk")
    with pytest.raises(InputError, match="is for 'sift' features; these are 'disk'"):
        pack([(a, other)], model.config)
    with pytest.raises(InputError, match="no pairs"):
        pack([], model.config)
    for settings in ({"exit_ratio": 2.0}, {"prune_below": -0.1}, {"score_threshold": 1.5}):
        with pytest.raises(InputError, match="between 0 and 1"):
            MatchSettings(**settings)


def test_settings_that_are_none_are_the_matchers_own(pairs: Pairs) -> None:
    model = make_model()
    assert model.own_settings == MatchSettings(score_threshold=0.1, exit_ratio=0.95, prune_below=0.01)
    loose = replace(model.config, exit_ratio=0.6, prune_below=0.3)
    expected = match(model, pairs, MatchSettings(exit_ratio=0.6, prune_below=0.3))
    usual = match(model, pairs, MatchSettings())
    model.config = loose
    for ours, other in zip(match(model, pairs, MatchSettings()), expected, strict=True):
        same(ours, other)
    assert [m.stop_layer for m in expected] != [m.stop_layer for m in usual]
    assert MatchSettings(exit_ratio=0).completed(model.own_settings).exit_ratio == 0
    with pytest.raises(InputError, match="exit_ratio is 2"):
        replace(loose, exit_ratio=2)


# -- ablations --------------------------------------------------------------------------------------------------------


def last_state(model: LightGlue, a: Features, b: Features) -> torch.Tensor:
    *_, x = model.states(pack([(a, b)], model.config))
    return x.detach()


def test_full_cross_attention_with_equal_queries_and_keys_is_bidirectional() -> None:
    model = make_model(ablation="full-cross-attention")
    state = {name: tensor for name, tensor in model.state_dict().items() if ".query." not in name}
    plain = make_model()
    plain.load_state_dict(state)
    for layer in model.layers:
        assert layer.cross_attention.query is not None
        layer.cross_attention.query.load_state_dict(layer.cross_attention.qk.state_dict())
    a = make_features(40, 1)
    b = make_features(30, 2, like=a)
    assert_close(last_state(model, a, b), last_state(plain, a, b), atol=1e-5, rtol=0)
    with torch.no_grad():
        model.layers[0].cross_attention.query.weight.mul_(2)  # pyright: ignore[reportOptionalMemberAccess]
    assert not torch.allclose(last_state(model, a, b), last_state(plain, a, b), atol=1e-3)


def test_relative_positions_do_not_notice_a_shift_and_absolute_ones_do() -> None:
    a = make_features(40, 1)
    b = make_features(30, 2, like=a)
    moved = replace(a, keypoints=a.keypoints + torch.tensor([70.0, -30.0]))
    relative, absolute = make_model(), make_model(ablation="absolute-positions")
    encoding = absolute.position_encoding
    assert isinstance(encoding, AbsoluteEncoding)
    torch.nn.init.normal_(encoding.mlp[3].weight, std=0.3)  # pyright: ignore[reportArgumentType]
    assert_close(last_state(relative, a, b), last_state(relative, moved, b), atol=1e-4, rtol=0)
    assert not torch.allclose(last_state(absolute, a, b), last_state(absolute, moved, b), atol=1e-2)


@pytest.mark.parametrize("encoding", ["xy", "xy-scale-orientation", "xy-logscale-angle"])
def test_rotations_of_a_token_do_not_depend_on_the_others(encoding: Encoding) -> None:
    """To the bit: a million image sizes from the centre, the last bit of an angle is worth 0.06 radians."""
    rotary = RotaryEncoding(encoding, channels=16)
    torch.manual_seed(0)
    positions = torch.randn(33, 2 if encoding == "xy" else 4) * 1e6
    with torch.no_grad():
        together = torch.stack(rotary(positions))
        for rows in (slice(0, 1), slice(7, 8), slice(12, 16), slice(32, 33), slice(0, 31)):
            assert torch.equal(torch.stack(rotary(positions[rows])), together[:, rows])
        expected = (
            positions.double()
            @ torch.cat([rotary.frequencies, rotary.turns[:, None]] if rotary.periodic else [rotary.frequencies], dim=1)
            .double()
            .mT
        )
        angles = expected / 1e6
        assert_close(torch.stack(rotary(positions / 1e6)), torch.stack([angles.cos(), angles.sin()]).float())


def test_without_matchability_the_assignment_is_the_double_softmax() -> None:
    model = make_model(ablation="no-matchability")
    a = make_features(40, 1)
    b = make_features(30, 2, like=a)
    matches = match(model, [(a, b)], MatchSettings(exit_ratio=0, prune_below=0, score_threshold=0.0))[0]
    f0, f1 = model.heads[-1].features(last_state(model, a, b)).detach().split([40, 30])
    p = (f0 @ f1.T).softmax(0) * (f0 @ f1.T).softmax(1)
    assert len(matches) > 5
    assert_close(matches.scores, p[matches.pairs[:, 0], matches.pairs[:, 1]])


def test_bfloat16_layers_keep_float32_states() -> None:
    """Only the products of the copied layers are bfloat16; what they add to stays float32, and so does the model."""
    model = make_model()
    a = make_features(150, 0)
    b = make_features(120, 1, like=a)
    packed = pack([(a, b)], model.config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = execution_layers(model, "bf16")
    x, rotation = model.begin(packed)
    for layer, exact in zip(layers, model.states(packed), strict=True):
        with torch.no_grad():
            x = layer(x, rotation, packed.lengths)
        assert x.dtype == torch.float32
        assert 0 < (x - exact).abs().max() < 0.05 * exact.abs().max()
    assert {p.dtype for p in next(iter(layers)).self_attention.ffn.parameters()} == {torch.bfloat16}  # pyright: ignore
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


@pytest.mark.parametrize("ablation", [None, "full-cross-attention"])
def test_the_folded_layers_are_the_layers(ablation: str | None) -> None:
    """[x | a Wo] W = x Wx + a (Wo Wm): in float64 to the last digits, with an empty image too."""
    model = make_model(ablation=ablation).double()
    a = make_features(40, 0)
    packed = pack([(a, make_features(30, 1, like=a)), (a, make_features(0, 2))], model.config).to("cpu", torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, rotation = model.begin(packed)
    for layer, exact in zip(execution_layers(model, "fp32"), model.states(packed), strict=True):
        x = layer(x, rotation, packed.lengths)
        assert_close(x, exact, rtol=0, atol=1e-12)
        assert isinstance(layer, torch.nn.Module)
        assert not any(isinstance(part, torch.nn.Linear) for name, part in layer.named_modules() if name.endswith("out"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_matching_runs_the_weights_as_they_are_now() -> None:
    model = make_model()
    a = make_features(60, 0)
    pairs = [(a, make_features(50, 1, like=a))]
    layers = current_layers(model)
    assert current_layers(model) is layers
    before = match(model, pairs, OFF)[0]
    other = make_model(7)
    model.load_state_dict(other.state_dict())
    same(match(model, pairs, OFF)[0], match(other, pairs, OFF)[0])
    assert not torch.equal(before.scores, match(model, pairs, OFF)[0].scores)
    changed = current_layers(model)
    model.to(torch.float64)
    assert current_layers(model) is not changed


def test_matches_by_layer_are_those_of_matchers_that_end_there() -> None:
    model = make_model(3)
    a = make_features(60, 0)
    images = [(a, make_features(50, 1, like=a)), (a, make_features(0, 2)), (make_features(20, 3), a)]
    packed = pack(images, model.config)
    for settings in (MatchSettings(), MatchSettings(exit_ratio=0), MatchSettings(exit_ratio=0, prune_below=0)):
        for mine, layers in zip(model.match(packed, settings), model.match_by_layer(packed, settings), strict=True):
            last = layers[-1]
            assert last.pairs.tolist() == mine.pairs.tolist()
            assert last.stop_layer == mine.stop_layer
            assert last.layers0.tolist() == mine.layers0.tolist()
            assert [one.stop_layer for one in layers] == (list(range(1, mine.stop_layer + 1)) or [0])
    full = MatchSettings(exit_ratio=0, prune_below=0)
    for depth in range(1, model.config.n_layers):
        config = {"descriptor_dim": 32, "d": 32, "heads": 2, "project_input": True, "n_layers": depth}
        short = type(model)(LightGlueConfig(**config)).eval()  # pyright: ignore[reportArgumentType]
        short.load_state_dict({k: v for k, v in model.state_dict().items() if k in short.state_dict()})
        for mine, layers in zip(short.match(packed, full), model.match_by_layer(packed, full), strict=True):
            at = layers[min(depth, len(layers)) - 1]
            assert at.pairs.tolist() == mine.pairs.tolist()
            assert_close(at.scores, mine.scores, rtol=0, atol=1e-5)
