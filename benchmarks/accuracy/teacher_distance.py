"""How far a student's states and attention are from its teacher's, unit by unit, on held-out pairs.

    python benchmarks/accuracy/teacher_distance.py RUN/weights.safetensors taught.h5 --teacher aliked-lightglue

States: mean squared difference along the student's directions, in standard deviations of each; a constant has 1. First where
each unit is given the teacher's state, then from the student's own states. Attention: the divergence of each head from the
teacher's, in nats, given the teacher's states.
"""

import argparse
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lumiglue.matcher.lightglue import LightGlue
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.data.teacher import Teacher
from lumiglue.training.imitation import Lesson, StateTeacher, forced_states, unit_states
from lumiglue.training.sampling import PairSampler
from lumiglue.weights import load_weights, resolve

PAIRS = 8  # of either split


def distances(teacher: StateTeacher, states: Iterable[Tensor], lesson: Lesson) -> list[float]:
    """Of each unit."""
    of_units = zip(states, lesson.states, teacher.deviations, strict=True)
    return [float(((x - target) / deviation).square().mean()) for x, target, deviation in of_units]


def line_of(name: str, rows: Sequence[Sequence[float]]) -> str:
    means = [sum(unit) / len(unit) for unit in zip(*rows, strict=True)][1:]
    kinds = (("self", means[::2]), ("cross", means[1::2]))
    return "; ".join([name, *(f"{kind} " + " ".join(f"{value:.2f}" for value in of) for kind, of in kinds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("dataset")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--points", type=int, default=512)
    given = parser.parse_args()
    student = load_weights(resolve(given.weights))
    assert isinstance(student, LightGlue)
    dataset = FeatureDataset(given.dataset)
    model = Teacher.named(given.teacher, dataset.extractor["name"]).model()
    samplers = {
        split: PairSampler([dataset], student.config, split=split, seed=0, negative_pair_ratio=0.0)
        for split in ("training", "validation")
    }
    pairs = {name: [sampler.batch(k, 1, given.points).pairs for k in range(PAIRS)] for name, sampler in samplers.items()}
    with torch.no_grad():
        teacher = StateTeacher.of(model, student, pairs["training"], fresh=False)
        forced, own, attention = [], [], []
        for batch in pairs["validation"]:
            lesson = teacher.lesson(batch)
            forced.append(distances(teacher, forced_states(student, batch, lesson), lesson))
            own.append(distances(teacher, unit_states(student, batch), lesson))
            attention.append(float(teacher.attention_loss(student, batch, lesson.states, lesson, queries=None)))
    print(line_of("given the teacher's states", forced))
    print(line_of("from its own states", own))
    print(f"attention: {sum(attention) / len(attention):.2f} nats")


if __name__ == "__main__":
    main()
