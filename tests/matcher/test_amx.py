"""The bfloat16 kernel for AMX: attention, rotation, LayerNorm and GELU by their definitions, at any sizes, or not at all."""

import ctypes
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import make_features, make_model
from lumiglue.matcher.execution import execution_layers
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.ops import amx
from lumiglue.matcher.ops.amx import attention_with_gradients, fused_attention, library, norm_gelu_, rotated
from lumiglue.matcher.ops.attention import cross_attention, partner_attention, self_attention
from lumiglue.matcher.ops.native import file_of
from lumiglue.matcher.precision import multiplies_tiles

pytestmark = pytest.mark.numeric

needs_kernel = pytest.mark.skipif(
    not multiplies_tiles() or not file_of("amx").exists(), reason="the kernel needs a processor with AMX and a C compiler"
)
SIZES = [(1, 1), (1, 40), (5, 7), (16, 16), (17, 33), (31, 64), (33, 255), (100, 257), (300, 999)]


def _qkv(n: int, m: int, c: int, heads: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Views into wider rows, as the layers hand them over."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, 3 * heads, c, generator=generator).bfloat16() for rows in (n, m))
    return a[:, :heads], b[:, heads : 2 * heads], b[:, 2 * heads :]


def _definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    return ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v).transpose(0, 1)


@needs_kernel
@pytest.mark.parametrize("c", [32, 64, 96, 128])
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (1, 40), (5, 7), (16, 16), (17, 33), (31, 64), (33, 255), (100, 257), (300, 999)]
)
def test_it_is_attention(n: int, m: int, c: int) -> None:
    q, k, v = _qkv(n, m, c)
    actual, expected = fused_attention(q, k, v), _definition(q, k, v)
    assert actual is not None
    assert actual.shape == (n, 2, c)
    batched = [x.transpose(0, 1)[None] for x in (q, k, v)]
    usual = F.scaled_dot_product_attention(batched[0], batched[1], batched[2])[0].transpose(0, 1)
    rounding = (usual.double() - expected).square().mean().sqrt()  # what PyTorch's kernel of the same precision is off
    if n > 1:  # a single row is rounded by luck
        assert (actual.double() - expected).square().mean().sqrt() <= 1.3 * rounding + 1e-4
    assert (actual.double() - expected).abs().max() <= 2**-8 * float(v.abs().max()) * 1.5


@needs_kernel
def test_sharp_attention_picks_its_key() -> None:
    """Logits of 100: all weight on one key, which one offset for all rows still serves, as norms are alike."""
    keys = F.normalize(torch.randn(200, 1, 64, generator=torch.Generator().manual_seed(0)), dim=2).bfloat16()
    values = torch.randn(200, 1, 64).bfloat16()
    order = torch.randperm(200)
    actual = fused_attention((800 * keys[order]).bfloat16(), keys, values)
    assert actual is not None
    assert torch.equal(actual, values[order])


@needs_kernel
@pytest.mark.parametrize("scale", [1e3, 1e30, float("nan")])
def test_what_one_offset_cannot_serve_is_left_to_pytorch(scale: float) -> None:
    """A query at right angles to all keys has weights far below its bound; the row is not guessed."""
    q, k, v = _qkv(40, 50, 32)
    k = k.clone()
    k[:, :, 0], q = 0.0, torch.zeros_like(q).contiguous()
    q[:, :, 0] = scale
    assert fused_attention(q, (k * 50).bfloat16(), v) is None
    actual = self_attention(q, (k[:40] * 50).bfloat16(), v[:40], [(40, 0)])
    assert torch.isfinite(actual).all() == math.isfinite(scale)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor | None]


def _of_segments(segments: tuple[int, ...], *, partners: bool, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Attend:
    """Attention inside segments or between neighbours, segment by segment."""

    def attend_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, values = (x.split(segments) for x in (q, k, v))
        others = [i ^ 1 if partners else i for i in range(len(segments))]
        return torch.cat([
            attend(x, keys[j], values[j]) if segments[j] else torch.zeros_like(x)
            for x, j in zip(queries, others, strict=True)
        ])  # fmt: skip

    return attend_all


def _by_pytorch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)


def _by_kernel(segments: tuple[int, ...], *, partners: bool) -> Attend:
    return lambda q, k, v: attention_with_gradients(q, k, v, segments, partners=partners)


def _with_gradients(attend: Attend, rows: Tensor, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Messages and gradients of q, k and v, views into the same rows, for one gradient of the messages."""
    q, k, v = rows.to(dtype).requires_grad_().chunk(3, dim=1)
    for x in (q, k, v):
        x.retain_grad()
    messages = attend(q, k, v)
    assert messages is not None
    messages.backward(torch.randn(messages.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(messages.dtype))
    return [
        messages.detach().double(),
        *(torch.zeros_like(x).double() if x.grad is None else x.grad.double() for x in (q, k, v)),
    ]


def _compare(rows: Tensor, segments: tuple[int, ...], *, partners: bool) -> None:
    """With what PyTorch's kernel of the same precision is off."""
    found = _with_gradients(_by_kernel(segments, partners=partners), rows)
    exact = _with_gradients(_of_segments(segments, partners=partners, attend=_definition), rows, torch.float64)
    usual = _with_gradients(_of_segments(segments, partners=partners, attend=_by_pytorch), rows)
    for mine, theirs, expected in zip(found, usual, exact, strict=True):
        rounding = (theirs - expected).square().mean().sqrt()
        assert (mine - expected).square().mean().sqrt() <= 1.3 * rounding + 1e-4


@needs_kernel
@pytest.mark.parametrize("partners", [False, True])
@pytest.mark.parametrize("c", [32, 64, 96, 128])
@pytest.mark.parametrize("segments", [(5, 40), (33, 31), (64, 160), (300, 257, 1, 90), (0, 20), (50, 0), (0, 0, 17, 65)])
def test_gradients_are_those_of_attention(segments: tuple[int, ...], c: int, partners: bool) -> None:
    rows = torch.randn(sum(segments), 9, c, generator=torch.Generator().manual_seed(0)).bfloat16()
    _compare(rows, segments, partners=partners)


@needs_kernel
@pytest.mark.parametrize("scale", [2.0, 8.0, 20.0])
def test_gradients_with_sharp_attention(scale: float) -> None:
    """Up to weights of 0 and 1; the rows that fill the last tile, whose weights would overflow, add nothing."""
    generator = torch.Generator().manual_seed(0)
    keys = scale * F.normalize(torch.randn(37, 2, 32, generator=generator), dim=2)
    rows = torch.cat([keys, keys, torch.randn(37, 2, 32, generator=generator)], dim=1).bfloat16()
    _compare(rows, (37,), partners=False)


@needs_kernel
def test_gradients_do_not_depend_on_threads() -> None:
    rows = torch.randn(400, 12, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = torch.get_num_threads()
    try:
        results: list[list[Tensor]] = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(_with_gradients(_by_kernel((250, 150), partners=True), rows))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_kernel
def test_training_uses_it_and_is_as_exact_as_with_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a whole matcher under autocast, beside its gradients in float32."""
    model = make_model(d=64, heads=2)
    a = make_features(70, 0)
    packed = pack([(a, make_features(50, 1, like=a)), (make_features(0, 2), make_features(9, 3))], model.config)

    def gradients(*, lowered: bool = True) -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            last = list(model.states(packed))[-1]
        (last * torch.linspace(-1, 1, last.numel()).view_as(last)).sum().backward()
        found = [
            p.grad.double().flatten() for name, p in model.named_parameters() if "layers" in name and p.grad is not None
        ]
        return torch.cat(found)

    expected, mine = gradients(lowered=False), gradients()
    monkeypatch.setattr("lumiglue.matcher.ops.attention.attention_with_gradients", lambda *_, **__: None)
    theirs = gradients()
    assert len(mine) == len(expected)
    assert not torch.equal(mine, theirs)  # else it was not used
    assert (mine - expected).norm() <= 1.3 * (theirs - expected).norm()


@needs_kernel
def test_attention_that_one_offset_cannot_serve_is_trained_by_pytorch() -> None:
    q, k, v = (x.contiguous() for x in _qkv(40, 40, 32))
    k[:, :, 0], q = 0.0, torch.zeros_like(q)
    q[:, :, 0] = 1e3
    q, k = q.requires_grad_(), (50 * k).requires_grad_()
    assert attention_with_gradients(q, k, v, (40,), partners=False) is None
    partner_attention(q, k, v, [(25, 15)]).sum().backward()
    assert q.grad is not None
    assert torch.isfinite(q.grad).all()


def test_gradients_that_it_does_not_compute_are_left_to_pytorch() -> None:
    q, k, v = (x.contiguous().requires_grad_() for x in _qkv(8, 8, 32))
    for change in (torch.Tensor.float, torch.Tensor.double, lambda x: x[..., :16], lambda x: x[:0]):
        a, b, c = change(q), change(k), change(v)
        assert attention_with_gradients(a, b, c, (len(a),), partners=False) is None


@needs_kernel
def test_units_use_it_and_agree_with_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.contiguous() for x in _qkv(70, 70, 32))
    lengths = [(30, 40)]
    mine = self_attention(q, k, v, lengths), cross_attention(q, v, lengths)
    monkeypatch.setattr("lumiglue.matcher.ops.attention.fused_attention", lambda *_: None)
    theirs = self_attention(q, k, v, lengths), cross_attention(q, v, lengths)
    for a, b in zip(mine, theirs, strict=True):
        assert not torch.equal(a, b)  # else it was not used
        torch.testing.assert_close(a.float(), b.float(), atol=0.02, rtol=0)


@needs_kernel
def test_threads_change_no_bit() -> None:
    q, k, v = _qkv(333, 444, 64, heads=4)
    before = torch.get_num_threads()
    try:
        outputs = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outputs.append(fused_attention(q, k, v))
        with ThreadPoolExecutor(8) as pool:
            outputs += list(pool.map(lambda _: fused_attention(q, k, v), range(16)))
    finally:
        torch.set_num_threads(before)
    assert all(other is not None and torch.equal(other, outputs[0]) for other in outputs)  # pyright: ignore[reportArgumentType]


@needs_kernel
def test_a_matcher_in_bf16_keeps_the_matches() -> None:
    model = make_model()
    a = make_features(150, 0)
    pairs = pack([(a, make_features(120, 1, like=a))], model.config)
    expected = {tuple(pair) for pair in model.match(pairs)[0].pairs.tolist()}
    matches = model.match(pairs, layers=execution_layers(model, "bf16"))[0]
    rows = {tuple(pair) for pair in matches.pairs.tolist()}
    assert len(expected) > 3
    assert len(rows & expected) >= 0.95 * len(expected | rows)


def test_what_it_does_not_fit_is_left_alone() -> None:
    q, k, v = _qkv(8, 8, 32)
    for off in (
        (q.float(), k.float(), v.float()), (q[:0], k, v), (q, k[:0], v[:0]), (q[..., :16], k[..., :16], v[..., :16]),
        (q.mT.contiguous().mT, k, v), (q.clone().requires_grad_(), k, v),
    ):  # fmt: skip
        assert fused_attention(*off) is None


@needs_kernel
@pytest.mark.parametrize(("n", "c"), [(1, 32), (7, 64), (300, 64), (50, 128)])
def test_rotation_turns_planes(n: int, c: int) -> None:
    x = torch.randn(n, 9, c).bfloat16()[:, :5]
    angles = torch.randn(n, c // 2)
    actual = rotated(x, angles.cos(), angles.sin())
    a, b = x.double().chunk(2, dim=2)
    cosine, sine = angles.double().cos()[:, None], angles.double().sin()[:, None]
    expected = torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=2)
    assert actual is not None
    torch.testing.assert_close(actual.double(), expected, rtol=2**-8, atol=1e-5)


@needs_kernel
@pytest.mark.parametrize(("n", "width"), [(1, 16), (33, 256), (200, 512), (3, 1024)])
def test_norm_and_gelu(n: int, width: int) -> None:
    norm = torch.nn.LayerNorm(width)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    norm.bfloat16()
    x = (3 + 5 * torch.randn(n, width)).bfloat16()
    expected = F.gelu(F.layer_norm(x.double(), (width,), norm.weight.double(), norm.bias.double(), norm.eps))
    with torch.no_grad():
        assert norm_gelu_(x, norm)
    torch.testing.assert_close(x.double(), expected, rtol=2**-8, atol=2e-4)


def test_states_that_gradients_are_asked_of_are_left_alone() -> None:
    x, norm = torch.randn(8, 256).bfloat16().requires_grad_(), torch.nn.LayerNorm(256).bfloat16()
    assert not norm_gelu_(x, norm)
    assert not norm_gelu_(x.detach().float(), norm.float())
    assert rotated(x.unflatten(1, (4, 64)), torch.ones(8, 32), torch.zeros(8, 32)) is None


_PRINT_LIBRARY = "from lumiglue.matcher.ops.amx import library; print(library())"


def test_it_can_be_switched_off() -> None:
    environment = {**os.environ, "LUMIGLUE_KERNEL": "0"}
    run = subprocess.run([sys.executable, "-c", _PRINT_LIBRARY], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "LUMIGLUE_KERNEL is 0"


def test_the_reason_why_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("LUMIGLUE_KERNEL", raising=False)
    known = amx._INSTRUCTIONS
    cases = [(set[str](), "no AMX"), (known - {"avx512_bf16"}, "no avx512_bf16"), (known, "built without a C compiler")]
    monkeypatch.setattr(amx, "file_of", lambda name: Path("absent") / name)
    try:
        for instructions, reason in cases:
            library.cache_clear()
            monkeypatch.setattr(amx, "_instructions", lambda instructions=instructions: instructions)
            with caplog.at_level(logging.INFO):
                assert str(library()).endswith(reason)
            assert reason in caplog.text
        assert fused_attention(*_qkv(8, 8, 32)) is None
    finally:
        library.cache_clear()


@pytest.mark.skipif(not file_of("amx").exists(), reason="it was not built")
def test_the_library_finds_the_openmp_of_pytorch() -> None:
    """It is linked with none, and loads on a processor without AMX too."""
    amx._share_openmp()
    assert ctypes.CDLL(str(file_of("amx"))).lumiglue_attention
