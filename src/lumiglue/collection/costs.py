"""What a collection will cost on this machine: the stages run on a sample of its photos, and the costs are projected."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Literal

import numpy as np

from lumiglue.collection.features import extract_in_parts
from lumiglue.collection.hloc import FeaturesFile
from lumiglue.collection.matching import in_threads, match_in_parts
from lumiglue.collection.pairs import sequential
from lumiglue.collection.retrieval import CLUSTERS, Vlad
from lumiglue.errors import InputError
from lumiglue.images import image_names
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.system.device import peak_memory

# Two images are often each other's neighbours, and count as one pair.
_NEW_PAIRS = 0.7
_RUNS = 4  # of successive photos in the sample, spread over the collection
_RUN = 4  # photos in each
_SEARCHED = 256


@dataclass(frozen=True)
class Costs:
    """What features, pairs and matches of a collection cost. The mapping is not included.

    Attributes:
        images: Number of images.
        measured: Number of images that the costs were measured on.
        pairs: Number of pairs.
        seconds: Of each stage: "features", "pairs" and "matches".
        disk: Bytes of features and matches together.
        memory: Largest resident memory of the process, in bytes; on Windows without that of the sample.
    """

    images: int
    measured: int
    pairs: int
    seconds: dict[str, float]
    disk: int
    memory: int


def project_costs(
    photos: str | Path,
    pipeline: Pipeline | None = None,
    *,
    by: Literal["exhaustive", "sequential", "retrieval"] = "retrieval",
    neighbours: int = 20,
    overlap: int = 10,
    images: int | None = None,
    workers: int | None = None,
) -> Costs:
    """Measures the costs of a collection on up to 16 of its photos, in four runs of successive ones.

    Args:
        photos: Folder of photos.
        pipeline: Features and matcher; None uses `Pipeline.pretrained()` in fp32.
        by: How pairs will be chosen. Retrieval counts as 0.7 times `neighbours` pairs per image, as neighbours are mutual.
        neighbours: See `choose_pairs`.
        overlap: See `choose_pairs`.
        images: Size of the collection, if the folder has only a sample of it; None counts the photos.
        workers: Threads; None takes as many as PyTorch uses.

    Returns:
        The costs.

    Raises:
        InputError: The folder has fewer than two photos that can be used.
    """
    names = image_names(photos)
    pipeline = pipeline or Pipeline.pretrained(precision="fp32")
    count, seconds = images or len(names), {}
    starts = np.unique(np.linspace(0, max(len(names) - _RUN, 0), _RUNS).astype(int))
    sample = [names[row] for row in sorted({int(start) + i for start in starts for i in range(_RUN)}) if row < len(names)]
    with TemporaryDirectory() as folder:
        features, matches = Path(folder) / "features.h5", Path(folder) / "matches.h5"
        list(
            extract_in_parts(photos, sample[:1], pipeline.extractor, Path(folder) / "first.h5", stretch=pipeline.stretch)
        )  # what is loaded once
        start = perf_counter()
        list(extract_in_parts(photos, sample, pipeline.extractor, features, stretch=pipeline.stretch, workers=workers))
        seconds["features"] = (perf_counter() - start) * count / len(sample)
        with FeaturesFile(features) as file:
            usable = file.names()
            vector_seconds = _vector_seconds([file.read(name).descriptors.numpy() for name in usable])
        if len(usable) < 2:
            raise InputError(f"{photos} has {len(usable)} usable photos; measuring the costs needs at least 2")
        some = sequential(usable, 2)
        list(match_in_parts(features, some[:1], pipeline, Path(folder) / "first.h5.m"))
        start = perf_counter()
        list(match_in_parts(features, some, pipeline, matches, in_threads(workers)))
        pair_seconds = (perf_counter() - start) / len(some)
        image_bytes, pair_bytes = features.stat().st_size / len(usable), matches.stat().st_size / len(some)
        width = CLUSTERS * pipeline.extractor.descriptor_dim
    retrieved = _NEW_PAIRS * count * {"retrieval": neighbours, "sequential": max(2, neighbours // 4)}.get(by, 0)
    all_pairs = count * (count - 1) // 2
    pairs = all_pairs if by == "exhaustive" else min(round(retrieved) + (by == "sequential") * count * overlap, all_pairs)
    vectors = 0 if by == "exhaustive" else count
    seconds["pairs"] = vectors * (vector_seconds + vectors * _comparison_seconds(width))
    seconds["matches"] = pairs * pair_seconds
    memory = peak_memory() + 4 * vectors * width + round(min(count, 256) * image_bytes * 2)  # halves become floats
    return Costs(count, len(usable), pairs, seconds, round(count * image_bytes + pairs * pair_bytes), memory)


def _vector_seconds(descriptors: list[np.ndarray]) -> float:
    """Of an image, to compute its VLAD vector."""
    rng = np.random.default_rng(0)
    codebook = rng.standard_normal((CLUSTERS, descriptors[0].shape[1] if descriptors else 1), np.float32)
    vlad, start = Vlad(codebook), perf_counter()
    for rows in descriptors:
        vlad(rows)
    return (perf_counter() - start) / max(len(descriptors), 1)


def _comparison_seconds(width: int) -> float:
    """Of two vectors, in an exact search."""
    vectors = np.random.default_rng(0).standard_normal((_SEARCHED, width), np.float32)
    start = perf_counter()
    np.matmul(vectors, vectors.T)
    return (perf_counter() - start) / _SEARCHED**2
