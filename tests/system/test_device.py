"""Devices that only one thread may use at a time (MPS), as far as a CPU can show it."""

import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import draw_photo, make_features
from lumiglue import InputError, Pipeline
from lumiglue.cli import main
from lumiglue.matcher.execution import current_layers
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.system import device

pytestmark = pytest.mark.portable


def test_which_devices_are_used_by_one_thread() -> None:
    for name in ("cpu", "cuda", torch.device("cuda:1")):
        assert isinstance(device.one_thread_at_a_time(name), nullcontext)
    assert device.one_thread_at_a_time("mps") is device.one_thread_at_a_time(torch.device("mps:0"))


@pytest.mark.parametrize("alone", [True, False])
def test_the_matcher_is_entered_by_one_thread(alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU in the place of MPS; otherwise its threads do match at once."""
    monkeypatch.setattr(device, "ONE_THREAD", {"cpu"} if alone else set())
    inside, most, lock, real = [], [0], threading.Lock(), LightGlue.match

    def match(self: LightGlue, *arguments: Any, **options: Any) -> Any:
        with lock:
            inside.append(1)
            most[0] = max(most[0], len(inside))
        time.sleep(0.02)
        matches = real(self, *arguments, **options)
        with lock:
            inside.pop()
        return matches

    monkeypatch.setattr(LightGlue, "match", match)
    pipeline = Pipeline.pretrained("sift", max_keypoints=30, precision="fp32")
    photo = draw_photo(1, 120, 90)
    results = list(pipeline.match_many([(photo, photo)] * 6, workers=3))
    assert len({len(result) for result in results if result is not None}) == 1
    assert (most[0] == 1) == alone


class _NoDouble(TorchDispatchMode):
    """MPS has no float64."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        output = function(*arguments, **(options or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            assert not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64, function
        return output


def test_matching_needs_no_double_precision() -> None:
    a = make_features(60, 1, dim=128)
    pipeline = Pipeline.pretrained("sift", precision="fp32")
    assert isinstance(pipeline.matcher, LightGlue)
    current_layers(pipeline.matcher)  # derived before, on the CPU
    with _NoDouble():
        (matches,) = pipeline.match_features([(a, make_features(60, 2, dim=128, like=a))])
    assert matches.stop_layer > 0


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="MPS is here")
def test_a_collection_says_that_there_is_no_mps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="device 'mps' cannot be used"):
        device.usable_device("mps")
    (tmp_path / "p.txt").write_text("a b\n")
    assert main(["match", str(tmp_path / "p.txt"), "-o", str(tmp_path / "m.h5"), "--device", "mps"]) == 2
    assert "device 'mps' cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "m.h5").exists()
