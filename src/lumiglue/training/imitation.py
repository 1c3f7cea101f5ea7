"""Imitation: a student follows the states and the attention of a wider matcher, unit by unit.

A unit is the self-attention or the cross-attention of a layer. The states of a trained matcher lie near a subspace; the
student's states are to be their coordinates in it. So after each unit there is a target for every channel of every point,
while an assignment gives one label per point. Each head is also to attend where the teacher's does.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lumiglue.errors import TrainingError
from lumiglue.matcher.lightglue import LightGlue, rotate
from lumiglue.matcher.packed import PackedPairs
from lumiglue.training.data.teacher import LEAST_P
from lumiglue.training.distillation import SoftLabels
from lumiglue.training.scores import layer_scores
from lumiglue.training.subspace import Basis, directions_of, fit_linear, shared_directions

# Points of an image whose attention is compared in a step; the attention of all would take time with their square.
QUERIES = 128


def unit_states(model: LightGlue, pairs: PackedPairs) -> Iterator[Float[Tensor, "t d"]]:
    """The states before the first layer, and after each self-attention and each cross-attention."""
    x, rotation = model.begin(pairs)
    yield x
    for layer in model.layers:
        x = layer.self_attention(x, rotation, pairs.lengths)
        yield x
        x = layer.cross_attention(x, pairs.lengths)
        yield x


@dataclass(frozen=True, eq=False)
class Lesson:
    """What the teacher shows of some pairs.

    Attributes:
        wide: The teacher's states, before the first layer and after each unit.
        states: Targets of the student's states: their coordinates.
        soft: The assignment of the teacher's last layer.
    """

    wide: list[Float[Tensor, "t wide"]]
    states: list[Float[Tensor, "t narrow"]]
    soft: SoftLabels


class StateTeacher:
    """A trained matcher whose states a student follows.

    Args:
        model: The teacher, which is frozen.
        basis: Directions whose coordinates the student's states are to be.
        deviations: Standard deviation of each coordinate, before the first layer and after each unit.
    """

    def __init__(self, model: LightGlue, basis: Basis, deviations: Float[Tensor, "units narrow"]) -> None:
        self.model, self.basis, self.deviations = model.eval().requires_grad_(False), basis, deviations

    @classmethod
    @torch.no_grad()
    def of(cls, model: LightGlue, student: LightGlue, pairs: Sequence[PackedPairs], *, fresh: bool) -> "StateTeacher":
        """The teacher of a student.

        The directions of a fresh student are the main directions of the teacher's states, and its input projection is fitted
        to them by least squares. Those of a trained one are as near as possible to the states that it has.

        Args:
            model: The teacher.
            student: The student.
            pairs: Pairs like those that it will learn from.
            fresh: Whether the student's weights are random.

        Raises:
            TrainingError: The student does not have as many layers and heads, or is wider.
        """
        mine, theirs = model.config, student.config
        if theirs.n_layers != mine.n_layers or theirs.d > mine.d:
            raise TrainingError(
                f"a student with {theirs.n_layers} layers of {theirs.d} channels cannot follow the states of a teacher with "
                f"{mine.n_layers} of {mine.d}; use as many layers and no more channels"
            )
        if theirs.heads != mine.heads:
            raise TrainingError(f"the student has {theirs.heads} attention heads and the teacher {mine.heads}; use as many")
        states, own = (
            [torch.cat(x) for x in zip(*(unit_states(matcher.eval(), batch) for batch in pairs), strict=True)]
            for matcher in (model, student)
        )
        basis = shared_directions(states, theirs.d) if fresh else directions_of(states, own)
        if fresh and isinstance(student.input_projection, nn.Linear):
            fit_linear(student.input_projection, torch.cat([batch.descriptors for batch in pairs]), states[0] @ basis)
        return cls(model, basis, torch.stack([(x @ basis).std(0) for x in states]).clamp_min(1e-3))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint stores: the coordinates, which a resumed run must not choose anew."""
        return {"basis": self.basis, "deviations": self.deviations}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state`. Raises ValueError if it is of other matchers."""
        for name, value in self.state().items():
            if state[name].shape != value.shape:
                raise ValueError("the teacher's directions are not of these matchers")
        self.basis, self.deviations = (state[name].to(self.basis.device) for name in ("basis", "deviations"))

    @torch.no_grad()
    def lesson(self, pairs: PackedPairs) -> Lesson:
        """What the student is to learn from pairs of segments of equal length."""
        states = [x.float() for x in unit_states(self.model, pairs)]
        scores = layer_scores(self.model.heads[-1], states[-1], pairs.n_pairs)
        log_p = scores.log_assignment()
        entries = (log_p > math.log(LEAST_P)).nonzero()
        weights = log_p[tuple(entries.T)].clamp(max=0).exp()
        soft = SoftLabels(entries, weights, 1 - scores.logits0.sigmoid(), 1 - scores.logits1.sigmoid(), pairs.n_pairs)
        return Lesson(states, [x @ self.basis for x in states], soft)

    def loss(self, states: Sequence[Float[Tensor, "t narrow"]], lesson: Lesson) -> Float[Tensor, ""]:
        """Mean squared difference of the student's states from the teacher's, in standard deviations of each coordinate."""
        pairs = zip(states, lesson.states, self.deviations, strict=True)
        return torch.stack([((x.float() - target) / deviation).square().mean() for x, target, deviation in pairs]).mean()

    def attention_loss(
        self,
        student: LightGlue,
        pairs: PackedPairs,
        states: Sequence[Float[Tensor, "t narrow"]],
        lesson: Lesson,
        queries: int | None = QUERIES,
    ) -> Float[Tensor, ""]:
        """Mean divergence of the student's attention from the teacher's, head by head, in nats.

        A message says little about where attention should have been; this does.

        Args:
            student: The student.
            pairs: The pairs of the lesson.
            states: What the student's units are given: its own states, or those of the lesson.
            lesson: What the teacher shows.
            queries: How many points of each image to compare, the first ones, which are random in a sampled batch; None for
                all.
        """
        theirs = attention_logits(self.model, pairs, lesson.wide, queries)
        losses = []
        for target, own in zip(theirs, attention_logits(student, pairs, states, queries), strict=True):
            log_p = target.log_softmax(-1)
            losses.append((log_p.exp() * (log_p - own.log_softmax(-1))).sum(-1).mean())
        return torch.stack(losses).mean()


def attention_logits(
    model: LightGlue, pairs: PackedPairs, states: Sequence[Float[Tensor, "t d"]], queries: int | None = None
) -> Iterator[Float[Tensor, "s h q n"]]:
    """What each unit takes the softmax of, over the last axis, for all 2P images.

    Args:
        model: The matcher.
        pairs: P pairs of segments of equal length n.
        states: Those of `unit_states`.
        queries: Only that many of each image's points, the first ones, attend; None for all.
    """
    rotation, segments = model.begin(pairs)[1], 2 * pairs.n_pairs
    for layer, before_self, before_cross in zip(model.layers, states[:-1:2], states[1::2], strict=True):
        unit, partners = layer.self_attention, layer.cross_attention
        qk = unit.qkv(before_self).float().unflatten(1, (3 * unit.heads, -1))[:, : 2 * unit.heads]
        q, k = rotate(qk, *rotation).unflatten(0, (segments, -1)).transpose(1, 2).chunk(2, dim=1)  # 2P, h, n, c
        yield q[:, :, :queries] @ k.mT / q.shape[-1] ** 0.5
        key = partners.qk(before_cross).float().unflatten(0, (segments, -1))
        key = key.unflatten(-1, (partners.heads, -1)).transpose(1, 2)
        partner = key.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        yield key[:, :, :queries] @ partner.mT / key.shape[-1] ** 0.5


def forced_states(student: LightGlue, pairs: PackedPairs, lesson: Lesson) -> Iterator[Float[Tensor, "t d"]]:
    """As `unit_states`, but each unit is given the teacher's state before it, so that it learns from the first step on."""
    x, rotation = student.begin(pairs)
    yield x
    before = iter(lesson.states)
    for layer in student.layers:
        yield layer.self_attention(next(before), rotation, pairs.lengths)
        yield layer.cross_attention(next(before), pairs.lengths)
