"""The command line as a user types it: files written, summaries printed, one sentence and exit code 2 for bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

from helpers import draw_photo, make_model, run
from lumiglue.cli import main
from lumiglue.images import read_image
from lumiglue.weights.files import read_metadata, save_weights

pytestmark = pytest.mark.portable

Save = Callable[[str, np.ndarray], Path]


@pytest.fixture
def folder(save_photo: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        save_photo(f"photos/{number}.jpg", draw_photo(number))
    save_photo("photos/black.png", np.zeros((60, 80, 3), np.uint8))
    save_photo("photos/dot.png", np.zeros((1, 1, 3), np.uint8))
    return tmp_path


def test_two_photos_make_a_picture_and_a_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("match", "photos/0.jpg", "photos/0.jpg", "--adaptivity", "a.png") == 0
    printed = capsys.readouterr().out
    assert (folder / "0_0_matches.png").stat().st_size > 20_000
    assert (folder / "a.png").exists()
    for word in (
        "keypoints",
        "matches",
        "inliers (fundamental)",
        "stopped after layer",
        "extract",
        " ms",
        "saved 0_0_matches.png",
    ):
        assert word in printed


@pytest.mark.parametrize("suffix", ["npz", "json", "png", "svg"])
@pytest.mark.parametrize("geometry", ["homography", "none"])
def test_out_and_geometry(folder: Path, suffix: str, geometry: str) -> None:
    out = folder / f"m.{suffix}"
    arguments = ("--out", out, "--geometry", geometry, "--features", "sift", "--max-keypoints", "64")
    assert run("match", "photos/0.jpg", "photos/0.jpg", *arguments) == 0
    assert out.stat().st_size > 100
    if suffix == "npz":
        content = np.load(out)
        assert len(content["points0"]) > 20
        assert ("homography" in content) == (geometry == "homography")
        assert len(content["keypoints0"]) == 64


def test_a_list_of_pairs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pairs.txt").write_text("# a comment\n0.jpg 0.jpg\n\n0.jpg 1.jpg\nblack.png 2.jpg\n")
    assert run("match", "pairs.txt", "--root", "photos", "--out", "m.h5", "--workers", 2) == 0
    assert "3 pairs" in capsys.readouterr().out
    with h5py.File(folder / "m.h5") as file:
        assert (file["0.jpg/0.jpg/matches0"][:] >= 0).sum() > 50  # pyright: ignore
        assert len(file["black.png/2.jpg/matches0"]) == 0  # pyright: ignore
    (folder / "pairs.txt").write_text("0.jpg 0.jpg\n0.jpg none.jpg\n")
    assert run("match", "pairs.txt", "--root", "photos", "--out", "m.hdf5") == 2
    assert (folder / "m.hdf5").exists()
    capsys.readouterr()
    assert run("match", "pairs.txt", "--root", "photos", "--out", "m.h5") == 2
    captured = capsys.readouterr()
    assert "left out: 0.jpg none.jpg: photos/none.jpg does not exist" in captured.err
    assert "error: 1 pair was left out" in captured.err
    with h5py.File(folder / "m.h5") as file:  # what was there stays
        assert list(file) == ["0.jpg", "black.png"]


def test_images_without_keypoints_are_a_valid_empty_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("black.png", "dot.png"):
        assert run("match", f"photos/{name}", "photos/1.jpg") == 0
        captured = capsys.readouterr()
        assert "0 matches" in captured.out
        assert "no keypoints" in captured.err


def bad_inputs(folder: Path) -> list[tuple[list[object], str]]:
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.jpg").write_bytes(b"")
    data = (folder / "photos/0.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(data[: data.index(b"\xff\xda") + 14])
    (folder / "pairs.txt").write_text("0.jpg 1.jpg\n")
    (folder / "one.txt").write_text("0.jpg\n")
    (folder / "none.txt").write_text("\n")
    (folder / "noise.safetensors").write_bytes(b"x" * 100)
    (folder / "nothing").mkdir()
    save_weights(make_model(extractor="disk"), folder / "disk.safetensors", {})
    save_weights(make_model(extractor="sift"), folder / "narrow.safetensors", {})
    good = "photos/0.jpg"
    return [
        (["match", "none.jpg", good], "none.jpg does not exist"),
        (["match", good, "text.jpg"], "text.jpg is not an image"),
        (["match", good, "empty.jpg"], "empty.jpg is empty"),
        (["match", good, "half.jpg"], "half.jpg is damaged"),
        (["match", "photos", good], "photos is a folder"),
        (["match", good], "not a text file"),
        (["match", good, good, good], "3 inputs were given"),
        (["match", "pairs.txt"], "give --out matches.h5"),
        (["match", "lost.txt", "--out", "m.h5"], "lost.txt does not exist"),
        (["match", "one.txt", "--out", "m.h5"], "one.txt line 1 has 1 path; give two"),
        (["match", "none.txt", "--out", "m.h5"], "has no pairs"),
        (["match", good, good, "--out", "m.xyz"], "no known suffix"),
        (["match", good, good, "-o", "nothing"], "no known suffix"),
        (["match", "pairs.txt", "-o", "no/such/m.h5"], "no/such/m.h5 cannot be written: there is no folder no/such"),
        (["match", good, good, "--adaptivity", "nothing"], "nothing is a folder; give the name of a file"),
        (
            ["match", "nothing", "--out", "m.h5"],
            "nothing is a folder; give two photos, or one list of pairs (for a folder: lumiglue sfm)",
        ),
        (
            ["match", good, good, "--weights", "sfit"],
            "sfit is neither a file nor the name of weights; give a file",
        ),
        (["features", "photos", "-o", "f.npz"], "f.npz has the suffix '.npz'; give a file that ends in .h5"),
        (["pairs", "photos", "-o", "p.txt"], "photos is a folder; give a file that `lumiglue features` wrote"),
        (["pairs", "pairs.txt", "-o", "p.txt"], "pairs.txt is not one of `lumiglue features`"),
        (["matches", "pairs.txt", "f.h5", "-o", "m.h5"], "features come before pairs: lumiglue matches f.h5 pairs.txt"),
        (["match", good, good, "--out", "no/such/folder/m.png"], "no/such/folder/m.png"),
        (["match", good, good, "--features", "sfit"], "unknown extractor 'sfit'; choose from ['aliked', "),
        (["match", good, good, "--max-keypoints", "-1"], "max_keypoints is -1"),
        (["match", good, good, "--exit-ratio", "7"], "exit_ratio is 7"),
        (["match", good, good, "--weights", "lost.safetensors"], "lost.safetensors does not exist"),
        (["match", good, good, "--weights", "noise.safetensors"], "cannot be read as safetensors"),
        (["match", good, good, "--features", "sift", "--weights", "disk.safetensors"], "weights are for 'disk' features"),
        (["match", good, good, "--weights", "narrow.safetensors"], "the weights take 32"),
        (["match", good, good, "--device", "tpu"], "device 'tpu' cannot be used"),
        (["dataset", "homographies", "nothing", "-o", "b.h5"], "has no images"),
        (["dataset", "homographies", "lost", "-o", "b.h5"], "lost is not a folder"),
        (["dataset", "homographies", "photos", "-o", "b.h5", "--tilt", "90"], "tilt is 90"),
        (["dataset", "scenes", "photos", "-o", "b.h5", "--spread", "90"], "spread is 90"),
        (["bank", "photos", "-o", "b.h5"], "`lumiglue bank` is now `lumiglue dataset homographies`"),
        (["posed-bank", "photos"], "is now `lumiglue dataset posed`"),
        (["posed-from-sfm", "model"], "is now `lumiglue dataset from-colmap`"),
        (["dataset", "homographies", "photos", "-o", "b.h5", "--device", "tpu"], "device 'tpu' cannot be used"),
        (["eval", "homography", "photos"], "has no folders v_* or i_*"),
        (["eval", "pose", "lost.txt", "--root", "photos"], "lost.txt does not exist"),
        (["eval", "strecha", "photos"], "has 0 .camera files"),
        (["eval", "report", "lost.csv"], "lost.csv does not exist"),
        (["train", "lost.h5", "-o", "run"], "lost.h5 does not exist; build it"),
        (["eval", "photos"], "pairs.json does not exist"),
        (["weights", "import", "text.jpg", "-o", "w.safetensors"], "cannot be read as tensors"),
        (["weights", "show", "lost"], "lost is neither a file nor the name of weights"),
    ]


def test_bad_input_gets_one_sentence_and_exit_code_two(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in bad_inputs(folder):
        assert run(*arguments) == 2, arguments
        printed = capsys.readouterr().err.strip()
        assert message in printed, arguments
        assert printed.startswith("error: ")
        assert "Traceback" not in printed
        assert len(printed.splitlines()) == 1, printed


def test_unknown_flags_exit_with_code_two(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("match", "photos/0.jpg", "photos/1.jpg", "--fast") == 2
    assert "--fast" in capsys.readouterr().err


def test_sample_is_mostly_right(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    assert run("sample", "--out", "demo.png", "--photos", "sample") == 0
    printed = capsys.readouterr().out
    right, share = printed.split(" correct (")[0].split()[-1], printed.split("correct (")[1].split(" %")[0]
    assert int(right) > 200
    assert int(share) >= 80
    assert (folder / "demo.png").stat().st_size > 100_000
    assert read_image(folder / "sample" / "sample0.jpg").shape == (600, 800, 3)


def test_from_photos_to_a_matcher(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """dataset, train, match with the new weights, show them: the loop that a user makes."""
    monkeypatch.setattr("lumiglue.training.validation.BATCHES", 1)
    dataset = (
        "dataset",
        "homographies",
        "photos",
        "-o",
        "dataset.h5",
        "--views",
        3,
        "--max-keypoints",
        64,
        "--long-side",
        160,
        "--workers",
        1,
    )
    assert run(*dataset) == 0
    assert "5 photos -> dataset.h5" in capsys.readouterr().out
    train = ("train", "dataset.h5", "-o", "run", "--pairs", 16, "--confidence-pairs", 4, "--batch-size", 4, "--points", 24)
    train += ("--precision", "fp32")
    assert run(*train, "--long-points", 24) == 0
    assert (folder / "run" / "curves.png").exists()
    weights = "run/weights.safetensors"
    assert run("match", "photos/0.jpg", "photos/0.jpg", "--weights", weights, "--out", "m.json") == 0
    assert json.loads((folder / "m.json").read_text())["stop_layer"] >= 1
    capsys.readouterr()
    assert run("weights", "show", weights) == 0
    assert json.loads(capsys.readouterr().out)["config"]["n_layers"] == 5
    assert run(*train, "--long-points", 24, "--seed", 1) == 2
    assert "other settings" in capsys.readouterr().err


def test_import_of_a_released_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    feature = pytest.importorskip("kornia.feature")
    model = feature.LightGlue(None, input_dim=128, add_scale_ori=True, descriptor_dim=64, n_layers=2)
    capsys.readouterr()
    torch.save(model.state_dict(), folder / "released.pth")
    assert run("weights", "import", "released.pth", "-o", "w.safetensors", "--features", "sift") == 0
    assert "2 layers of 64" in capsys.readouterr().out
    assert read_metadata(folder / "w.safetensors")[0].encoding == "xy-scale-orientation"
    assert run("match", "photos/0.jpg", "photos/1.jpg", "--weights", "w.safetensors") == 0


def test_eval_compares_the_methods(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = np.eye(3).tolist()
    pairs = [{"type": "homography", "group": "same", "a": "0.jpg", "b": "0.jpg", "H": identity}]
    (folder / "photos" / "pairs.json").write_text(json.dumps({"images": {}, "pairs": pairs}))
    methods = ("--methods", "lumiglue", "lumiglue-full", "nn", "ratio-0.8", "adalam")
    assert run("eval", "photos", *methods, "--out", "scores.csv", "--max-keypoints", 200) == 0
    printed = capsys.readouterr().out
    for name in methods[1:]:
        assert name in printed
    rows = (folder / "scores.csv").read_text().splitlines()
    assert len(rows) == 6
    assert run("eval", "photos", "--methods", "magic") == 2
    assert run("eval", "photos", "--groups", "other") == 2
    assert "choose from ['same']" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    printed = capsys.readouterr().out
    for command in ("match", "sample", "dataset homographies", "train", "eval", "weights import"):
        assert command in printed
    assert run("--version") == 0
    assert capsys.readouterr().out.strip().startswith("lumiglue 0.")


def test_demo_without_its_extra_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lumiglue.system.extras.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "error: this needs the package gradio; pip install 'lumiglue[demo]'\n"


_WAITS = """
import os, sys
import lumiglue.cli
assert "torch" not in sys.modules, "too late: its threads have read how to wait"
lumiglue.cli.main(["--version"])
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("settings", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_wait_politely_unless_told_otherwise(settings: dict[str, str], spins: str) -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    run = subprocess.run(
        [sys.executable, "-c", _WAITS], env={**others, **settings}, capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.split()[-1] == spins


@pytest.mark.parametrize("words", [["--help"], ["match", "--help"], ["weights", "show", "sift-deep"]])
def test_a_reader_that_has_seen_enough_is_no_error(words: list[str]) -> None:
    """As in `lumiglue match --help | head -1`."""
    with subprocess.Popen(
        [sys.executable, "-m", "lumiglue", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=120) in (0, 1)  # 0 where tyro, before 1.0, prints by argparse, which says nothing


def test_nothing_that_was_given_is_overwritten(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a.png", 1), ("b.png", 2)):
        assert cv2.imwrite(name, draw_photo(seed))
    before = Path("a.png").read_bytes()
    for arguments, message in (
        (["match", "a.png", "b.png", "-o", "a.png"], "a.png is one of the photos"),
        (["match", "a.png", "b.png", "-o", "x.png", "--adaptivity", "x.png"], "both name x.png"),
        (["eval", "report"], "no file of scores was given"),
        (["bench", "--sizes", "64", "--rounds", "0"], "at least 1"),
    ):
        assert main(arguments) == 2, arguments
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert Path("a.png").read_bytes() == before


@pytest.mark.parametrize("command", ["match", "sfm", "dataset homographies", "train", "bench"])
def test_help_is_running_text_without_none(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A flag that need not be given has the type of its values and no default; a paragraph fills its lines."""
    assert run(*command.split(), "--help") == 0
    lines = [line.strip(" │\n") for line in capsys.readouterr().out.splitlines()]
    text = " ".join(lines)
    assert "None|" not in text
    assert "default: None" not in text
    assert "(default: )" not in text
    if command == "match":
        assert lines[0].endswith(" PATH [PATH ...]")
        assert "one text file with a pair of image paths on each line." in " ".join(text.split())
