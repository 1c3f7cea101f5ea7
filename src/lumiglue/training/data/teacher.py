"""The teacher: a trained matcher, its matches and its assignment."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer

from lumiglue.errors import InputError
from lumiglue.extractors import Extractor, create_extractor
from lumiglue.io.download import file_sha256
from lumiglue.matcher.assignment import log_assignment
from lumiglue.matcher.execution import Layers, execution_layers
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.settings import Precision
from lumiglue.training.data.taught import SparseAssignment
from lumiglue.training.loss import mutual_best
from lumiglue.types import Features
from lumiglue.weights import is_ours, load_weights, resolve
from lumiglue.weights.released import import_released

LEAST_P = 1e-3  # smaller entries of the assignment are not stored


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A LightGlue matcher that labels pairs of photos.

    Attributes:
        weights: A weights file of this package, or a released checkpoint.
        features: Name of the matcher's features.
        max_keypoints: Largest number of the teacher's keypoints per photo.
        device: Where the networks run.
        precision: Arithmetic of the matcher's layers: "fp32" or "bf16".
    """

    weights: Path
    features: str
    max_keypoints: int = 2048
    device: str = "cpu"
    precision: Precision = "fp32"

    @classmethod
    def named(cls, name: str, features: str | None = None, **settings: Any) -> "Teacher":
        """The teacher of a name or a file.

        Args:
            name: A name of weights, a .safetensors file, or a released checkpoint.
            features: Its features, if the file does not state them; a released checkpoint does not.
            settings: The other attributes.

        Raises:
            InputError: If it is not a LightGlue, or its features are unknown.
        """
        path = _weights_of(name)
        if path.suffix == ".safetensors" and is_ours(path):
            model = load_weights(path)
            if not isinstance(model, LightGlue):
                raise InputError(f"the teacher {name} is a {type(model).__name__}; use a LightGlue")
            features = features or model.config.extractor
        if not features:
            raise InputError(f"the features of {name} are unknown; give --teacher-features")
        return cls(weights=path, features=features, **settings)

    def plan(self) -> dict[str, Any]:
        """All that its labels depend on, as JSON values."""
        return {
            "weights_sha256": file_sha256(self.weights), "features": self.features, "keypoints": self.max_keypoints,
            "precision": self.precision,
        }  # fmt: skip

    def extractor(self) -> Extractor:
        """The extractor of the teacher's features."""
        return create_extractor(self.features, device=self.device, max_keypoints=self.max_keypoints, resize=None)

    def model(self) -> LightGlue:
        """The matcher itself, on the device, in evaluation mode. Raises InputError if the file is no LightGlue."""
        return _load(self.weights, self.features, self.device)

    def match(self, a: Features, b: Features) -> Integer[np.ndarray, "k 2"]:
        """Matches two photos, with early exit."""
        model = self.model()
        pairs = pack([(a, b)], model.config).to(torch.device(self.device), torch.float32)
        return model.match(pairs, layers=self._layers())[0].pairs.cpu().numpy()

    def assign(self, a: Features, b: Features) -> tuple[Integer[np.ndarray, "k 2"], SparseAssignment]:
        """Matches two photos with all layers: the matches, and the last layer's assignment without the entries below
        LEAST_P."""
        model = self.model()
        with torch.inference_mode():
            pairs = pack([(a, b)], model.config).to(torch.device(self.device), torch.float32)
            *_, x = model.states(pairs, layers=self._layers())
            head = model.heads[-1]
            features = head.features(x)
            similarity = (features[: len(a)] @ features[len(a) :].mT)[None]
            logits = head.matchability_logits(x)
            logits0, logits1 = logits[None, : len(a)], logits[None, len(a) :]
            log_p = log_assignment(similarity, logits0, logits1)
            partner, best, _, _ = mutual_best(log_p)
            rows = ((partner[0] >= 0) & (best[0].exp() > model.default_threshold)).nonzero()[:, 0]
            entries = (log_p[0] > np.log(LEAST_P)).nonzero()
            values = log_p[0][tuple(entries.T)].clamp(max=0)
        matches = torch.stack([rows, partner[0, rows]], dim=1).cpu().numpy()
        matchabilities = (side[0].sigmoid().cpu().numpy().copy() for side in (logits0, logits1))
        return matches, SparseAssignment(entries.cpu().numpy().copy(), values.cpu().numpy().copy(), *matchabilities)

    def _layers(self) -> Layers:
        return _execution_layers(self.weights, self.features, self.device, self.precision)


def _weights_of(name: str) -> Path:
    if Path(name).suffix in (".pth", ".pt", ".safetensors") and Path(name).is_file():
        return Path(name).resolve()
    return Path(resolve(name)).resolve()


@lru_cache(maxsize=1)
def _load(weights: Path, features: str, device: str) -> LightGlue:
    ours = weights.suffix == ".safetensors" and is_ours(weights)
    model = load_weights(weights) if ours else import_released(weights, features)
    if not isinstance(model, LightGlue):
        raise InputError(f"the teacher {weights} is a {type(model).__name__}; use a LightGlue")
    return model.eval().to(device)


@lru_cache(maxsize=1)
def _execution_layers(weights: Path, features: str, device: str, precision: Precision) -> Layers:
    return execution_layers(_load(weights, features, device), precision)
