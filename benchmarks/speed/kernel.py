"""The bfloat16 kernel beside PyTorch's operations, part by part and for a whole layer, in turns in one process.

python benchmarks/speed/kernel.py [--points 512 1024 2048] [--rounds 15] [--training] [--threads 1]

--training: attention with its gradients, and steps of the preset `deep` with four pairs; then the losses of its layers from
the whole matrix of similarities, by PyTorch, beside those in blocks.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from training_step import Step, made_up_batch

from lumiglue.evaluation.speed import random_matcher
from lumiglue.matcher.execution import folded_layers
from lumiglue.matcher.lightglue import Layer, LightGlue, rotate
from lumiglue.matcher.ops import amx
from lumiglue.matcher.ops.attention import self_attention
from lumiglue.training.labels import Labels
from lumiglue.training.loss import correspondence_loss
from lumiglue.training.scores import LayerScores, layer_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if isinstance(amx.library(), str):
        raise SystemExit(f"there is no kernel here: {amx.library()}")
    print(f"{torch.get_num_threads()} threads, milliseconds (lowest to highest)")
    print("| size | points | part | PyTorch | kernel | ratio |\n|---|---|---|---|---|---|")
    if options.training:
        step = Step("bf16", size="deep")
        for n in options.points:
            for part, job in _training_jobs(step, n).items():
                _print("deep", n, part, *_times(job, options.rounds))
            whole, blocks = (partial(_losses, step, n, whole) for whole in (True, False))
            _print("deep", n, "losses, whole / in blocks", *_in_turns(whole, blocks, options.rounds))
        return
    for preset in ("base", "compact"):
        model = random_matcher(preset)
        model.layers = cast(Sequence[Layer], folded_layers(model, "bf16"))
        for n in options.points:
            for part, job in _jobs(model, n).items():
                with torch.inference_mode():
                    _print(preset, n, part, *_times(job, options.rounds))


def _jobs(model: LightGlue, n: int) -> dict[str, Callable[[], object]]:
    d, heads = model.config.d, model.config.heads
    x = torch.randn(2 * n, d)
    rotation = model.position_encoding(torch.rand(2 * n, 2))
    qkv = torch.randn(2 * n, 3 * heads, d // heads).bfloat16()
    q, k, v = qkv.chunk(3, dim=1)
    norm = model.layers[0].self_attention.ffn[1]
    assert isinstance(norm, nn.LayerNorm)
    hidden = torch.randn(2 * n, 2 * d).bfloat16()
    return {
        "attention inside two images": lambda: self_attention(q, k, v, [(n, n)]),
        "rotation": lambda: rotate(qkv[:, : 2 * heads], *rotation),
        "LayerNorm and GELU": lambda: amx.norm_gelu_(y := hidden.clone(), norm) or F.gelu(norm(y)),
        "a layer": lambda: model.layers[0](x, rotation, [(n, n)]),
    }


def _training_jobs(step: Step, n: int) -> dict[str, Callable[[], object]]:
    q, k, v = (torch.randn(2 * n, 4, 32).bfloat16().requires_grad_() for _ in range(3))
    gradient = torch.randn(2 * n, 4, 32).bfloat16()
    batch = made_up_batch(4, n)
    return {
        "attention inside two images, and gradients": lambda: self_attention(q, k, v, [(n, n)]).backward(gradient),
        "a step": lambda: step(*batch),
    }


def _losses(step: Step, n: int, whole: bool) -> None:
    """The losses of all layers and their gradients, of random states of four pairs."""
    _, labels = made_up_batch(4, n)
    losses: list[torch.Tensor] = []
    for head in step.model.heads:
        scores = layer_scores(head, torch.randn(8 * n, step.model.config.d, requires_grad=True), 4)
        losses.append(correspondence_loss(scores, labels) if not whole else _loss_of_the_whole(scores, labels))
    torch.stack(losses).mean().backward()


def _loss_of_the_whole(scores: LayerScores, labels: Labels) -> torch.Tensor:
    """What `correspondence_loss` does with its matches, by operations on the matrix of all pairs."""
    pair, i, j = labels.matches.unbind(1)
    similarity = scores.features0 @ scores.features1.mT
    log_p = 2 * similarity[pair, i, j] - similarity.logsumexp(2)[pair, i] - similarity.logsumexp(1)[pair, j]
    return -(log_p + F.logsigmoid(scores.logits0)[pair, i] + F.logsigmoid(scores.logits1)[pair, j]).mean()


def _times(job: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    def by_pytorch() -> None:
        with patch.object(amx, "library", lambda: "off"):
            job()

    return _in_turns(by_pytorch, job, rounds)


def _in_turns(theirs: Callable[[], object], ours: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(2 * rounds + 4):
        start = time.perf_counter()
        (theirs, ours)[number % 2]()
        if number >= 4:
            times[number % 2].append(1000 * (time.perf_counter() - start))
    return times


def _print(preset: str, n: int, part: str, theirs: list[float], ours: list[float]) -> None:
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(f"| {preset} | {n} | {part} | {_spread(theirs)} | {_spread(ours)} | {ratio:.1f} |", flush=True)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
