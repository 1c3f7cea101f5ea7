"""`lumiglue bench` on photos: the JSON that it writes, what it leaves out, and what it refuses."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from helpers import draw_photo, make_features, make_model
from lumiglue import InputError, LightGlueConfig
from lumiglue.cli import main
from lumiglue.evaluation import photo_speed, ports, speed
from lumiglue.matcher.inputs import pack


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the commands measure beside the contenders is slow where other programs use the cores, or without bfloat16."""
    monkeypatch.setattr(speed, "matmul_peak", lambda *_, **__: 1.0)
    monkeypatch.setattr(speed, "PRODUCT", 64)
    monkeypatch.setattr("lumiglue.matcher.precision._TOKENS", 64)


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for number, path in enumerate(paths):
        cv2.imwrite(path, draw_photo(number // 2))
    return paths


def test_operations_of_unequal_images_and_of_folded_layers() -> None:
    config = LightGlueConfig(descriptor_dim=128, project_input=True)
    assert speed.operations(config, 300, 300) == speed.operations(config, 300)
    assert speed.operations(config, 200, 400) == speed.operations(config, 400, 200)
    saved = speed.operations(config, 200, 400) - speed.operations(config, 200, 400, folded=True)
    assert saved == 9 * 2 * 600 * 2 * 256**2  # two projections of messages in a layer


def test_released_weights_are_written_with_the_machine_and_all_rounds(
    photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(project_input=False)
    a = make_features(80, 0)
    pairs = [(a, make_features(60, 1, like=a)), (make_features(50, 2), make_features(40, 3))]
    monkeypatch.setattr(
        photo_speed, "released_job", lambda features, n, photos, device: (model, pairs, f"released {features}")
    )
    monkeypatch.setattr(photo_speed, "peers", lambda device: ["one by one", "original"])

    def missing() -> None:
        raise InputError("the original LightGlue is not installed")

    monkeypatch.setattr(ports, "original_class", missing)
    file = tmp_path / "bench.json"
    command = ["bench", "--released", "aliked", "--photos", *photos, "--sizes", "80", "--rounds", "2", "--busy", "0", "1"]
    assert main([*command, "-o", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written["machine"]["threads"] == torch.get_num_threads()
    assert {"model", "features", "fp32_kernels", "bf16_kernels", "precision", "system"} <= written["machine"].keys()
    assert written["versions"]["torch"]
    assert written["command"].startswith("lumiglue ")
    assert written["left_out"] == {"original": "the original LightGlue is not installed"}
    rows = written["rows"]
    assert [(row["condition"], row["busy"], row["contender"]) for row in rows] == [
        (f"released aliked, {depth}", busy, name)
        for depth in ("adaptive", "full depth")
        for busy in (0, 1)
        for name in ("lumiglue", "one by one")
    ]
    found = [len(m.pairs) for m in model.match(pack(pairs, model.config), speed.FULL)]
    for row in rows:
        assert (row["points"], row["pairs"], row["same"], len(row["milliseconds"])) == (80, 2, 1.0, 2)
        assert row["ratio"][1] <= row["ratio"][0] <= row["ratio"][2]
        assert (row["products"] is None) == ("adaptive" in row["condition"])
        assert "adaptive" in row["condition"] or row["matches"] == sum(found)
    printed = capsys.readouterr()
    assert "released aliked, full depth, 2 pairs of photos, 80 points, 1 busy program: median ms of 2 rounds" in printed.out
    assert "left out: original: the original LightGlue is not installed" in printed.err


def test_end_to_end_counts_matches_and_inliers(photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).uniform(0, 300, (30, 2))
    sides = {
        "sift + ours": lambda n, resize: lambda a, b: (points, points + 5),
        "other": lambda n, resize: lambda a, b: (points[:n], points[:n] + 5),
        "none": lambda n, resize: lambda a, b: (points[:0], points[:0]),
    }
    monkeypatch.setattr(photo_speed, "SIDES", sides)
    file = tmp_path / "bench.json"
    command = ["bench", "--end-to-end", "--photos", *photos, "--sizes", "20", "--rounds", "3", "--out", str(file)]
    assert main(command) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["contender"], row["matches"], row["inliers"]) for row in rows] == [
        ("sift + ours", 60, 60),
        ("other", 40, 40),
        ("none", 0, 0),
    ]
    assert {len(row["milliseconds"]) for row in rows} == {3}


def test_real_sides_match_a_moved_photo(tmp_path: Path) -> None:
    photo = draw_photo(0)
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    cv2.imwrite(str(a), photo)
    cv2.imwrite(str(b), np.roll(photo, 8, axis=1))
    for name in ("sift + ours", "opencv sift + flann", "opencv sift + brute force"):
        points0, points1 = photo_speed.SIDES[name](200, 1024)(a, b)
        assert len(points0) > 20, name
        assert np.median(points1 - points0, axis=0) == pytest.approx([8, 0], abs=0.5), name


def test_photos_are_taken_two_by_two(photos: list[str], tmp_path: Path) -> None:
    paths = [Path(photo) for photo in photos]
    assert photo_speed.photo_pairs(paths, tmp_path) == [(paths[0], paths[1]), (paths[2], paths[3])]
    sample = photo_speed.photo_pairs([], tmp_path)
    assert len(sample) == 2
    assert all(cv2.imread(str(path)) is not None for pair in sample for path in pair)


def test_the_original_is_found_without_running_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lightglue"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('torchvision')")
    (package / "lightglue.py").write_text("from .parts import LightGlue")
    (package / "parts.py").write_text("from torch.nn import Module\nclass LightGlue(Module): pass")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("lightglue", "lightglue.lightglue", "lightglue.parts")
    assert not set(names) & sys.modules.keys()
    try:
        assert ports.original_class.__wrapped__().__module__ == "lightglue.parts"
        assert "lightglue" not in sys.modules
    finally:
        for name in names:
            sys.modules.pop(name, None)
    (package / "parts.py").write_text("import no_such_module")
    with pytest.raises(InputError, match="in lightglue cannot be imported: No module named 'no_such_module'"):
        ports.original_class.__wrapped__()
    monkeypatch.setattr(ports, "_ORIGINALS", ("no_such_package",))
    with pytest.raises(InputError, match="the original LightGlue is not installed"):
        ports.original_class.__wrapped__()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--released", "aliked", "--end-to-end"], "choose one of"),
        (["--photos", "a.jpg", "b.jpg"], "--photos needs --released or --end-to-end"),
        (["--end-to-end", "--photos", "a.jpg"], "give an even number"),
        (["--end-to-end", "--photos", "a.jpg", "b.jpg"], "there is no photo a.jpg"),
        (["--end-to-end", "--against", "kornia"], "unknown pipeline 'kornia'; choose from ['xfeat + lighterglue'"),
        (["--released", "aliked", "--memory"], "leave them out"),
        (["--end-to-end", "--adaptive"], "leave them out"),
        (["--busy", "-1"], "--busy takes numbers of programs"),
        (["-o", "nowhere/bench.json"], "not a .json file in an existing folder"),
        (["-o", "bench.txt"], "not a .json file"),
        (["--rounds", "0"], "at least 1"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_named_pipeline_that_cannot_run_is_an_error(
    photos: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(n: int, resize: int) -> photo_speed.Side:
        raise InputError("this needs the package kornia")

    monkeypatch.setattr(photo_speed, "SIDES", {"sift + ours": lambda n, resize: lambda a, b: None, "other": make})
    assert main(["bench", "--end-to-end", "--photos", *photos, "--against", "other"]) == 2
    assert "other: this needs the package kornia" in capsys.readouterr().err
