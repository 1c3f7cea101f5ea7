"""CUDA graphs: on a GPU a layer of one pair is some forty small kernels, and starting them takes longer than running them.

A graph starts all of them at once, but has fixed shapes. So the pair's images are padded to one of a few numbers of points,
and the padding is masked. Early exit and pruning happen between the layers, as always. Larger images, and several pairs at a
time, keep a GPU busy by themselves and run without graphs.
"""

import copy
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lumiglue.errors import InputError
from lumiglue.matcher.execution import Layers, execution_layers
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.ops.attention import PaddedPair
from lumiglue.matcher.packed import Lengths

# A function that computes the same again from the present content of its inputs' memory, and the output that it overwrites.
Recorded = tuple[Callable[[], Any], Tensor]
Record = Callable[[Callable[[], Tensor]], Recorded]
Run = Callable[..., Tensor]  # a layer

# (limit, step): images of up to `limit` points are padded to a multiple of `step`; larger ones are not padded.
STEPS = ((512, 128), (2048, 256), (4096, 512))
# A process can record one graph at a time.
_recording = threading.Lock()
_log = logging.getLogger(__name__)


def padded_length(points: int) -> int | None:
    """How many points an image of that many is padded to; None if it is too large to profit."""
    for limit, step in STEPS:
        if points <= limit:
            return -(-points // step) * step
    return None


def replayed_layers(model: nn.Module, layers: Layers | None = None) -> "ReplayedLayers":
    """Layers for `LightGlue.match` that run single pairs as CUDA graphs; `layers` (`execution_layers`) compute them, by
    default `execution_layers` in float32. Raises InputError if the model is not LightGlue, or not on a GPU."""
    if not isinstance(model, LightGlue):
        raise InputError("only LightGlue runs as CUDA graphs; choose the backend torch")
    device = next(model.parameters()).device
    if device.type != "cuda":
        raise InputError("CUDA graphs need a GPU; choose device='cuda', or the backend torch")
    return ReplayedLayers(layers or execution_layers(model, "fp32"), record_cuda_graph(device), device)


def record_cuda_graph(device: torch.device) -> Record:
    """A recorder on that GPU. The graphs of one recorder share scratch memory, so they must not run at the same time."""
    pool = torch.cuda.graph_pool_handle()
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()  # of this GPU: PyTorch's own is on the first GPU that recorded

    def record(run: Callable[[], Tensor]) -> Recorded:
        graph = torch.cuda.CUDAGraph()
        with _recording, torch.cuda.device(device):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries initialise themselves in the first call, which cannot be recorded
                for _ in range(2):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                output = run()

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return replay, output

    return record


@dataclass(frozen=True, eq=False)
class _Inputs:
    """The input memory of the recorded layers of one padded length: 2n tokens, and how many of either image are real."""

    x: Float[Tensor, "t d"]
    cosine: Float[Tensor, "t q"]
    sine: Float[Tensor, "t q"]
    pair: PaddedPair

    def fill(self, x: Tensor, rotation: tuple[Tensor, Tensor], sizes: tuple[int, int]) -> None:
        n, first = self.pair.n, sizes[0]
        self.x.zero_()  # padding must be finite, because the mask multiplies it by 0
        for memory, values in ((self.x, x), (self.cosine, rotation[0]), (self.sine, rotation[1])):
            memory[:first].copy_(values[:first])
            memory[n : n + sizes[1]].copy_(values[first:])
        for side in (0, 1):
            self.pair.counts[side].fill_(sizes[side])


class ReplayedLayers:
    """Layers of which each is recorded the first time that a padded length occurs. Threads take turns."""

    def __init__(self, layers: Layers, record: Record, device: torch.device | None = None) -> None:
        """Records nothing yet.

        Args:
            layers: LightGlue's layers. Pairs that are too large for a graph run through them directly.
            record: Records one call, see `record_cuda_graph`.
            device: The only device that `record` records on; None is any.
        """
        self._layers, self._record, self._device = layers, record, device
        self._inputs: dict[int, _Inputs] = {}
        self._recorded: dict[tuple[int, int], Recorded] = {}
        self._weights: tuple[torch.device, torch.dtype, int] | None = None
        self._done: torch.cuda.Event | None = None
        self._recordable = True
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Callable[..., Tensor]]:
        return (partial(self._run, number, layer) for number, layer in enumerate(self._layers))

    def __reduce__(self) -> tuple[Callable[[Layers], Layers], tuple[Layers]]:
        """In another process: the layers without graphs."""
        return _unchanged, (self._layers,)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ReplayedLayers":
        """A copy records layers of its own."""
        return ReplayedLayers(copy.deepcopy(self._layers, memo), self._record, self._device)

    def _run(self, number: int, layer: Run, x: Tensor, rotation: tuple[Tensor, Tensor], lengths: Lengths) -> Tensor:
        """The states after that layer, by its graph if the pair fits."""
        states = self._replayed(number, layer, x, rotation, lengths[0]) if len(lengths) == 1 else None
        return layer(x, rotation, lengths) if states is None else states

    def _replayed(
        self, number: int, layer: Run, x: Tensor, rotation: tuple[Tensor, Tensor], sizes: tuple[int, int]
    ) -> Tensor | None:
        n = padded_length(max(sizes))
        if n is None or not self._recordable:
            return None
        # Memory allocated in inference mode could not be filled outside of it.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if (weights := _location(self._layers)) != self._weights:  # moved or replaced: graphs read from the old memory
                self._recorded.clear()
                self._inputs.clear()
                self._weights = weights
            if self._device not in (None, x.device):
                return None
            if self._done is not None:  # another stream may still be reading the inputs
                torch.cuda.current_stream(x.device).wait_event(self._done)
            inputs = self._inputs.get(n) or self._inputs.setdefault(n, _inputs_like(x, rotation, n))
            inputs.fill(x, rotation, sizes)
            recorded = self._recorded.get((number, n)) or self._record_layer(number, layer, inputs)
            if recorded is None:
                return None
            replay, output = recorded
            replay()
            states = torch.cat([output[: sizes[0]], output[n : n + sizes[1]]])
            if x.is_cuda:
                self._done = self._done or torch.cuda.Event()
                self._done.record(torch.cuda.current_stream(x.device))
            return states

    def _record_layer(self, number: int, layer: Run, inputs: _Inputs) -> Recorded | None:
        try:
            recorded = self._record(lambda: layer(inputs.x, (inputs.cosine, inputs.sine), inputs.pair))
        except RuntimeError as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            _log.warning("layers cannot be recorded as CUDA graphs (%s), so they run without", reason)
            self._recordable = False
            return None
        self._recorded[number, inputs.pair.n] = recorded
        return recorded


def _location(layers: Layers) -> tuple[torch.device, torch.dtype, int]:
    """Device, precision and address of the layers' weights."""
    weights = next(cast(nn.Module, next(iter(layers))).parameters())
    return weights.device, weights.dtype, weights.data_ptr()


def _unchanged(layers: Layers) -> Layers:
    return layers


def _inputs_like(x: Tensor, rotation: tuple[Tensor, Tensor], n: int) -> _Inputs:
    x, cosine, sine = (tensor.new_zeros(2 * n, tensor.shape[1]) for tensor in (x, *rotation))
    return _Inputs(x, cosine, sine, PaddedPair(n, torch.zeros(2, dtype=torch.int64, device=x.device)))
