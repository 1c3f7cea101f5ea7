"""Matching of many pairs: threads read images and extract features ahead of the matcher, once per image.

On a CPU each thread matches whole pairs, which is faster than two threads on one pair. On a GPU pairs are matched in
batches of about the same number of keypoints.
"""

import contextlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from lumiglue.errors import InputError, LumiglueError
from lumiglue.types import Features, Matches

Image = TypeVar("Image")
_lock = threading.Lock()
_threads_before: list[int] = []  # for each open pool, PyTorch's threads before the first one opened


@dataclass(frozen=True, eq=False)
class MatchedPair:
    """A matched pair.

    Attributes:
        features0: Features of image 0.
        features1: Features of image 1.
        matches: Rows of both.
        seconds: Seconds of each step; the extraction counts even if it was done for another pair.
    """

    features0: Features
    features1: Features
    matches: Matches
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class ExtractedImage:
    """The features of an image, and the seconds of their extraction."""

    features: Features
    seconds: float


class FeatureCache(Generic[Image]):
    """Extracts features in threads and keeps those of the most recently used images.

    Attributes:
        describe: Returns the features of an image.
        threads: Where `describe` runs.
        size: Number of images to keep.
        key: Identifies an image; None if its features should not be kept.
    """

    def __init__(
        self,
        describe: Callable[[Image], Features],
        threads: Executor,
        size: int,
        key: Callable[[Image], Hashable | None],
    ) -> None:
        self.describe, self.threads, self.size, self.key = describe, threads, size, key
        self.futures: OrderedDict[Hashable, Future[ExtractedImage]] = OrderedDict()

    def submit(self, image: Image) -> "Future[ExtractedImage]":
        """Starts the extraction, unless the features are there or on their way."""
        key = self.key(image)
        if key is None:
            return self.threads.submit(self._timed, image)
        future = self.futures.pop(key, None) or self.threads.submit(self._timed, image)
        self.futures[key] = future
        if len(self.futures) > self.size:
            self.futures.popitem(last=False)
        return future

    def _timed(self, image: Image) -> ExtractedImage:
        start = time.perf_counter()
        features = self.describe(image)
        return ExtractedImage(features, time.perf_counter() - start)


Match = Callable[[Sequence[tuple[Features, Features]]], list[Matches]]
OnError = Callable[[int, LumiglueError], None]


def match_in_threads(
    pairs: Iterable[tuple[Image, Image]], cache: FeatureCache[Image], match: Match, on_error: OnError | None, workers: int
) -> Iterator[MatchedPair | None]:
    """Matches pairs in order, `workers` of them at a time, each in its own thread.

    Args:
        pairs: Pairs of images.
        cache: Extracts their features.
        match: Matches a batch of pairs.
        on_error: Called with the number of a pair and its error; None raises the error.
        workers: Number of threads.

    Yields:
        The result of each pair; None if it failed.
    """

    def match_one(a: Future[ExtractedImage], b: Future[ExtractedImage]) -> MatchedPair:
        # This cannot wait forever: both were submitted before, and the threads take tasks in order.
        images = a.result(), b.result()
        start = time.perf_counter()
        (matches,) = match([(images[0].features, images[1].features)])
        return _matched_pair(images, matches, time.perf_counter() - start)

    waiting: deque[tuple[int, Future[MatchedPair]]] = deque()
    try:
        for number, (a, b) in enumerate(pairs):
            waiting.append((number, cache.threads.submit(match_one, cache.submit(a), cache.submit(b))))
            if len(waiting) > 2 * workers:
                yield _outcome(*waiting.popleft(), on_error)
        while waiting:
            yield _outcome(*waiting.popleft(), on_error)
    finally:
        for _, future in waiting:
            future.cancel()


def match_in_batches(
    pairs: Iterable[tuple[Image, Image]], cache: FeatureCache[Image], match: Match, on_error: OnError | None, tokens: int
) -> Iterator[MatchedPair | None]:
    """Matches pairs in order, in batches of about `tokens` keypoints, while threads extract the features of the next.

    Args:
        pairs: Pairs of images.
        cache: Extracts their features.
        match: Matches a batch of pairs.
        on_error: Called with the number of a pair and its error; None raises the error.
        tokens: Number of keypoints per batch.

    Yields:
        The result of each pair; None if it failed.
    """
    waiting: deque[tuple[int, Future[ExtractedImage], Future[ExtractedImage]]] = deque()
    ready: list[tuple[int, tuple[ExtractedImage, ExtractedImage] | None]] = []
    keypoints = 0
    numbered = enumerate(pairs)
    ahead = max(1, cache.size // 2)
    while True:
        while len(waiting) < ahead and (entry := next(numbered, None)) is not None:
            number, (a, b) = entry
            waiting.append((number, cache.submit(a), cache.submit(b)))
        if waiting:
            number, *futures = waiting.popleft()
            images = _extracted(number, futures, on_error)
            ready.append((number, images))
            keypoints += 0 if images is None else sum(len(image.features) for image in images)
        if ready and (keypoints >= tokens or not waiting):
            yield from _match_ready(ready, match, on_error)
            ready, keypoints = [], 0
        elif not waiting and not ready:
            return


def _match_ready(
    ready: Sequence[tuple[int, tuple[ExtractedImage, ExtractedImage] | None]], match: Match, on_error: OnError | None
) -> Iterator[MatchedPair | None]:
    """Matches all pairs at once; if one of them cannot be matched, one by one."""
    usable = [images for _, images in ready if images is not None]
    start = time.perf_counter()
    try:
        matches: Iterator[Matches] | None = iter(match([(a.features, b.features) for a, b in usable]) if usable else [])
    except LumiglueError:
        if on_error is None:
            raise
        matches = None
    share = (time.perf_counter() - start) / max(1, len(usable))
    for number, images in ready:
        if images is None:
            yield None
        elif matches is not None:
            yield _matched_pair(images, next(matches), share)
        else:
            yield _match_alone(number, images, match, on_error)


def _match_alone(
    number: int, images: tuple[ExtractedImage, ExtractedImage], match: Match, on_error: OnError | None
) -> MatchedPair | None:
    start = time.perf_counter()
    try:
        (matches,) = match([(images[0].features, images[1].features)])
    except LumiglueError as error:
        if on_error is None:
            raise
        on_error(number, error)
        return None
    return _matched_pair(images, matches, time.perf_counter() - start)


def _extracted(
    number: int, futures: "Sequence[Future[ExtractedImage]]", on_error: OnError | None
) -> tuple[ExtractedImage, ExtractedImage] | None:
    try:
        a, b = (future.result() for future in futures)
    except LumiglueError as error:
        if on_error is None:
            raise
        on_error(number, error)
        return None
    return a, b


def _outcome(number: int, future: "Future[MatchedPair]", on_error: OnError | None) -> MatchedPair | None:
    try:
        return future.result()
    except LumiglueError as error:
        if on_error is None:
            raise
        on_error(number, error)
        return None


def _matched_pair(images: tuple[ExtractedImage, ExtractedImage], matches: Matches, seconds: float) -> MatchedPair:
    a, b = images
    return MatchedPair(a.features, b.features, matches, {"extract": a.seconds + b.seconds, "match": seconds})


@contextlib.contextmanager
def pool(workers: int, *, one_thread_each: bool, threads_each: int = 1) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads, which restores PyTorch's number of threads when it closes.

    Args:
        workers: Number of threads.
        one_thread_each: Whether each of them computes on its own cores; if not, PyTorch's setting is left as it is.
        threads_each: On how many cores.

    Raises:
        InputError: There are fewer than one.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}; give at least 1")
    if not one_thread_each:
        with ThreadPoolExecutor(workers) as threads:
            try:
                yield threads
            finally:
                threads.shutdown(cancel_futures=True)
        return
    with _lock:  # a thread's setting is also that of new threads: a second pool would restore the 1 of the first
        before = _threads_before[0] if _threads_before else torch.get_num_threads()
        _threads_before.append(before)
    threads = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(threads_each))
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)
        with _lock:
            _threads_before.pop()
            torch.set_num_threads(before)
