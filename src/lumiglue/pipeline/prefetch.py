"""Many pairs: images are read and described ahead of the matcher, once each, in threads.

On a CPU every thread takes whole pairs, which wastes less than two threads on one pair. On a GPU pairs are matched in
batches of about so many keypoints, whatever the number of pairs.
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
_threads_before: list[int] = []  # PyTorch's threads before the first of the pools that are open, for each of them


@dataclass(frozen=True, eq=False)
class MatchedPair:
    """A pair that was matched; seconds of its parts, extraction where an image was described for another pair included."""

    features0: Features
    features1: Features
    matches: Matches
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class ExtractedImage:
    """An image's features and the seconds that they took."""

    features: Features
    seconds: float


class FeatureCache(Generic[Image]):
    """Describes images in threads; those of the most recently asked keys are kept, and described once.

    key: of an image, or None for one that is not to be kept.
    """

    def __init__(
        self,
        describe: Callable[[Image], Features],
        threads: Executor,
        size: int,
        key: Callable[[Image], Hashable | None],
    ) -> None:
        self.describe, self.threads, self.size, self.key = describe, threads, size, key
        self.kept: OrderedDict[Hashable, Future[ExtractedImage]] = OrderedDict()

    def ask(self, image: Image) -> "Future[ExtractedImage]":
        key = self.key(image)
        if key is None:
            return self.threads.submit(self._timed, image)
        future = self.kept.pop(key, None) or self.threads.submit(self._timed, image)
        self.kept[key] = future
        if len(self.kept) > self.size:
            self.kept.popitem(last=False)
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
    """Matches pairs in order, `workers` of them at a time, each pair in a thread of its own."""

    def match_one(a: Future[ExtractedImage], b: Future[ExtractedImage]) -> MatchedPair:
        # Both were begun before: the threads take tasks in the order in which they were given.
        images = a.result(), b.result()
        start = time.perf_counter()
        (matches,) = match([(images[0].features, images[1].features)])
        return _matched_pair(images, matches, time.perf_counter() - start)

    waiting: deque[tuple[int, Future[MatchedPair]]] = deque()
    try:
        for number, (a, b) in enumerate(pairs):
            waiting.append((number, cache.threads.submit(match_one, cache.ask(a), cache.ask(b))))
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
    """Matches pairs in order, in batches of about `tokens` keypoints; the images of the next are described meanwhile."""
    waiting: deque[tuple[int, Future[ExtractedImage], Future[ExtractedImage]]] = deque()
    ready: list[tuple[int, tuple[ExtractedImage, ExtractedImage] | None]] = []
    held = 0
    numbered = enumerate(pairs)
    ahead = max(1, cache.size // 2)
    while True:
        while len(waiting) < ahead and (entry := next(numbered, None)) is not None:
            number, (a, b) = entry
            waiting.append((number, cache.ask(a), cache.ask(b)))
        if waiting:
            number, *futures = waiting.popleft()
            images = _extracted(number, futures, on_error)
            ready.append((number, images))
            held += 0 if images is None else sum(len(image.features) for image in images)
        if ready and (held >= tokens or not waiting):
            yield from _match_ready(ready, match, on_error)
            ready, held = [], 0
        elif not waiting and not ready:
            return


def _match_ready(
    ready: Sequence[tuple[int, tuple[ExtractedImage, ExtractedImage] | None]], match: Match, on_error: OnError | None
) -> Iterator[MatchedPair | None]:
    """All pairs at once; where one of them cannot be matched, one by one."""
    usable = [images for _, images in ready if images is not None]
    start = time.perf_counter()
    try:
        found: Iterator[Matches] | None = iter(match([(a.features, b.features) for a, b in usable]) if usable else [])
    except LumiglueError:
        if on_error is None:
            raise
        found = None
    share = (time.perf_counter() - start) / max(1, len(usable))
    for number, images in ready:
        if images is None:
            yield None
        elif found is not None:
            yield _matched_pair(images, next(found), share)
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
def pool(workers: int, *, one_thread_each: bool) -> Iterator[ThreadPoolExecutor]:
    """Threads that compute, if so wished, each on one core; PyTorch has its threads back afterwards. Raises InputError for
    fewer than one."""
    if workers < 1:
        raise InputError(f"workers is {workers}; give at least 1")
    if not one_thread_each:
        with ThreadPoolExecutor(workers) as threads:
            try:
                yield threads
            finally:
                threads.shutdown(cancel_futures=True)
        return
    with _lock:  # what a thread sets is also what new threads begin with: a pool beside another would take its 1 for all
        before = _threads_before[0] if _threads_before else torch.get_num_threads()
        _threads_before.append(before)
    threads = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1))
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)
        with _lock:
            _threads_before.pop()
            torch.set_num_threads(before)
