"""Adaptive depth and width (Section 3.3): pairs that are done leave early, and so do points that have no match."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lumiglue.matcher.assignment import MatchAssignment, TokenConfidence, assign
from lumiglue.matcher.packed import PackedPairs, keep_segments, offsets_of, segment_counts
from lumiglue.matcher.settings import MatchSettings
from lumiglue.types import Matches


@runtime_checkable
class LayeredMatcher(Protocol):
    """What inference asks of a model: states that pass through layers, each with an assignment and a confidence."""

    default_threshold: float

    @property
    def n_layers(self) -> int:
        """How many layers there are."""
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
        """Of which the first says device and precision."""
        ...

    def begin(self, pairs: PackedPairs) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """States before the first layer, and the rotations."""
        ...

    def run_layer(self, layer: int, x: Tensor, rotation: tuple[Tensor, Tensor], lengths: Sequence[int]) -> Tensor:
        """States after a layer."""
        ...

    def exit_threshold(self, layer: int) -> float:
        """How confident a point must be after that layer."""
        ...


def match_adaptively(model: LayeredMatcher, pairs: PackedPairs, settings: MatchSettings) -> list[Matches]:
    """Matches each pair; a pair's result does not depend on the others."""
    return AdaptiveRun(model, pairs, settings).run()


def match_by_layer(model: LayeredMatcher, pairs: PackedPairs, settings: MatchSettings) -> list[list[Matches]]:
    """For each pair, what it would have given after each layer that ran, and last the result."""
    run = AdaptiveRun(model, pairs, settings, by_layer=True)
    return [[*earlier[: max(last.stop_layer - 1, 0)], last] for last, earlier in zip(run.run(), run.earlier, strict=True)]


class AdaptiveRun:
    """The tokens still in play, layer by layer. A pair leaves with both segments; a pruned point leaves alone."""

    def __init__(self, model: LayeredMatcher, pairs: PackedPairs, settings: MatchSettings, by_layer: bool = False) -> None:
        self.model, self.settings, self.by_layer = model, settings, by_layer
        parameter = next(model.parameters())
        pairs = pairs.to(parameter.device, parameter.dtype)
        self.input_lengths = pairs.lengths
        self.lengths = list(pairs.lengths)
        self.active = list(range(pairs.n_pairs))  # the pairs in play; self.lengths has their 2 segments each
        self.x, (self.cosine, self.sine) = model.begin(pairs)
        self.rows = torch.cat([torch.arange(n, device=self.x.device) for n in pairs.lengths])  # in the image's features
        self.layers_run = [torch.zeros(n, dtype=torch.int64, device=self.x.device) for n in pairs.lengths]
        self.results: list[Matches | None] = [None] * pairs.n_pairs
        self.earlier: list[list[Matches]] = [[] for _ in range(pairs.n_pairs)]  # of each pair after each layer, if by_layer

    def run(self) -> list[Matches]:
        self._finalize([False] * len(self.active), layer=-1)
        for layer in range(self.model.n_layers):
            if not self.active:
                break
            self.x = self.model.run_layer(layer, self.x, (self.cosine, self.sine), self.lengths)
            self._count_layer()
            if self.by_layer:
                starts = offsets_of(self.lengths)
                for position, pair in enumerate(self.active):
                    self.earlier[pair].append(self._assigned(pair, starts[2 * position : 2 * position + 3], layer))
            self._adapt(layer)
        assert all(result is not None for result in self.results)
        return [result for result in self.results if result is not None]

    def _count_layer(self) -> None:
        for position, rows in enumerate(self.rows.split(self.lengths)):
            self.layers_run[self._segment(position)][rows] += 1

    def _segment(self, position: int) -> int:
        """Number in the input of the segment that is now at `position`."""
        return 2 * self.active[position // 2] + position % 2

    def _adapt(self, layer: int) -> None:
        """The exit test, then pruning."""
        if layer == self.model.n_layers - 1:
            self._finalize([True] * len(self.active), layer)
            return
        settings = self.settings
        if settings.exit_ratio is None and settings.prune_below is None:
            return
        confident = self.model.confidences[layer](self.x).squeeze(-1).float().sigmoid() > self.model.exit_threshold(layer)
        if settings.exit_ratio is not None:
            keep = self._finalize(self._confident_enough(confident, settings.exit_ratio), layer)
            confident = confident[keep]
        if settings.prune_below is not None and self.active:
            head = self.model.heads[layer]
            unmatchable = head.matchability_logits(self.x).float().sigmoid() < settings.prune_below
            self._keep_tokens(~(confident & unmatchable))
            self._finalize([False] * len(self.active), layer)

    def _confident_enough(self, confident: Tensor, exit_ratio: float) -> list[bool]:
        """Pruned points were confident when they left and go on counting: the share is of the pair's input points."""
        counts = segment_counts(confident, self.lengths)
        done = []
        for position, pair in enumerate(self.active):
            total = sum(self.input_lengths[2 * pair : 2 * pair + 2])
            unsure = sum(self.lengths[2 * position : 2 * position + 2]) - sum(counts[2 * position : 2 * position + 2])
            done.append(1 - unsure / total > exit_ratio)
        return done

    def _finalize(self, done: Sequence[bool], layer: int) -> Tensor:
        """Finishes the pairs that are done, and those with an empty side; returns the token rows that stay in play."""
        lengths = self.lengths
        emptied = [min(lengths[2 * i : 2 * i + 2]) == 0 for i in range(len(self.active))]
        finished = [i for i in range(len(self.active)) if done[i] or emptied[i]]
        if not finished:
            return torch.arange(len(self.x), device=self.x.device)
        starts = offsets_of(lengths)
        for i in finished:
            self.results[self.active[i]] = self._assigned(self.active[i], starts[2 * i : 2 * i + 3], layer)
        stay = [i for i in range(len(self.active)) if i not in set(finished)]
        segments = [2 * i + side for i in stay for side in (0, 1)]
        keep = keep_segments(lengths, segments, self.x.device)
        self._select(keep)
        self.lengths = [lengths[s] for s in segments]
        self.active = [self.active[i] for i in stay]
        return keep

    def _assigned(self, pair: int, bounds: Sequence[int], layer: int) -> Matches:
        """Assigns the points that are left of one pair with the head of this layer."""
        tokens = self.x[bounds[0] : bounds[2]]
        split = bounds[1] - bounds[0]
        head = self.model.heads[max(layer, 0)]
        features, logits = head.features(tokens), head.matchability_logits(tokens)
        asked = self.settings.score_threshold
        threshold = self.model.default_threshold if asked is None else asked
        found, scores = assign(features[:split], features[split:], logits[:split], logits[split:], threshold)
        rows = self.rows[bounds[0] : bounds[2]]
        pairs = torch.stack([rows[:split][found[:, 0]], rows[split:][found[:, 1]]], dim=1)
        return Matches(pairs, scores, layer + 1, self.layers_run[2 * pair].clone(), self.layers_run[2 * pair + 1].clone())

    def _keep_tokens(self, mask: Tensor) -> None:
        """Drops tokens of any segment; segments may become shorter or empty."""
        counts = segment_counts(mask, self.lengths)
        if counts != self.lengths:
            self._select(mask.nonzero()[:, 0])
            self.lengths = counts

    def _select(self, rows: Tensor) -> None:
        self.x, self.cosine, self.sine, self.rows = (t[rows] for t in (self.x, self.cosine, self.sine, self.rows))
