"""Packed attention against plain loops over segments, and where it is bit-for-bit the single call."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from helpers import make_features, make_model
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.ops import attention
from lumiglue.matcher.ops.attention import cross_attention, partner_attention, self_attention
from lumiglue.matcher.packed import Lengths, PackedPairs, counts_in_pairs, rows_of_pairs, segments_of

pytestmark = [pytest.mark.numeric, pytest.mark.portable]

LENGTHS = [
    ((5, 9),), ((4, 4), (4, 4)), ((0, 3), (6, 0), (0, 0), (7, 2)), ((1, 1),), ((300, 280), (7, 30)),
]  # fmt: skip


def qkv(lengths: Lengths, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(map(sum, lengths)), 2, 8)
    return tuple(torch.randn(shape, generator=generator) for _ in range(3))  # pyright: ignore[reportReturnType]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The definition, head by head, in float64."""
    if not len(k):
        return torch.zeros_like(q)
    scores = torch.einsum("qhc,khc->hqk", q.double(), k.double()) / q.shape[-1] ** 0.5
    return torch.einsum("hqk,khc->qhc", scores.softmax(-1), v.double()).float()


@pytest.mark.parametrize("form", ["inference", "training", "fused", "padded"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention_stays_within_segments_and_pairs(lengths: Lengths, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.requires_grad_(form in ("training", "fused")) for x in qkv(lengths))
    if form == "fused":
        monkeypatch.setattr(attention, "MAX_SCORES_IN_TRAINING", 0)
    if form == "padded":  # as on a GPU
        monkeypatch.setattr(attention, "choose_path", lambda *_: "padded")
    parts = [x.split(segments_of(lengths)) for x in (q, k, v)]
    inside = torch.cat([attend(*part) for part in zip(*parts, strict=True)])
    partner = [s ^ 1 for s in range(2 * len(lengths))]
    across = torch.cat([attend(parts[0][s], parts[0][partner[s]], parts[2][partner[s]]) for s in range(2 * len(lengths))])
    assert_close(self_attention(q, k, v, lengths), inside, rtol=0, atol=2e-6)
    assert_close(cross_attention(q, v, lengths), across, rtol=0, atol=2e-6)
    across = torch.cat([attend(parts[0][s], parts[1][partner[s]], parts[2][partner[s]]) for s in range(2 * len(lengths))])
    assert_close(partner_attention(q, k, v, lengths), across, rtol=0, atol=2e-6)


def test_matches_do_not_depend_on_how_a_gpu_fills_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    a, b = make_features(90, 0), make_features(33, 2)
    pairs = [(a, make_features(70, 1, like=a)), (b, make_features(40, 3, like=b)), (a, b), (make_features(0, 4), a)]
    together = pack(pairs, model.config)
    expected = model.match(together)
    monkeypatch.setattr(attention, "choose_path", lambda *_: "padded")
    for matches, one in zip(model.match(together), expected, strict=True):
        assert torch.equal(matches.pairs, one.pairs)
        assert_close(matches.scores, one.scores, rtol=0, atol=1e-5)
        assert matches.stop_layer == one.stop_layer
        assert torch.equal(matches.layers0, one.layers0)
    assert sum(len(one) for one in expected) >= 10


@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention_is_that_of_the_single_pair(lengths: Lengths) -> None:
    """Unequal and equal batches alike, up to rounding: libraries may multiply few rows in another order in a batch."""
    q, k, v = qkv(lengths, seed=1)
    together = self_attention(q, k, v, lengths), cross_attention(q, v, lengths)
    for pair in range(len(lengths)):
        own, sizes = rows_of_pairs(lengths, [pair], q.device), [lengths[pair]]
        assert_close(together[0][own], self_attention(q[own], k[own], v[own], sizes), rtol=0, atol=2e-6)
        assert_close(together[1][own], cross_attention(q[own], v[own], sizes), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("strength", "one_exponential"), [(1.0, True), (2.5, True), (9.0, False)])
def test_one_exponential_serves_both_directions_while_it_can(
    strength: float, one_exponential: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys so long that exp needs an offset, then so long that no offset serves all rows and columns."""
    lengths = (300, 170)
    qk, _, v = qkv([lengths], seed=3)
    qk = qk * strength
    a, b = (x.transpose(0, 1) * 8**-0.25 for x in qk.split(lengths))
    offset = attention.exponent_offset(a, b)
    assert (offset == 0) == (strength == 1.0)
    values = [x.transpose(0, 1) for x in v.split(lengths)]
    assert (attention._attend_both_in_blocks(a, b, *values) is not None) == one_exponential
    parts = qk.split(lengths), v.split(lengths)
    across = torch.cat([attend(parts[0][s], parts[0][s ^ 1], parts[1][s ^ 1]) for s in (0, 1)])
    assert_close(cross_attention(qk, v, [lengths]), across, rtol=0, atol=2e-5 * strength**2)


def test_gradients_flow_through_the_dense_form_as_through_the_loops() -> None:
    lengths = ((6, 6), (6, 6))
    q, k, v = (x.requires_grad_() for x in qkv(lengths))
    (self_attention(q, k, v, lengths).square().sum() + cross_attention(q, v, lengths).square().sum()).backward()
    dense = [x.grad.clone() for x in (q, k, v) if x.grad is not None]
    for x in (q, k, v):
        x.grad = None
    parts = [x.split(6) for x in (q, k, v)]
    loss = torch.zeros(())
    for s in range(4):
        inside = _sdpa(parts[0][s], parts[1][s], parts[2][s])
        across = _sdpa(parts[0][s], parts[0][s ^ 1], parts[2][s ^ 1])
        loss = loss + inside.square().sum() + across.square().sum()
    loss.backward()
    for got, x in zip(dense, (q, k, v), strict=True):
        assert x.grad is not None
        assert_close(got, x.grad, rtol=1e-4, atol=1e-5)


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(0, 1)


def test_parts_hold_all_pairs_in_order() -> None:
    lengths = ((3, 4), (0, 0), (9, 1), (2, 2), (1, 0))
    rows = torch.arange(float(sum(map(sum, lengths))))[:, None]
    together = PackedPairs(rows, rows, lengths)
    for tokens, sizes in ((7, [2, 1, 2]), (1, [1] * 5), (100, [5])):
        parts = together.split(tokens)
        assert [part.n_pairs for part in parts] == sizes
        assert sum((part.lengths for part in parts), ()) == lengths
        assert torch.equal(torch.cat([part.descriptors for part in parts]), rows)
        assert torch.equal(torch.cat([part.positions for part in parts]), rows)
    assert PackedPairs(rows[:0], rows[:0], ()).split(5) == []


def test_bookkeeping_of_pairs() -> None:
    flags = torch.tensor([True, False, True, True, False, False])
    assert segments_of([(2, 0), (3, 1)]) == [2, 0, 3, 1]
    assert counts_in_pairs(flags, [(2, 0), (3, 1)]) == [(1, 0), (2, 0)]
    assert counts_in_pairs(flags[:0], [(0, 0)]) == [(0, 0)]
    assert rows_of_pairs([(2, 0), (0, 0), (3, 1)], [0, 2], torch.device("cpu")).tolist() == [0, 1, 2, 3, 4, 5]
    assert rows_of_pairs([(2, 0), (0, 0), (3, 1)], [1, 2], torch.device("cpu")).tolist() == [2, 3, 4, 5]
    assert rows_of_pairs([(2, 3)], [], torch.device("cpu")).tolist() == []
    for a, b, c, d in itertools.product(range(3), repeat=4):
        flags = torch.rand(a + b + c + d, generator=torch.Generator().manual_seed(1)) > 0.5
        counts = [int(part.sum()) for part in flags.split([a, b, c, d])]
        assert segments_of(counts_in_pairs(flags, [(a, b), (c, d)])) == counts
