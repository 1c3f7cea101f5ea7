"""The state of a training run: the matcher, its optimisers and the running mean of its weights."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from lumiglue.errors import TrainingError
from lumiglue.io.text import reason
from lumiglue.matcher.models import MatcherModel
from lumiglue.matcher.precision import faster_precision
from lumiglue.training.config import TrainSettings
from lumiglue.training.distributed import Processes
from lumiglue.training.imitation import StateTeacher


class Learner:
    """The state of a run.

    Attributes:
        model: The matcher.
        settings: How to train.
        parameters: Those of stage 1 and those of stage 2.
        optimizers: Those of stage 1 and those of stage 2.
        teacher: Whose states the matcher follows; None if there is none.
        ema: Running mean of the parameters of stage 1; None if there is none.
        step: Steps done.
        notes: What the run decided: the precision, and which weights were kept.
    """

    def __init__(
        self, model: MatcherModel, settings: TrainSettings, device: torch.device, teacher: StateTeacher | None = None
    ) -> None:
        self.model, self.settings, self.teacher = model.to(device), settings, teacher
        named = list(self.model.named_parameters())
        matcher = [p for name, p in named if not name.startswith("confidences.")]
        self.parameters = [matcher, [p for name, p in named if name.startswith("confidences.")]]
        self.optimizers = [_optimizers(named, settings), []]
        if self.parameters[1]:
            self.optimizers[1].append(_adamw(self.parameters[1], settings.confidence_learning_rate, 0.0))
        self.ema = [p.detach().clone() for p in matcher] if settings.ema is not None and settings.pairs else None
        self.step = 0
        self.notes: dict[str, Any] = {}

    def update(self, stage: int, rate: float) -> None:
        """Does one step of a stage's optimisers."""
        for optimizer in self.optimizers[stage - 1]:
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
        optimizers = [optimizer.state_dict() for optimizer in chain(*self.optimizers)]
        tensors = {"model": self.model.state_dict(), "optimizers": optimizers, "ema": self.ema}
        teacher = {} if self.teacher is None else {"teacher": self.teacher.state()}
        return tensors | teacher | {"step": self.step, "notes": self.notes}

    def load(self, state: dict[str, Any] | None, run: Path) -> None:
        """Restores a checkpoint of `run`, if there is one. Raises TrainingError if it does not fit this run."""
        if state is None:
            return
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(chain(*self.optimizers), state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
                _check_optimizer(optimizer)
            self.ema, self.step, self.notes = state["ema"], state["step"], state["notes"]
            if self.teacher is not None:
                self.teacher.load(state["teacher"])
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
            raise ValueError("the weights contain NaN or infinity")


def _optimizers(named: Iterable[tuple[str, torch.nn.Parameter]], settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """The optimisers of stage 1. Muon is for matrices that multiply states; AdamW has all else.

    Raises:
        TrainingError: PyTorch has no Muon.
    """
    if settings.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise TrainingError(f"the optimizer muon needs PyTorch 2.9 or newer; this is {torch.__version__}; use adamw")
    rate, decay = settings.learning_rate, settings.weight_decay
    matrices, others = [], []
    for name, parameter in named:
        if name.startswith("confidences."):
            continue
        wide = name.endswith(".weight") and parameter.ndim == 2 and min(parameter.shape) > 1
        (matrices if wide and settings.optimizer == "muon" else others).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [_adamw(others, rate, decay)]
    if matrices:
        # With steps as large as AdamW's, both optimisers share one learning rate.
        optimizers.append(torch.optim.Muon(matrices, rate, decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def _adamw(parameters: Sequence[torch.nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=True)


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raises ValueError if the loaded state does not fit the parameters, which would otherwise fail at the first step."""
    for group in optimizer.param_groups:
        for key, default in optimizer.defaults.items():
            if key == "differentiable" and key not in group:  # Muon gets this default when it is loaded, and never reads it
                continue
            value = group[key]
            same_type = type(value) is type(default) or (isinstance(value, float | int) and isinstance(default, float | int))
            decays = value if key == "betas" and isinstance(value, tuple) else ()
            if not same_type or not all(isinstance(decay, float) and 0 <= decay < 1 for decay in decays):
                raise ValueError(f"the optimiser's {key} is {value!r}")
        for parameter in group["params"]:
            shapes = {key: value.shape for key, value in optimizer.state.get(parameter, {}).items()}
            of_adamw = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            expected = of_adamw if isinstance(optimizer, torch.optim.AdamW) else {"momentum_buffer": parameter.shape}
            if shapes and shapes != expected:
                raise ValueError("the optimiser's state is not of this matcher")
