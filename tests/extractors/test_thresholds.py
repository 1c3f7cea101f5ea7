"""The detector's threshold and the stretch of dark photos, as flags and arguments, and in the record of a file."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import draw_photo
from lumiglue import InputError, Pipeline, Sift
from lumiglue.cli import main
from lumiglue.collection import FeaturesFile, extract_features
from lumiglue.extractors import Tiled, tiled_extractor

pytestmark = pytest.mark.portable

DIM = (draw_photo(3) / 255 * 24 + 2).astype(np.uint8)


def test_a_lower_threshold_finds_more_in_a_dim_photo() -> None:
    limits: dict[str, Any] = {"max_keypoints": 400, "resize": 1024}
    low, default = (tiled_extractor("sift", **limits, tile=None, detector_threshold=t) for t in (0.001, None))
    assert len(low(DIM)) > 2 * len(default(DIM))
    tiled = tiled_extractor("sift", **limits, tile=512, detector_threshold=0.001)
    assert isinstance(tiled, Tiled)
    assert len(tiled(DIM)) == len(low(DIM))
    with pytest.raises(InputError, match="contrast_threshold is -1"):
        tiled_extractor("sift", **limits, tile=None, detector_threshold=-1.0)
    with pytest.raises(InputError, match=r"a detector threshold cannot be passed to 'mine\.py:Mine'; set it in the class"):
        tiled_extractor("mine.py:Mine", **limits, tile=None, detector_threshold=0.1)


def test_pipelines_stretch_and_take_a_threshold() -> None:
    pipeline = Pipeline.pretrained("sift", max_keypoints=300, stretch="always")
    assert len(pipeline.extract(DIM)) == 300
    assert len(pipeline.match(DIM, DIM, rotation="search").features1) == 300
    lower = Pipeline.pretrained("sift", max_keypoints=300, detector_threshold=0.001)
    assert len(lower.extract(DIM)) > len(Pipeline.pretrained("sift", max_keypoints=300).extract(DIM))


def test_flags_and_the_record_of_a_file(
    tmp_path: Path, save_photo: Callable[[str, np.ndarray], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_photo("photos/a.png", DIM).parent
    out = tmp_path / "f.h5"
    command = ["features", str(folder), "-o", str(out), "--max-keypoints", "200", "--workers", "1"]

    def count(*flags: str) -> int:
        out.unlink(missing_ok=True)
        assert main([*command, *flags]) == 0
        with FeaturesFile(out) as file:
            return len(file.read("a.png"))

    few = count()
    assert few < 150
    assert count("--stretch", "always") == 200
    assert count("--detector-threshold", "0.001") > few
    capsys.readouterr()
    for flags in ([], ["--stretch", "always"], ["--detector-threshold", "0.002"]):
        assert main([*command, *flags]) == 2
        assert "was made with other settings" in capsys.readouterr().err
    with pytest.raises(InputError, match="was made with other settings"):
        extract_features(folder, out, Sift(max_keypoints=200))
    extract_features(folder, out, dataclasses.replace(Sift(max_keypoints=200), contrast_threshold=0.001))


def test_many_equal_notes_are_cut_short(
    tmp_path: Path, save_photo: Callable[[str, np.ndarray], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(14):
        save_photo(f"photos/{number}.png", DIM)
    script = f"""
import sys
from lumiglue.cli import main
sys.exit(main(["features", {str(tmp_path / "photos")!r}, "-o", {str(tmp_path / "f.h5")!r}, "--workers", "1"]))
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr
    assert said.count("has low contrast") == 10
    assert said.count("more messages of this kind are not shown") == 1
