"""Matching on a Ray cluster: actors have the matcher, the object store the features. Ray restarts what dies."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lumiglue.collection.hloc import Pair, PairMatches
from lumiglue.collection.matching import Engine, MatchChunk, Source
from lumiglue.errors import InputError, LumiglueError
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.system.extras import require
from lumiglue.types import Features

try:
    import ray
    from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError
except ImportError:
    raise InputError("the engine ray needs the package ray; pip install 'lumiglue[ray]'") from None
require("ray")

# Chunks that an actor has or waits for: enough to keep it busy, few enough to bound the objects.
CHUNKS_PER_ACTOR = 2
TRIES = 3


class _Matcher:
    """One actor: a pipeline, made once, and the pairs that it is sent."""

    def __init__(self, make_pipeline: Callable[[], Pipeline]) -> None:
        self.pipeline = make_pipeline()

    def match(
        self, pairs: Sequence[Pair], names: Sequence[str], objects: Sequence[Any], reasons: Mapping[str, str]
    ) -> tuple[list[PairMatches | None], list]:
        """reasons: why the features of other images could not be read."""
        features: dict[str, Features] = dict(zip(names, ray.get(list(objects)), strict=True))
        failed: list[tuple[str, str]] = []

        def features_of(name: str) -> Features:
            if name in reasons:
                raise InputError(reasons[name])
            return features[name]

        def on_error(number: int, error: LumiglueError) -> None:
            failed.append((" ".join(pairs[number]), str(error)))

        matched = self.pipeline.match_extracted(pairs, features_of, workers=1, cached_images=len(names), on_error=on_error)
        return [None if pair is None else PairMatches.of(pair) for pair in matched], failed


def join(address: str | None = None) -> int:
    """Joins a Ray cluster, unless this process is in one.

    Args:
        address: The cluster's address, as for `ray.init`; None makes a cluster of this machine.

    Returns:
        The cluster's number of cores.
    """
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def on_ray(make_pipeline: Callable[[], Pipeline], actors: int, cached_images: int = 1024) -> Engine:
    """Makes an engine of processes on the Ray cluster that this process has joined.

    Args:
        make_pipeline: Makes the same pipeline on each machine.
        actors: Processes. Ray restarts one that dies and repeats its chunks, up to three tries each.
        cached_images: Images whose features are in Ray's object store at a time.

    Returns:
        An engine for `match_pairs`.

    Raises:
        InputError: `actors` is less than 1.
    """
    if actors < 1:
        raise InputError(f"actors is {actors}; give at least 1")

    def run(file: Source, chunks: Sequence[Sequence[Pair]], _: Pipeline) -> Iterator[MatchChunk]:
        join()
        make = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=TRIES - 1)(_Matcher)
        objects = _Objects(file, cached_images)
        workers = [make.remote(make_pipeline) for _ in range(actors)]
        free = deque(workers * CHUNKS_PER_ACTOR)
        waiting, running = deque(chunks), {}

        def start(actor: Any, chunk: Sequence[Pair]) -> None:
            references: dict[str, Any] = {}
            reasons: dict[str, str] = {}
            for name in dict.fromkeys(name for pair in chunk for name in pair):
                try:
                    references[name] = objects.put(name)
                except LumiglueError as error:
                    reasons[name] = str(error)
            running[actor.match.remote(chunk, list(references), list(references.values()), reasons)] = actor, chunk

        try:
            while waiting or running:
                while waiting and free:
                    start(free.popleft(), waiting.popleft())
                ready = ray.wait(list(running), num_returns=1)[0][0]
                actor, chunk = running.pop(ready)
                try:
                    matches, failed = ray.get(ready)
                except (RayActorError, WorkerCrashedError) as error:
                    reason = f"lost with its process {TRIES} times ({type(error).__name__})"
                    matches, failed = [None] * len(chunk), [(" ".join(pair), reason) for pair in chunk]
                except RayTaskError as error:
                    raise InputError(f"matching failed on the cluster: {error.cause or error}") from None
                free.append(actor)
                yield MatchChunk(chunk, matches, tuple(failed))
        finally:
            for actor in workers:
                ray.kill(actor)  # pyright: ignore[reportArgumentType]

    return run


class _Objects:
    """Features in the object store, each put once while it is among the last that were requested."""

    def __init__(self, file: Source, size: int) -> None:
        self.file, self.size = file, size
        self.references: OrderedDict[str, Any] = OrderedDict()

    def put(self, name: str) -> Any:
        reference = self.references.pop(name, None)  # raises what reading the features raises
        self.references[name] = ray.put(self.file.read(name)) if reference is None else reference
        if len(self.references) > self.size:
            self.references.popitem(last=False)
        return self.references[name]
