"""The training loop: two stages, one process or several, checkpoints that resume to the same losses."""

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
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.models import MatcherModel, ModelConfig, build, model_name, preset, superglue_preset
from lumiglue.training.config import TrainSettings
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.data.teacher import Teacher
from lumiglue.training.deepening import deepened
from lumiglue.training.distributed import Processes
from lumiglue.training.imitation import StateTeacher, forced_states, unit_states
from lumiglue.training.learner import Learner
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
    """Trains a matcher, or resumes a run.

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
    model = _build_model(settings, opened)
    if here.device.type == "cuda":
        for dataset in opened:
            dataset.hold_on(here.device)  # the GPU then gathers the batches, faster than any disk
    training, held_out = _samplers(opened, model.config, settings, sampling_weights)
    learner = Learner(model, settings, here.device, _state_teacher(settings, model, training, here))
    for size in settings.batch_sizes:
        here.part_of(size)  # fails now, not in the middle of the run, if a batch cannot be divided
    batches = _batches(training, learner, here, ahead=here.device.type == "cuda")
    record = _record(settings, learner.model.config, opened, training.chances.tolist())
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
                raise TrainingError(f"{what} at step {learner.step}; {run}/checkpoint.pt has the last good state")
            learner.update(stage, rate)
            durations.append(time.perf_counter() - started)

            done, seen = learner.step, settings.pairs_before(learner.step)
            speed = _speed(durations, settings, done)
            validating = _due(settings.evaluate_every, settings, done)
            figures = _validate(learner, held_out, stage, here) if validating else (None, None)
            progress = TrainProgress(done, settings.steps, seen, stage, loss, rate, norm, speed, *figures)
            if folder and log:
                log.write(asdict(progress))
                if stage == 1 and _due(settings.keep_every, settings, done):
                    with learner.averaged():
                        folder.write_weights(learner.model, {"pairs_seen": seen, "datasets": record["datasets"]}, seen)
                if _due(settings.draw_every, settings, done):
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


def _gradient(learner: Learner, batch: Batch, stage: int, here: Processes, stop: bool) -> tuple[float, float, bool]:
    """Forward, backward and average over the processes: the loss, the gradient's norm, whether to stop."""
    settings, model = learner.settings, learner.model.train()
    with torch.autocast(here.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        if stage == 1:
            loss = _matcher_loss(learner, batch)
        else:
            assert isinstance(model, LightGlue)
            loss = confidence_loss(model, batch.pairs, average=lambda counts: here.average([counts]))
    for optimizer in learner.optimizers[stage - 1]:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    shared = torch.stack([loss.detach(), loss.new_tensor(float(stop))])
    here.average([*(p.grad for p in learner.parameters[stage - 1] if p.grad is not None), shared])
    norm = nn.utils.clip_grad_norm_(learner.parameters[stage - 1], settings.clip)
    value, stopping = shared.tolist()
    return value, float(norm), stopping > 0


def _matcher_loss(learner: Learner, batch: Batch) -> torch.Tensor:
    """The loss of stage 1, and the distance to the states of the teacher, if there is one."""
    settings, model, teacher = learner.settings, learner.model, learner.teacher
    weights: dict[str, Any] = {"deep_supervision": settings.deep_supervision, "distillation": settings.distillation}
    if teacher is None:
        return matcher_loss(model, batch.pairs, batch.labels(), batch.soft_labels(), **weights)
    assert isinstance(model, LightGlue)
    lesson = teacher.lesson(batch.pairs)
    forced = settings.forced_at(learner.step)
    states = list(forced_states(model, batch.pairs, lesson) if forced else unit_states(model, batch.pairs))
    loss = matcher_loss(model, batch.pairs, batch.labels(), lesson.soft, states=states[2::2], **weights)
    if not settings.imitation:
        return loss
    given = lesson.states if forced else states
    following = teacher.loss(states, lesson) + teacher.attention_loss(model, batch.pairs, given, lesson)
    return loss + settings.imitation * following


def _validate(
    learner: Learner, held_out: PairSampler, stage: int, here: Processes
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


def _due(every: int | None, settings: TrainSettings, done: int) -> bool:
    """Whether the next multiple of `every` pairs is reached, or the end of a stage; never for None."""
    if every is None:
        return False
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
            f"the weights {settings.start_from} are for {model_name(start.config)}, the run trains {settings.model}"
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


def _state_teacher(
    settings: TrainSettings, student: MatcherModel, sampler: PairSampler, here: Processes
) -> StateTeacher | None:
    """The teacher that the settings name. Raises TrainingError if the matcher cannot follow it."""
    if settings.teacher is None:
        return None
    assert isinstance(student, LightGlue)
    features = student.config.extractor
    teacher = Teacher.named(settings.teacher, features, device=str(here.device)).model()
    if teacher.config.extractor not in ("", features):
        raise TrainingError(
            f"the teacher {settings.teacher} is for {teacher.config.extractor}, the datasets have {features}"
        )
    points = min(settings.all_points)
    batches = [sampler.batch(step, max(1, 2048 // points), points, device=here.device).pairs for step in range(8)]
    return StateTeacher.of(teacher, student.to(here.device), batches, fresh=settings.start_from is None)


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
    if settings.preset == "same":
        if not isinstance(start, LightGlue):
            raise TrainingError("the preset same is the shape of the weights to start from; give start_from")
        return replace(start.config, extractor=name, descriptor_dim=channels)
    config = replace(preset(settings.preset, name, channels, encoding), ablation=settings.ablation)
    if isinstance(start, LightGlue):
        config = replace(config, exit_ratio=start.config.exit_ratio, prune_below=start.config.prune_below)
    return config


def _record(
    settings: TrainSettings, config: ModelConfig, datasets: Sequence[FeatureDataset], chances: Sequence[float]
) -> dict[str, Any]:
    """The content of settings.json. The paths of files may change between two starts of a run; their content may not."""
    record: dict[str, Any] = {"settings": asdict(settings), "config": asdict(config)}
    for role in ("start_from", "teacher"):
        if (name := record["settings"].pop(role)) is not None:
            record[role] = {"_weights": name, "sha256": hashlib.sha256(resolve(name).read_bytes()).hexdigest()}
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
