"""The losses: of LightGlue correspondences with deep supervision, then the confidence classifier (Section 3.4); of SuperGlue
the assignment with its dustbins (SuperGlue's Equation 11)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lumiglue.matcher.assignment import MatchAssignment, log_assignment
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.models import MatcherModel
from lumiglue.matcher.packed import PackedPairs
from lumiglue.matcher.superglue import SuperGlue, log_optimal_transport
from lumiglue.training.distillation import SoftLabels, distillation_loss
from lumiglue.training.labels import Labels


def layer_scores(head: MatchAssignment, x: Float[Tensor, "t d"], n_pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """S (P, n, n) and the matchability logits of both sides (P, n), in float32, for segments of equal length."""
    with torch.autocast(x.device.type, enabled=False):
        features = head.features(x.float()).unflatten(0, (n_pairs, 2, -1))
        logits = head.matchability_logits(x.float()).unflatten(0, (n_pairs, 2, -1))
        return features[:, 0] @ features[:, 1].mT, logits[:, 0], logits[:, 1]


def correspondence_loss(
    similarity: Float[Tensor, "b m n"], logits0: Float[Tensor, "b m"], logits1: Float[Tensor, "b n"], labels: Labels
) -> Float[Tensor, ""]:
    """One layer's negative log-likelihood (Equation 10 without the sum over layers), averaged over the pairs.

    1/|M| sum log P_ij + 1/(2|A~|) sum log(1 - sigma_i) + 1/(2|B~|) sum log(1 - sigma_j); empty sets count 0.
    """
    n_pairs = len(similarity)
    pair, i, j = labels.matches.unbind(1)
    log_p = (
        2 * similarity[pair, i, j]
        - similarity.logsumexp(2)[pair, i]
        - similarity.logsumexp(1)[pair, j]
        + F.logsigmoid(logits0)[pair, i]
        + F.logsigmoid(logits1)[pair, j]
    )
    counts = torch.bincount(pair, minlength=n_pairs).clamp_min(1)
    matched = (log_p / counts[pair]).sum()
    unmatched0 = _mean_where(F.logsigmoid(-logits0), labels.unmatchable0)
    unmatched1 = _mean_where(F.logsigmoid(-logits1), labels.unmatchable1)
    return -(matched + (unmatched0 + unmatched1).sum() / 2) / n_pairs


def log_partial_assignment(model: SuperGlue, pairs: PackedPairs, iterations: int) -> Float[Tensor, "b r s"]:
    """SuperGlue's log P with its dustbins (P, n + 1, n + 1), in float32, for segments of equal length."""
    features = model.features(pairs)
    with torch.autocast(features.device.type, enabled=False):
        sides = features.float().unflatten(0, (pairs.n_pairs, 2, -1))
        return log_optimal_transport(sides[:, 0] @ sides[:, 1].mT, model.dustbin.float(), iterations)


def dustbin_loss(log_p: Float[Tensor, "b r s"], labels: Labels) -> Float[Tensor, ""]:
    """Negative log-likelihood of matches and of unmatchable points in the dustbins: the mean over what a pair has labelled,
    averaged over the pairs (SuperGlue's Equation 11 is the sum; pairs with few labels count as much here)."""
    pair, i, j = labels.matches.unbind(1)
    said = torch.zeros(len(log_p), device=log_p.device).index_add(0, pair, log_p[pair, i, j])
    said = said + (log_p[:, :-1, -1] * labels.unmatchable0).sum(1) + (log_p[:, -1, :-1] * labels.unmatchable1).sum(1)
    counts = torch.bincount(pair, minlength=len(log_p)) + labels.unmatchable0.sum(1) + labels.unmatchable1.sum(1)
    return -(said / counts.clamp_min(1)).mean()


def matcher_loss(
    model: MatcherModel,
    pairs: PackedPairs,
    labels: Labels,
    soft: SoftLabels | None = None,
    *,
    deep_supervision: bool = True,
    distillation: float = 1.0,
) -> Float[Tensor, ""]:
    """LightGlue: deep supervision, the mean over the layers of `correspondence_loss`; without it, the last layer's alone; a
    matcher without matchability learns from matches alone. SuperGlue: `dustbin_loss` at the end, with half of the test's
    Sinkhorn iterations.

    soft: a teacher's assignments of some of the pairs; LightGlue learns from these too, their loss counts `distillation`
    times as much as that of the labels of the same pairs."""
    if isinstance(model, SuperGlue):
        return dustbin_loss(log_partial_assignment(model, pairs, model.config.sinkhorn_iterations // 2), labels)
    if model.config.ablation == "no-matchability":
        nothing = (torch.zeros_like(side) for side in (labels.unmatchable0, labels.unmatchable1))
        labels = Labels(labels.matches, *nothing)
    losses = []
    for layer, (head, x) in enumerate(zip(model.heads, model.states(pairs), strict=True), start=1):
        if not deep_supervision and layer < model.config.n_layers:
            continue
        scores = layer_scores(head, x, pairs.n_pairs)
        losses.append(correspondence_loss(*scores, labels))
        if soft is not None and distillation:
            losses[-1] = losses[-1] + distillation * soft.pairs / pairs.n_pairs * distillation_loss(*scores, soft)
    return torch.stack(losses).mean()


def mutual_best(log_p: Float[Tensor, "b m n"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each point the row of its mutual best partner, or -1, and its best log P: (B, m) twice, then (B, n) twice."""
    (best0, partner0), (best1, partner1) = log_p.max(2), log_p.max(1)
    mutual0 = partner1.gather(1, partner0) == torch.arange(partner0.shape[1], device=log_p.device)
    mutual1 = partner0.gather(1, partner1) == torch.arange(partner1.shape[1], device=log_p.device)
    return partner0.where(mutual0, -1), best0, partner1.where(mutual1, -1), best1


def predictions(
    similarity: Float[Tensor, "b m n"], logits0: Float[Tensor, "b m"], logits1: Float[Tensor, "b n"], threshold: float
) -> tuple[Tensor, Tensor]:
    """What a layer says of each point: its partner's row, or -1; for both images, (B, m) and (B, n)."""
    partner0, best0, partner1, best1 = mutual_best(log_assignment(similarity, logits0, logits1))
    limit = torch.tensor(threshold, device=similarity.device).log()
    return partner0.where(best0 > limit, -1), partner1.where(best1 > limit, -1)


def disagreement(first: Int[Tensor, " t"], second: Int[Tensor, " t"], n_pairs: int) -> Float[Tensor, " t"]:
    """Of each pair, repeated for its points: the share of the points that either prediction matches on which the two differ;
    0 where neither matches any."""
    first, second = first.view(n_pairs, -1), second.view(n_pairs, -1)
    matched = (first >= 0) | (second >= 0)
    share = (first != second).sum(1) / matched.sum(1).clamp_min(1)
    return share.repeat_interleave(first.shape[1])


def confidence_loss(
    model: LightGlue,
    pairs: PackedPairs,
    threshold: float = 0.1,
    average: Callable[[Tensor], None] | None = None,
) -> Float[Tensor, ""]:
    """Binary cross-entropy of the confidences against [a layer says what the last layer says]; states are detached.

    Points that either layer matches count as much, all together, as the points that both leave unmatched. Most points
    of most pairs have no match, and their label is nearly always true: unbalanced, they teach that a pair is done before
    its matches are found. Points count up to five times as much where the layer's matches are not yet the last layer's
    (`disagreement`): to stop such a pair too soon costs matches, to run a finished one further costs time alone.

    average: where several processes share the batch, replaces a tensor by its mean over them; the mean of their losses
    is then the loss of the whole batch.
    """
    with torch.no_grad():
        states = list(model.states(pairs))
        said = [
            torch.stack(predictions(*layer_scores(head, x, pairs.n_pairs), threshold), dim=1).flatten()  # (T,)
            for head, x in zip(model.heads, states, strict=True)
        ]
    sums, counts = [], []
    for confidence, x, prediction in zip(model.confidences, states[:-1], said[:-1], strict=True):
        with torch.autocast(x.device.type, enabled=False):
            logits = confidence(x.float()).squeeze(-1)
        each = F.binary_cross_entropy_with_logits(logits, (prediction == said[-1]).float(), reduction="none")
        weights = 1 + 4 * disagreement(prediction, said[-1], pairs.n_pairs)
        matched = (prediction >= 0) | (said[-1] >= 0)
        for group in (matched, ~matched):
            sums.append((each * weights * group).sum())
            counts.append((weights * group).sum())
    shared = torch.stack(counts)
    if average is not None:
        average(shared)
    return (torch.stack(sums) / shared.clamp_min(1e-6)).mean()  # an empty group's sum is 0


def _mean_where(values: Float[Tensor, "b n"], where: Bool[Tensor, "b n"]) -> Float[Tensor, " b"]:
    return (values * where).sum(1) / where.sum(1).clamp_min(1)
