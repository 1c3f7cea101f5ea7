"""Photos in, matches out: one pair, many pairs, or features that are already there."""

import copy
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from lumiglue.backends.autotune import default_precision
from lumiglue.backends.cuda_graphs import replay_layers
from lumiglue.backends.select import fastest_backend, onnx_matcher
from lumiglue.errors import InputError, LumiglueError
from lumiglue.extractors import EXTRACTORS, Extractor, create_extractor, tiled_extractor
from lumiglue.extractors.regions import extract_inside
from lumiglue.images import ImageLike, MaskLike, load_image, load_mask
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.models import MatcherModel, weights_sha256
from lumiglue.matcher.precision import set_precision
from lumiglue.matcher.settings import Backend, MatchSettings, Precision
from lumiglue.pipeline.prefetch import FeatureCache, Image, MatchedPair, match_in_batches, match_in_threads, pool
from lumiglue.pipeline.result import MatchResult
from lumiglue.pipeline.rotation import match_best_turn, turned_image
from lumiglue.system.device import compute_on_one_thread_in_forks, usable_device
from lumiglue.system.extras import require
from lumiglue.types import Features, Matches
from lumiglue.weights.files import FOLDER_FILES, load_weights, read_metadata
from lumiglue.weights.folder import CARD, read_model_folder, write_model_folder
from lumiglue.weights.registry import default_weights, resolve

if TYPE_CHECKING:
    from lumiglue.onnx.runtime import OnnxMatcher

Rotation = Literal["none", "search"]


class Pipeline:
    """An extractor and a matcher for its features.

    Images are paths, arrays (H x W x 3 or H x W; uint8, uint16, or float in [0, 1]; RGB) or tensors (C x H x W, a
    leading 1 is dropped). One pipeline may be used from several threads, and from processes, forked or spawned; forked ones
    compute on one thread each.
    """

    def __init__(
        self,
        extractor: Extractor,
        matcher: "MatcherModel | OnnxMatcher",
        settings: MatchSettings | None = None,
        *,
        device: torch.device | str | None = None,
        precision: Precision = "fp32",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """device, precision: of a PyTorch matcher, which is brought there in place: give each pipeline its own. device: None
        is where the matcher lies. metadata: its training record, as JSON values. Raises InputError where the matcher was
        made for other features."""
        config = matcher.config
        if config.extractor and config.extractor != extractor.name:
            raise InputError(f"the weights are for {config.extractor!r} features, the extractor is {extractor.name!r}")
        if config.descriptor_dim != extractor.descriptor_dim:
            given = extractor.descriptor_dim
            raise InputError(
                f"{extractor.name!r} gives {given}-channel descriptors, the weights take {config.descriptor_dim}"
            )
        if precision not in ("fp32", "bf16"):
            raise InputError(f"unknown precision {precision!r}; choose from ['bf16', 'fp32']")
        if device is None and isinstance(matcher, nn.Module):
            device = next(matcher.parameters()).device
        device = usable_device(device or "cpu")
        compute_on_one_thread_in_forks()
        self.extractor = extractor
        self.metadata, self.precision = dict(metadata or {}), precision
        if isinstance(matcher, nn.Module):
            set_precision(matcher, precision)
            self.matcher = matcher.eval().to(device)
            self.settings = settings or MatchSettings()
        else:
            self.matcher = matcher
            self.settings = settings or matcher.fixed or MatchSettings()

    @classmethod
    def pretrained(
        cls,
        features: str | None = None,
        *,
        max_keypoints: int = 2048,
        resize: int | None = 1024,
        weights: str | Path | None = None,
        settings: MatchSettings | None = None,
        device: torch.device | str | None = None,
        precision: Precision | Literal["auto"] = "auto",
        backend: Backend | Literal["auto"] | None = None,
        tile: int | None = None,
    ) -> "Pipeline":
        """Features and weights by name.

        Args:
            features: A built-in extractor, or your own as "path/to/file.py:Class" or "package.module:Class". None takes
                those that the weights were trained for, and SIFT where no weights are named either.
            max_keypoints: See the extractor.
            resize: See the extractor.
            weights: A name in the package ("sift", "sift-clean", "aliked-compact"), the name of a published matcher
                ("aliked-lightglue", see `lumiglue weights list`), a file or a URL; also an .onnx file of `lumiglue export
                onnx`, whose settings hold. None takes the best for the features; for all but SIFT they are downloaded once.
            settings: How to match; None takes the defaults.
            device: None takes the GPU if there is one.
            precision: "auto" is bf16 where the device multiplies it faster, which keeps all but a few of a thousand of
                LightGlue's matches; else, and for SuperGlue, whose were not measured, fp32, which gives every machine the
                same. bf16 is PyTorch's alone.
            backend: None takes "torch", and "onnxruntime" for an .onnx file; "auto" measures those that are installed, once
                a machine; in float32 they differ by rounding alone. "cudagraphs" is "torch" on a GPU with the layers of
                single pairs started at once (`backends.cuda_graphs`).
            tile: Side in pixels of the tiles in which larger photos are shown to the extractor, which bounds its memory; see
                `Tiled`.

        Raises:
            InputError: A name or a setting is unknown, or the weights are for other features.
            WeightsError: The weights cannot be found, downloaded or read.
        """
        chosen = usable_device(device)
        if features is not None:  # before a download, that there is such an extractor
            tiled_extractor(features, max_keypoints=max_keypoints, resize=resize, tile=tile)
        file = resolve(default_weights(features or "sift") if weights is None else weights)
        onnx = file.suffix == ".onnx"
        if precision == "auto":
            of_torch = not onnx and backend in (None, "torch", "cudagraphs", "auto")
            measured = of_torch and isinstance(read_metadata(file)[0], LightGlueConfig)
            precision = default_precision(torch.device(chosen)) if measured else "fp32"
        if backend == "auto":
            backend = fastest_backend(file, settings or MatchSettings(), precision, torch.device(chosen))
        with_torch = not onnx and backend in (None, "torch", "cudagraphs")
        matcher = load_weights(file) if with_torch else onnx_matcher(file, backend or "onnxruntime", precision)
        extractor = tiled_extractor(
            _features_of(matcher.config.extractor, features), max_keypoints=max_keypoints, resize=resize, tile=tile,
            device=str(chosen),
        )  # fmt: skip
        if not isinstance(matcher, nn.Module):
            return cls(extractor, matcher, settings)
        found = cls(
            extractor, matcher, settings, device=chosen, precision=precision, metadata=read_metadata(file)[1]
        )  # fmt: skip
        if backend == "cudagraphs":
            replay_layers(found.matcher)  # pyright: ignore[reportArgumentType]
        return found

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        features: str | None = None,
        max_keypoints: int = 2048,
        resize: int | None = 1024,
        settings: MatchSettings | None = None,
        device: torch.device | str | None = None,
        precision: Precision | Literal["auto"] = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        endpoint: str | None = None,
    ) -> "Pipeline":
        """A matcher of the Hugging Face Hub, by "owner/name", or in a folder that `save_pretrained` wrote.

        The file is safetensors, its checksum is compared, and nothing in the repository is executed. features: None takes
        those that the matcher was trained for; for features of your own say where their class is. settings: None takes those
        that were saved. revision: branch, tag or commit. token: of a private repository; None takes that of `hf auth login`.
        cache_dir, endpoint: None takes the Hub's own. Raises InputError, WeightsError.
        """
        folder = Path(source)
        if not folder.is_dir():
            require("huggingface_hub")
            from lumiglue.weights.hub import fetch

            cache = Path(cache_dir) if cache_dir else None
            folder = fetch(
                str(source), FOLDER_FILES, revision=revision, token=token, cache=cache, endpoint=endpoint
            )  # fmt: skip
        found = read_model_folder(folder)
        name = features or found.features
        if features is None and name not in EXTRACTORS:  # never a path to code that the repository names
            raise InputError(f"{source} is for {name or 'any'!r} features; name an extractor for them by features=")
        chosen = usable_device(device)
        extractor = create_extractor(name, max_keypoints=max_keypoints, resize=resize, device=str(chosen))
        model, settings = load_weights(found.weights), settings or found.settings
        if precision == "auto":
            precision = default_precision(torch.device(chosen)) if isinstance(model, LightGlue) else "fp32"
        return cls(extractor, model, settings, device=chosen, precision=precision, metadata=found.metadata)

    def save_pretrained(self, folder: str | Path, *, name: str = "", metadata: Mapping[str, Any] | None = None) -> None:
        """Writes model.safetensors, config.json (features, settings, checksum) and a model card, README.md.

        name: what the card calls the matcher; by default the folder. metadata: JSON values for the training record, beside
        what is known: `licence`, `training_data` and `metrics` go into the card. Raises InputError for ONNX.
        """
        if not isinstance(self.matcher, nn.Module):
            raise InputError("an ONNX matcher has no weights to write; make the pipeline with backend='torch'")
        record = {**self.metadata, **(metadata or {})}
        write_model_folder(folder, self.matcher, self.settings, record, name or str(folder))

    def push_to_hub(
        self,
        repo: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        message: str = "Weights for Lumiglue",
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
    ) -> str:
        """Writes what `save_pretrained` does to a repository of the Hugging Face Hub, in one commit; returns its address.

        repo: "owner/name", made where there is none. private: of a new repository. revision: an existing branch.
        token: None takes that of `hf auth login`. Raises InputError, WeightsError.
        """
        require("huggingface_hub")
        from lumiglue.weights.hub import publish

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=repo, metadata=metadata)
            return publish(
                Path(folder), (*FOLDER_FILES, CARD), repo, message=message, private=private, revision=revision, token=token,
                endpoint=endpoint,
            )  # fmt: skip

    def with_settings(self, settings: MatchSettings) -> "Pipeline":
        """The same extractor and weights with other settings; nothing is copied."""
        other = copy.copy(self)
        other.settings = settings
        return other

    def extract(self, image: ImageLike, *, mask: MaskLike | None = None) -> Features:
        """Features of one image; with a mask (a path, an array or tensor h x w), of the part of it where that is not 0."""
        pixels = load_image(image)
        return self.extractor(pixels) if mask is None else extract_inside(self.extractor, pixels, load_mask(mask))

    def match(
        self,
        image0: ImageLike,
        image1: ImageLike,
        *,
        rotation: Rotation = "none",
        mask0: MaskLike | None = None,
        mask1: MaskLike | None = None,
    ) -> MatchResult:
        """Matches two images.

        rotation: "search" also tries image 1 after each quarter turn and keeps the best; its keypoints stay in its own
        pixels. The default weights were trained for any rotation and do not need it. mask0, mask1: see `extract`.
        """
        if rotation not in get_args(Rotation):
            raise InputError(f"unknown rotation {rotation!r}; choose from {list(get_args(Rotation))}")
        start = time.perf_counter()
        features0 = self.extract(image0, mask=mask0)
        if rotation == "search":
            features1, matches = self._match_turned(features0, image1, mask1)
            return MatchResult(features0, features1, matches, {"extract and match": time.perf_counter() - start})
        features1 = self.extract(image1, mask=mask1)
        extracted = time.perf_counter()
        (matches,) = self.match_features([(features0, features1)])
        seconds = {"extract": extracted - start, "match": time.perf_counter() - extracted}
        return MatchResult(features0, features1, matches, seconds)

    def _match_turned(self, features0: Features, image1: ImageLike, mask1: MaskLike | None) -> tuple[Features, Matches]:
        mask = None if mask1 is None else load_mask(mask1)

        def extract(turned: np.ndarray, turns: int) -> Features:
            return self.extract(turned, mask=None if mask is None else turned_image(mask, turns))

        features1, matches, _ = match_best_turn(features0, load_image(image1), extract, self.match_features)
        return features1, matches

    def match_features(self, pairs: Iterable[tuple[Features, Features]]) -> list[Matches]:
        """Matches pairs of features, all in one batch; each pair's result is what it would be alone."""
        if not isinstance(self.matcher, nn.Module):
            return self.matcher.match_features(list(pairs), self.settings)
        packed = pack(list(pairs), self.matcher.config)
        return [_to_cpu(matches) for matches in self.matcher.match(packed, self.settings)]

    def match_by_layer(self, features0: Features, features1: Features) -> list[Matches]:
        """What the pair would have given after each layer that ran; the last is the result. See `LightGlue.match_by_layer`.

        Raises InputError for a matcher other than LightGlue on PyTorch.
        """
        if not isinstance(self.matcher, LightGlue):
            raise InputError("matches by layer need LightGlue on the torch backend; choose other weights or backend")
        packed = pack([(features0, features1)], self.matcher.config)
        (layers,) = self.matcher.match_by_layer(packed, self.settings)
        return [_to_cpu(matches) for matches in layers]

    def match_many(
        self,
        pairs: Iterable[tuple[ImageLike, ImageLike]],
        *,
        workers: int | None = None,
        batch_tokens: int = 2**16,
        cached_images: int = 64,
        on_error: Callable[[int, LumiglueError], None] | None = None,
    ) -> Iterator[MatchResult | None]:
        """Matches many pairs, in order; images are read and described ahead, and paths that recur soon once.

        workers: threads; by default as many as PyTorch uses. On a CPU each takes whole pairs. batch_tokens: on a GPU, about
        so many keypoints are matched at a time. cached_images: whose features are kept, which bounds the memory.
        on_error: told the pair's number and the error when an image cannot be used; that pair yields None and the rest
        go on. Without it the error is raised.
        """
        found = self.match_extracted(
            pairs, self.extract, key=_key, workers=workers, batch_tokens=batch_tokens, cached_images=cached_images,
            on_error=on_error,
        )  # fmt: skip
        return (None if p is None else MatchResult(p.features0, p.features1, p.matches, p.seconds) for p in found)

    def match_extracted(
        self,
        pairs: Iterable[tuple[Image, Image]],
        features_of: Callable[[Image], Features],
        *,
        key: Callable[[Image], Hashable | None] = str,
        workers: int | None = None,
        batch_tokens: int = 2**16,
        cached_images: int = 64,
        on_error: Callable[[int, LumiglueError], None] | None = None,
    ) -> Iterator[MatchedPair | None]:
        """`match_many` for features that were extracted before: features_of returns those of an image (which may be a name),
        and key identifies an image (None: its features are not cached)."""
        workers = torch.get_num_threads() if workers is None else workers
        for name, value in (("workers", workers), ("batch_tokens", batch_tokens), ("cached_images", cached_images)):
            if value < 1:
                raise InputError(f"{name} is {value}; give at least 1")

        def run() -> Iterator[MatchedPair | None]:
            on_gpu = isinstance(self.matcher, nn.Module) and next(self.matcher.parameters()).is_cuda
            with pool(workers, one_thread_each=workers > 1 and not on_gpu) as threads:
                cache = FeatureCache(features_of, threads, max(cached_images, 2), key)
                if on_gpu:
                    yield from match_in_batches(pairs, cache, self.match_features, on_error, batch_tokens)
                else:
                    yield from match_in_threads(pairs, cache, self.match_features, on_error, workers)

        return run()

    def fingerprint(self) -> str:
        """SHA-256 of the weights: equal for equal matchers."""
        if not isinstance(self.matcher, nn.Module):
            return self.matcher.fingerprint()
        return weights_sha256(self.matcher)


def _features_of(trained_for: str, asked: str | None) -> str:
    """The extractor's name: what was asked for, or the member of that family, such as aliked, that the weights are for."""
    if asked is not None and not trained_for.startswith(f"{asked}-"):
        return asked
    if trained_for not in EXTRACTORS:  # never a path to code that a file names
        raise InputError(f"the weights are for {trained_for or 'any'!r} features; name an extractor for them by features=")
    return trained_for


def _key(image: ImageLike) -> str | None:
    """What tells paths apart; arrays and tensors are not kept."""
    return str(image) if isinstance(image, str | Path) else None


def _to_cpu(matches: Matches) -> Matches:
    tensors = (matches.pairs, matches.scores, matches.layers0, matches.layers1)
    pairs, scores, layers0, layers1 = (tensor.cpu() for tensor in tensors)
    return Matches(pairs, scores, matches.stop_layer, layers0, layers1)
