"""One training step of `compact` (16 pairs of 256 points): pairs per second in fp32, bf16 autocast and bf16 with
torch.compile, in turns in one process; where the time of a bf16 step goes; with --dataset also the drawing of batches. With
--compile also whether compiled gradients are the eager ones. First, what the CPU multiplies matrices at in either format.

    python benchmarks/speed/training_step.py [--dataset dataset.h5] [--rounds 9] [--compile] [--operations]
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.models import preset
from lumiglue.matcher.packed import PackedPairs
from lumiglue.matcher.precision import product_rate
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.labels import Labels
from lumiglue.training.loss import correspondence_loss, matcher_loss
from lumiglue.training.sampling import PairSampler
from lumiglue.training.scores import layer_scores

PAIRS, POINTS = 16, 256


def made_up_batch(pairs: int = PAIRS, points: int = POINTS) -> tuple[PackedPairs, Labels]:
    """60 matches in each pair, the other points without."""
    descriptors = torch.nn.functional.normalize(torch.rand(2 * pairs * points, 128), dim=1)
    packed = PackedPairs(descriptors, torch.rand(len(descriptors), 4), ((points, points),) * pairs)
    matches = torch.stack(torch.meshgrid(torch.arange(pairs), torch.arange(60), indexing="ij"), -1).reshape(-1, 2)
    alone = (torch.arange(points) >= 60).expand(pairs, points)
    return packed, Labels(torch.cat([matches, matches[:, 1:]], dim=1), alone, alone)


class Step:
    """A model, its optimiser, and one step of training."""

    def __init__(self, precision: str, compiled: bool = False, size: str = "compact") -> None:
        torch.manual_seed(0)
        self.model = LightGlue(preset(size, "sift", 128, "xy-logscale-angle"))
        self.parameters = [p for name, p in self.model.named_parameters() if not name.startswith("confidences.")]
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-4, fused=True)
        self.precision = precision
        if compiled:
            for layer in self.model.layers:
                cast(nn.Module, layer).compile(dynamic=False)

    def __call__(self, packed: PackedPairs, labels: Labels) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            loss = matcher_loss(self.model, packed, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()


def gradient_gap(eager: Step, compiled: Step, packed: PackedPairs, labels: Labels) -> str:
    """How far compiled gradients are from eager ones, relative, the worst tensor; or how many contain NaN."""
    gradients = []
    for step in (eager, compiled):
        with torch.autocast("cpu", torch.bfloat16, enabled=step.precision == "bf16"):
            loss = matcher_loss(step.model, packed, labels)
        gradients.append(torch.autograd.grad(loss, step.parameters))
    broken = sum(not bool(torch.isfinite(gradient).all()) for gradient in gradients[1])
    if broken:
        return f"{broken} of {len(gradients[1])} gradients contain NaN"
    gaps = [float((a - b).norm() / a.norm().clamp_min(1e-12)) for a, b in zip(*gradients, strict=True)]
    return f"largest relative gap of a gradient {max(gaps):.1e}"


class Stopwatch:
    """Seconds by name, of calls that it wraps; a call inside another counts for both."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **named)
            self.seconds[name] += time.perf_counter() - start
            return result

        return timed


def parts_of_a_step(dataset: Path | None, packed: PackedPairs, labels: Labels, rounds: int) -> dict[str, list[float]]:
    """Seconds of each part, for each round; those that begin with "of layers" are parts of the layers' forward pass."""
    step = Step("bf16")
    times: dict[str, list[float]] = defaultdict(list)
    sampler = None
    if dataset is not None:
        sampler = PairSampler(
            [FeatureDataset(dataset)], step.model.config, split="training", seed=0, negative_pair_ratio=0.05
        )
    watch = Stopwatch()
    for layer in step.model.layers:
        for name, unit in (("self", layer.self_attention), ("cross", layer.cross_attention)):
            unit.forward = watch.around(f"of layers: {name}-attention units", unit.forward)
            unit.ffn.forward = watch.around("of layers: ffn in both units", unit.ffn.forward)
    for number in range(rounds):
        watch.seconds.clear()
        if sampler is not None:
            batch = watch.around("draw the batch", sampler.batch)(number, PAIRS, POINTS)
            packed, labels = batch.pairs, watch.around("labels", batch.labels)()
        with torch.autocast("cpu", torch.bfloat16):
            states = watch.around("layers", list)(step.model.states(packed))
            leaves = [x.detach().requires_grad_() for x in states]  # so that the heads' backward pass ends there
            loss = watch.around("heads and loss", head_losses)(step.model, leaves, labels)
        step.optimizer.zero_grad(set_to_none=True)
        watch.around("heads and loss, backward", loss.backward)()
        watch.around("layers, backward", torch.autograd.backward)(states, [x.grad for x in leaves])
        watch.around("clip and AdamW", lambda: (nn.utils.clip_grad_norm_(step.parameters, 1.0), step.optimizer.step()))()
        for name, seconds in watch.seconds.items():
            times[name].append(seconds)
    return times


def head_losses(model: LightGlue, states: list[torch.Tensor], labels: Labels) -> torch.Tensor:
    pairs = zip(model.heads, states, strict=True)
    return torch.stack([correspondence_loss(layer_scores(head, x, PAIRS), labels) for head, x in pairs]).mean()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--operations", action="store_true")
    flags = parser.parse_args()
    packed, labels = made_up_batch()

    steps = {"fp32": Step("fp32"), "bf16": Step("bf16")}
    for dtype in (torch.float32, torch.bfloat16):
        print(f"{dtype}: {product_rate(dtype) / 1e9:.0f} GFLOP/s, 4096 x 256 by 256 x 256")
    if flags.compile:
        steps |= {f"{precision} compiled": Step(precision, compiled=True) for precision in ("fp32", "bf16")}
        for precision in ("fp32", "bf16"):
            print(f"{precision} compiled: {gradient_gap(Step(precision), steps[f'{precision} compiled'], packed, labels)}")
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(flags.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step(packed, labels)
            if number:  # the first round warms up
                rates[name].append(PAIRS / (time.perf_counter() - start))
    for name, measured in rates.items():
        low, middle, high = np.quantile(measured, [0.0, 0.5, 1.0])
        print(f"{name}: {middle:.1f} pairs/s ({low:.1f} to {high:.1f}), {middle / np.median(rates['fp32']):.2f} x fp32")

    parts = {
        name: float(np.median(s[1:])) for name, s in parts_of_a_step(flags.dataset, packed, labels, flags.rounds).items()
    }
    total = sum(seconds for name, seconds in parts.items() if not name.startswith("of layers"))
    print("\n| part of a bf16 step | ms | share |\n|---|---|---|")
    for name, seconds in parts.items():
        print(f"| {name} | {1000 * seconds:.1f} | {100 * seconds / total:.0f} % |")

    if flags.operations:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            steps["bf16"](packed, labels)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


if __name__ == "__main__":
    main()
