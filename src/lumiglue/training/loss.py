"""The losses.

LightGlue: correspondences with deep supervision, then the confidence classifier (Section 3.4 of the paper). SuperGlue: the
assignment with its dustbins (Equation 11 of its paper).
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.models import MatcherModel
from lumiglue.matcher.packed import PackedPairs
from lumiglue.matcher.superglue import SuperGlue, log_optimal_transport
from lumiglue.training.distillation import SoftLabels, distillation_loss
from lumiglue.training.labels import Labels
from lumiglue.training.scores import LayerScores, layer_scores


def correspondence_loss(scores: LayerScores, labels: Labels) -> Float[Tensor, ""]:
    """One layer's negative log-likelihood (Equation 10 without the sum over layers), averaged over the pairs.

    -(1/|M| sum log P_ij + 1/(2|A~|) sum log(1 - sigma_i) + 1/(2|B~|) sum log(1 - sigma_j)). Empty sets add 0.
    """
    n_pairs = len(scores.logits0)
    pair = labels.matches[:, 0]
    counts = torch.bincount(pair, minlength=n_pairs).clamp_min(1)
    matched = (scores.log_p(labels.matches) / counts[pair]).sum()
    unmatched0 = _mean_where(F.logsigmoid(-scores.logits0), labels.unmatchable0)
    unmatched1 = _mean_where(F.logsigmoid(-scores.logits1), labels.unmatchable1)
    return -(matched + (unmatched0 + unmatched1).sum() / 2) / n_pairs


def log_partial_assignment(model: SuperGlue, pairs: PackedPairs, iterations: int) -> Float[Tensor, "b r s"]:
    """SuperGlue's log P with its dustbins (P, n + 1, n + 1), in float32, for segments of equal length."""
    features = model.features(pairs)
    with torch.autocast(features.device.type, enabled=False):
        sides = features.float().unflatten(0, (pairs.n_pairs, 2, -1))
        return log_optimal_transport(sides[:, 0] @ sides[:, 1].mT, model.dustbin.float(), iterations)


def dustbin_loss(log_p: Float[Tensor, "b r s"], labels: Labels) -> Float[Tensor, ""]:
    """Negative log-likelihood of the matches, and of the unmatchable points in the dustbins of log P (P, m + 1, n + 1).

    Averaged over the labels of each pair, then over the pairs. SuperGlue's Equation 11 is a sum; with the mean, pairs with
    few labels count as much as others.
    """
    pair, i, j = labels.matches.unbind(1)
    total = torch.zeros(len(log_p), device=log_p.device).index_add(0, pair, log_p[pair, i, j])
    total = total + (log_p[:, :-1, -1] * labels.unmatchable0).sum(1) + (log_p[:, -1, :-1] * labels.unmatchable1).sum(1)
    counts = torch.bincount(pair, minlength=len(log_p)) + labels.unmatchable0.sum(1) + labels.unmatchable1.sum(1)
    return -(total / counts.clamp_min(1)).mean()


def matcher_loss(
    model: MatcherModel,
    pairs: PackedPairs,
    labels: Labels,
    soft: SoftLabels | None = None,
    *,
    deep_supervision: bool = True,
    distillation: float = 1.0,
    states: Iterable[Float[Tensor, "t d"]] | None = None,
) -> Float[Tensor, ""]:
    """The loss of stage 1.

    LightGlue: the mean of `correspondence_loss` over the layers; an ablation without matchability learns from matches only.
    SuperGlue: `dustbin_loss`, with half the Sinkhorn iterations of inference.

    Args:
        model: The matcher.
        pairs: P pairs of segments of equal length.
        labels: Ground truth.
        soft: A teacher's assignments of some of the pairs, for LightGlue.
        deep_supervision: Whether all layers of LightGlue learn, or the last alone.
        distillation: Weight of the teacher's assignments relative to the labels of the same pairs.
        states: LightGlue's states after each layer; None computes them.
    """
    if isinstance(model, SuperGlue):
        return dustbin_loss(log_partial_assignment(model, pairs, model.config.sinkhorn_iterations // 2), labels)
    if model.config.ablation == "no-matchability":
        nothing = (torch.zeros_like(side) for side in (labels.unmatchable0, labels.unmatchable1))
        labels = Labels(labels.matches, *nothing)
    losses = []
    for layer, (head, x) in enumerate(zip(model.heads, states or model.states(pairs), strict=True), start=1):
        if not deep_supervision and layer < model.config.n_layers:
            continue
        scores = layer_scores(head, x, pairs.n_pairs)
        losses.append(correspondence_loss(scores, labels))
        if soft is not None and distillation:
            losses[-1] = losses[-1] + distillation * soft.pairs / pairs.n_pairs * distillation_loss(scores, soft)
    return torch.stack(losses).mean()


def mutual_best(log_p: Float[Tensor, "b m n"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For the first images, the row of each point's mutual best partner, or -1, and its best log P (B, m); then the same for
    the second images (B, n)."""
    (best0, partner0), (best1, partner1) = log_p.max(2), log_p.max(1)
    mutual0 = partner1.gather(1, partner0) == torch.arange(partner0.shape[1], device=log_p.device)
    mutual1 = partner0.gather(1, partner1) == torch.arange(partner1.shape[1], device=log_p.device)
    return partner0.where(mutual0, -1), best0, partner1.where(mutual1, -1), best1


def predictions(scores: LayerScores, threshold: float) -> tuple[Tensor, Tensor]:
    """One layer's matches: the row of each point's partner, or -1, in both images, (B, m) and (B, n)."""
    partner0, best0, partner1, best1 = mutual_best(scores.log_assignment())
    limit = torch.tensor(threshold, device=best0.device).log()
    return partner0.where(best0 > limit, -1), partner1.where(best1 > limit, -1)


def disagreement(first: Int[Tensor, " t"], second: Int[Tensor, " t"], n_pairs: int) -> Float[Tensor, " t"]:
    """How much two predictions (partners of all points, or -1) of a pair differ, repeated for each of its points: of the
    points that at least one prediction matches, the fraction on which they differ; 0 if there are none."""
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
    """The loss of stage 2: binary cross-entropy of the confidences; states are detached.

    The label of a point is whether the layer predicts what the last layer predicts. The points that either layer matches
    have the same total weight as the points that neither does: most points have no match and an almost always true label,
    and unbalanced they would teach the classifier to stop before the matches are found. Points weigh up to five times as
    much in pairs whose matches are not final yet (`disagreement`): stopping these too early loses matches, while running a
    finished pair further only costs time.

    Args:
        model: The matcher.
        pairs: P pairs of segments of equal length.
        threshold: Smallest score of a match.
        average: If several processes share the batch, replaces a tensor by its mean over them. The mean of their losses is
            then the loss of the whole batch.
    """
    with torch.no_grad():
        states = list(model.states(pairs))
        predicted = [
            torch.stack(predictions(layer_scores(head, x, pairs.n_pairs), threshold), dim=1).flatten()  # (T,)
            for head, x in zip(model.heads, states, strict=True)
        ]
    sums, counts = [], []
    for confidence, x, prediction in zip(model.confidences, states[:-1], predicted[:-1], strict=True):
        with torch.autocast(x.device.type, enabled=False):
            logits = confidence(x.float()).squeeze(-1)
        each = F.binary_cross_entropy_with_logits(logits, (prediction == predicted[-1]).float(), reduction="none")
        weights = 1 + 4 * disagreement(prediction, predicted[-1], pairs.n_pairs)
        matched = (prediction >= 0) | (predicted[-1] >= 0)
        for group in (matched, ~matched):
            sums.append((each * weights * group).sum())
            counts.append((weights * group).sum())
    shared = torch.stack(counts)
    if average is not None:
        average(shared)
    return (torch.stack(sums) / shared.clamp_min(1e-6)).mean()  # an empty group's sum is 0


def _mean_where(values: Float[Tensor, "b n"], where: Bool[Tensor, "b n"]) -> Float[Tensor, " b"]:
    return (values * where).sum(1) / where.sum(1).clamp_min(1)
