"""Adaptive depth and width (Section 3.3): a pair exits once it is done, and points that have no match are pruned."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lumiglue.matcher.assignment import MatchAssignment, TokenConfidence, assign
from lumiglue.matcher.execution import Layers
from lumiglue.matcher.packed import PackedPairs, counts_in_pairs, rows_of_pairs, segments_of
from lumiglue.matcher.settings import MatchSettings
from lumiglue.types import Matches


@runtime_checkable
class LayeredMatcher(Protocol):
    """What inference needs of a model: states that pass through layers, each with an assignment and a confidence."""

    @property
    def own_settings(self) -> MatchSettings:
        """What settings that are None take."""
        ...

    @property
    def heads(self) -> Sequence[MatchAssignment]:
        """The assignment after each layer."""
        ...

    @property
    def confidences(self) -> Sequence[TokenConfidence]:
        """The exit classifier after each layer but the last."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters; the first one has the device and the precision of the input."""
        ...

    def begin(self, pairs: PackedPairs) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """States before the first layer, and the rotations."""
        ...

    def exit_threshold(self, layer: int) -> float:
        """How confident a point must be after that layer."""
        ...


def match_adaptively(model: LayeredMatcher, layers: Layers, pairs: PackedPairs, settings: MatchSettings) -> list[Matches]:
    """Matches each pair; a pair's result does not depend on the others.

    Args:
        model: Gives the first states, the assignments and the exit classifiers.
        layers: What computes the model's layers.
        pairs: The input.
        settings: Thresholds.

    Returns:
        One result for each pair, in order.
    """
    return AdaptiveRun(model, layers, pairs, settings).run()


def match_by_layer(
    model: LayeredMatcher, layers: Layers, pairs: PackedPairs, settings: MatchSettings
) -> list[list[Matches]]:
    """For each pair, what it would have given after each layer that ran; the last entry is the result.

    Args and order are those of `match_adaptively`.
    """
    run = AdaptiveRun(model, layers, pairs, settings, by_layer=True)
    return [[*earlier[: max(last.stop_layer - 1, 0)], last] for last, earlier in zip(run.run(), run.earlier, strict=True)]


class AdaptiveRun:
    """The active tokens, layer by layer. Tokens are dropped when their pair is finished or when they are pruned."""

    def __init__(
        self,
        model: LayeredMatcher,
        layers: Layers,
        pairs: PackedPairs,
        settings: MatchSettings,
        by_layer: bool = False,
    ) -> None:
        self.model, self.layers, self.by_layer = model, layers, by_layer
        self.settings = settings.completed(model.own_settings)
        parameter = next(model.parameters())
        pairs = pairs.to(parameter.device, parameter.dtype)
        self.input_lengths = pairs.lengths
        self.lengths = list(pairs.lengths)  # of the active pairs: tokens left of either image
        self.active = list(range(pairs.n_pairs))
        self.x, (self.cosine, self.sine) = model.begin(pairs)
        sizes, device = segments_of(pairs.lengths), self.x.device
        self.rows = torch.cat([torch.arange(n, device=device) for n in sizes])  # of each token, in its image's features
        self.layers_run = [
            tuple(torch.zeros(n, dtype=torch.int64, device=device) for n in lengths) for lengths in pairs.lengths
        ]
        self.results: list[Matches | None] = [None] * pairs.n_pairs
        self.earlier: list[list[Matches]] = [[] for _ in range(pairs.n_pairs)]  # of each pair after each layer, if by_layer

    def run(self) -> list[Matches]:
        """Runs layers until no pair is active; returns the result of each pair."""
        self._finalize([False] * len(self.active), layer=-1)
        for layer, run_layer in enumerate(self.layers):
            if not self.active:
                break
            self.x = run_layer(self.x, (self.cosine, self.sine), self.lengths)
            self._count_layer()
            if self.by_layer:
                for position, pair in enumerate(self.active):
                    self.earlier[pair].append(self._assigned(position, layer))
            self._adapt(layer)
        assert all(result is not None for result in self.results)
        return [result for result in self.results if result is not None]

    def _count_layer(self) -> None:
        counters = (counter for pair in self.active for counter in self.layers_run[pair])
        for counter, rows in zip(counters, self.rows.split(segments_of(self.lengths)), strict=True):
            counter[rows] += 1

    def _adapt(self, layer: int) -> None:
        """The exit test, then pruning."""
        if layer == len(self.layers) - 1:
            self._finalize([True] * len(self.active), layer)
            return
        settings = self.settings
        if not settings.exit_ratio and not settings.prune_below:
            return
        confident = self.model.confidences[layer](self.x).squeeze(-1).float().sigmoid() > self.model.exit_threshold(layer)
        if settings.exit_ratio:
            active = self._finalize(self._confident_enough(confident, settings.exit_ratio), layer)
            confident = confident[active]
        if settings.prune_below and self.active:
            head = self.model.heads[layer]
            unmatchable = head.matchability_logits(self.x).float().sigmoid() < settings.prune_below
            self._keep_tokens(~(confident & unmatchable))
            self._finalize([False] * len(self.active), layer)

    def _confident_enough(self, confident: Tensor, exit_ratio: float) -> list[bool]:
        """The share is of the pair's input points: pruned points were confident, and still count as such."""
        done = []
        for pair, lengths, counts in zip(self.active, self.lengths, counts_in_pairs(confident, self.lengths), strict=True):
            unsure = sum(lengths) - sum(counts)
            done.append(1 - unsure / sum(self.input_lengths[pair]) > exit_ratio)
        return done

    def _finalize(self, done: Sequence[bool], layer: int) -> Tensor:
        """Finishes the pairs that are done, and those with an empty side; returns the token rows that stay active."""
        finished = [i for i, lengths in enumerate(self.lengths) if done[i] or min(lengths) == 0]
        if not finished:
            return torch.arange(len(self.x), device=self.x.device)
        for i in finished:
            self.results[self.active[i]] = self._assigned(i, layer)
        stay = sorted(set(range(len(self.active))) - set(finished))
        rows = rows_of_pairs(self.lengths, stay, self.x.device)
        self._select(rows)
        self.lengths = [self.lengths[i] for i in stay]
        self.active = [self.active[i] for i in stay]
        return rows

    def _assigned(self, position: int, layer: int) -> Matches:
        """Matches the tokens that are left of the active pair at `position`, by the head of this layer."""
        (m, n), ends = self.lengths[position], list(accumulate(map(sum, self.lengths)))
        tokens = slice(ends[position] - m - n, ends[position])
        x, rows, head = self.x[tokens], self.rows[tokens], self.model.heads[max(layer, 0)]
        features, logits = head.features(x), head.matchability_logits(x)
        threshold = self.settings.score_threshold
        assert threshold is not None
        matches, scores = assign(features[:m], features[m:], logits[:m], logits[m:], threshold)
        pairs = torch.stack([rows[:m][matches[:, 0]], rows[m:][matches[:, 1]]], dim=1)
        layers0, layers1 = self.layers_run[self.active[position]]
        return Matches(pairs, scores, layer + 1, layers0.clone(), layers1.clone())

    def _keep_tokens(self, mask: Tensor) -> None:
        """Drops tokens of any segment; segments may become shorter or empty."""
        counts = counts_in_pairs(mask, self.lengths)
        if counts != self.lengths:
            self._select(mask.nonzero()[:, 0])
            self.lengths = counts

    def _select(self, rows: Tensor) -> None:
        self.x, self.cosine, self.sine, self.rows = (t[rows] for t in (self.x, self.cosine, self.sine, self.rows))
