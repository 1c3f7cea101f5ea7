"""One photo against many: which of them show the same place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lumiglue.errors import LumiglueError
from lumiglue.geometry.robust import estimate
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.types import GeometryKind


@dataclass(frozen=True)
class RankedImage:
    """A photo of a ranking.

    Attributes:
        path: The photo.
        inliers: Number of matches that agree with one geometry. A handful proves nothing.
        matches: Number of matches.
        keypoints: Number of its keypoints.
        error: Why it could not be used; "" if it could.
    """

    path: Path
    inliers: int = 0
    matches: int = 0
    keypoints: int = 0
    error: str = ""


def rank_images(
    pipeline: Pipeline,
    query: str | Path,
    images: Sequence[str | Path],
    kind: GeometryKind = "fundamental",
    *,
    workers: int | None = None,
    progress: Callable[[RankedImage], None] | None = None,
) -> list[RankedImage]:
    """Matches a photo with others and ranks them by their inliers.

    Args:
        pipeline: Features and matcher.
        query: The photo to look for.
        images: The photos to compare it with.
        kind: The model that separates inliers from outliers: "fundamental" or "homography".
        workers: Number of threads; by default as many as PyTorch uses.
        progress: Called after each photo, in their order.

    Returns:
        The photos by inliers, then matches, most first; at the end those that cannot be used.

    Raises:
        ImageError: The query cannot be read.
        InputError: An argument cannot be used.
    """
    features = pipeline.extract(query)  # once, and an error of the query is no error of every pair
    errors: dict[int, LumiglueError] = {}
    pairs = ((None, path) for path in images)
    matched = pipeline.match_extracted(
        pairs,
        lambda path: features if path is None else pipeline.extract(path),
        key=lambda path: None if path is None else str(path),
        workers=workers,
        cached_images=2,
        on_error=errors.__setitem__,
    )
    ranked = []
    for number, (path, result) in enumerate(zip(images, matched, strict=True)):
        if result is None:
            entry = RankedImage(Path(path), error=str(errors[number]))
        else:
            pair = result.matches.pairs
            points0, points1 = result.features0.keypoints[pair[:, 0]], result.features1.keypoints[pair[:, 1]]
            geometry = estimate(kind, points0.numpy(), points1.numpy())
            entry = RankedImage(Path(path), int(geometry.inliers.sum()), len(pair), len(result.features1))
        ranked.append(entry)
        if progress is not None:
            progress(entry)
    return sorted(ranked, key=lambda entry: (bool(entry.error), -entry.inliers, -entry.matches, str(entry.path)))
