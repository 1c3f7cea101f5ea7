"""Flags that several commands share."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lumiglue.cli.terminal import ProgressBar
from lumiglue.errors import InputError
from lumiglue.matcher.settings import Backend, MatchSettings, Precision

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lumiglue.extractors import Extractor
    from lumiglue.pipeline.pipeline import Pipeline
    from lumiglue.weights.registry import PublishedFile

HDF5 = (".h5", ".hdf5")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineFlags:
    """Features, weights and adaptivity."""

    features: str | None = None
    """Local features: sift, aliked, disk, xfeat, superpoint, or your own as file.py:Class or module:Class; by default
    those that --weights was trained for, or sift."""
    max_keypoints: int = 2048
    """Keypoints kept per image, strongest first; 0 keeps all."""
    resize: int = 1024
    """Larger images are shrunk to this long side in pixels; 0 keeps the full size."""
    tile: int | None = None
    """Extract features of larger photos in tiles with this side in pixels (with --resize 0: at full size), which bounds
    memory."""
    detector_threshold: float | None = None
    """Smallest response of a keypoint; lower values find more keypoints in photos of low contrast. The default depends on
    the features: 0.01 for sift (its contrast threshold), 0 for aliked and disk, 0.05 for xfeat, 0.005 for superpoint."""
    stretch: Literal["auto", "always", "never"] = "auto"
    """Which photos are stretched, so that 98 % of their values fill the range from black to white: auto for 16-bit and
    float photos, always for 8-bit ones too (if they are dark or hazy), or never."""
    weights: str | None = None
    """A name from `lumiglue weights list`, a .safetensors or .onnx file, a URL with #sha256=..., or hub:owner/name on the
    Hugging Face Hub; by default the best for the features, which are downloaded on first use (except for sift)."""
    score_threshold: float | None = None
    """Smallest score of a match; by default 0.1 for LightGlue and 0.2 for SuperGlue."""
    exit_ratio: float | None = None
    """Stop once this share of the points is confident; 0 runs all layers. By default that of the weights, 0.95 unless
    they have another."""
    prune_below: float | None = None
    """Prune confident points whose matchability is below this; 0 keeps all points. By default that of the weights, 0.01
    unless they have another."""
    precision: Precision | Literal["auto"] | None = None
    """Arithmetic of the matcher; auto is bf16 if that is faster on the processor. By default auto for two photos or a
    folder, and fp32, which is the same on every machine, for lists, collections and evaluations."""
    device: str | None = None
    """cpu, cuda or mps; by default the CUDA GPU if there is one."""
    backend: Backend | Literal["auto"] | None = None
    """What runs the matcher: torch, cudagraphs (torch on a GPU), onnxruntime, openvino, or auto for the fastest that is
    installed; by default torch, or onnxruntime for an .onnx file."""

    def extractor(self) -> "Extractor":
        """Makes the extractor alone, which needs no weights of a matcher."""
        from lumiglue.extractors import tiled_extractor
        from lumiglue.system.device import usable_device
        from lumiglue.weights.registry import features_of, needed_files

        features = self.features or (features_of(self.weights) if self.weights else "sift")
        _download(file for file in needed_files(features, None) if file.kind == "network")
        return tiled_extractor(
            features,
            max_keypoints=self.max_keypoints or None,
            resize=self.resize or None,
            tile=self.tile,
            device=str(usable_device(self.device)),
            detector_threshold=self.detector_threshold,
        )

    def pipeline(self, default_precision: Literal["auto", "fp32"] = "fp32") -> "Pipeline":
        """Makes the pipeline. default_precision: for no --precision."""
        from lumiglue.pipeline.pipeline import Pipeline
        from lumiglue.weights.registry import needed_files

        _download(needed_files(self.features, self.weights))
        settings = MatchSettings(
            score_threshold=self.score_threshold, exit_ratio=self.exit_ratio, prune_below=self.prune_below
        )
        return Pipeline.pretrained(
            self.features,
            max_keypoints=self.max_keypoints or None,
            resize=self.resize or None,
            tile=self.tile,
            detector_threshold=self.detector_threshold,
            stretch=self.stretch,
            weights=self.weights,
            settings=settings,
            device=self.device,
            precision=self.precision or default_precision,
            backend=self.backend,
        )


def _download(files: "Iterable[PublishedFile]") -> None:
    """Downloads missing files, with a progress bar, if the features can be computed here."""
    from lumiglue.extractors import check_package
    from lumiglue.weights.registry import fetch

    files = list(files)
    for file in files:
        check_package(file.features)
    for file in files:
        if not file.is_here():
            with ProgressBar(file.name, None, of_bytes=True) as advance:
                fetch(file.name, progress=lambda received, total, advance=advance: advance(received, total=total))


def check_writable(file: Path, *suffixes: str) -> None:
    """Checks, before the work, that a file can be written and has one of the suffixes. Raises InputError."""
    if suffixes and file.suffix.lower() not in suffixes:
        raise InputError(f"--out {file} has the suffix {file.suffix!r}; give a file that ends in {' or '.join(suffixes)}")
    if not file.parent.is_dir():
        raise InputError(f"{file} cannot be written: there is no folder {file.parent}; create it first")
    if file.is_dir():
        raise InputError(f"{file} is a folder; give the name of a file")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InputError(f"{file} cannot be written: permission denied; give another --out")
