"""The call signature of the released LightGlue and of `kornia.feature.LightGlue`: dictionaries of batched tensors.

For code that was written for one of those. New code is better served by `Pipeline`, which takes images of any sizes and
numbers of keypoints in one batch. docs/migrate.md says what is the same and what is not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lumiglue.errors import InputError, WeightsError
from lumiglue.matcher import lightglue
from lumiglue.matcher.execution import execution_layers
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.models import model_name
from lumiglue.matcher.settings import MatchSettings
from lumiglue.system.threads import shorten_spins_at_run_time
from lumiglue.types import Features, Matches
from lumiglue.weights.files import is_ours, load_weights
from lumiglue.weights.registry import default_weights, resolve
from lumiglue.weights.released import import_released


class LightGlue(nn.Module):
    """LightGlue with the released signature.

    Args:
        features: The features that the weights are for: "superpoint", "disk", "aliked", "sift", "doghardnet" or "xfeat",
            whose published weights are downloaded on first use. None (any of the right number of channels) needs `weights`.
        weights: Other weights: a name ("sift-deep", "aliked-n16rot-deep": small ones in the package), a Lumiglue file, or a
            published checkpoint (.pth or .safetensors, read without unpickling objects).
        depth_confidence: A pair stops once this fraction of its points is confident; -1 is off. None takes that of the
            weights, which is 0.95 for all published ones.
        width_confidence: Confident points with a matchability below 1 - width_confidence are pruned; -1 is off. (With
            depth_confidence -1, kornia also prunes points that are not confident.) None takes that of the weights, 0.99
            for all published ones.
        filter_threshold: Smallest score of a match.
        n_layers: Number of layers to use, from the first; None uses all.
        mp: Whether to multiply in bfloat16 inside the layers.
        flash: Has no effect; the fastest exact attention is always used.

    Raises:
        WeightsError: The weights cannot be found, downloaded or read.
        InputError: The weights are for other features, or an argument cannot be used.
    """

    def __init__(
        self,
        features: str | None = "superpoint",
        *,
        weights: str | Path | None = None,
        depth_confidence: float | None = None,
        width_confidence: float | None = None,
        filter_threshold: float = 0.1,
        n_layers: int | None = None,
        flash: bool = True,
        mp: bool = False,
    ) -> None:
        super().__init__()
        del flash
        shorten_spins_at_run_time()
        self.matcher = _first_layers(_load(features, weights), n_layers)
        self.bf16_layers = execution_layers(self.matcher, "bf16") if mp else None
        self.filter_threshold = filter_threshold
        # No threshold here: the released result has the scores of all mutual best pairs.
        self.settings = MatchSettings(
            score_threshold=0.0,
            exit_ratio=None if depth_confidence is None else max(depth_confidence, 0),
            prune_below=None if width_confidence is None else 1 - width_confidence if width_confidence >= 0 else 0,
        ).completed(self.matcher.own_settings)
        self.eval()

    @torch.no_grad()
    def forward(self, data: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Matches B pairs; the result of a pair does not depend on the others.

        Args:
            data: {"image0": image, "image1": image}. Each image is a dictionary of keypoints (B x N x 2, pixels),
                descriptors (B x N x D), image_size (B x 2, width and height) or image (B x C x H x W), and scales, oris
                (B x N; pixels, radians) for matchers that use them.

        Returns:
            A dictionary of matches0 and matches1 (B x N, rows of the other image or -1), matching_scores0 and
            matching_scores1 (B x N; of mutual best pairs also below the threshold, else 0), matches (B tensors S x 2),
            scores (B tensors S), prune0 and prune1 (B x N, the layers that each point went through), stop (the most layers
            that a pair ran), and stops (B, the layers of each pair).

        Raises:
            InputError: An entry is missing or has a wrong shape.
        """
        for key in ("image0", "image1"):
            if key not in data:
                raise InputError(f"the dictionary has no {key!r}; give 'image0' and 'image1'")
        images0, images1 = (_features(data[key], key) for key in ("image0", "image1"))
        if len(images0) != len(images1):
            raise InputError(f"image0 has {len(images0)} images and image1 {len(images1)}; give the same number")
        pairs = pack(list(zip(images0, images1, strict=True)), self.matcher.config)
        return self._as_dictionary(self.matcher.match(pairs, self.settings, layers=self.bf16_layers))

    def _as_dictionary(self, matches: Sequence[Matches]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        pruning, full = bool(self.settings.prune_below), self.matcher.config.n_layers
        for side in (0, 1):
            layers = [m.layers0 if side == 0 else m.layers1 for m in matches]
            rows, scores = zip(*(_of_each_point(m, side, self.filter_threshold) for m in matches), strict=True)
            result[f"matches{side}"] = torch.stack(rows)
            result[f"matching_scores{side}"] = torch.stack(scores)
            result[f"prune{side}"] = torch.stack(layers if pruning else [x * 0 + full for x in layers])
        masks = [m.scores > self.filter_threshold for m in matches]
        result["matches"] = [m.pairs[mask] for m, mask in zip(matches, masks, strict=True)]
        result["scores"] = [m.scores[mask] for m, mask in zip(matches, masks, strict=True)]
        result["stop"] = max(m.stop_layer for m in matches)
        result["stops"] = torch.tensor([m.stop_layer for m in matches])
        return result


def _load(features: str | None, weights: str | Path | None) -> lightglue.LightGlue:
    if weights is None:
        if features is None:
            raise WeightsError("features=None has no weights of its own; give weights='file', or name the features")
        weights = "sift-lightglue" if features == "sift" else default_weights(features)
    path = resolve(weights)
    model = load_weights(path) if is_ours(path) else import_released(path, features or "")
    if not isinstance(model, lightglue.LightGlue):
        raise WeightsError(f"{path} is a {model_name(model.config)} checkpoint; give a LightGlue checkpoint")
    trained_for = model.config.extractor
    if trained_for and features and trained_for != features and not trained_for.startswith(f"{features}-"):
        raise InputError(f"the weights are for {trained_for!r} features, not for {features!r}")
    return model


def _first_layers(model: lightglue.LightGlue, n_layers: int | None) -> lightglue.LightGlue:
    """A matcher of the first layers only, which each have their own assignment head."""
    if n_layers is None or n_layers == model.config.n_layers:
        return model
    if not 1 <= n_layers < model.config.n_layers:
        raise InputError(f"n_layers is {n_layers}; these weights have 1 to {model.config.n_layers}")
    with torch.random.fork_rng(devices=[]):
        shorter = lightglue.LightGlue(replace(model.config, n_layers=n_layers))
    tensors = model.state_dict()
    shorter.load_state_dict({name: tensors[name] for name in shorter.state_dict()})
    return shorter


def _features(image: Mapping[str, Any], key: str) -> list[Features]:
    """The images of a batch."""
    for name in ("keypoints", "descriptors"):
        if name not in image:
            raise InputError(f"{key} has no {name!r}; give a tensor B x N x {'2' if name == 'keypoints' else 'D'}")
        if image[name].ndim != 3:
            raise InputError(f"{key}'s {name} have shape {tuple(image[name].shape)}; give B x N x ..., one row per image")
    batch = len(image["keypoints"])
    for name in ("descriptors", "scales", "oris"):
        if name in image and len(image[name]) != batch:
            raise InputError(f"{key} has {batch} images by its keypoints and {len(image[name])} by its {name}")
    sizes = _sizes(image, key, batch)
    optional = {ours: image[theirs] for ours, theirs in (("scales", "scales"), ("orientations", "oris")) if theirs in image}
    return [
        Features(
            keypoints=image["keypoints"][b].float(),
            descriptors=image["descriptors"][b].float(),
            image_size=sizes[b],
            **{name: value[b].float() for name, value in optional.items()},
        )
        for b in range(batch)
    ]


def _sizes(image: Mapping[str, Any], key: str, batch: int) -> list[tuple[int, int]]:
    if "image_size" in image:
        sizes = torch.as_tensor(image["image_size"]).reshape(-1, 2).double().cpu()
    elif isinstance(image.get("image"), Tensor):
        sizes = torch.tensor([image["image"].shape[:-3:-1]]).double()
    else:
        raise InputError(f"{key} has neither 'image_size' (B x 2, width and height) nor 'image'; positions need one")
    if len(sizes) not in (1, batch):
        raise InputError(f"{key} has {len(sizes)} image sizes for {batch} images")
    if not torch.equal(sizes, sizes.round()):
        raise InputError(f"{key}'s image_size is {sizes.tolist()}; give the size in whole pixels that keypoints refer to")
    return [(int(width), int(height)) for width, height in sizes.expand(batch, 2).tolist()]


def _of_each_point(matches: Matches, side: int, threshold: float) -> tuple[Tensor, Tensor]:
    """For each point of one image its partner or -1, and its score."""
    n = len(matches.layers0 if side == 0 else matches.layers1)
    own, other = matches.pairs[:, side], matches.pairs[:, 1 - side]
    partner = own.new_full((n,), -1)
    partner[own] = torch.where(matches.scores > threshold, other, -1)
    scores = matches.scores.new_zeros(n)
    scores[own] = matches.scores
    return partner, scores
