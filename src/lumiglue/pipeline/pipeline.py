"""Photos in, matches out: for one pair, many pairs, or existing features."""

import copy
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from lumiglue.backends.cuda_graphs import replayed_layers
from lumiglue.errors import InputError, LumiglueError
from lumiglue.extractors import Extractor
from lumiglue.extractors.regions import extract_inside
from lumiglue.images import ImageLike, MaskLike, Stretch, load_image, load_mask
from lumiglue.matcher.execution import Layers, execution_layers
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.models import MatcherModel, weights_sha256
from lumiglue.matcher.settings import Backend, MatchSettings, Precision
from lumiglue.pipeline.checks import as_pair, check_unit_length
from lumiglue.pipeline.construction import parts_by_name, parts_of_folder
from lumiglue.pipeline.prefetch import FeatureCache, Image, MatchedPair, match_in_batches, match_in_threads, pool
from lumiglue.pipeline.result import MatchResult
from lumiglue.pipeline.rotation import match_best_turn, turned_image
from lumiglue.system.device import compute_on_one_thread_in_forks, one_thread_at_a_time, usable_device
from lumiglue.system.extras import require
from lumiglue.system.threads import shorten_spins_at_run_time
from lumiglue.types import Features, Matches
from lumiglue.weights.files import FOLDER_FILES
from lumiglue.weights.folder import CARD, write_model_folder

if TYPE_CHECKING:
    from lumiglue.onnx.runtime import OnnxMatcher

Rotation = Literal["none", "search"]


class Pipeline:
    """An extractor and a matcher for its features.

    Images are paths, Pillow images (used as they are, without their EXIF orientation), arrays (H x W x 3 or H x W; uint8,
    uint16, or float in [0, 1]; RGB) or tensors (C x H x W, also with a leading 1). One pipeline can be used from several
    threads, and from forked or spawned processes; a forked process computes on one thread.

    Attributes:
        extractor: Computes the features.
        matcher: A PyTorch model, or an ONNX matcher.
        settings: How to match.
        precision: Arithmetic of a PyTorch matcher.
        metadata: Training record of the matcher.
        stretch: Which images are stretched, see `images.read_image`.
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
        stretch: Stretch = "auto",
    ) -> None:
        """Combines an extractor and a matcher.

        Args:
            extractor: Computes the features.
            matcher: A PyTorch model, which is moved to the device in place (do not share it between pipelines), or an ONNX
                matcher. In bf16 its layers are copied here; weights that change afterwards do not reach the copy.
            settings: How to match; None takes the matcher's own thresholds.
            device: Where a PyTorch matcher runs; None leaves it where it is.
            precision: Arithmetic of a PyTorch matcher.
            metadata: The training record as JSON values.
            stretch: Which images are stretched, see `images.read_image`.

        Raises:
            InputError: The matcher was trained for other features, or the device or precision is not supported.
        """
        config = matcher.config
        if config.extractor and config.extractor != extractor.name:
            raise InputError(f"the weights are for {config.extractor!r} features, but the extractor is {extractor.name!r}")
        if config.descriptor_dim != extractor.descriptor_dim:
            given = extractor.descriptor_dim
            raise InputError(
                f"{extractor.name!r} gives {given}-channel descriptors, but the weights take {config.descriptor_dim}"
            )
        if precision not in ("fp32", "bf16"):
            raise InputError(f"unknown precision {precision!r}; choose from ['bf16', 'fp32']")
        if device is None and isinstance(matcher, nn.Module):
            device = next(matcher.parameters()).device
        device = usable_device(device or "cpu")
        compute_on_one_thread_in_forks()
        shorten_spins_at_run_time()
        self.extractor = extractor
        self.stretch: Stretch = stretch
        self.metadata, self.precision = dict(metadata or {}), precision
        self._layers: Layers | None = None
        if isinstance(matcher, nn.Module):
            self.matcher = matcher.float().eval().to(device)
            self._layers = execution_layers(matcher, precision) if precision == "bf16" else None  # None: as they are now
        else:
            self.matcher = matcher
        self.settings = (settings or MatchSettings()).completed(matcher.own_settings)

    @classmethod
    def pretrained(
        cls,
        features: str | None = None,
        *,
        max_keypoints: int | None = 2048,
        resize: int | None = 1024,
        weights: str | Path | None = None,
        settings: MatchSettings | None = None,
        device: torch.device | str | None = None,
        precision: Precision | Literal["auto"] = "auto",
        backend: Backend | Literal["auto"] | None = None,
        tile: int | None = None,
        detector_threshold: float | None = None,
        stretch: Stretch = "auto",
    ) -> "Pipeline":
        """Creates a pipeline from the names of features and weights.

        Args:
            features: A built-in extractor, or your own as "path/to/file.py:Class" or "package.module:Class". None takes
                the features that the weights were trained for, or SIFT if no weights are given either.
            max_keypoints: Number of keypoints to keep per image; None keeps all.
            resize: Long side in pixels to which larger images are downscaled; None keeps the full size.
            weights: A name in the package ("sift-deep", "sift-clean", "aliked-n16-deep"), the name of a published matcher
                ("aliked-lightglue", see `lumiglue weights list`), a file, or a URL; also an .onnx file of `lumiglue export
                onnx`, with the settings it was exported with. None takes the best for the features; except for SIFT, they
                are downloaded on first use.
            settings: How to match; None takes the thresholds of the weights.
            device: "cpu", "cuda" or "mps"; None takes the CUDA GPU if there is one.
            precision: "auto" takes bf16 for LightGlue if the device multiplies it faster; that keeps all but a few of a
                thousand matches. Otherwise, and for SuperGlue (not measured), it takes fp32, which gives the same matches
                on every machine. Only PyTorch supports bf16.
            backend: None takes "torch", or "onnxruntime" for an .onnx file. "auto" measures the installed backends once per
                machine; in float32 their results differ only by rounding. "cudagraphs" is "torch" on a GPU, with the layers
                of single pairs launched at once (`backends.cuda_graphs`).
            tile: Side in pixels of the tiles in which the extractor processes larger photos, which limits its memory; see
                `Tiled`.
            detector_threshold: Smallest response of a keypoint, see `extractors.tiled_extractor`.
            stretch: Which images are stretched, see `images.read_image`.

        Raises:
            InputError: A name or a setting is unknown, or the weights are for other features.
            WeightsError: The weights cannot be found, downloaded or read.
        """
        parts = parts_by_name(
            features, weights, settings or MatchSettings(), torch.device(usable_device(device)), precision, backend,
            {
                "max_keypoints": max_keypoints, "resize": resize, "tile": tile, "detector_threshold": detector_threshold,
            },
        )  # fmt: skip
        if not isinstance(parts.matcher, nn.Module):
            return cls(parts.extractor, parts.matcher, settings, stretch=stretch)
        pipeline = cls(
            parts.extractor, parts.matcher, settings, device=parts.device, precision=parts.precision,
            metadata=parts.metadata, stretch=stretch,
        )  # fmt: skip
        if parts.cuda_graphs:
            pipeline._layers = replayed_layers(parts.matcher, pipeline._layers)
        return pipeline

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        features: str | None = None,
        max_keypoints: int | None = 2048,
        resize: int | None = 1024,
        settings: MatchSettings | None = None,
        device: torch.device | str | None = None,
        precision: Precision | Literal["auto"] = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        endpoint: str | None = None,
    ) -> "Pipeline":
        """Loads a matcher from the Hugging Face Hub, or from a folder that `save_pretrained` wrote.

        The weights are a safetensors file whose checksum is compared. Nothing in the repository is executed.

        Args:
            source: "owner/name" on the Hub, or a folder.
            features: None takes the features that the matcher was trained for. For your own features, give their class as
                in `pretrained`.
            max_keypoints: Number of keypoints to keep per image; None keeps all.
            resize: Long side in pixels to which larger images are downscaled; None keeps the full size.
            settings: How to match; None takes the saved settings.
            device: "cpu", "cuda" or "mps"; None takes the CUDA GPU if there is one.
            precision: See `pretrained`.
            revision: Branch, tag or commit; None takes the main branch.
            token: For a private repository; None takes that of `hf auth login`.
            cache_dir: Cache folder; None takes the Hub's own.
            endpoint: Address of the Hub; None takes the default.

        Raises:
            InputError: A name or a setting is unknown, or the matcher is for other features.
            WeightsError: The files cannot be downloaded or read.
        """
        folder, cache = Path(source), Path(cache_dir) if cache_dir else None
        if not folder.is_dir():
            require("huggingface_hub", "httpx2")
            from lumiglue.weights.hub import fetch

            folder = fetch(
                str(source), FOLDER_FILES, revision=revision, token=token, cache=cache, endpoint=endpoint
            )  # fmt: skip
        parts = parts_of_folder(
            folder, str(source), features, torch.device(usable_device(device)), precision,
            {"max_keypoints": max_keypoints, "resize": resize},
        )  # fmt: skip
        return cls(
            parts.extractor, parts.matcher, settings or parts.settings, device=parts.device, precision=parts.precision,
            metadata=parts.metadata,
        )  # fmt: skip

    def save_pretrained(self, folder: str | Path, *, name: str = "", metadata: Mapping[str, Any] | None = None) -> None:
        """Writes model.safetensors, config.json (features, settings, checksum) and a model card, README.md.

        Args:
            folder: Created if it does not exist.
            name: Title of the model card; by default the folder.
            metadata: JSON values to add to the training record. `licence`, `training_data` and `metrics` go into the card.

        Raises:
            InputError: The matcher is an ONNX file.
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
        """Uploads the files of `save_pretrained` to a repository of the Hugging Face Hub, in one commit.

        Args:
            repo: "owner/name", created if it does not exist.
            metadata: JSON values to add to the training record.
            message: Message of the commit.
            private: Whether a new repository is private; None takes the owner's default.
            revision: An existing branch; None takes the main branch.
            token: None takes that of `hf auth login`.
            endpoint: Address of the Hub; None takes the default.

        Returns:
            The address of the commit.

        Raises:
            InputError: The matcher is an ONNX file, or huggingface_hub is not installed.
            WeightsError: The upload failed.
        """
        require("huggingface_hub", "httpx2")
        from lumiglue.weights.hub import publish

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=repo, metadata=metadata)
            return publish(
                Path(folder), (*FOLDER_FILES, CARD), repo, message=message, private=private, revision=revision, token=token,
                endpoint=endpoint,
            )  # fmt: skip

    def with_settings(self, settings: MatchSettings) -> "Pipeline":
        """A pipeline with the same extractor and weights but other settings; nothing is copied."""
        other = copy.copy(self)
        other.settings = settings.completed(self.matcher.own_settings)
        return other

    def extract(self, image: ImageLike, *, mask: MaskLike | None = None) -> Features:
        """Extracts the features of one image.

        Args:
            image: A path, Pillow image, array or tensor, see the class.
            mask: A path, a Pillow image, or an array or tensor h x w: only keypoints where it is not 0 are kept.

        Raises:
            ImageError: The image or the mask cannot be read.
            InputError: The mask has another size than the image, or an array is no image.
        """
        pixels = load_image(image, stretch=self.stretch)
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

        Args:
            image0: A path, Pillow image, array or tensor, see the class.
            image1: The same.
            rotation: "search" also matches image 1 rotated by each quarter turn and keeps the best; keypoints remain in
                pixels of the given image. The default weights were trained with all rotations and do not need it.
            mask0: Mask of image 0, see `extract`.
            mask1: Mask of image 1.

        Raises:
            ImageError: An image cannot be read.
            InputError: An argument cannot be used.
        """
        if rotation not in get_args(Rotation):
            raise InputError(f"unknown rotation {rotation!r}; choose from {list(get_args(Rotation))}")
        start = time.perf_counter()
        if rotation == "search":
            features0 = self.extract(image0, mask=mask0)
            features1, matches = self._match_turned(features0, image1, mask1)
            return MatchResult(features0, features1, matches, {"extract and match": time.perf_counter() - start})
        features0, features1 = self._extract_both((image0, mask0), (image1, mask1))
        extracted = time.perf_counter()
        (matches,) = self.match_features([(features0, features1)])
        seconds = {"extract": extracted - start, "match": time.perf_counter() - extracted}
        return MatchResult(features0, features1, matches, seconds)

    def _extract_both(self, *images: tuple[ImageLike, MaskLike | None]) -> tuple[Features, Features]:
        """The features of two images. On a CPU each image has half of the cores, which is faster than all for one."""
        threads = torch.get_num_threads()
        if threads < 2 or self._on_gpu():
            features0, features1 = (self.extract(image, mask=mask) for image, mask in images)
            return features0, features1
        with pool(2, one_thread_each=True, threads_each=threads // 2) as workers:
            futures = [workers.submit(self.extract, image, mask=mask) for image, mask in images]
            return futures[0].result(), futures[1].result()

    def _on_gpu(self) -> bool:
        return isinstance(self.matcher, nn.Module) and next(self.matcher.parameters()).device.type != "cpu"

    def _match_turned(self, features0: Features, image1: ImageLike, mask1: MaskLike | None) -> tuple[Features, Matches]:
        mask = None if mask1 is None else load_mask(mask1)

        def extract(turned: np.ndarray, turns: int) -> Features:
            return self.extract(turned, mask=None if mask is None else turned_image(mask, turns))

        features1, matches, _ = match_best_turn(
            features0, load_image(image1, stretch=self.stretch), extract, self.match_features
        )
        return features1, matches

    def match_features(self, pairs: Iterable[tuple[Features, Features]]) -> list[Matches]:
        """Matches pairs of features in one batch. The result of a pair does not depend on the others.

        Raises:
            InputError: The features do not fit the matcher, or their descriptors are known to have unit length and do not.
        """
        pairs = list(pairs)
        check_unit_length(pairs, self.matcher.config.extractor)
        if not isinstance(self.matcher, nn.Module):
            return self.matcher.match_features(pairs, self.settings)
        packed = pack(pairs, self.matcher.config)
        with one_thread_at_a_time(next(self.matcher.parameters()).device):
            return [_to_cpu(matches) for matches in self.matcher.match(packed, self.settings, layers=self._layers)]

    def match_by_layer(self, features0: Features, features1: Features) -> list[Matches]:
        """The matches after each layer that ran; the last are the result. See `LightGlue.match_by_layer`.

        Raises:
            InputError: The matcher is not LightGlue on PyTorch.
        """
        if not isinstance(self.matcher, LightGlue):
            raise InputError("matches by layer need LightGlue on the torch backend; choose other weights or backend")
        packed = pack([(features0, features1)], self.matcher.config)
        (layers,) = self.matcher.match_by_layer(packed, self.settings, layers=self._layers)
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
        """Matches many pairs in order. Features are extracted ahead, and once for a path that recurs soon.

        Args:
            pairs: Pairs of images, see the class.
            workers: Number of threads; by default as many as PyTorch uses. On a CPU each thread matches whole pairs.
            batch_tokens: On a GPU, the approximate number of keypoints to match at a time.
            cached_images: Number of images whose features are kept, which limits the memory.
            on_error: Called with the number of the pair and the error if an image cannot be used. That pair yields None,
                and the others are still matched. Without it, the error is raised.

        Yields:
            The result of each pair, or None.

        Raises:
            InputError: An argument is less than 1, or an entry of `pairs` is not a pair.
        """
        matched = self.match_extracted(
            pairs, self.extract, key=_key, workers=workers, batch_tokens=batch_tokens, cached_images=cached_images,
            on_error=on_error,
        )  # fmt: skip
        return (None if p is None else MatchResult(p.features0, p.features1, p.matches, p.seconds) for p in matched)

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
        """`match_many` with features from another source.

        Args:
            pairs: Pairs of images, of any type that `features_of` accepts.
            features_of: Returns the features of an image.
            key: Identifies an image in the cache; None if its features should not be kept.
            workers: See `match_many`, also for the other arguments.
            batch_tokens: See there.
            cached_images: See there.
            on_error: See there.

        Yields:
            Features and matches of each pair, or None.

        Raises:
            InputError: An argument is less than 1, or an entry of `pairs` is not a pair.
        """
        workers = torch.get_num_threads() if workers is None else workers
        for name, value in (("workers", workers), ("batch_tokens", batch_tokens), ("cached_images", cached_images)):
            if value < 1:
                raise InputError(f"{name} is {value}; give at least 1")

        def run() -> Iterator[MatchedPair | None]:
            on_gpu = self._on_gpu()
            checked = (as_pair(number, pair) for number, pair in enumerate(pairs))
            with pool(workers, one_thread_each=workers > 1 and not on_gpu) as threads:
                cache = FeatureCache(features_of, threads, max(cached_images, 2), key)
                if on_gpu:
                    yield from match_in_batches(checked, cache, self.match_features, on_error, batch_tokens)
                else:
                    yield from match_in_threads(checked, cache, self.match_features, on_error, workers)

        return run()

    def fingerprint(self) -> str:
        """The SHA-256 of the weights, which identifies the matcher."""
        if not isinstance(self.matcher, nn.Module):
            return self.matcher.fingerprint()
        return weights_sha256(self.matcher)


def _key(image: ImageLike) -> str | None:
    """The key of a path; None for arrays and tensors, which are not cached."""
    return str(image) if isinstance(image, str | Path) else None


def _to_cpu(matches: Matches) -> Matches:
    tensors = (matches.pairs, matches.scores, matches.layers0, matches.layers1)
    pairs, scores, layers0, layers1 = (tensor.cpu() for tensor in tensors)
    return Matches(pairs, scores, matches.stop_layer, layers0, layers1)
