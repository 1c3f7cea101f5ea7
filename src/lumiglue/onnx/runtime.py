"""Running an exported matcher with ONNX Runtime or OpenVINO, pair by pair, adaptivity included."""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
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

Runtime = Literal["onnxruntime", "openvino"]
Session = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


class OnnxMatcher:
    """Matches features with ONNX Runtime or OpenVINO. Any number of threads may match at once.

    Attributes:
        source: The model or the file.
        config: The config of the matcher.
        fixed: The thresholds of a file; None for a model, which is exported in memory for each settings.
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
            source: A model, or a file of `export_onnx` in the "lumiglue" layout.
            runtime: What runs the graph.
            precision: "bf16" is OpenVINO's. It rounds positions, scores and rows too and loses matches: use it to compare
                times.
            quantized: Export a model with int8 linear maps; no effect on a file.

        Raises:
            InputError: The file was not written by `export_onnx` or has another layout, or the runtime is not installed.
        """
        require("onnx_ir", runtime)
        self.source, self.runtime = source, runtime
        self.precision: Precision = precision
        self.quantized = quantized
        self.fixed: MatchSettings | None = None
        if isinstance(source, LightGlue):
            self.config = source.config
        else:
            metadata = read_onnx_metadata(source)
            if metadata.get("layout") != "lumiglue":
                raise InputError(f"{source} has the layout {metadata.get('layout')!r}; export it with the layout 'lumiglue'")
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
        """Matches each pair as `LightGlue.match` does.

        Args:
            pairs: Features of image 0 and image 1 of each pair.
            settings: Thresholds; None takes those of the file, or the defaults.

        Returns:
            One result for each pair, in order.

        Raises:
            InputError: The settings are not those of the file, or the features do not fit.
        """
        check_features(pairs, self.config)
        session = self._session(settings or self.fixed or MatchSettings())
        return [self._match(session, *pair) for pair in pairs]

    def fingerprint(self) -> str:
        """SHA-256 of the weights, or of the file."""
        if isinstance(self.source, LightGlue):
            return weights_sha256(self.source)
        return hashlib.sha256(Path(self.source).read_bytes()).hexdigest()

    def _session(self, settings: MatchSettings) -> Session:
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
        self._match(session, *[_two_points(self.config)] * 2)
        return session

    def _unusable(self, error: Exception) -> InputError:
        source = "the exported matcher" if isinstance(self.source, LightGlue) else self.source
        return InputError(f"{source} cannot be run by {self.runtime} ({reason(error)}); export it again")

    def _match(self, session: Session, features0: Features, features1: Features) -> Matches:
        feed: dict[str, np.ndarray] = {}
        for side, features in enumerate((features0, features1)):
            feed[f"keypoints{side}"] = features.keypoints.detach().float().cpu().numpy()
            feed[f"descriptors{side}"] = features.descriptors.detach().float().cpu().numpy()
            feed[f"image_size{side}"] = np.array(features.image_size, np.float32)
            if self.config.encoding != "xy":
                assert features.scales is not None  # checked by check_features
                assert features.orientations is not None
                feed[f"scales{side}"] = features.scales.detach().float().cpu().numpy()
                feed[f"orientations{side}"] = features.orientations.detach().float().cpu().numpy()
        try:
            outputs = session(feed)
            pairs, scores, layers0, layers1 = (
                torch.from_numpy(np.array(outputs[name])) for name in ("matches", "scores", "layers0", "layers1")
            )
            stop_layer = int(outputs["stop_layer"])
        except Exception as error:  # each runtime raises its own
            raise self._unusable(error) from None
        return Matches(pairs, scores.clamp(max=1), stop_layer, layers0, layers1)  # rounding may lift a score above 1


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
