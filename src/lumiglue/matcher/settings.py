"""How to match, whatever the matcher."""

from dataclasses import asdict, dataclass
from typing import Literal

from lumiglue.errors import InputError

# Names of settings. This module does not import PyTorch, so that command-line help appears at once.
Precision = Literal["bf16", "fp32"]
# What runs the matcher. PyTorch runs on CPU and GPU and is the reference; "cudagraphs" is PyTorch with CUDA graphs on a GPU;
# the others run the exported ONNX graph.
Backend = Literal["torch", "cudagraphs", "onnxruntime", "openvino"]
# What LightGlue's rotary encoding can see of a keypoint; SuperGlue's MLP sees the detector's score besides the position.
Encoding = Literal["xy", "xy-scale-orientation", "xy-logscale-angle"]
# The paper's ablations (Table 3): each leaves out one thing.
Ablation = Literal["no-matchability", "absolute-positions", "full-cross-attention"]


@dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """Thresholds of matching (Sections 3.2 and 3.3 of the LightGlue paper). All are between 0 and 1; None takes the
    matcher's own.

    Attributes:
        score_threshold: tau; matches need P_ij above it. The matcher's own is 0.1 for LightGlue, 0.2 for SuperGlue.
        exit_ratio: alpha; a pair exits when more than this share of its points is confident. 0 turns early exit off. The
            paper's is 0.95; weights may have another, see `LightGlueConfig`.
        prune_below: beta; confident points of lower matchability are pruned. 0 turns pruning off. The paper's is 0.01;
            weights may have another.
    """

    score_threshold: float | None = None
    exit_ratio: float | None = None
    prune_below: float | None = None

    def __post_init__(self) -> None:
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise InputError(f"score_threshold is {self.score_threshold}; give a probability between 0 and 1")
        for name in ("exit_ratio", "prune_below"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is {value}; give a share between 0 and 1, 0 for off")

    def completed(self, own: "MatchSettings") -> "MatchSettings":
        """These settings, with those of `own` where they are None."""
        return MatchSettings(**asdict(own) | {name: value for name, value in asdict(self).items() if value is not None})
