"""Running an exported matcher with ONNX Runtime or OpenVINO, pair by pair or in padded batches, adaptivity included."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch

from lumiglue.errors import InputError
from lumiglue.io.text import reason
from lumiglue.matcher.inputs import check_features
from lumiglue.matcher.lightglue import LightGlue, LightGlueConfig
from lumiglue.matcher.models import config_from, weights_sha256
from lumiglue.matcher.settings import MatchSettings, Precision
from lumiglue.onnx.export import OnnxSettings, build, read_onnx_metadata
from lumiglue.system.extras import require
from lumiglue.types import Features, Matches

# Scores of one head in a batch: 4 pairs of 2,048 points.
BATCH_ENTRIES = 2**24
Runtime = Literal["onnxruntime", "openvino"]
Session = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


class OnnxMatcher:
    """Matches features with ONNX Runtime or OpenVINO. Any number of threads may match at once.

    Attributes:
        source: The model or the file.
        config: The config of the matcher.
        fixed: The thresholds of a file; None for a model, which is exported in memory for each settings.
        batched: Whether a file takes several pairs at once.
    """

    def __init__(
        self,
        source: LightGlue | str | Path,
        runtime: Runtime = "onnxruntime",
        *,
        precision: Precision = "fp32",
        quantized: bool = False,
    ) -> None:
        """Reads the config.

        Args:
            source: A model, or a file of `export_onnx` in the "lumiglue" or the "batch" layout.
            runtime: What runs the graph.
            precision: "bf16" is OpenVINO's. It rounds positions, scores and rows too and loses matches: use it to compare
                times.
            quantized: Export a model with int8 linear maps; no effect on a file.

        Raises:
            InputError: The file was not written by `export_onnx` or has another layout, or the runtime is not installed or
                does not support the layout.
        """
        require("onnx_ir", runtime)
        self.source, self.runtime = source, runtime
        self.precision: Precision = precision
        self.quantized = quantized
        self.fixed: MatchSettings | None = None
        self.batched = False
        if isinstance(source, LightGlue):
            self.config = source.config
        else:
            metadata = read_onnx_metadata(source)
            if (layout := metadata.get("layout")) not in ("lumiglue", "batch"):
                raise InputError(f"{source} has the layout {layout!r}; export it with the layout 'lumiglue' or 'batch'")
            self.batched = layout == "batch"
            if self.batched and runtime == "openvino":  # 2026.4, when a compiled model sees larger sizes for the first time
                raise InputError(f"{source} has the layout 'batch', with which OpenVINO loses matches; choose onnxruntime")
            try:
                config = config_from("lightglue", metadata.get("config"))
                assert isinstance(config, LightGlueConfig)
                self.config, self.fixed = config, MatchSettings(**metadata.get("match", {}))
            except (TypeError, ValueError) as error:
                raise InputError(f"{source} has invalid metadata ({reason(error)}); export it again") from None
        self._sessions: dict[tuple[MatchSettings, int], Session] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Copies, in this or another process, open sessions of their own."""
        return {name: value for name, value in vars(self).items() if name not in ("_sessions", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._sessions, self._lock = {}, threading.Lock()

    def match_features(
        self, pairs: Sequence[tuple[Features, Features]], settings: MatchSettings | None = None
    ) -> list[Matches]:
        """Matches each pair as `LightGlue.match` does. A file in the "batch" layout gets pairs of like sizes together.

        Args:
            pairs: Features of image 0 and image 1 of each pair.
            settings: Thresholds; None takes those of the file, or the model's own.

        Returns:
            One result for each pair, in order.

        Raises:
            InputError: The settings are not those of the file, or the features do not fit.
        """
        check_features(pairs, self.config)
        session = self._session(settings or MatchSettings())
        if not self.batched:
            return [self._match(session, *pair) for pair in pairs]
        results: dict[int, Matches] = {}
        for numbers in _batches(pairs):
            results |= zip(numbers, self._match_batch(session, [pairs[number] for number in numbers]), strict=True)
        return [results[number] for number in range(len(pairs))]

    def fingerprint(self) -> str:
        """SHA-256 of the weights, or of the file."""
        if isinstance(self.source, LightGlue):
            return weights_sha256(self.source)
        return hashlib.sha256(Path(self.source).read_bytes()).hexdigest()

    @property
    def own_settings(self) -> MatchSettings:
        """What settings that are None take: those of the file or of the model."""
        if self.fixed is not None:
            return self.fixed
        assert isinstance(self.source, LightGlue)
        return self.source.own_settings

    def _session(self, settings: MatchSettings) -> Session:
        settings = settings.completed(self.own_settings)
        if self.fixed is not None and settings != self.fixed:
            raise InputError(f"{self.source} was exported with {self.fixed}; export it again to match with {settings}")
        key = (settings, torch.get_num_threads())  # the threads of the caller
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = self._open(*key)
            return self._sessions[key]

    def _open(self, settings: MatchSettings, threads: int) -> Session:
        if isinstance(self.source, LightGlue):
            exported = OnnxSettings(match=settings, precision="int8" if self.quantized else "fp32")
            model = ir.to_proto(build(self.source, exported)).SerializeToString()
        else:
            model = Path(self.source).read_bytes()
        open_session = _onnxruntime if self.runtime == "onnxruntime" else _openvino
        try:
            session = open_session(model, threads, self.precision)
        except InputError:
            raise
        except Exception as error:  # each runtime raises its own
            raise self._unusable(error) from None
        # Where the first pair of all has one keypoint in an image, OpenVINO 2026.4 computes every later pair wrongly.
        two = _two_points(self.config)
        self._match_batch(session, [(two, two)]) if self.batched else self._match(session, two, two)
        return session

    def _unusable(self, error: Exception) -> InputError:
        source = "the exported matcher" if isinstance(self.source, LightGlue) else self.source
        return InputError(f"{source} cannot be run by {self.runtime} ({reason(error)}); export it again")

    def _match(self, session: Session, features0: Features, features1: Features) -> Matches:
        feed = {
            f"{name}{side}": value
            for side, features in enumerate((features0, features1))
            for name, value in self._inputs(features).items()
        }
        try:
            outputs = session(feed)
            pairs, scores, layers0, layers1 = (
                torch.from_numpy(np.array(outputs[name])) for name in ("matches", "scores", "layers0", "layers1")
            )
            stop_layer = int(outputs["stop_layer"])
        except Exception as error:  # each runtime raises its own
            raise self._unusable(error) from None
        return Matches(pairs, scores.clamp(max=1), stop_layer, layers0, layers1)  # rounding may lift a score above 1

    def _inputs(self, features: Features) -> dict[str, np.ndarray]:
        names = ["keypoints", "descriptors", *(("scales", "orientations") if self.config.encoding != "xy" else ())]
        arrays = {name: getattr(features, name).detach().float().cpu().numpy() for name in names}
        return {**arrays, "image_size": np.array(features.image_size, np.float32)}

    def _match_batch(self, session: Session, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """Matches pairs at once, padded to the largest."""
        feed: dict[str, np.ndarray] = {}
        for side in (0, 1):
            images = [pair[side] for pair in pairs]
            inputs = [self._inputs(features) for features in images]
            feed[f"image_size{side}"] = np.stack([arrays.pop("image_size") for arrays in inputs])
            feed[f"counts{side}"] = np.array([len(features) for features in images], np.int64)
            most = max(1, int(feed[f"counts{side}"].max()))
            for name in inputs[0]:
                padded = (np.pad(a[name], [(0, most - len(a[name])), *[(0, 0)] * (a[name].ndim - 1)]) for a in inputs)
                feed[f"{name}{side}"] = np.stack(list(padded))
        try:
            outputs = {name: torch.from_numpy(np.array(value)) for name, value in session(feed).items()}
            of_pair = [outputs["matches"][:, 0] == number for number in range(len(pairs))]
            return [
                Matches(
                    outputs["matches"][rows, 1:],
                    outputs["scores"][rows].clamp(max=1),
                    int(outputs["stop_layer"][number]),
                    outputs["layers0"][number, : len(a)],
                    outputs["layers1"][number, : len(b)],
                )
                for number, ((a, b), rows) in enumerate(zip(pairs, of_pair, strict=True))
            ]
        except Exception as error:  # each runtime raises its own
            raise self._unusable(error) from None


def _batches(pairs: Sequence[tuple[Features, Features]]) -> Iterator[list[int]]:
    """Numbers of the pairs of each batch: of like sizes, and no more than memory allows."""
    order = sorted(range(len(pairs)), key=lambda number: max(map(len, pairs[number])))
    batch: list[int] = []
    for number in order:
        most = max(map(len, pairs[number]))  # of the batch, because the largest comes last
        if batch and (len(batch) + 1) * most**2 > BATCH_ENTRIES:
            yield batch
            batch = []
        batch.append(number)
    yield batch


def _two_points(config: LightGlueConfig) -> Features:
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    descriptors = torch.nn.functional.normalize(torch.ones(2, config.descriptor_dim), dim=1)
    return Features(
        keypoints=points, descriptors=descriptors, image_size=(2, 2), scales=torch.ones(2), orientations=torch.zeros(2)
    )


def _onnxruntime(model: bytes, threads: int, precision: Precision) -> Session:
    import onnxruntime

    if precision != "fp32":
        raise InputError(f"ONNX Runtime has no {precision} on the CPU; export with fp16 or int8, or choose fp32")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in _providers()]
    session: Any = onnxruntime.InferenceSession(model, options, providers=providers)
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def _providers() -> list[str]:
    import onnxruntime

    return onnxruntime.get_available_providers()


def _openvino(model: bytes, threads: int, precision: Precision) -> Session:
    import openvino

    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    names = [output.any_name for output in compiled.outputs]

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        request = compiled.create_infer_request()  # one for each call, so that threads do not share buffers
        outputs = request.infer(dict(feed))
        return {name: outputs[name].copy() for name in names}

    return run
