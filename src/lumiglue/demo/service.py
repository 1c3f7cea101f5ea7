"""Runs requests in worker processes, with limits on how many run, how many wait, and how long each takes."""

import asyncio
import logging
import multiprocessing
import os
import pickle
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

from pebble import ProcessExpired, ProcessPool

from lumiglue.demo import matching
from lumiglue.demo.limits import Limits
from lumiglue.demo.matching import MatchRequest, Outcome, View
from lumiglue.errors import InputError, LumiglueError, TooLargeError

log = logging.getLogger(__name__)


class BusyError(LumiglueError):
    """The queue is full."""


class TimeLimitError(LumiglueError):
    """A request took too long and was ended."""


@dataclass(eq=False)
class StoredResult:
    """A result in the store.

    Attributes:
        outcome: The result.
        pickled: The same for the workers.
        pictures: Pictures that were drawn so far, as JPEG.
    """

    outcome: Outcome
    pickled: bytes
    pictures: dict[View, bytes] = field(default_factory=dict)


class Service:
    """Matches and draws in worker processes. Use it from one event loop.

    Results are stored under tokens that cannot be guessed, so that only the sender of the photos can fetch them.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = self._new_pool()
        self.models = matching.available_models()
        self.active = 0
        self.results: OrderedDict[str, StoredResult] = OrderedDict()

    async def match(self, request: MatchRequest) -> str:
        """Matches two photos and returns the token of the result.

        Raises LumiglueError with a message of one sentence if the request cannot be served.
        """
        limits = self.limits
        for photo, name in zip(request.photos, matching.NAMES, strict=True):
            if len(photo) > limits.upload_bytes:
                raise TooLargeError(
                    f"{name} has {len(photo) / 1e6:.1f} MB, above the limit of {limits.max_upload_mb:g} MB; "
                    "send a smaller file"
                )
        if request.weights not in self.models:  # others would have to be downloaded first
            raise InputError(f"the weights {request.weights!r} are not on this machine; choose from {self.models}")
        if request.max_keypoints > limits.most_keypoints:
            raise InputError(f"max_keypoints is {request.max_keypoints}; give at most {limits.most_keypoints}")
        pickled = await self._run(matching.match, request, int(limits.max_megapixels * 1e6))
        token = secrets.token_urlsafe(18)
        self.results[token] = StoredResult(pickle.loads(pickled), pickled)
        while len(self.results) > limits.keep:
            self.results.popitem(last=False)
        return token

    def result(self, token: str) -> StoredResult:
        """Returns the result of a token. Raises InputError if it was removed."""
        if token not in self.results:
            raise InputError("this result was removed; match the photos again")
        self.results.move_to_end(token)
        return self.results[token]

    async def picture(self, token: str, view: View) -> bytes:
        """Draws a view of a result, once, as JPEG. Raises LumiglueError with a message of one sentence if it cannot be
        drawn."""
        stored = self.result(token)
        if view.layer is not None and not 1 <= view.layer <= stored.outcome.n_layers:
            raise InputError(f"layer {view.layer} does not exist; choose from 1 to {stored.outcome.n_layers}")
        if view not in stored.pictures:
            stored.pictures[view] = await self._run(matching.draw, stored.pickled, view)
        return stored.pictures[view]

    async def _run(self, function: Callable[..., bytes], *arguments: object) -> bytes:
        limits = self.limits
        if self.active >= limits.workers + limits.max_queue:
            raise BusyError(f"the server is busy: {limits.max_queue} requests are waiting; try again in a minute")
        self.active += 1
        try:
            return await self._scheduled(function, arguments)
        except TimeoutError:
            raise TimeLimitError(
                f"this took longer than the limit of {limits.max_seconds:g} s and was ended; "
                "give fewer keypoints or smaller photos"
            ) from None
        except ProcessExpired:
            raise TimeLimitError("the process ended unexpectedly, perhaps out of memory; send smaller photos") from None
        except CancelledError:
            raise BusyError("the server is shutting down; try again later") from None
        finally:
            self.active -= 1

    async def _scheduled(self, function: Callable[..., bytes], arguments: Sequence[object]) -> bytes:
        """Runs a function in a worker; if the pool itself is broken, once more in a new pool."""
        pool = self.pool
        try:
            future = pool.schedule(function, args=list(arguments), timeout=self.limits.max_seconds)
            return await asyncio.wrap_future(future)
        except (BrokenProcessPool, RuntimeError) as error:
            if isinstance(error, LumiglueError) or (type(error) is RuntimeError and pool.active):
                raise  # of the function
            log.warning("the pool of workers broke (%s); starting a new one", error)
        if self.pool is pool:
            self.pool = self._new_pool()
            pool.stop()
        future = self.pool.schedule(function, args=list(arguments), timeout=self.limits.max_seconds)
        return await asyncio.wrap_future(future)

    def _new_pool(self) -> ProcessPool:
        """Spawned, not forked: a fork of a process with threads may hang. A pool breaks when an idle worker dies."""
        threads = max(1, (os.cpu_count() or 1) // self.limits.workers)
        context = multiprocessing.get_context("spawn")
        return ProcessPool(self.limits.workers, initializer=matching.prepare, initargs=(threads,), context=context)

    def close(self) -> None:
        """Ends the worker processes."""
        self.pool.stop()
        self.pool.join()
