"""The training loop, whole: two stages, one step function, checkpoints that resume to the same losses."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lumiglue.errors import TrainingError
from lumiglue.matcher.lightglue import Encoding, LightGlue
from lumiglue.matcher.presets import preset
from lumiglue.training.bank import Bank
from lumiglue.training.loss import confidence_loss, layer_scores, matcher_loss, predictions
from lumiglue.training.sampling import PairSampler
from lumiglue.weights import save_weights


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train. Counts are of pairs, so that a change of batch size leaves the schedule alone.

    pairs: stage 1, correspondences; of them the last `long_share` with `long_points` keypoints instead of `points`.
    confidence_pairs: stage 2, the exit classifier, the matcher frozen.
    learning_rate: peak, after a linear warm-up over `warmup_pairs`, then a cosine to 1 % of it.
    negatives: share of pairs of two different photos. evaluate_every, checkpoint_every: in pairs.
    """

    preset: str = "compact"
    encoding: Encoding = "xy-logscale-angle"
    pairs: int = 48_000
    confidence_pairs: int = 3_200
    batch_size: int = 16
    points: int = 256
    long_points: int = 384
    long_share: float = 0.2
    learning_rate: float = 1e-3
    confidence_learning_rate: float = 3e-3
    warmup_pairs: int = 2_000
    weight_decay: float = 0.01
    clip: float = 1.0
    negatives: float = 0.05
    precision: Literal["bf16", "fp32"] = "bf16"
    evaluate_every: int = 4_000
    checkpoint_every: int = 1_600
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pairs", "batch_size", "points", "long_points", "learning_rate", "checkpoint_every"):
            if getattr(self, name) <= 0:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.negatives < 1 or not 0 <= self.long_share <= 1:
            raise TrainingError("negatives must be in [0, 1) and long_share in [0, 1]")

    @property
    def matcher_steps(self) -> int:
        return math.ceil(self.pairs / self.batch_size)

    @property
    def steps(self) -> int:
        return self.matcher_steps + math.ceil(self.confidence_pairs / self.batch_size)

    def points_at(self, step: int) -> int:
        long_from = self.matcher_steps * (1 - self.long_share)
        return self.points if step < long_from else self.long_points

    def learning_rate_at(self, step: int) -> float:
        """Stage 1: linear warm-up, cosine to 1 %. Stage 2: the same shape over its own steps, without warm-up."""
        if step >= self.matcher_steps:
            share = (step - self.matcher_steps) / max(1, self.steps - self.matcher_steps)
            return self.confidence_learning_rate * _cosine(share)
        warmup = max(1, self.warmup_pairs // self.batch_size)
        return self.learning_rate * min((step + 1) / warmup, 1.0) * _cosine(step / self.matcher_steps)


@dataclass(frozen=True)
class TrainProgress:
    """One line of metrics.jsonl: a training step, or with `layers` a validation."""

    step: int
    steps: int
    pairs: int
    stage: int
    loss: float
    pairs_per_second: float
    layers: list[dict[str, float]] | None = None


def train(bank_path: str | Path, run: str | Path, settings: TrainSettings) -> Iterator[TrainProgress]:
    """Trains a matcher in the folder `run`, or goes on with the run that is there; yields after every step.

    Leaves in `run`: settings.json, metrics.jsonl, checkpoint.pt (the last state), weights.safetensors (the result).
    Raises TrainingError where the folder holds a run with other settings or the loss is no longer finite (the last
    good checkpoint stays), BankError where the bank does not fit.
    """
    bank, run = Bank(bank_path), Path(run)
    extractor = bank.plan["extractor"]
    config = preset(settings.preset, extractor["name"], bank.descriptor_dim, settings.encoding)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _open_run(run, settings, bank)

    torch.manual_seed(settings.seed)
    model = LightGlue(config).to(device)
    confidence_parameters = [p for name, p in model.named_parameters() if name.startswith("confidences.")]
    matcher_parameters = [p for name, p in model.named_parameters() if not name.startswith("confidences.")]
    optimizers = [
        torch.optim.AdamW(matcher_parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=True),
        torch.optim.AdamW(confidence_parameters, settings.confidence_learning_rate, weight_decay=0.0),
    ]
    first_step = _resume(run, model, optimizers, device)
    sampler = PairSampler(bank, config, split="training", seed=settings.seed, negatives=settings.negatives)
    held_out = PairSampler(bank, config, split="validation", seed=settings.seed, negatives=0.0)

    with (run / "metrics.jsonl").open("a") as log:
        for step in range(first_step, settings.steps):
            started = time.perf_counter()
            stage = 1 if step < settings.matcher_steps else 2
            batch = sampler.batch(step, settings.batch_size, settings.points_at(step))
            pairs = batch.pairs.to(device, torch.float32)

            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                if stage == 1:
                    loss = matcher_loss(model, pairs, batch.labels().to(device))
                else:
                    loss = confidence_loss(model, pairs)
            if not bool(torch.isfinite(loss)):
                raise TrainingError(
                    f"the loss is {loss.item()} at step {step}; {run}/checkpoint.pt holds the last good state"
                )
            optimizer = optimizers[stage - 1]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], settings.clip)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate_at(step)
            optimizer.step()

            done = step + 1
            seen = done * settings.batch_size
            rate = settings.batch_size / (time.perf_counter() - started)
            layers = evaluate(model, held_out, settings) if _due(seen, settings.evaluate_every, settings, done) else None
            progress = TrainProgress(done, settings.steps, seen, stage, loss.item(), rate, layers)
            log.write(json.dumps(asdict(progress)) + "\n")
            if _due(seen, settings.checkpoint_every, settings, done):
                log.flush()
                _checkpoint(run, model, optimizers, done)
            yield progress
    save_weights(model, run / "weights.safetensors", {"recipe": asdict(settings), "bank": bank.plan["settings"]})


@torch.no_grad()
def evaluate(model: LightGlue, sampler: PairSampler, settings: TrainSettings, batches: int = 8) -> list[dict[str, float]]:
    """Recall and precision of each layer's matches (P > 0.1) on held-out pairs, and how sure the exit test is.

    recall: of the true matches; precision: of the found ones whose points are labelled. In percent.
    """
    device = next(model.parameters()).device
    layers = model.config.n_layers
    found, right, true = (torch.zeros(layers, device=device) for _ in range(3))
    for step in range(batches):
        batch = sampler.batch(step, 8, min(settings.long_points, settings.points * 2))
        labels = batch.labels()
        truth = torch.full(batch.keypoints0.shape[:2], -1)
        truth[labels.matches[:, 0], labels.matches[:, 1]] = labels.matches[:, 2]
        truth, labelled = truth.to(device), ((truth >= 0) | labels.unmatchable0).to(device)
        pairs = batch.pairs.to(device, torch.float32)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            states = list(model.states(pairs))
        for layer, (head, x) in enumerate(zip(model.heads, states, strict=True)):
            said, _ = predictions(*layer_scores(head, x, pairs.n_pairs), 0.1)
            found[layer] += ((said >= 0) & labelled).sum()
            right[layer] += ((said >= 0) & (said == truth)).sum()
            true[layer] += (truth >= 0).sum()
    recall, precision = 100 * right / true.clamp_min(1), 100 * right / found.clamp_min(1)
    return [{"recall": float(r), "precision": float(p)} for r, p in zip(recall, precision, strict=True)]


def _cosine(share: float) -> float:
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def _due(seen: int, every: int, settings: TrainSettings, done: int) -> bool:
    """True once each `every` pairs, at the end of a stage, and at the end."""
    return seen % every < settings.batch_size or done in (settings.matcher_steps, settings.steps)


def _open_run(run: Path, settings: TrainSettings, bank: Bank) -> None:
    run.mkdir(parents=True, exist_ok=True)
    record = {"settings": asdict(settings), "bank": bank.plan["settings"], "extractor": bank.plan["extractor"]}
    text = json.dumps(record, indent=2, sort_keys=True)
    file = run / "settings.json"
    if file.exists() and json.loads(file.read_text()) != json.loads(text):
        raise TrainingError(f"{run} holds a run with other settings or another bank; choose another folder or delete it")
    file.write_text(text + "\n")


def _checkpoint(run: Path, model: LightGlue, optimizers: list[torch.optim.AdamW], step: int) -> None:
    """Written beside and renamed, so that a kill leaves either the old or the new state, whole."""
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step}
    unfinished = run / "checkpoint.unfinished"
    torch.save(state, unfinished)
    unfinished.replace(run / "checkpoint.pt")


def _resume(run: Path, model: LightGlue, optimizers: list[torch.optim.AdamW], device: torch.device) -> int:
    """Loads the last checkpoint and cuts metrics.jsonl back to it; returns the step to go on with."""
    file, log = run / "checkpoint.pt", run / "metrics.jsonl"
    if not file.exists():
        log.unlink(missing_ok=True)
        return 0
    state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    lines = log.read_text().splitlines() if log.exists() else []
    log.write_text("".join(line + "\n" for line in lines[: state["step"]]))
    return state["step"]
