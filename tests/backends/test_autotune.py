"""The backend that is chosen is the one that took least, and the choice is made once."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from helpers import draw_photo
from lumiglue import Features, InputError, LightGlue, LightGlueConfig, Matches, Pipeline
from lumiglue.backends import autotune as autotune_module
from lumiglue.backends.autotune import Match, autotune, default_precision
from lumiglue.cli import main
from lumiglue.cli.flags import PipelineFlags
from lumiglue.matcher import precision

CONFIG = LightGlueConfig(descriptor_dim=128, project_input=True, d=64, heads=4, n_layers=1)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    monkeypatch.setenv("LUMIGLUE_CACHE", str(tmp_path / "cache"))
    return []


def makers(opened: list[str], seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], Match]]:
    """Matchers that advance a clock by so many seconds; nothing else does."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def maker(name: str) -> Callable[[], Match]:
        def match(pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
            assert [len(features) for pair in pairs for features in pair] == [1024, 1024]
            clock[0] += seconds[name]
            return []

        def make() -> Match:
            opened.append(name)
            return match

        return make

    return {name: maker(name) for name in seconds}


def test_the_fastest_is_taken_and_remembered(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = makers(opened, {"torch": 0.3, "onnxruntime": 0.1, "openvino": 0.2}, monkeypatch)
    assert autotune(jobs, CONFIG, ["a"]) == "onnxruntime"
    assert opened == ["torch", "onnxruntime", "openvino"]
    assert autotune(jobs, CONFIG, ["a"]) == "onnxruntime"
    assert len(opened) == 3
    assert autotune({name: jobs[name] for name in ("torch", "openvino")}, CONFIG, ["a"]) == "openvino"  # another choice
    assert autotune(jobs, CONFIG, ["b"]) == "onnxruntime"
    assert len(opened) == 8


def test_the_precision_is_measured_once_a_machine(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(autotune_module, "multiplies_tiles", lambda: False)
    measured: list[str] = ["bf16", "fp32"]
    monkeypatch.setattr(autotune_module, "faster_precision", lambda device: measured.pop(0))
    assert [default_precision(cpu) for _ in range(3)] == ["bf16"] * 3
    assert measured == ["fp32"]
    monkeypatch.undo()
    monkeypatch.setattr(precision, "multiplies_tiles", lambda: True)  # with AMX there is nothing to measure
    monkeypatch.setattr(precision, "product_seconds", lambda dtype: pytest.fail("measured"))
    monkeypatch.setattr(autotune_module, "multiplies_tiles", lambda: True)
    assert default_precision(cpu) == "bf16"


def test_the_precision_is_that_of_any_number_of_threads(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Matches depend on it: a process with one thread and one with two must not differ."""
    cpu, before = torch.device("cpu"), torch.get_num_threads()
    during: list[int] = []

    def seconds(dtype: torch.dtype) -> float:
        during.append(torch.get_num_threads())
        return {torch.bfloat16: 1.0, torch.float32: 2.0}[dtype]

    monkeypatch.setattr(autotune_module, "multiplies_tiles", lambda: False)
    monkeypatch.setattr(precision, "multiplies_tiles", lambda: False)
    monkeypatch.setattr(precision, "product_seconds", seconds)
    try:
        torch.set_num_threads(2)
        assert default_precision(cpu) == "bf16"
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert default_precision(cpu) == "bf16"
    finally:
        torch.set_num_threads(before)
    assert during == [1, 1]  # measured once, on one thread


def layers_dtype(pipeline: Pipeline) -> torch.dtype:
    """Of the layers that it runs: a copy in bfloat16, or those of the matcher."""
    layers = pipeline.matcher if pipeline._layers is None else pipeline._layers
    assert isinstance(layers, torch.nn.Module)
    return next(layers.parameters()).dtype


def test_photos_are_matched_in_the_faster_precision_and_files_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that another machine may continue, and figures, must not depend on this machine."""
    for chosen in ("bf16", "fp32"):
        monkeypatch.setattr("lumiglue.pipeline.construction.default_precision", lambda device, chosen=chosen: chosen)
        dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
        for pipeline, expected in (
            (Pipeline.pretrained(), chosen),
            (PipelineFlags().pipeline("auto"), chosen),
            (PipelineFlags().pipeline(), "fp32"),
            (PipelineFlags(precision="auto").pipeline(), chosen),
            (PipelineFlags(precision="fp32").pipeline("auto"), "fp32"),
        ):
            assert layers_dtype(pipeline) == dtypes[expected]


def test_one_backend_needs_no_race(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert autotune(makers(opened, {"torch": 1.0}, monkeypatch), CONFIG, []) == "torch"
    assert not opened


def test_a_cache_that_cannot_be_used_is_no_obstacle(
    opened: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    jobs = makers(opened, {"torch": 0.3, "openvino": 0.2}, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert autotune(jobs, CONFIG, []) == "openvino"
    assert "cannot be written" in caplog.text
    (tmp_path / "cache").unlink()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "backends.json").write_text("[broken")
    assert autotune(jobs, CONFIG, []) == "openvino"


def test_automatic_pipelines_match_as_the_default_does(
    opened: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("lumiglue.backends.autotune._POINTS", 64)
    monkeypatch.setattr("lumiglue.backends.select.available", lambda name: name != "openvino")  # two are enough
    expected = Pipeline.pretrained(max_keypoints=200, precision="fp32").match(draw_photo(1), draw_photo(1))
    automatic = Pipeline.pretrained(max_keypoints=200, precision="fp32", backend="auto").match(draw_photo(1), draw_photo(1))
    assert torch.equal(automatic.matches.pairs, expected.matches.pairs)
    assert torch.allclose(automatic.matches.scores, expected.matches.scores, atol=1e-4)
    with pytest.raises(InputError, match="openvino loses matches in bf16"):
        Pipeline.pretrained(backend="openvino", precision="bf16")
    monkeypatch.setattr("lumiglue.pipeline.construction.default_precision", lambda device: "bf16")
    lowest = Pipeline.pretrained(max_keypoints=200, precision="auto", backend="auto")
    assert isinstance(lowest.matcher, LightGlue)  # bfloat16 is PyTorch's alone
    monkeypatch.undo()
    low = Pipeline.pretrained(max_keypoints=200)
    assert layers_dtype(low) == {"bf16": torch.bfloat16, "fp32": torch.float32}[default_precision(torch.device("cpu"))]
    assert main(["match", "--backend", "auto", "--precision", "auto", "nowhere.jpg", "nowhere.jpg"]) == 2
    assert "nowhere.jpg" in capsys.readouterr().err
