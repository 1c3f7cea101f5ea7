"""SuperGlue beside a plain float64 twin, transformers' implementation, and the laws of optimal transport."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from helpers import draw_photo, make_features
from lumiglue import Features, InputError, Pipeline, Sift, TrainingError, WeightsError
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.models import PRESETS, Size
from lumiglue.matcher.ops.attention import partner_attention
from lumiglue.matcher.settings import MatchSettings
from lumiglue.matcher.superglue import SuperGlue, SuperGlueConfig, log_optimal_transport, log_sinkhorn
from lumiglue.training.config import TrainSettings
from lumiglue.training.data.build import DatasetSettings, build_dataset
from lumiglue.training.data.homographies import PhotoViews
from lumiglue.training.labels import Labels
from lumiglue.training.loop import train
from lumiglue.training.loss import dustbin_loss
from lumiglue.weights.files import load_weights, save_weights
from lumiglue.weights.released import import_released

pytestmark = pytest.mark.numeric


def make_superglue(seed: int = 0, **config: Any) -> SuperGlue:
    """Random weights in every part, BatchNorm's statistics among them."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"descriptor_dim": 32, "d": 32, "n_layers": 2, "encoder_widths": (8, 16), **config}
    model = SuperGlue(SuperGlueConfig(**shape))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
        for mlp in (model.keypoint_encoder, *(layer.mlp for layer in model.layers)):
            last = mlp[-1]
            assert isinstance(last, nn.Linear)
            last.weight.normal_(std=0.05)
    return model.eval()


# -- optimal transport ------------------------------------------------------------------------------------------------


def test_sinkhorns_marginals() -> None:
    torch.manual_seed(0)
    similarity = 3 * torch.randn(2, 6, 9, dtype=torch.float64)
    p = log_optimal_transport(similarity, torch.tensor(0.5, dtype=torch.float64), 500).exp()
    rows, columns = torch.ones(7, dtype=torch.float64), torch.ones(10, dtype=torch.float64)
    rows[-1], columns[-1] = 9.0, 6.0
    assert_close(p.sum(2), rows.expand(2, -1), atol=1e-8, rtol=0)
    assert_close(p.sum(1), columns.expand(2, -1), atol=1e-8, rtol=0)


def test_sinkhorn_keeps_cross_ratios() -> None:
    """diag(u) exp(S) diag(v): p_ij p_kl / (p_il p_kj) is exp(S)'s, whatever the marginals."""
    torch.manual_seed(1)
    scores = torch.randn(5, 4, dtype=torch.float64)
    log_p = log_sinkhorn(scores, torch.zeros(5, dtype=torch.float64), torch.full((4,), math.log(5 / 4)).double(), 30)

    def cross(table: Tensor) -> Tensor:
        return table[1:, 1:] + table[:-1, :-1] - table[1:, :-1] - table[:-1, 1:]

    assert_close(cross(log_p), cross(scores))


def test_gradient_of_the_transport() -> None:
    torch.manual_seed(2)
    similarity = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    dustbin = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, z: log_optimal_transport(s, z, 5), (similarity, dustbin))


def test_loss_is_the_mean_of_the_labelled_entries() -> None:
    log_p = -torch.rand(2, 4, 5) - 0.1
    labels = Labels(torch.tensor([[0, 1, 2], [0, 0, 0]]), torch.zeros(2, 3).bool(), torch.zeros(2, 4).bool())
    labels.unmatchable0[0, 2] = labels.unmatchable1[1, 3] = True
    first = (log_p[0, 1, 2] + log_p[0, 0, 0] + log_p[0, 2, 4]) / 3
    assert_close(dustbin_loss(log_p, labels), -(first + log_p[1, 3, 3]) / 2)


# -- the network ------------------------------------------------------------------------------------------------------


def twin(model: SuperGlue, a: Features, b: Features) -> Tensor:
    """Plain loops over heads and points, in float64; exp(S) scaled row by row and column by column."""
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}
    heads, d = model.config.heads, model.config.d

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def mlp(name: str, x: Tensor, steps: int) -> Tensor:
        for k in range(steps):
            x = linear(f"{name}.{3 * k}", x)
            if k < steps - 1:
                norm = f"{name}.{3 * k + 1}"
                x = (x - w[f"{norm}.running_mean"]) / (w[f"{norm}.running_var"] + 1e-5).sqrt()
                x = (x * w[f"{norm}.weight"] + w[f"{norm}.bias"]).clamp_min(0)
        return x

    def start(f: Features) -> Tensor:
        assert f.scores is not None
        size = torch.tensor(f.image_size).double()
        p = (f.keypoints.double() - size / 2) / (0.7 * size.max())
        encoded = mlp(
            "keypoint_encoder", torch.cat([p, f.scores.double()[:, None]], 1), len(model.config.encoder_widths) + 1
        )
        return f.descriptors.double() + encoded

    def message(layer: str, x: Tensor, source: Tensor) -> Tensor:
        parts = []
        for h in range(heads):
            rows = slice(h * d // heads, (h + 1) * d // heads)
            q, k, v = (linear(f"{layer}.{n}", t)[:, rows] for n, t in (("q", x), ("k", source), ("v", source)))
            parts.append((q @ k.T / math.sqrt(d / heads)).softmax(1) @ v)
        m = linear(f"{layer}.out", torch.cat(parts, 1))
        return mlp(f"{layer}.mlp", torch.cat([x, m], 1), 2)

    x, y = start(a), start(b)
    for number in range(len(model.layers)):
        sources = (x, y) if number % 2 == 0 else (y, x)
        x, y = (t + message(f"layers.{number}", t, s) for t, s in zip((x, y), sources, strict=True))
    kernel = torch.full((len(a) + 1, len(b) + 1), float(w["dustbin"]), dtype=torch.float64)
    kernel[:-1, :-1] = linear("projection", x) @ linear("projection", y).T / math.sqrt(d)
    kernel = kernel.exp()
    rows, columns = torch.ones(len(a) + 1).double(), torch.ones(len(b) + 1).double()
    rows[-1], columns[-1] = len(b), len(a)
    for _ in range(model.config.sinkhorn_iterations):
        kernel = kernel * (rows / kernel.sum(1))[:, None]
        kernel = kernel * (columns / kernel.sum(0))
    return kernel


def log_p_of(model: SuperGlue, a: Features, b: Features) -> Tensor:
    with torch.inference_mode():
        f0, f1 = model.features(pack([(a, b)], model.config)).split([len(a), len(b)])
        return log_optimal_transport(f0 @ f1.T, model.dustbin, model.config.sinkhorn_iterations)


def test_a_plain_float64_twin_says_the_same() -> None:
    model = make_superglue()
    a = make_features(40, 1)
    b = make_features(30, 2, like=a)
    assert_close(log_p_of(model, a, b).exp().double(), twin(model, a, b), atol=2e-5, rtol=0)


def test_matches_are_mutual_maxima_above_the_threshold() -> None:
    model = make_superglue()
    a = make_features(40, 1)
    b = make_features(30, 2, like=a)
    p = twin(model, a, b)[:-1, :-1]
    for threshold in (None, 0.0, 0.5):
        matches = model.match(pack([(a, b)], model.config), MatchSettings(score_threshold=threshold))[0]
        limit = 0.2 if threshold is None else threshold
        expected = [
            [i, j] for i in range(40) for j in range(30) if p[i, j] == p[i].max() == p[:, j].max() and p[i, j] > limit
        ]
        assert matches.pairs.tolist() == expected
        assert_close(matches.scores.double(), p[matches.pairs[:, 0], matches.pairs[:, 1]], atol=2e-5, rtol=0)


def test_packed_is_one_by_one(pairs: list[tuple[Features, Features]]) -> None:
    model = make_superglue()
    settings = MatchSettings(score_threshold=0.0)
    together = model.match(pack(pairs, model.config), settings)
    assert sum(map(len, together)) > 20
    for pair, packed in zip(pairs, together, strict=True):
        alone = model.match(pack([pair], model.config), settings)[0]
        assert torch.equal(alone.pairs, packed.pairs)
        assert_close(alone.scores, packed.scores, atol=1e-6, rtol=0)


def test_attention_to_the_partner_at_once_and_one_by_one() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4 * 7, 2, 8).unbind()
    at_once = partner_attention(q, k, v, [(7, 7)] * 2)
    parts = []
    for segment in range(4):
        own, other = slice(7 * segment, 7 * segment + 7), slice(7 * (segment ^ 1), 7 * (segment ^ 1) + 7)
        weights = torch.einsum("nhc,mhc->hnm", q[own], k[other]).div(math.sqrt(8)).softmax(-1)
        parts.append(torch.einsum("hnm,mhc->nhc", weights, v[other]))
    assert_close(at_once, torch.cat(parts))
    unequal = partner_attention(q[:20], k[:20], v[:20], [(7, 13)])
    assert_close(unequal[:7], partner_attention(q[:20], k[:20], v[:20], ((7, 13),))[:7])
    weights = torch.einsum("nhc,mhc->hnm", q[:7], k[7:20]).div(math.sqrt(8)).softmax(-1)
    assert_close(unequal[:7], torch.einsum("hnm,mhc->nhc", weights, v[7:20]))


def test_features_without_scores_are_refused() -> None:
    model = make_superglue()
    a = replace(make_features(5, 1), scores=None)
    with pytest.raises(InputError, match="needs detector scores"):
        pack([(a, a)], model.config)


def test_saved_weights_load_to_the_same_matcher(tmp_path: Path) -> None:
    model = make_superglue()
    save_weights(model, tmp_path / "sg.safetensors", {})
    a = make_features(40, 1)
    b = make_features(30, 2, like=a)
    again = load_weights(tmp_path / "sg.safetensors")
    assert isinstance(again, SuperGlue)
    assert torch.equal(log_p_of(model, a, b), log_p_of(again, a, b))


# -- released checkpoints ---------------------------------------------------------------------------------------------


def released_names(model: SuperGlue) -> dict[str, Tensor]:
    """The state in the naming and layout of the released files: channel c of head h at c * heads + h."""
    heads, tensors = model.config.heads, {}
    for name, tensor in model.state_dict().items():
        match name.split("."):
            case ["layers", i, ("q" | "k" | "v") as part, leaf]:
                apart = tensor.unflatten(0, (heads, -1)).transpose(0, 1).flatten(0, 1)
                tensors[f"gnn.layers.{i}.attn.proj.{'qkv'.index(part)}.{leaf}"] = apart
            case ["layers", i, "out", "weight"]:
                tensors[f"gnn.layers.{i}.attn.merge.weight"] = tensor.unflatten(1, (heads, -1)).transpose(1, 2).flatten(1)
            case ["layers", i, "out", "bias"]:
                tensors[f"gnn.layers.{i}.attn.merge.bias"] = tensor
            case ["layers", i, "mlp", *rest]:
                tensors[f"gnn.layers.{i}.mlp.{'.'.join(rest)}"] = tensor
            case ["keypoint_encoder", *rest]:
                tensors[f"kenc.encoder.{'.'.join(rest)}"] = tensor
            case ["projection", leaf]:
                tensors[f"final_proj.{leaf}"] = tensor
            case _:
                tensors["bin_score"] = tensor
    return {n: t[..., None] if t.ndim == 2 else t for n, t in tensors.items()}  # convolutions of width 1


@pytest.mark.parametrize("wrapper", ["", "module.", "superglue."])
def test_released_checkpoints_are_read(tmp_path: Path, wrapper: str) -> None:
    model = make_superglue()
    torch.save({wrapper + name: t for name, t in released_names(model).items()}, tmp_path / "superglue.pth")
    again = import_released(tmp_path / "superglue.pth", "superpoint")
    assert again.config == replace(model.config, extractor="superpoint")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_damaged_checkpoints_are_refused(tmp_path: Path, change: str) -> None:
    tensors = released_names(make_superglue())
    if change == "missing":
        del tensors["gnn.layers.1.attn.merge.bias"]
    else:
        tensors["gnn.layers.1.attn.gate"] = torch.zeros(3)
    torch.save(tensors, tmp_path / "superglue.pth")
    with pytest.raises(WeightsError, match="SuperGlue checkpoint"):
        import_released(tmp_path / "superglue.pth", "")


def test_transformers_superglue_says_the_same(tmp_path: Path) -> None:
    """The same random weights there and here, read from its own state dict; equal points, as it batches by padding."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SuperGlueConfig(
        hidden_size=64, keypoint_encoder_sizes=[16, 32], gnn_layers_types=["self", "cross"] * 2, sinkhorn_iterations=30
    )
    theirs = transformers.SuperGlueForKeypointMatching(config).eval()
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if "keypoint_detector" not in name and tensor.is_floating_point():
                if "running_var" in name:
                    tensor.uniform_(0.5, 2.0)
                elif "batch_norm.weight" in name:
                    tensor.uniform_(0.5, 1.5)
                else:
                    tensor.normal_(std=0.4 if "final_proj.weight" in name else 0.1)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = import_released(tmp_path / "theirs.pth", "")
    assert isinstance(ours, SuperGlue)
    ours.config = replace(ours.config, sinkhorn_iterations=30)

    a = make_features(50, 1, dim=64)
    b = make_features(50, 2, dim=64, like=a)
    points, descriptors, scores = (
        torch.stack([getattr(f, name) for f in (a, b)])[None] for name in ("keypoints", "descriptors", "scores")
    )
    with torch.inference_mode():
        matches, matching_scores, *_ = theirs._match_image_pair(points, descriptors, scores, 480, 640)
    actual = ours.match(pack([(a, b)], ours.config), MatchSettings(score_threshold=0.0))[0]
    assert len(actual) > 10
    assert torch.equal(actual.matches0(50), matches[0, 0].long())
    assert_close(actual.scores0(50), matching_scores[0, 0] * (matches[0, 0] >= 0), atol=1e-5, rtol=0)


# -- training ---------------------------------------------------------------------------------------------------------


def test_it_trains_like_lightglue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same dataset and loop; no second stage; what comes out matches, resumes and refuses the other model's weights."""
    monkeypatch.setitem(PRESETS, "tiny", Size(32, 2, 1))
    monkeypatch.setattr("lumiglue.training.validation.BATCHES", 2)
    for number in range(8):
        path = tmp_path / "photos" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), draw_photo(number, 160, 120))
    source = PhotoViews.of_folder(tmp_path / "photos", n_views=3, long_side=128)
    list(
        build_dataset(source, tmp_path / "dataset.h5", Sift(max_keypoints=80), DatasetSettings(max_keypoints=48), workers=1)
    )
    settings = TrainSettings(
        model="superglue", preset="tiny", pairs=160, batch_size=8, points=16, long_points=20, warmup_pairs=8,
        evaluate_every=80, checkpoint_every=80, precision="fp32", learning_rate=3e-3,
    )  # fmt: skip
    steps = list(train(tmp_path / "dataset.h5", tmp_path / "run", settings))
    assert [step.stage for step in steps] == [1] * 20
    assert sum(step.loss for step in steps[-4:]) < 0.9 * sum(step.loss for step in steps[:4])
    assert steps[-1].layers is not None
    assert len(steps[-1].layers) == 1
    weights = tmp_path / "run" / "weights.safetensors"
    photo = draw_photo(50)
    monkeypatch.setattr(
        "lumiglue.pipeline.construction.default_precision", lambda device: "bf16"
    )  # for LightGlue, whose matches it keeps
    usual = Pipeline.pretrained("sift", max_keypoints=100, weights=weights)
    assert usual._layers is None  # those of the matcher, in float32
    result = Pipeline(Sift(max_keypoints=100), load_weights(weights)).match(photo, photo)
    assert len(result) > 20
    assert (abs(result.points0 - result.points1).max(1) < 1).mean() > 0.8

    list(train(tmp_path / "dataset.h5", tmp_path / "cut", settings, stop=iter([*[False] * 9, True, *[False] * 9]).__next__))
    list(train(tmp_path / "dataset.h5", tmp_path / "cut", settings))
    again = load_weights(tmp_path / "cut" / "weights.safetensors").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in load_weights(weights).state_dict().items())
    other = replace(settings, model="lightglue", start_from=str(weights))
    with pytest.raises(TrainingError, match="are for superglue, the run trains lightglue"):
        list(train(tmp_path / "dataset.h5", tmp_path / "other", other))
