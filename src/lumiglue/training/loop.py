"""The training loop: two stages, one process or several, checkpoints that resume to the same losses."""

import contextlib
import hashlib
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lumiglue.errors import DatasetError, TrainingError
from lumiglue.io.text import reason
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.models import MatcherModel, ModelConfig, build, model_name, preset, superglue_preset
from lumiglue.matcher.precision import faster_precision
from lumiglue.training.config import TrainSettings
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.deepening import deepened
from lumiglue.training.distributed import Processes
from lumiglue.training.loss import confidence_loss, matcher_loss
from lumiglue.training.run_folder import RunFolder, read_checkpoint
from lumiglue.training.sampling import Batch, PairSampler
from lumiglue.training.validation import draw_validation, quality, validate
from lumiglue.weights.files import load_weights
from lumiglue.weights.registry import resolve

__all__ = ["TrainProgress", "TrainSettings", "train"]


@dataclass(frozen=True)
class TrainProgress:
    """One training step, a line of metrics.jsonl.

    Attributes:
        step: Steps done.
        steps: Steps of the whole run.
        pairs: Pairs seen so far.
        stage: 1 (correspondences) or 2 (exit classifier).
        loss: Loss of the step.
        learning_rate: Learning rate of the step.
        gradient_norm: Norm of the gradient before clipping.
        pairs_per_second: Median of the last steps, without validations and checkpoints.
        layers: Figures of each layer (`validate`) if the step was followed by a validation.
        ema_layers: The same for the running mean of the weights.
    """

    step: int
    steps: int
    pairs: int
    stage: int
    loss: float
    learning_rate: float
    gradient_norm: float
    pairs_per_second: float
    layers: list[dict[str, float]] | None = None
    ema_layers: list[dict[str, float]] | None = None


def train(
    datasets: str | Path | Sequence[str | Path],
    run: str | Path,
    settings: TrainSettings,
    *,
    sampling_weights: Sequence[float] | None = None,
    processes: Processes | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[TrainProgress]:
    """Trains a matcher, or resume a run.

    Args:
        datasets: Feature datasets, all with the same features.
        run: Folder of the run; `training.run_folder` lists what it contains. The result is weights.safetensors.
        settings: How to train.
        sampling_weights: How often each dataset is drawn from; equal by default.
        processes: The processes that share each batch (`join_processes`). All must call this function with the same
            arguments; only the first one validates and writes files.
        stop: Called after each step. Once it returns True in any process, a checkpoint is written and training ends early.

    Yields:
        The progress after each step.

    Raises:
        TrainingError: If the folder contains another run, the weights to start from do not fit, the disk is full, or the
            loss is not finite (the last good checkpoint remains).
        DatasetError: If the datasets do not fit each other or the settings.
    """
    here, run = processes or Processes(), Path(run)
    settings = replace(settings, long_points=settings.late_points)  # settings.json has the number
    opened = _open_datasets([datasets] if isinstance(datasets, str | Path) else list(datasets))
    learner = Learner(_build_model(settings, opened), settings, here.device)
    if here.device.type == "cuda":
        for dataset in opened:
            dataset.hold_on(here.device)  # the GPU then gathers the batches, faster than any disk
    training, held_out = _samplers(opened, learner.config, settings, sampling_weights)
    for size in settings.batch_sizes:
        here.part_of(size)  # fails now, not in the middle of the run, if a batch cannot be divided
    batches = _batches(training, learner, here, ahead=here.device.type == "cuda")
    record = _record(settings, learner.config, opened, training.chances.tolist())
    folder = RunFolder(run, record) if here.leads else None
    here.any(False)  # waits until the first process has checked the folder
    learner.load(read_checkpoint(run, here.device), run)
    learner.choose_precision(here)
    settings = learner.settings
    if settings.compile and settings.precision == "bf16" and here.device.type == "cpu":
        raise TrainingError("compile in bf16 gives NaN gradients on CPUs (PyTorch 2.13); use precision fp32 or no compile")
    log = folder.start_log(learner.step) if folder else None
    if settings.compile:
        _compile_layers(learner.model)

    durations: deque[float] = deque(maxlen=50)
    tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True  # the heads' float32 products
    try:
        while learner.step < settings.steps:
            started = time.perf_counter()
            stage, rate = settings.stage_at(learner.step), settings.learning_rate_at(learner.step)
            loss, norm, stopping = _gradient(learner, next(batches), stage, here, stop())
            if not math.isfinite(loss) or not math.isfinite(norm):
                what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
                raise TrainingError(f"{what} at step {learner.step}; {run}/checkpoint.pt holds the last good state")
            learner.update(stage, rate)
            durations.append(time.perf_counter() - started)

            done, seen = learner.step, settings.pairs_before(learner.step)
            speed = _speed(durations, settings, done)
            figures = (
                _validate(learner, held_out, stage, here) if _due(settings.evaluate_every, settings, done) else (None, None)
            )
            progress = TrainProgress(done, settings.steps, seen, stage, loss, rate, norm, speed, *figures)
            if folder and log:
                log.write(asdict(progress))
                if settings.keep_every and stage == 1 and _due(settings.keep_every, settings, done):
                    with learner.averaged():
                        folder.write_snapshot(learner.model, seen, {"pairs_seen": seen, "datasets": record["datasets"]})
                if settings.draw_every and _due(settings.draw_every, settings, done):
                    folder.write_picture(draw_validation(learner.model, held_out, settings, seen), seen)
                if stopping or _due(settings.checkpoint_every, settings, done):
                    folder.write_checkpoint(learner.state())
            yield progress
            if stopping and done < settings.steps:
                return
        if folder:
            folder.write_weights(learner.model, {"recipe": asdict(settings), "datasets": record["datasets"]} | learner.notes)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        batches.close()
        if log:
            log.close()
        if folder:
            folder.close()


def _gradient(learner: "Learner", batch: Batch, stage: int, here: Processes, stop: bool) -> tuple[float, float, bool]:
    """Forward, backward and average over the processes: the loss, the gradient's norm, whether to stop."""
    settings, model = learner.settings, learner.model.train()
    with torch.autocast(here.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        if stage == 1:
            loss = matcher_loss(
                model, batch.pairs, batch.labels(), batch.soft_labels(),
                deep_supervision=settings.deep_supervision, distillation=settings.distillation,
            )  # fmt: skip
        else:
            assert isinstance(model, LightGlue)
            loss = confidence_loss(model, batch.pairs, average=lambda counts: here.average([counts]))
    learner.optimizers[stage - 1].zero_grad(set_to_none=True)
    loss.backward()
    shared = torch.stack([loss.detach(), loss.new_tensor(float(stop))])
    here.average([*(p.grad for p in learner.parameters[stage - 1] if p.grad is not None), shared])
    norm = nn.utils.clip_grad_norm_(learner.parameters[stage - 1], settings.clip)
    value, stopping = shared.tolist()
    return value, float(norm), stopping > 0


def _validate(
    learner: "Learner", held_out: PairSampler, stage: int, here: Processes
) -> tuple[list[dict[str, float]] | None, list[dict[str, float]] | None]:
    """Figures of the weights and of their running mean, if there is one; after stage 1 the better of the two is kept."""
    layers = ema_layers = None
    if here.leads:
        layers = validate(learner.model, held_out, learner.settings, stage)
        if learner.ema is not None:
            with learner.averaged():
                ema_layers = validate(learner.model, held_out, learner.settings, stage)
    if learner.ema is not None and learner.step == learner.settings.matcher_steps:
        learner.settle(take_ema=here.any(bool(layers and ema_layers and quality(ema_layers) > quality(layers))))
    return layers, ema_layers


class Learner:
    """The state of a run.

    Attributes:
        model: The matcher.
        settings: How to train.
        parameters: Those of stage 1 and those of stage 2.
        optimizers: One per stage.
        ema: Running mean of the parameters of stage 1; None if there is none.
        step: Steps done.
        notes: What the run decided: the precision, and which weights were kept.
    """

    def __init__(self, model: MatcherModel, settings: TrainSettings, device: torch.device) -> None:
        self.model, self.settings = model.to(device), settings
        named = list(self.model.named_parameters())
        matcher = [p for name, p in named if not name.startswith("confidences.")]
        self.parameters = [matcher, [p for name, p in named if name.startswith("confidences.")]]
        self.optimizers = [
            torch.optim.AdamW(matcher, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
        ]
        if self.parameters[1]:
            confidences = torch.optim.AdamW(
                self.parameters[1], settings.confidence_learning_rate, weight_decay=0.0, fused=True
            )
            self.optimizers.append(confidences)
        self.ema = [p.detach().clone() for p in matcher] if settings.ema is not None and settings.pairs else None
        self.step = 0
        self.notes: dict[str, Any] = {}

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def update(self, stage: int, rate: float) -> None:
        """Does one step of a stage's optimiser."""
        optimizer = self.optimizers[stage - 1]
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        if self.ema is not None and self.settings.ema is not None:
            forget = 1 - 0.5 ** (self.settings.batch_size_at(self.step) / self.settings.ema)
            for mean, parameter in zip(self.ema, self.parameters[0], strict=True):
                mean.lerp_(parameter.detach(), forget)
        self.step += 1

    def choose_precision(self, here: Processes) -> None:
        """Replaces "auto" by the precision that the first process measures to be faster; a resumed run keeps its choice."""
        if self.settings.precision != "auto":
            return
        if "precision" not in self.notes:
            bf16 = here.any(here.leads and faster_precision(here.device) == "bf16")
            self.notes["precision"] = "bf16" if bf16 else "fp32"
        self.settings = replace(self.settings, precision=self.notes["precision"])

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Uses the running mean of the weights, if there is one, inside a `with` block."""
        if self.ema is None:
            yield
            return
        self._swap()
        yield
        self._swap()

    def settle(self, *, take_ema: bool) -> None:
        """Ends stage 1 with the weights or with their running mean."""
        if take_ema:
            self._swap()
        self.ema = None
        self.notes["weights"] = "ema" if take_ema else "last"

    @torch.no_grad()
    def _swap(self) -> None:
        assert self.ema is not None
        for parameter, mean in zip(self.parameters[0], self.ema, strict=True):
            weights = parameter.clone()
            parameter.copy_(mean)
            mean.copy_(weights)

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        tensors = {"model": self.model.state_dict(), "optimizers": optimizers, "ema": self.ema}
        return tensors | {"step": self.step, "notes": self.notes}

    def load(self, state: dict[str, Any] | None, run: Path) -> None:
        """Restores a checkpoint of `run`, if there is one. Raises TrainingError if it does not fit this run."""
        if state is None:
            return
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
                _check_optimizer(optimizer)
            self.ema, self.step, self.notes = state["ema"], state["step"], state["notes"]
            self._check()
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"{run}/checkpoint.pt does not fit this run ({reason(error)}); delete {run} to start again"
            ) from None

    def _check(self) -> None:
        """Raises ValueError if the loaded state cannot be resumed."""
        if not isinstance(self.step, int) or not 0 <= self.step <= self.settings.steps or not isinstance(self.notes, dict):
            raise ValueError(
                f"step is {self.step!r} of {self.settings.steps}, notes are of type {type(self.notes).__name__}"
            )
        if self.ema is not None and [mean.shape for mean in self.ema] != [p.shape for p in self.parameters[0]]:
            raise ValueError("the running mean is not of this matcher")
        if self.settings.precision == "auto" and self.notes.get("precision", "fp32") not in ("bf16", "fp32"):
            raise ValueError(f"the precision is {self.notes['precision']!r}")
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            raise ValueError("the weights hold NaN or infinity")


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raises ValueError if the loaded state does not fit the parameters, which would otherwise fail at the first step."""
    for group in optimizer.param_groups:
        for key, default in optimizer.defaults.items():
            value = group[key]
            same_type = type(value) is type(default) or (isinstance(value, float | int) and isinstance(default, float | int))
            if not same_type or (isinstance(value, tuple) and not all(isinstance(n, float) and 0 <= n < 1 for n in value)):
                raise ValueError(f"the optimiser's {key} is {value!r}")
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            if state and {key: value.shape for key, value in state.items()} != shapes:
                raise ValueError("the optimiser's state is not of this matcher")


def _speed(durations: Sequence[float], settings: TrainSettings, done: int) -> float:
    """Pairs per second: the median of the last steps, or their mean if steps differ in length."""
    if settings.lengths is None:
        return settings.batch_size / statistics.median(durations)
    return (settings.pairs_before(done) - settings.pairs_before(done - len(durations))) / sum(durations)


def _batches(sampler: PairSampler, learner: Learner, here: Processes, *, ahead: bool) -> Generator[Batch, None, None]:
    """This process's part of each batch to come; with `ahead` the next one is drawn during the current step."""
    settings, first = learner.settings, learner.step

    def draw(step: int) -> Batch:
        size = settings.batch_size_at(step)
        return sampler.batch(step, size, settings.points_at(step), here.part_of(size), here.device)

    if not ahead:
        for step in range(first, settings.steps):
            yield draw(step)
        return
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(draw, first)
        for step in range(first + 1, settings.steps + 1):
            batch = upcoming.result()
            if step < settings.steps:
                upcoming = thread.submit(draw, step)
            yield batch


def _due(every: int, settings: TrainSettings, done: int) -> bool:
    """Whether the next multiple of `every` pairs is reached, or the end of a stage."""
    last = settings.batch_size_at(done - 1)
    return settings.pairs_before(done) % every < last or done in (settings.matcher_steps, settings.steps)


def _samplers(
    datasets: Sequence[FeatureDataset],
    config: ModelConfig,
    settings: TrainSettings,
    sampling_weights: Sequence[float] | None,
) -> tuple[PairSampler, PairSampler]:
    """Samplers of training and held-out pairs. Raises DatasetError now, not hours later, if there are too few keypoints."""
    training = PairSampler(
        datasets,
        config,
        split="training",
        seed=settings.seed,
        negative_pair_ratio=settings.negative_pair_ratio,
        sampling_weights=sampling_weights,
    )
    held_out = PairSampler(
        datasets, config, split="validation", seed=0, negative_pair_ratio=0.0, sampling_weights=sampling_weights
    )
    training.check(settings.all_points)
    held_out.check({settings.validation_points: settings.all_points.get(settings.validation_points, "points")})
    return training, held_out


def _open_datasets(paths: Sequence[str | Path]) -> list[FeatureDataset]:
    """Raises DatasetError if the datasets have different features."""
    if not paths:
        raise DatasetError("no dataset was given; build one with `lumiglue dataset homographies PHOTOS -o dataset.h5`")
    datasets = [FeatureDataset(path) for path in paths]
    for other in datasets[1:]:
        if other.extractor != datasets[0].extractor:
            first, second = (json.dumps(dataset.extractor) for dataset in (datasets[0], other))
            raise DatasetError(
                f"{datasets[0].path} has features {first} and {other.path} {second}; "
                "train on datasets with the same features"
            )
    return datasets


def _build_model(settings: TrainSettings, datasets: Sequence[FeatureDataset]) -> MatcherModel:
    """A new matcher for the datasets' features, or the one to start from. Raises TrainingError if that does not fit."""
    start = None if settings.start_from is None else load_weights(resolve(settings.start_from))
    if start is not None and model_name(start.config) != settings.model:
        raise TrainingError(
            f"the weights {settings.start_from} are of {model_name(start.config)}, the run is of {settings.model}"
        )
    config = _config(settings, datasets, start)
    if isinstance(start, LightGlue) and isinstance(config, LightGlueConfig) and start.config.n_layers < config.n_layers:
        extractor = start.config.extractor or config.extractor
        if replace(start.config, n_layers=config.n_layers, extractor=extractor) == config:
            start = deepened(start, config.n_layers)
    if start is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return build(config)
    if replace(start.config, extractor=start.config.extractor or config.extractor) != config:
        expected, actual = asdict(config), asdict(start.config)
        differing = ", ".join(
            f"{key} {actual[key]!r} for {value!r}" for key, value in expected.items() if actual[key] != value
        )
        raise TrainingError(f"the weights {settings.start_from} do not fit this run: they have {differing}")
    start.config = config  # pyright: ignore[reportAttributeAccessIssue]  (of the same model)
    return start


def _config(settings: TrainSettings, datasets: Sequence[FeatureDataset], start: MatcherModel | None) -> ModelConfig:
    """Config of the run's matcher. Raises TrainingError if the datasets lack what its encoding needs."""
    name, channels = datasets[0].extractor["name"], datasets[0].descriptor_dim
    if settings.model == "superglue":
        return superglue_preset(settings.preset, name, channels)
    oriented = all(dataset.has_orientation for dataset in datasets)
    encoding = settings.encoding or (start.config.encoding if isinstance(start, LightGlue) else None)
    encoding = encoding or ("xy-logscale-angle" if oriented else "xy")
    if encoding != "xy" and not oriented:
        raise TrainingError(f"encoding {encoding!r} needs scales and orientations, which the datasets lack; use 'xy'")
    return replace(preset(settings.preset, name, channels, encoding), ablation=settings.ablation)


def _record(
    settings: TrainSettings, config: ModelConfig, datasets: Sequence[FeatureDataset], chances: Sequence[float]
) -> dict[str, Any]:
    """The content of settings.json. The paths of files may change between two starts of a run; their content may not."""
    record: dict[str, Any] = {"settings": asdict(settings), "config": asdict(config)}
    del record["settings"]["start_from"]
    if settings.start_from is not None:
        sha256 = hashlib.sha256(resolve(settings.start_from).read_bytes()).hexdigest()
        record["start_from"] = {"_weights": settings.start_from, "sha256": sha256}
    record["datasets"] = [
        {
            "_path": str(dataset.path),
            "share": chance,
            "views": len(dataset),
            "extractor": dataset.extractor,
            "settings": dataset.plan["settings"],
            "plan_sha256": hashlib.sha256(json.dumps(dataset.plan, sort_keys=True).encode()).hexdigest(),
        }
        for dataset, chance in zip(datasets, chances, strict=True)
    ]
    return record


def _compile_layers(model: MatcherModel) -> None:
    """Compiles in place, which keeps the names of the weights."""
    for layer in model.layers:
        cast(nn.Module, layer).compile(dynamic=False)
