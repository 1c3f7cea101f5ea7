"""A matcher that teaches: its matches, and its assignment in the entries that matter."""

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
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.training.data.taught import SparseAssignment
from lumiglue.training.loss import mutual_best
from lumiglue.types import Features
from lumiglue.weights import is_ours, load_weights, resolve
from lumiglue.weights.released import import_released

LEAST_P = 1e-3  # entries of the teacher's assignment below it are not stored


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A matcher that teaches. weights: a file of ours, or a released checkpoint, which does not say its features.

    max_keypoints: of the teacher's own features in a photo.
    """

    weights: Path
    features: str
    max_keypoints: int = 2048
    device: str = "cpu"

    @classmethod
    def named(cls, name: str, features: str | None = None, **settings: Any) -> "Teacher":
        """By a name, or a file; `features` of a released checkpoint. Raises InputError where they are not known."""
        path = _weights_of(name)
        if path.suffix == ".safetensors" and is_ours(path):
            model = load_weights(path)
            if not isinstance(model, LightGlue):
                raise InputError(f"the teacher {name} is a {type(model).__name__}; choose a LightGlue")
            features = features or model.config.extractor
        if not features:
            raise InputError(f"{name} does not say which features it is for; give --teacher-features")
        return cls(weights=path, features=features, **settings)

    def plan(self) -> dict[str, Any]:
        """What the labels depend on."""
        return {"weights_sha256": file_sha256(self.weights), "features": self.features, "keypoints": self.max_keypoints}

    def extractor(self) -> Extractor:
        """Of the teacher's own features."""
        return create_extractor(self.features, device=self.device, max_keypoints=self.max_keypoints, resize=None)

    def match(self, a: Features, b: Features) -> Integer[np.ndarray, "k 2"]:
        """Its matches, stopping early where it is sure."""
        model = _load(self.weights, self.features, self.device)
        pairs = pack([(a, b)], model.config).to(torch.device(self.device), torch.float32)
        return model.match(pairs)[0].pairs.cpu().numpy()

    def assign(self, a: Features, b: Features) -> tuple[Integer[np.ndarray, "k 2"], SparseAssignment]:
        """Its matches after all layers, and the entries of its last assignment that matter."""
        model = _load(self.weights, self.features, self.device)
        with torch.inference_mode():
            pairs = pack([(a, b)], model.config).to(torch.device(self.device), torch.float32)
            *_, x = model.states(pairs)
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


def _weights_of(name: str) -> Path:
    if Path(name).suffix in (".pth", ".pt", ".safetensors") and Path(name).is_file():
        return Path(name).resolve()
    return Path(resolve(name)).resolve()


@lru_cache(maxsize=1)
def _load(weights: Path, features: str, device: str) -> LightGlue:
    ours = weights.suffix == ".safetensors" and is_ours(weights)
    model = load_weights(weights) if ours else import_released(weights, features)
    if not isinstance(model, LightGlue):
        raise InputError(f"the teacher {weights} is a {type(model).__name__}; choose a LightGlue")
    return model.eval().to(device)
