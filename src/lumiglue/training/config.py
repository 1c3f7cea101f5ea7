"""How to train: settings, schedule, and recipes."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from lumiglue.errors import TrainingError
from lumiglue.matcher.settings import Ablation, Encoding

Schedule = Literal["cosine", "paper"]
ModelName = Literal["lightglue", "superglue"]
OptimizerName = Literal["adamw", "muon"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train. Counts are numbers of pairs, so the schedule does not depend on the batch size.

    Attributes:
        model: LightGlue, or SuperGlue to compare it with.
        ablation: LightGlue only: what to leave out, as in the paper's ablations; by default nothing.
        deep_supervision: LightGlue only: whether every layer learns from the labels, or the last layer alone.
        preset: Size of the matcher: base, compact, deep (as narrow as compact, with the 9 layers of base), or same (that of
            the weights to start from). Weights with fewer layers are deepened.
        encoding: Input of the rotary encoding; by default log scale and angle if the features have them, otherwise xy.
        start_from: Weights to fine-tune: a .safetensors file or the name of built-in ones; by default the matcher starts
            from random weights.
        pairs: Pairs seen in stage 1 (correspondences).
        confidence_pairs: Pairs seen in stage 2 (exit classifier), with the matcher frozen. SuperGlue has no stage 2.
        batch_size: Pairs per step, of all processes together.
        points: Keypoints per image.
        long_points: Keypoints per image in the last part of stage 1 and in stage 2; by default 1.5 times points.
        long_share: Length of that last part, as a fraction of stage 1.
        lengths: Replaces points and long_points: numbers of keypoints per image, one per step, in turn. Steps with more
            keypoints have fewer pairs; batch_size applies to the first number.
        distillation: Weight of the teacher's assignments in taught pairs, relative to their labels.
        teacher: A name of weights or a file: a LightGlue for the same features, with as many layers and no narrower. The
            matcher learns its assignments and follows its states. It runs in each step, too. By default there is none.
        imitation: Weight of the teacher's states and attention; 0 leaves its assignments alone.
        forced_pairs: Pairs at the start of stage 1 in which each unit is given the teacher's state before it.
        schedule: Learning rate schedule: half a cosine, or the paper's constant rate and exponential decay.
        learning_rate: Peak learning rate in stage 1.
        confidence_learning_rate: Peak learning rate in stage 2.
        warmup_pairs: Pairs over which the learning rate rises to its peak in stage 1.
        optimizer: That of stage 1: AdamW, or Muon for matrices and AdamW for all else. At the same learning rate Muon's
            steps are as long as AdamW's.
        weight_decay: Weight decay in stage 1.
        clip: Largest norm of a step's gradient.
        negative_pair_ratio: Fraction of negative pairs: two views of different scenes.
        ema: Half-life, in pairs, of a running mean of the weights, which replaces them after stage 1 if it validates better.
        precision: Precision of the forward and backward pass; auto measures which one is faster on this machine.
        compile: Run the layers through torch.compile.
        evaluate_every: Pairs between two validations.
        checkpoint_every: Pairs between two checkpoints.
        draw_every: Pairs between two pictures of held-out pairs with their matches; by default none are drawn.
        keep_every: Pairs of stage 1 between two snapshots of the weights (or their running mean); by default none are kept.
        seed: Seed of the initial weights and of the order of pairs.
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
    long_points: int | None = None
    long_share: float = 0.2
    lengths: tuple[int, ...] | None = None
    distillation: float = 1.0
    teacher: str | None = None
    imitation: float = 1.0
    forced_pairs: int = 0
    schedule: Schedule = "cosine"
    learning_rate: float = 1e-3
    confidence_learning_rate: float = 1e-2
    warmup_pairs: int = 2_000
    optimizer: OptimizerName = "adamw"
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
        positive += ["ema", "evaluate_every", "checkpoint_every", "draw_every", "keep_every"]
        positive += [] if self.start_from else ["pairs"]
        for name in positive:
            if (value := getattr(self, name)) is not None and not value > 0:
                raise TrainingError(f"{name} is {value}; it must be positive")
        counts = ("pairs", "confidence_pairs", "warmup_pairs", "forced_pairs")
        for name in (*counts, "weight_decay", "distillation", "imitation"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.lengths is not None and (not self.lengths or min(self.lengths) < 1):
            raise TrainingError(f"lengths is {self.lengths}; give numbers of keypoints")
        if not 0 <= self.negative_pair_ratio < 1:
            raise TrainingError(f"negative_pair_ratio is {self.negative_pair_ratio}; give at least 0 and less than 1")
        if not 0 <= self.long_share <= 1:
            raise TrainingError(f"long_share is {self.long_share}; give 0 to 1")
        if self.model not in get_args(ModelName):
            raise TrainingError(f"unknown model {self.model!r}; choose from {list(get_args(ModelName))}")
        if self.model != "lightglue" and (self.ablation or not self.deep_supervision):
            raise TrainingError(f"ablation and deep_supervision need the model lightglue; it is {self.model}")
        if self.teacher is not None and (self.model != "lightglue" or self.ablation):
            raise TrainingError("a teacher needs the model lightglue without an ablation")
        if self.teacher is not None and self.compile:
            raise TrainingError("compile has no effect with a teacher, whose units run one by one; leave one of them out")
        if self.forced_pairs and self.teacher is None:
            raise TrainingError(f"forced_pairs is {self.forced_pairs}; it needs a teacher")
        if self.optimizer not in get_args(OptimizerName):
            raise TrainingError(f"unknown optimizer {self.optimizer!r}; choose from {list(get_args(OptimizerName))}")
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
    def late_points(self) -> int:
        """Keypoints per image in the last part of stage 1 and in stage 2, if `lengths` is None."""
        return self.points * 3 // 2 if self.long_points is None else self.long_points

    @property
    def validation_points(self) -> int:
        """Keypoints per image of held-out pairs."""
        if self.lengths is not None:
            return sorted(self.lengths)[(len(self.lengths) - 1) // 2]
        return min(self.late_points, self.points * 2)

    @property
    def all_points(self) -> dict[int, str]:
        """Each number of keypoints per image that the run needs, and the name of the setting that it comes from."""
        if self.lengths is not None:
            return dict.fromkeys(sorted(self.lengths), "lengths")
        return dict(sorted(({self.late_points: "long_points"} | {self.points: "points"}).items()))

    def stage_at(self, step: int) -> int:
        """1 (correspondences) or 2 (exit classifier)."""
        return 1 if step < self.matcher_steps else 2

    def forced_at(self, step: int) -> bool:
        """Whether each unit is given the teacher's state before it."""
        return self.pairs_before(step) < self.forced_pairs

    def points_at(self, step: int) -> int:
        """Keypoints per image of a step."""
        if self.lengths is not None:
            return self.lengths[step % len(self.lengths)]
        long_from = self.matcher_steps * (1 - self.long_share)
        return self.points if step < long_from else self.late_points

    def batch_size_at(self, step: int) -> int:
        """Pairs in a step."""
        return self.batch_sizes[step % len(self.batch_sizes)]

    def pairs_before(self, step: int) -> int:
        """Pairs in all steps before this one."""
        rounds, rest = divmod(step, len(self.batch_sizes))
        return rounds * sum(self.batch_sizes) + sum(self.batch_sizes[:rest])

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Pairs per step, over the steps after which the numbers repeat."""
        if self.lengths is None:
            return (self.batch_size,)
        return tuple(max(1, round(self.batch_size * self.lengths[0] / points)) for points in self.lengths)

    def _steps_for(self, pairs: int) -> int:
        """Smallest number of steps that see at least that many pairs."""
        rounds, rest = divmod(pairs, sum(self.batch_sizes))
        steps = rounds * len(self.batch_sizes)
        for size in self.batch_sizes:
            if rest <= 0:
                break
            rest, steps = rest - size, steps + 1
        return steps

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step.

        Both schedules of stage 1 start with a linear warm-up over `warmup_pairs`. "cosine" is then half a cosine down to
        1 %. "paper" is constant for two thirds of the pairs, then decays exponentially by 10 over the last third: the paper
        has 20 epochs at a constant rate, then a factor of 0.1 per 10 epochs, in 30 epochs. Stage 2 is a cosine over its own
        steps, without warm-up.
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
    """`compact`, 16,000 pairs of 256, then 384 points: for homographies and synthetic scenes of a folder of photos.

    It takes 69 minutes on one core of a Xeon, including the datasets. The rate is constant before it decays, and there is a
    running mean of the weights, so the snapshots of `keep_every` can be compared, and a run with more `pairs` is the same
    run for longer. Forward and backward pass cost about 3 x (2.5 MFLOP x (d / 256)^2 x L x 2N + 14 L d N^2): 7 GFLOP per
    pair of 256 points.
    """
    return TrainSettings(pairs=16_000, negative_pair_ratio=0.08, schedule="paper", ema=1_000.0)


def comparison() -> TrainSettings:
    """`compact`, 6,000 pairs, to compare matchers: `--model superglue`, an `--ablation`, no deep supervision.

    It takes 10 to 20 minutes on one core with AMX. docs/paper.md has the results.
    """
    return TrainSettings(pairs=6_000, confidence_pairs=1_600, warmup_pairs=1_000, evaluate_every=2_000, keep_every=1_000)


def gpu_30min() -> TrainSettings:
    """`base` in 25 minutes on a large GPU, which leaves five for the dataset. Estimated, not run yet.

    With 512 points, L = 9 and d = 256, a pair takes about 32 GFLOP forward, and 95 forward and backward. 2,500 pairs/s are
    240 TFLOP/s. 25 minutes are 3.75 M pairs (three quarters of the paper's 5 M), 356 PFLOP, or 29,300 steps of 128 pairs.
    """
    return TrainSettings(
        preset="base", pairs=3_750_000, confidence_pairs=128_000, batch_size=128, points=512, long_points=512,
        learning_rate=4e-4, warmup_pairs=128_000, compile=True, evaluate_every=128_000, checkpoint_every=128_000,
    )  # fmt: skip


def paper() -> TrainSettings:
    """The paper's pre-training: `base`, 5 M pairs of 512 points, learning rate 1e-4, its schedule. Not run yet.

    This uses AdamW and bfloat16 instead of the paper's Adam and float16.
    """
    return TrainSettings(
        preset="base", pairs=5_000_000, confidence_pairs=128_000, batch_size=64, points=512, long_points=512,
        schedule="paper", learning_rate=1e-4, warmup_pairs=64, weight_decay=0.0, evaluate_every=128_000,
        checkpoint_every=64_000,
    )  # fmt: skip


def default() -> TrainSettings:
    """A long run: `deep`, from `compact` weights, on homographies, synthetic scenes and taught pairs.

    Images have 512 to 2,048 keypoints; each step has about as many keypoints in total. The rate is constant before it
    decays, and there is a running mean of the weights, so that snapshots can be compared.
    """
    return TrainSettings(
        preset="deep", pairs=150_000, confidence_pairs=6_400, batch_size=16, lengths=(512, 1024, 512, 2048, 512, 1024, 768),
        schedule="paper", learning_rate=3e-4, warmup_pairs=1_000, negative_pair_ratio=0.06, ema=1_000.0,
        evaluate_every=4_000, checkpoint_every=400, keep_every=2_000,
    )  # fmt: skip


def student() -> TrainSettings:
    """`deep`, from random weights to a student of the released LightGlue on ALIKED.

    It is the runs of `aliked-n16-deep` with a teacher in one, with the optimiser and the weight of the teacher of the last
    of them. A step has one pair, which has a target for every channel of every point. In the first fifth each unit is given
    the teacher's state. About five hours on two cores with AVX512-BF16, by the speed of those runs; not run whole yet. Muon
    needs PyTorch 2.9.
    """
    return TrainSettings(
        preset="deep", teacher="aliked-lightglue", pairs=20_000, forced_pairs=4_000, confidence_pairs=400, batch_size=1,
        lengths=(256, 512, 512, 1024), imitation=8.0, optimizer="muon", warmup_pairs=100, negative_pair_ratio=0.03,
        ema=200.0, evaluate_every=2_000, checkpoint_every=200, keep_every=4_000,
    )  # fmt: skip


def finetune() -> TrainSettings:
    """More pairs for weights that work (`start_from`), or that `benchmarks/tools/carry_over.py` fitted to other features.

    A run of `aliked-n16-deep` and the first of `aliked-n16rot-deep` had these settings: an hour for 9 layers on one core
    with AVX512-BF16. Muon needs PyTorch 2.9.
    """
    return TrainSettings(
        preset="same", pairs=4_000, confidence_pairs=400, batch_size=4, lengths=(512, 512, 1024), optimizer="muon",
        learning_rate=8e-4, warmup_pairs=60, negative_pair_ratio=0.03, ema=150.0, evaluate_every=800, checkpoint_every=100,
    )  # fmt: skip


_ALL = (default, finetune, student, standard, laptop, comparison, gpu_30min, paper)
RECIPES = {recipe.__name__: recipe for recipe in _ALL}


def recipe(name: str, **changes: Any) -> TrainSettings:
    """The settings of a recipe.

    Args:
        name: A key of `RECIPES`.
        changes: Settings that differ from the recipe. `points` and `long_points` replace its `lengths`.

    Raises:
        TrainingError: If there is no recipe of that name, or the changes exclude each other.
    """
    if name not in RECIPES:
        raise TrainingError(f"unknown recipe {name!r}; choose from {sorted(RECIPES)}")
    if given := [key for key in ("points", "long_points") if changes.get(key) is not None]:
        if changes.get("lengths"):
            raise TrainingError(f"{given[0]} has no effect beside lengths; give one of the two")
        changes["lengths"] = None
    return replace(RECIPES[name](), **changes)
