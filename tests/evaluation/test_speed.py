"""`lumiglue bench`: what is counted, that all contenders match the same, and that the table is what was measured."""

import time
from pathlib import Path

import pytest
import torch

from helpers import make_features, make_model
from lumiglue import InputError, LightGlue, LightGlueConfig, MatchSettings
from lumiglue.cli import main
from lumiglue.evaluation import speed
from lumiglue.evaluation.contenders import contenders, matches_of
from lumiglue.matcher.inputs import pack
from lumiglue.weights.released import import_released, released_names


def test_operations_are_those_of_the_published_size() -> None:
    """32, 80 and 229 GFLOP at 512, 1024 and 2048 points: counted otherwise, by profiling."""
    config = LightGlueConfig(descriptor_dim=128, project_input=True)
    for n, gflop in ((512, 32), (1024, 80), (2048, 229)):
        assert speed.operations(config, n) / 1e9 == pytest.approx(gflop, rel=0.05)


@pytest.mark.parametrize(("chosen", "function"), [("wall", "perf_counter"), ("processor", "process_time")])
def test_ratios_are_of_the_same_round(chosen: speed.Clock, function: str) -> None:
    waits = {"ours": iter([9.0, 0.01, 0.02, 0.01]), "theirs": iter([9.0, 0.02, 0.06, 0.02])}
    clock = [0.0]

    def job(name: str):
        return lambda: clock.__setitem__(0, clock[0] + next(waits[name]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, function, lambda: clock[0])
        ours, theirs = speed.race({"ours": job("ours"), "theirs": job("theirs")}, rounds=3, clock=chosen)
    assert ours.milliseconds == pytest.approx([10, 20, 10])  # the first round does not count
    assert theirs.median == pytest.approx(20)
    assert theirs.ratio == pytest.approx((2.0, 2.0, 3.0))
    assert ours.ratio == pytest.approx((1.0, 1.0, 1.0))


def test_released_names_are_read_back(tmp_path: Path) -> None:
    model = make_model(encoding="xy-scale-orientation")
    torch.save(released_names(model), tmp_path / "released.pth")
    again = import_released(tmp_path / "released.pth", "")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with pytest.raises(InputError, match="has no encoding 'xy-logscale-angle'"):
        released_names(make_model(encoding="xy-logscale-angle"))
    with pytest.raises(InputError, match="has no no-matchability"):
        released_names(make_model(ablation="no-matchability"))


@pytest.mark.parametrize("settings", [speed.FULL, MatchSettings()])
def test_contenders_with_our_weights_find_our_matches(settings: MatchSettings) -> None:
    model = make_model(project_input=False)  # kornia projects only where widths differ
    a = make_features(80, 0)
    pair = (a, make_features(60, 1, like=a))
    jobs = contenders(
        ["lumiglue", "without kernels", "one by one", "in threads", "onnxruntime", "openvino", "kornia", "transformers"],
        model,
        [pair],
        settings,
    )
    with torch.inference_mode():
        expected = model.match(pack([pair], model.config), settings)[0].pairs
        assert len(expected) > 3
        assert torch.equal(jobs["lumiglue"]()[0].pairs, expected)  # pyright: ignore[reportIndexIssue]
        for name, job in jobs.items():
            assert matches_of(job()) == {(0, i, j) for i, j in expected.tolist()}, name


def test_lower_precision_contenders_run() -> None:
    model = make_model()
    pairs = [(make_features(40, 0), make_features(30, 1)), (make_features(20, 2), make_features(50, 3))]
    jobs = contenders(["lumiglue bf16", "int8", "openvino bf16"], model, pairs, speed.FULL)
    with torch.inference_mode():
        for name, job in jobs.items():
            results = job()
            assert isinstance(results, list), name
            assert [matches.stop_layer for matches in results] == [5, 5], name
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # the copy alone was lowered


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [speed.FULL, MatchSettings()])
def test_contenders_on_a_gpu_find_the_cpus_matches(settings: MatchSettings) -> None:
    model = make_model(project_input=False)
    a = make_features(80, 0)
    pairs = [(a, make_features(60, 1, like=a)), (make_features(30, 2), make_features(70, 3))]
    expected = model.match(pack(pairs, model.config), settings)
    on_gpu = [(a.to("cuda"), b.to("cuda")) for a, b in pairs]
    names = ["lumiglue", "one by one", "lumiglue bf16", "graphs", "bf16 graphs", "kornia", "kornia half", "transformers"]
    jobs = contenders(names, model.to("cuda"), on_gpu, settings)
    with torch.inference_mode():
        for job in jobs.values():
            job()
        matches = jobs["lumiglue"]()
    assert [torch.equal(m.pairs.cpu(), e.pairs) for m, e in zip(matches, expected, strict=True)] == [True, True]  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises(InputError, match="'openvino' does not run on a cuda"):
        contenders(["openvino"], model, on_gpu, settings)
    assert speed.memory_of_a_match("lumiglue", "compact", 256, "cuda") > 0


def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "hpu", "--sizes", "64"]) == 2
    assert "there is no device 'hpu' here" in capsys.readouterr().err
    with pytest.raises(InputError, match="'kornia half' does not run on a cpu"):
        contenders(["kornia half"], make_model(), [], speed.FULL)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="unknown contender 'tensorrt'"):
        contenders(["tensorrt"], make_model(), [], speed.FULL)
    with pytest.raises(InputError, match="unknown preset 'huge'"):
        speed.random_job("huge", 64)


def test_trained_weights_are_timed_in_float32_wherever_photos_are_matched_in_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumiglue.pipeline.construction.default_precision", lambda device: "bf16")
    model, pairs, note = speed.trained_job("sift-compact", 64)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(pairs) == 1
    assert "sift-compact, adaptive, 64 x 64 points" in note


def test_a_batch_has_unequal_pairs() -> None:
    model, pairs, note = speed.random_job("compact", 100, batch=4)
    assert isinstance(model, LightGlue)
    assert len({len(f) for pair in pairs for f in pair}) == 8
    assert min(len(f) for pair in pairs for f in pair) == 50
    assert "4 pairs of 50 to 100 points" in note


def test_the_command_prints_times_ratios_and_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lumiglue.matcher.precision._TOKENS", 64)  # bfloat16 is slow on processors that lack it
    monkeypatch.setattr(speed, "PRODUCT", 64)
    peak = speed.matmul_peak
    monkeypatch.setattr(speed, "matmul_peak", lambda dtype=torch.float32, device="cpu": peak(torch.float32, device))
    command = ["bench", "--sizes", "64", "--preset", "compact", "--against", "onnxruntime", "--rounds", "2", "--memory"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "products" in printed
    assert "compact, full depth, 64 x 64 points: median ms of 2 rounds" in printed
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in printed.splitlines() if line.startswith("│")}
    assert list(rows) == ["lumiglue", "onnxruntime"]
    assert rows["lumiglue"][2].strip() == "1.00 (1.00 to 1.00)"
    assert all(float(row[0]) > 0 and float(row[5]) >= 0 for row in rows.values())
    assert main(["bench", "--adaptive", "--sizes", "200", "--rounds", "1"]) == 0
    assert "sift-deep, adaptive, 200 x 200 points" in capsys.readouterr().out
