"""Requests to worker processes: so many at a time, so many waiting, and each ends by its time limit."""

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
    """As many requests wait as may."""


class TimeLimitError(LumiglueError):
    """A request was ended because it took too long."""


@dataclass(eq=False)
class Kept:
    """A result under its token: the outcome, as it is and pickled for the workers, and the pictures drawn so far."""

    outcome: Outcome
    pickled: bytes
    pictures: dict[View, bytes] = field(default_factory=dict)


class Service:
    """Matches and draws in worker processes. Use from one event loop.

    Results are kept under tokens that cannot be guessed: whoever sent the photos, and nobody else, can ask for them.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = self._new_pool()
        self.models = matching.available_models()
        self.under_way = 0
        self.kept: OrderedDict[str, Kept] = OrderedDict()

    async def match(self, request: MatchRequest) -> str:
        """The token of the result. Raises a LumiglueError with one sentence."""
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
        self.kept[token] = Kept(pickle.loads(pickled), pickled)
        while len(self.kept) > limits.keep:
            self.kept.popitem(last=False)
        return token

    def result(self, token: str) -> Kept:
        """What is kept under a token. Raises InputError where it has gone."""
        if token not in self.kept:
            raise InputError("this result is no longer kept; match the photos again")
        self.kept.move_to_end(token)
        return self.kept[token]

    async def picture(self, token: str, view: View) -> bytes:
        """A picture of a result, drawn once. Raises a LumiglueError with one sentence."""
        kept = self.result(token)
        if view.layer is not None and not 1 <= view.layer <= kept.outcome.n_layers:
            raise InputError(f"layer {view.layer} does not exist; choose from 1 to {kept.outcome.n_layers}")
        if view not in kept.pictures:
            kept.pictures[view] = await self._run(matching.draw, kept.pickled, view)
        return kept.pictures[view]

    async def _run(self, function: Callable[..., bytes], *arguments: object) -> bytes:
        limits = self.limits
        if self.under_way >= limits.workers + limits.max_queue:
            raise BusyError(f"the server is busy, {limits.max_queue} requests wait already; try again in a minute")
        self.under_way += 1
        try:
            return await self._scheduled(function, arguments)
        except TimeoutError:
            raise TimeLimitError(
                f"this took longer than the limit of {limits.max_seconds:g} s and was ended; "
                "give fewer keypoints or smaller photos"
            ) from None
        except ProcessExpired:
            raise TimeLimitError("the process at work ended, perhaps for want of memory; give smaller photos") from None
        except CancelledError:
            raise BusyError("the server is shutting down; try again later") from None
        finally:
            self.under_way -= 1

    async def _scheduled(self, function: Callable[..., bytes], arguments: Sequence[object]) -> bytes:
        """Runs a function in a worker; where the pool itself has broken, once more in a new one."""
        pool = self.pool
        try:
            future = pool.schedule(function, args=list(arguments), timeout=self.limits.max_seconds)
            return await asyncio.wrap_future(future)
        except (BrokenProcessPool, RuntimeError) as error:
            if isinstance(error, LumiglueError) or (type(error) is RuntimeError and pool.active):
                raise  # of the function
            log.warning("the pool of workers broke (%s); a new one takes its place", error)
        if self.pool is pool:
            self.pool = self._new_pool()
            pool.stop()
        future = self.pool.schedule(function, args=list(arguments), timeout=self.limits.max_seconds)
        return await asyncio.wrap_future(future)

    def _new_pool(self) -> ProcessPool:
        """Spawned, not forked: a fork of a process in which threads run may hang. A pool breaks when a worker dies idle."""
        threads = max(1, (os.cpu_count() or 1) // self.limits.workers)
        context = multiprocessing.get_context("spawn")
        return ProcessPool(self.limits.workers, initializer=matching.prepare, initargs=(threads,), context=context)

    def close(self) -> None:
        """Ends the worker processes."""
        self.pool.stop()
        self.pool.join()
