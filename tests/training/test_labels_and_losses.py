"""Labels and losses."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from helpers import make_features, make_model
from lumiglue import InputError
from lumiglue.geometry.projective import transform
from lumiglue.matcher.assignment import log_assignment
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.models import PRESETS, preset
from lumiglue.training.labels import Labels, labels_from_homographies, mutual_nearest
from lumiglue.training.loss import (
    confidence_loss,
    correspondence_loss,
    disagreement,
    matcher_loss,
    predictions,
)
from lumiglue.training.scores import LayerScores, layer_scores

pytestmark = pytest.mark.numeric


def test_labels_against_a_slow_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    keypoints0 = torch.rand(2, 60, 2, generator=generator) * 300
    homography = torch.tensor([[0.9, -0.2, 30.0], [0.15, 1.1, -12.0], [2e-4, -1e-4, 1.0]]).expand(2, 3, 3)
    keypoints1 = transform(homography, keypoints0) + torch.randn(2, 60, 2, generator=generator) * 2
    related = torch.tensor([True, False])
    labels = labels_from_homographies(keypoints0, keypoints1, homography, related)
    there, back = transform(homography, keypoints0), transform(torch.linalg.inv(homography), keypoints1)
    expected, alone = [], set(range(60))
    worst = [
        [
            max(float((there[0, i] - keypoints1[0, j]).norm()), float((keypoints0[0, i] - back[0, j]).norm()))
            for j in range(60)
        ]
        for i in range(60)
    ]
    for i in range(60):
        j = min(range(60), key=lambda j: worst[i][j])
        if worst[i][j] <= 3 and min(range(60), key=lambda k: worst[k][j]) == i:
            expected.append([0, i, j])
        near = [
            j
            for j in range(60)
            if (there[0, i] - keypoints1[0, j]).norm() <= 3 or (keypoints0[0, i] - back[0, j]).norm() <= 3
        ]
        if near:
            alone.discard(i)
    assert labels.matches.tolist() == expected
    assert len(expected) > 20
    assert set(labels.unmatchable0[0].nonzero()[:, 0].tolist()) == alone
    assert bool(labels.unmatchable0[1].all())  # two photos: nothing matches
    assert bool(labels.unmatchable1[1].all())
    assert not bool(labels.unmatchable0[0, labels.matches[:, 1]].any())


def test_mutual_nearest_respects_the_limit() -> None:
    distance = torch.tensor([[[1.0, 5.0], [0.5, 9.0], [7.0, 2.0]]])
    assert mutual_nearest(distance, 3.0).tolist() == [[0, 1, 0], [0, 2, 1]]
    assert mutual_nearest(distance, 1.0).tolist() == [[0, 1, 0]]


def test_the_loss_is_the_papers_sum() -> None:
    generator = torch.Generator().manual_seed(1)
    keypoints = torch.rand(2, 12, 2, generator=generator) * 100
    labels = labels_from_homographies(keypoints, keypoints + 1.0, torch.eye(3).expand(2, 3, 3), torch.tensor([True, False]))
    features0, features1 = (torch.randn(2, 12, 5, generator=generator) for _ in range(2))
    z0, z1 = torch.randn(2, 12, generator=generator), torch.randn(2, 12, generator=generator)
    log_p = log_assignment(features0 @ features1.mT, z0, z1)
    total = torch.zeros(())
    for pair in range(2):
        matched = [log_p[pair, i, j] for p, i, j in labels.matches.tolist() if p == pair]
        if matched:
            total = total + torch.stack(matched).mean()
        for z, where in ((z0, labels.unmatchable0), (z1, labels.unmatchable1)):
            alone = [torch.log(1 - z[pair, i].sigmoid()) for i in where[pair].nonzero()[:, 0].tolist()]
            if alone:
                total = total + torch.stack(alone).mean() / 2
    assert_close(correspondence_loss(LayerScores(features0, features1, z0, z1), labels), -total / 2)
    assert torch.autograd.gradcheck(
        lambda *parts: correspondence_loss(LayerScores(*parts), labels),
        tuple(part.double().requires_grad_() for part in (features0, features1, z0, z1)),
    )


@pytest.mark.parametrize("block", [1, 40, 2**17])
@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_sums_in_blocks_are_those_of_the_whole(block: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Similarities up to hundreds, whose exponentials float32 cannot hold; under autocast too, which must not lower them."""
    monkeypatch.setattr("lumiglue.training.scores.BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    parts = [scale * torch.randn(2, n, 6, generator=generator) for n in (13, 17)]
    weights = [torch.rand(2, n, generator=generator) for n in (13, 17)]
    found = [part.clone().requires_grad_() for part in parts]
    with torch.autocast("cpu", torch.bfloat16):
        rows, columns = LayerScores(found[0], found[1], weights[0], weights[1]).log_sums
        ((rows * weights[0]).sum() + (columns * weights[1]).sum()).backward()
    expected = [part.double().requires_grad_() for part in parts]
    similarity = expected[0] @ expected[1].mT
    sums = similarity.logsumexp(2), similarity.logsumexp(1)
    ((sums[0] * weights[0]).sum() + (sums[1] * weights[1]).sum()).backward()
    assert float(similarity.detach().abs().max()) > 5 * scale**2
    for mine, exact in zip((rows, columns), sums, strict=True):
        assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)
    for mine, exact in zip(found, expected, strict=True):
        assert mine.grad is not None
        assert exact.grad is not None
        assert_close(mine.grad.double(), exact.grad, rtol=1e-3, atol=1e-4 * scale)


def test_predictions_agree_with_the_matcher() -> None:
    """What stage 2 calls a layer's prediction is what `match` would return after that layer."""
    model = make_model(n_layers=1)
    a = make_features(30, 1)
    b = make_features(30, 2, like=a)
    packed = pack([(a, b)], model.config)
    with torch.no_grad():
        (x,) = model.states(packed)
        said0, said1 = predictions(layer_scores(model.heads[0], x, 1), threshold=0.1)
    result = model.match(packed)[0]
    assert {(i, j) for i, j in enumerate(said0[0].tolist()) if j >= 0} == {tuple(p) for p in result.pairs.tolist()}
    assert {(i, j) for j, i in enumerate(said1[0].tolist()) if i >= 0} == {tuple(p) for p in result.pairs.tolist()}


def test_the_confidence_stage_touches_only_the_confidences() -> None:
    model = make_model()
    a = make_features(30, 1)
    confidence_loss(model, pack([(a, make_features(30, 2, like=a))], model.config)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("confidences."), name


def test_the_confidence_loss_weighs_matched_and_unmatched_points_alike_and_unfinished_pairs_more() -> None:
    """A twin with loops over layers, pairs and points."""
    model = make_model(n_layers=3)
    pairs = []
    for seed, partner in ((1, 2), (3, 4)):
        a = make_features(30, seed)
        pairs.append((a, make_features(30, partner, like=a if seed == 1 else None)))
    packed = pack(pairs, model.config)
    with torch.no_grad():
        states = list(model.states(packed))
        predicted = []  # of each layer, of each pair, of each point of both images
        for head, x in zip(model.heads, states, strict=True):
            side0, side1 = predictions(layer_scores(head, x, 2), 0.1)
            predicted.append([[*side0[pair].tolist(), *side1[pair].tolist()] for pair in range(2)])
        parts, shares = [], set()
        for layer in range(2):
            logits = model.confidences[layer](states[layer])[:, 0].view(2, 60).tolist()
            groups: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
            for pair in range(2):
                points = list(zip(predicted[layer][pair], predicted[-1][pair], strict=True))
                changed = sum(now != last for now, last in points)
                share = changed / max(1, sum(now >= 0 or last >= 0 for now, last in points))
                shares.add(share)
                for logit, (now, last) in zip(logits[pair], points, strict=True):
                    loss = float(np.logaddexp(0, -logit if now == last else logit))
                    groups[now >= 0 or last >= 0].append((1 + 4 * share, loss))
            for group in groups.values():
                assert group
                parts.append(sum(weight * loss for weight, loss in group) / sum(weight for weight, _ in group))
        assert len(shares) > 2
        assert float(confidence_loss(model, packed)) == pytest.approx(np.mean(parts), rel=1e-4)


def test_disagreement_is_of_the_points_that_either_matches() -> None:
    first = torch.tensor([3, -1, 5, -1, -1, -1, -1, -1])
    second = torch.tensor([3, -1, 6, 0, -1, -1, -1, -1])
    assert disagreement(first, second, 2).tolist() == pytest.approx([2 / 3] * 4 + [0.0] * 4)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets(name: str) -> None:
    config = preset(name, "sift", 128, "xy")
    assert (config.n_layers, config.d, config.heads) == {
        "base": (9, 256, 4),
        "compact": (5, 128, 4),
        "deep": (9, 128, 4),
    }[name]
    with pytest.raises(InputError, match="unknown preset 'huge'"):
        preset("huge", "sift", 128, "xy")


def test_without_deep_supervision_the_last_layer_alone_learns() -> None:
    """And without matchability points that have no match teach nothing."""
    model = make_model(n_layers=3)
    a, b = make_features(20, 1), make_features(20, 2)
    packed = pack([(a, b)], model.config)
    rows = torch.arange(6)
    alone = (torch.arange(20) >= 6)[None]
    labels = Labels(torch.stack([torch.zeros_like(rows), rows, rows], 1), alone, alone)
    *_, x = model.states(packed)
    last = correspondence_loss(layer_scores(model.heads[-1], x, 1), labels)
    assert_close(matcher_loss(model, packed, labels, deep_supervision=False), last)

    model = make_model(n_layers=1, ablation="no-matchability")
    few = Labels(labels.matches, torch.zeros_like(alone), torch.zeros_like(alone))
    assert_close(matcher_loss(model, packed, labels), matcher_loss(model, packed, few))
