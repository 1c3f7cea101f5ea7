"""Quality of each layer on held-out pairs, as numbers and as a picture."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.models import MatcherModel
from lumiglue.matcher.packed import PackedPairs
from lumiglue.matcher.superglue import SuperGlue
from lumiglue.training.config import TrainSettings
from lumiglue.training.figures import draw_training_matches
from lumiglue.training.loss import log_partial_assignment, mutual_best
from lumiglue.training.sampling import Batch, PairSampler
from lumiglue.training.scores import layer_scores

BATCHES, PAIRS = 8, 8


@dataclass(frozen=True, eq=False)
class LayerPrediction:
    """What one layer predicts for P pairs of n points.

    Attributes:
        partner0: Mutual best partner of each point of the first images, or -1.
        partner1: The same for the second images.
        score0: Best P of each point of the first images.
        score1: The same for the second images.
        confident: Whether the layer's classifier is confident in each point; None if it has none.
        threshold: Smallest P of a match.
    """

    partner0: Int[Tensor, "p n"]
    partner1: Int[Tensor, "p n"]
    score0: Float[Tensor, "p n"]
    score1: Float[Tensor, "p n"]
    confident: Bool[Tensor, "p 2 n"] | None
    threshold: float

    @property
    def matches(self) -> Int[Tensor, "p 2 n"]:
        """Partners whose P exceeds the threshold, or -1, for both images."""
        sides = ((self.partner0, self.score0), (self.partner1, self.score1))
        return torch.stack([partner.where(score > self.threshold, -1) for partner, score in sides], dim=1)


@torch.no_grad()
def predict_layers(model: MatcherModel, batch: Batch, precision: str) -> list[LayerPrediction]:
    """Runs all layers on a batch in evaluation mode; the results are on the CPU. SuperGlue has one prediction, its last."""
    device = next(model.parameters()).device
    pairs = batch.pairs.to(device, torch.float32)
    model.eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        if isinstance(model, SuperGlue):
            log_p = log_partial_assignment(model, pairs, model.config.sinkhorn_iterations)[:, :-1, :-1]
            partner0, best0, partner1, best1 = (tensor.cpu() for tensor in mutual_best(log_p))
            return [LayerPrediction(partner0, partner1, best0.exp(), best1.exp(), None, model.default_threshold)]
        return _predict_lightglue(model, pairs)


def _predict_lightglue(model: LightGlue, pairs: PackedPairs) -> list[LayerPrediction]:
    states = list(model.states(pairs))
    predictions = []
    for layer, (head, x) in enumerate(zip(model.heads, states, strict=True)):
        partner0, best0, partner1, best1 = mutual_best(layer_scores(head, x, pairs.n_pairs).log_assignment())
        confident = None
        if layer < len(model.confidences):
            sure = model.confidences[layer](x.float()).squeeze(-1).sigmoid() > model.exit_threshold(layer)
            confident = sure.unflatten(0, (pairs.n_pairs, 2, -1)).cpu()
        on_cpu = (partner0.cpu(), partner1.cpu(), best0.exp().cpu(), best1.exp().cpu())
        predictions.append(LayerPrediction(*on_cpu, confident, model.default_threshold))
    return predictions


def validate(model: MatcherModel, sampler: PairSampler, settings: TrainSettings, stage: int) -> list[dict[str, float]]:
    """Measures each layer on held-out pairs, the same ones each time.

    Returns:
        Per layer, in percent: recall (of the true matches, those with P above the model's threshold), precision (of the
        labelled matches, those that are correct), and average_precision (area under the curve of both over all thresholds).
        In stage 2 also, except for the last layer: confident (of all points, those that the classifier is confident in) and
        confident_right (of these, those for which the last layer predicts the same).
    """
    n_layers = len(model.heads) if isinstance(model, LightGlue) else 1
    rights: list[list[Tensor]] = [[] for _ in range(n_layers)]
    scores: list[list[Tensor]] = [[] for _ in range(n_layers)]
    counts = torch.zeros(n_layers, 3)  # points, confident ones, and right ones of these
    true = 0
    for step in range(BATCHES):
        batch = sampler.batch(step, PAIRS, settings.validation_points)
        truth, labelled = truth_of(batch)
        true += int((truth >= 0).sum())
        predictions = predict_layers(model, batch, settings.precision)
        for layer, prediction in enumerate(predictions):
            known = (prediction.partner0 >= 0) & labelled
            rights[layer].append((prediction.partner0 == truth)[known])
            scores[layer].append(prediction.score0[known])
            if (confident := prediction.confident) is not None:
                same = prediction.matches == predictions[-1].matches
                counts[layer] += torch.tensor([same.numel(), confident.sum(), (confident & same).sum()])
    limit = model.default_threshold
    figures = [_figures(torch.cat(s), torch.cat(r), true, limit) for s, r in zip(scores, rights, strict=True)]
    if stage == 2:
        for figure, (points, confident, right) in zip(figures[:-1], counts.tolist(), strict=False):
            figure |= {"confident": 100 * confident / points, "confident_right": 100 * right / max(confident, 1)}
    return figures


def truth_of(batch: Batch) -> tuple[Int[Tensor, "p n"], Bool[Tensor, "p n"]]:
    """For each point of the first images, its true partner or -1, and whether it has a label."""
    labels = batch.labels()
    truth = torch.full(batch.keypoints0.shape[:2], -1)
    truth[labels.matches[:, 0], labels.matches[:, 1]] = labels.matches[:, 2]
    return truth, (truth >= 0) | labels.unmatchable0


def _figures(scores: Float[Tensor, " k"], right: Bool[Tensor, " k"], true: int, threshold: float) -> dict[str, float]:
    right = right[scores.argsort(descending=True, stable=True)].double()
    matched = int((scores > threshold).sum())
    hits = float(right[:matched].sum())
    precisions = right.cumsum(0) / torch.arange(1, len(right) + 1)
    return {
        "recall": 100 * hits / max(true, 1),
        "precision": 100 * hits / max(matched, 1),
        "average_precision": 100 * float((precisions * right).sum()) / max(true, 1),
    }


def quality(figures: list[dict[str, float]]) -> float:
    """A single number to compare two sets of weights: the harmonic mean of the last layer's recall and precision."""
    recall, precision = figures[-1]["recall"], figures[-1]["precision"]
    return 2 * recall * precision / max(recall + precision, 1e-9)


def draw_validation(model: MatcherModel, sampler: PairSampler, settings: TrainSettings, pairs_seen: int) -> Figure:
    """Draws the last layer's matches of six held-out pairs."""
    batch = sampler.batch(0, 6, settings.validation_points)
    truth, labelled = truth_of(batch)
    matches = predict_layers(model, batch, settings.precision)[-1].matches[:, 0]
    colours = torch.where(matches == truth, 1, torch.where(labelled, 0, -1))
    drawn = []
    for pair in range(len(matches)):
        rows = (matches[pair] >= 0).nonzero()[:, 0]
        ends = torch.stack([rows, matches[pair, rows]], dim=1)
        sides = [(side.keypoints[pair].numpy(), tuple(side.sizes[pair].tolist())) for side in (batch.side0, batch.side1)]
        drawn.append((*sides[0], *sides[1], ends.numpy(), colours[pair, rows].numpy(), int((truth[pair] >= 0).sum())))
    return draw_training_matches(drawn, f"held-out pairs after {pairs_seen:,} pairs")
