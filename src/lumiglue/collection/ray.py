"""Matching on a Ray cluster: actors hold the matcher, objects the features; what is lost with a machine is done again."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lumiglue.collection.hloc import FeaturesFile, PairMatches
from lumiglue.collection.matching import Engine, MatchChunk
from lumiglue.collection.pairs import Pair
from lumiglue.errors import InputError, LumiglueError
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.types import Features

try:
    import ray
    from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError
except ImportError:
    raise InputError("the engine ray needs the package ray; pip install 'lumiglue[ray]'") from None

# Chunks that an actor has or waits for: enough to keep it busy, few enough to bound the objects.
CHUNKS_AN_ACTOR = 2
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

        def describe(name: str) -> Features:
            if name in reasons:
                raise InputError(reasons[name])
            return features[name]

        def on_error(number: int, error: LumiglueError) -> None:
            failed.append((" ".join(pairs[number]), str(error)))

        found = self.pipeline.match_described(pairs, describe, workers=1, cached_images=len(names), on_error=on_error)
        return [None if matched is None else PairMatches.of(matched) for matched in found], failed


@dataclass
class _Task:
    chunk: Sequence[Pair]
    actor: Any
    tries: int = 1


def join(address: str | None = None) -> int:
    """Joins the cluster at that address, or makes one of this machine; returns its number of cores."""
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def on_ray(make_pipeline: Callable[[], Pipeline], actors: int, cached_images: int = 1024) -> Engine:
    """An engine of `actors` processes on the Ray cluster that this process has joined, or on this machine.

    make_pipeline: makes the same pipeline on each machine. cached_images: whose features lie in Ray's object store. A chunk
    whose actor died is given to a new one, three times; then its pairs are in `failed`.
    """
    if actors < 1:
        raise InputError(f"actors is {actors}; give at least 1")

    def run(file: FeaturesFile, chunks: Sequence[Sequence[Pair]], _: Pipeline) -> Iterator[MatchChunk]:
        join()
        make = ray.remote(num_cpus=1, max_restarts=0)(_Matcher)
        objects = _Objects(file, cached_images)
        workers = [make.remote(make_pipeline) for _ in range(actors)]
        slots = deque(workers * CHUNKS_AN_ACTOR)
        waiting, running = deque(chunks), {}

        replacements: dict[Any, Any] = {}  # a dead actor -> who does its work

        def alive(actor: Any) -> Any:
            while actor in replacements:
                actor = replacements[actor]
            return actor

        def start(task: _Task) -> None:
            there: dict[str, Any] = {}
            reasons: dict[str, str] = {}
            for name in dict.fromkeys(n for pair in task.chunk for n in pair):
                try:
                    there[name] = objects.put(name)
                except LumiglueError as error:
                    reasons[name] = str(error)
            running[task.actor.match.remote(task.chunk, list(there), list(there.values()), reasons)] = task

        try:
            while waiting or running:
                while waiting and slots:
                    start(_Task(waiting.popleft(), alive(slots.popleft())))
                ready = ray.wait(list(running), num_returns=1)[0][0]
                task = running.pop(ready)
                try:
                    rows, failed = ray.get(ready)
                except (RayActorError, WorkerCrashedError) as error:
                    if task.actor not in replacements:
                        replacements[task.actor] = make.remote(make_pipeline)
                    replacement = alive(task.actor)
                    if task.tries < TRIES:
                        start(_Task(task.chunk, replacement, task.tries + 1))
                        continue
                    reason = f"lost with its process {TRIES} times ({type(error).__name__})"
                    rows, failed = [None] * len(task.chunk), [(" ".join(pair), reason) for pair in task.chunk]
                except RayTaskError as error:
                    raise InputError(f"matching failed on the cluster: {error.cause or error}") from None
                slots.append(task.actor)
                yield MatchChunk(task.chunk, rows, tuple(failed))
        finally:
            for actor in {alive(actor) for actor in workers}:
                ray.kill(actor)

    return run


class _Objects:
    """Features in the object store, each put once while it is among the last that were asked for."""

    def __init__(self, file: FeaturesFile, size: int) -> None:
        self.file, self.size = file, size
        self.references: OrderedDict[str, Any] = OrderedDict()

    def put(self, name: str) -> Any:
        reference = self.references.pop(name, None)  # raises what reading the features raises
        self.references[name] = ray.put(self.file.read(name)) if reference is None else reference
        if len(self.references) > self.size:
            self.references.popitem(last=False)
        return self.references[name]
