"""How to train: the settings, their schedule, and the recipes that we have run or counted through."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from lumiglue.errors import TrainingError
from lumiglue.matcher.settings import Ablation, Encoding

Schedule = Literal["cosine", "paper"]
ModelName = Literal["lightglue", "superglue"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train. Counts are of pairs, so that a change of batch size leaves the schedule alone. None means off.

    model: which matcher. ablation: of LightGlue, what to leave out (`LightGlueConfig`). deep_supervision: of LightGlue,
        every layer learns from the labels; else the last alone.
    preset: the matcher's size. encoding: of LightGlue; None takes "xy-logscale-angle" where the datasets have scales and
        orientations, else "xy". start_from: a weights file or a built-in name to fine-tune; without it the matcher starts
        fresh.
    pairs: stage 1, correspondences; of them the last `long_share` with `long_points` keypoints instead of `points`.
    lengths: None, or numbers of keypoints per image in place of both, one step after another, again and again; a step has
        as many pairs as make it as many keypoints as `batch_size` pairs of the first of them.
    distillation: weight of a teacher's assignments against the labels of the same pairs.
    confidence_pairs: stage 2, the exit classifier, the matcher frozen; SuperGlue has none. batch_size: of all processes
        together.
    schedule, learning_rate, warmup_pairs: see `learning_rate_at`. clip: largest norm of a step's gradient.
    negative_pair_ratio: share of pairs of two different scenes. ema: half-life, in pairs, of a running mean of the weights;
    it is
        measured beside the weights, and taken in their place at the end of stage 1 where it measures better.
    precision: of the forward and backward pass; "auto" measures once which is the faster here and keeps to it.
    compile: run the layers through torch.compile. evaluate_every, checkpoint_every, draw_every: in pairs. keep_every: in
        pairs of stage 1, how often the weights so far (their running mean, if there is one) are kept in snapshots/.
    """

    model: ModelName = "lightglue"
    ablation: Ablation | None = None
    deep_supervision: bool = True
    preset: str = "compact"
    encoding: Encoding | None = None
    start_from: str | None = None
    pairs: int = 48_000
    confidence_pairs: int = 3_200
    batch_size: int = 16
    points: int = 256
    long_points: int = 384
    long_share: float = 0.2
    lengths: tuple[int, ...] | None = None
    distillation: float = 1.0
    schedule: Schedule = "cosine"
    learning_rate: float = 1e-3
    confidence_learning_rate: float = 1e-2
    warmup_pairs: int = 2_000
    weight_decay: float = 0.01
    clip: float = 1.0
    negative_pair_ratio: float = 0.05
    ema: float | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: bool = False
    evaluate_every: int = 4_000
    checkpoint_every: int = 1_600
    draw_every: int | None = None
    keep_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ["batch_size", "points", "long_points", "learning_rate", "confidence_learning_rate", "clip"]
        positive += ["evaluate_every", "checkpoint_every"] + ([] if self.start_from else ["pairs"])
        positive += [name for name in ("ema", "draw_every", "keep_every") if getattr(self, name) is not None]
        for name in positive:
            if not getattr(self, name) > 0:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be positive")
        for name in ("pairs", "confidence_pairs", "warmup_pairs", "weight_decay"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.lengths is not None and (not self.lengths or min(self.lengths) < 1):
            raise TrainingError(f"lengths is {self.lengths}; give numbers of keypoints")
        if self.distillation < 0:
            raise TrainingError(f"distillation is {self.distillation}; it must not be negative")
        if not 0 <= self.negative_pair_ratio < 1 or not 0 <= self.long_share <= 1:
            raise TrainingError("negative_pair_ratio must be in [0, 1) and long_share in [0, 1]")
        if self.model not in get_args(ModelName):
            raise TrainingError(f"unknown model {self.model!r}; choose from {list(get_args(ModelName))}")
        if self.model != "lightglue" and (self.ablation or not self.deep_supervision):
            raise TrainingError(f"ablations are of lightglue; the model is {self.model}")
        if self.schedule not in get_args(Schedule):
            raise TrainingError(f"unknown schedule {self.schedule!r}; choose from {list(get_args(Schedule))}")
        if self.steps == 0:
            raise TrainingError("pairs and confidence_pairs are both 0; there is nothing to train")

    @property
    def matcher_steps(self) -> int:
        """Steps of stage 1."""
        return self._steps_for(self.pairs)

    @property
    def steps(self) -> int:
        """Steps of both stages."""
        if self.model != "lightglue" or not self.confidence_pairs:
            return self.matcher_steps
        return self._steps_for(self.pairs_before(self.matcher_steps) + self.confidence_pairs)

    @property
    def validation_points(self) -> int:
        """Keypoints per image of held-out pairs."""
        if self.lengths is not None:
            return sorted(self.lengths)[(len(self.lengths) - 1) // 2]
        return min(self.long_points, self.points * 2)

    @property
    def all_points(self) -> tuple[int, ...]:
        """All numbers of keypoints that the run draws."""
        return tuple(sorted(set(self.lengths))) if self.lengths is not None else (self.points, self.long_points)

    def stage_at(self, step: int) -> int:
        """1 or 2."""
        return 1 if step < self.matcher_steps else 2

    def points_at(self, step: int) -> int:
        """Keypoints per image of a step."""
        if self.lengths is not None:
            return self.lengths[step % len(self.lengths)]
        long_from = self.matcher_steps * (1 - self.long_share)
        return self.points if step < long_from else self.long_points

    def batch_size_at(self, step: int) -> int:
        """Pairs of a step."""
        return self.batch_sizes[step % len(self.batch_sizes)]

    def pairs_before(self, step: int) -> int:
        """Pairs of all steps before this one."""
        rounds, rest = divmod(step, len(self.batch_sizes))
        return rounds * sum(self.batch_sizes) + sum(self.batch_sizes[:rest])

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Pairs of the steps that repeat."""
        if self.lengths is None:
            return (self.batch_size,)
        return tuple(max(1, round(self.batch_size * self.lengths[0] / points)) for points in self.lengths)

    def _steps_for(self, pairs: int) -> int:
        """Fewest steps that see so many pairs."""
        rounds, rest = divmod(pairs, sum(self.batch_sizes))
        steps = rounds * len(self.batch_sizes)
        for size in self.batch_sizes:
            if rest <= 0:
                break
            rest, steps = rest - size, steps + 1
        return steps

    def learning_rate_at(self, step: int) -> float:
        """Both schedules of stage 1 begin with a linear warm-up over `warmup_pairs`.

        "cosine": then half a cosine down to 1 %. "paper": then constant for two thirds of the pairs, then an exponential
        decay by 10 over the last third: the paper's 20 epochs at a constant rate, then x 0.1 per 10 epochs, for 30 epochs.
        Stage 2: a cosine over its own steps, without warm-up.
        """
        if step >= self.matcher_steps:
            share = (step - self.matcher_steps) / max(1, self.steps - self.matcher_steps)
            return self.confidence_learning_rate * _cosine(share)
        warmup = max(1, self._steps_for(self.warmup_pairs)) if self.lengths else max(1, self.warmup_pairs // self.batch_size)
        share = step / self.matcher_steps
        decay = _cosine(share) if self.schedule == "cosine" else 0.1 ** (3 * max(0.0, share - 2 / 3))
        return self.learning_rate * min((step + 1) / warmup, 1.0) * decay


def _cosine(share: float) -> float:
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def standard() -> TrainSettings:
    """`compact`, 48,000 pairs: about 80 minutes on two CPU cores."""
    return TrainSettings()


def laptop() -> TrainSettings:
    """`compact`, 16,000 pairs at 256, then 384 points: for homographies and synthetic scenes of a folder of photos.

    With the datasets 69 minutes on one core of a Xeon (bench/RESULTS.md); two cores and three hours have room for more.
    A constant rate, then the decay, with a running mean: so `keep_every` gives weights that may be compared on the way,
    and a run with more `pairs` is the same run for longer.
    Forward and backward cost about 3 x (2.5 MFLOP x (d / 256)^2 x L x 2N + 14 L d N^2): 7 GFLOP a pair of 256 points.
    """
    return TrainSettings(pairs=16_000, negative_pair_ratio=0.08, schedule="paper", ema=1_000.0)


def comparison() -> TrainSettings:
    """`compact`, 6,000 pairs, the same for every matcher that is compared: with `--model superglue`, with an `--ablation`,
    without deep supervision. 10 to 20 minutes on one core with AMX; docs/paper.md has the table.
    """
    return TrainSettings(pairs=6_000, confidence_pairs=1_600, warmup_pairs=1_000, evaluate_every=2_000, keep_every=1_000)


def gpu_30min() -> TrainSettings:
    """`base` in 25 minutes of a large GPU, which leaves five to build or load the dataset. Counted, not yet run.

    512 points, L = 9, d = 256 take about 32 GFLOP a pair forward, 95 forward and backward: 2,500 pairs/s are 240 TFLOP/s,
    and 25 minutes of them 3.75 M pairs (three quarters of the paper's 5 M), 356 PFLOP. In steps: 29,300 of 128 pairs.
    """
    return TrainSettings(
        preset="base", pairs=3_750_000, confidence_pairs=128_000, batch_size=128, points=512, long_points=512,
        learning_rate=4e-4, warmup_pairs=128_000, compile=True, evaluate_every=128_000, checkpoint_every=128_000,
    )  # fmt: skip


def paper() -> TrainSettings:
    """The paper's pre-training: `base`, 5 M pairs of 512 points, learning rate 1e-4, its schedule. Not yet run.

    We use AdamW and bfloat16 where the paper has Adam and float16.
    """
    return TrainSettings(
        preset="base", pairs=5_000_000, confidence_pairs=128_000, batch_size=64, points=512, long_points=512,
        schedule="paper", learning_rate=1e-4, warmup_pairs=64, weight_decay=0.0, evaluate_every=128_000,
        checkpoint_every=64_000,
    )  # fmt: skip


def default() -> TrainSettings:
    """The matchers of this package: `deep`, from `compact` weights, on homographies, synthetic scenes and taught pairs.

    512 to 2,048 keypoints per image in one run, and about as many keypoints at each step. A constant rate, then the decay,
    and a running mean of the weights: snapshots may be compared on the way.
    """
    return TrainSettings(
        preset="deep", pairs=150_000, confidence_pairs=6_400, batch_size=16, lengths=(512, 1024, 512, 2048, 512, 1024, 768),
        schedule="paper", learning_rate=3e-4, warmup_pairs=1_000, negative_pair_ratio=0.06, ema=1_000.0,
        evaluate_every=4_000, checkpoint_every=400, keep_every=2_000,
    )  # fmt: skip


RECIPES: dict[str, Callable[[], TrainSettings]] = {
    "default": default,
    "standard": standard,
    "laptop": laptop,
    "comparison": comparison,
    "gpu_30min": gpu_30min,
    "paper": paper,
}


def recipe(name: str) -> TrainSettings:
    """The recipe of that name. Raises TrainingError for an unknown one."""
    if name not in RECIPES:
        raise TrainingError(f"unknown recipe {name!r}; choose from {sorted(RECIPES)}")
    return RECIPES[name]()
