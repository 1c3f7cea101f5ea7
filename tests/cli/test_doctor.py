"""`lumiglue doctor`, `lumiglue completion` and the first words that a user types."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from packaging.requirements import Requirement

import lumiglue
from lumiglue.cli import COMMANDS, diagnosis, main, overview
from lumiglue.cli.completion import flags_of, script
from lumiglue.io.download import file_sha256
from lumiglue.system import extras
from lumiglue.system.extras import EXTRAS, available, require
from lumiglue.weights.files import BUILT_IN, built_in_checksums, pretrained_path

pytestmark = pytest.mark.portable

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUMIGLUE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("LUMIGLUE_ALIKED", raising=False)
    monkeypatch.setattr("lumiglue.matcher.precision._TOKENS", 64)  # bfloat16 is slow on processors that lack it


def run(*words: str) -> int:
    try:
        return main(list(words))
    except SystemExit as stop:
        return int(stop.code or 0)


# -- doctor -----------------------------------------------------------------------------------------------------------


def test_a_sound_installation_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    content = b"x" * 100
    (folder / f"{file_sha256(_write(tmp_path / 'w', content))[:16]}-w.safetensors").write_bytes(content)
    assert run("doctor") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for word in (
        f"lumiglue {lumiglue.__version__}",
        "GFLOP/s in fp32",
        "sift-compact.safetensors, intact",
        "w.safetensors (intact)",
    ):
        assert word in captured.out
    assert captured.out.strip().endswith("all is well")


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_json_says_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("doctor", "--json") == 0
    printed = capsys.readouterr().out
    report = json.loads(printed)
    assert report["problems"] == []
    assert set(report["packages"]) == set(diagnosis.NEEDED)
    assert {entry["package"] for entry in report["extras"]} == set(EXTRAS)
    assert {entry["name"] for entry in report["weights"]["built_in"]} == set(BUILT_IN)
    assert report["weights"]["cache"]["folder"] == "~/cache"
    assert str(tmp_path) not in printed
    test = report["self_test"]
    assert test["right"] >= 0.95 * test["matches"] > 95
    assert min(report["products"]["gflops"].values()) > 0


def test_the_self_test_knows_the_truth() -> None:
    """Its homography maps the drawn picture to its view: warped by another library, the pixels agree."""
    cv2 = pytest.importorskip("cv2")
    image0, image1, homography = diagnosis._drawn_pair()
    rng = np.random.default_rng(0)
    points0 = rng.uniform((60, 60), (420, 300), (400, 2))
    points1 = cv2.perspectiveTransform(points0[None], homography)[0]
    inside = ((points1 > 5) & (points1 < (474, 354))).all(1)
    assert inside.sum() > 300
    smooth0, smooth1 = (cv2.GaussianBlur(image, (0, 0), 2.0).astype(float) for image in (image0, image1))
    values0, values1 = (
        image[tuple(np.rint(points[inside]).astype(int).T[::-1])]
        for image, points in ((smooth0, points0), (smooth1, points1))
    )
    assert np.corrcoef(0.8 * values0.ravel(), values1.ravel())[0, 1] > 0.97


def test_what_is_broken_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / f"{'0' * 16}-w.safetensors").write_bytes(b"cut")
    damaged = _write(tmp_path / "sift-compact.safetensors", pretrained_path("sift-compact").read_bytes()[:-1] + b"\x00")
    paths = {name: pretrained_path(name) for name in BUILT_IN} | {"sift-compact": damaged}
    monkeypatch.setattr("lumiglue.weights.files.pretrained_path", paths.__getitem__)
    monkeypatch.setenv("LUMIGLUE_ALIKED", str(tmp_path / "gone"))
    monkeypatch.setattr(diagnosis, "_processor", lambda: 1 / 0)
    monkeypatch.setattr(diagnosis, "MIN_MATCHES", 10**6)
    assert run("doctor") == 1
    printed = capsys.readouterr().err.splitlines()
    for words in (
        "error: processor: ZeroDivisionError: division by zero",
        "error: the built-in weights sift-compact (sift-compact.safetensors) are damaged; reinstall Lumiglue",
        f"{'0' * 16}-w.safetensors in {folder} is damaged; delete it",
        f"error: LUMIGLUE_ALIKED names {tmp_path / 'gone'}, which does not exist",
        "error: the self-test found",
    ):
        assert any(words in line for line in printed), words
    assert len(printed) == 5


def test_with_a_broken_pytorch_the_rest_is_said(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libtorch.so: cannot open shared object file')")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from lumiglue.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: self test: ImportError: libtorch.so: cannot open shared object file" in done.stderr
    assert "numpy" in done.stdout


def test_the_list_of_checksums_is_of_the_files_in_the_package() -> None:
    folder = pretrained_path("sift-compact").parent
    assert built_in_checksums() == {path.name: file_sha256(path) for path in sorted(folder.glob("*.safetensors"))}


# -- extras -----------------------------------------------------------------------------------------------------------


def test_every_extra_is_known() -> None:
    """The table that messages and doctor go by is what pyproject.toml has."""
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    imported_as = {"scikit-image": "skimage", "faiss-cpu": "faiss"}
    pairs = {
        (imported_as.get(requirement.name, requirement.name.replace("-", "_")), extra)
        for extra, requirements in optional.items()
        for requirement in map(Requirement, requirements)
        if requirement.name != "lumiglue"
    }
    assert {(package, extra) for package, extras in EXTRAS.items() for extra in extras} == pairs


@pytest.mark.parametrize("package", sorted(EXTRAS))
def test_a_missing_extra_is_one_sentence(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.core")

    monkeypatch.setitem(COMMANDS, "sample", command)
    assert run("sample") == 2
    printed = capsys.readouterr().err.strip()
    assert printed == f"error: this needs the package {package}; pip install 'lumiglue[{EXTRAS[package][0]}]'"
    monkeypatch.setattr("lumiglue.system.extras.find_spec", lambda name: None)
    with pytest.raises(lumiglue.InputError, match=f"needs the package {package}"):
        require(package)


def test_versions_are_checked_against_the_metadata(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each bound of pyproject.toml is enforced before any work and in doctor, by one sentence that has the remedy."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [f"{line}; extra == '{name}'" for name, some in project["optional-dependencies"].items() for line in some]
    monkeypatch.setattr(extras, "requires", lambda name: [*project["dependencies"], *lines])
    extras.needed_versions.cache_clear()
    real = extras.version
    old = {"pycolmap": "3.12.6", "gradio": "7.0.0", "torch": "2.3.1+cpu", "faiss-cpu": "1.7.4"}
    monkeypatch.setattr(extras, "version", lambda name: old.get(name) or real(name))
    sentences = {
        "pycolmap": "this needs pycolmap>=3.13, but pycolmap 3.12.6 is installed; pip install --upgrade 'lumiglue[sfm]'",
        "gradio": "this needs gradio>=6.31,<7, but gradio 7.0.0 is installed; pip install --upgrade 'lumiglue[demo]'",
        "faiss": "this needs faiss-cpu>=1.8, but faiss-cpu 1.7.4 is installed; pip install --upgrade 'lumiglue[sfm]'",
        "torch": "this needs torch>=2.4, but torch 2.3.1+cpu is installed; pip install --upgrade torch",
    }
    for package, sentence in sentences.items():
        assert not available(package)
        with pytest.raises(lumiglue.InputError, match=f"^{re.escape(sentence)}$"):
            require(package)
    assert run("sfm", "photos", "-o", "out") == 2
    assert capsys.readouterr().err.strip() == f"error: {sentences['pycolmap']}"
    monkeypatch.setattr(diagnosis, "self_test", lambda: {"error": "not run"})
    assert set(diagnosis.diagnose()["problems"]) == set(sentences.values())
    extras.needed_versions.cache_clear()


def test_without_metadata_every_version_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout on the path of Python, without an installation, has no list of requirements."""

    def none(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", none)
    extras.needed_versions.cache_clear()
    assert extras.outdated("numpy") is None
    extras.needed_versions.cache_clear()


# -- the first words --------------------------------------------------------------------------------------------------


def test_help_fits_the_terminal_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert len(printed.splitlines()) < 75
    assert all(f"  {name} " in printed for name in COMMANDS)
    assert "More" not in overview().splitlines()  # every group of commands has a heading
    assert run() == 2


def test_mistyped_commands_are_answered(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, answer in [
        (["matc"], "did you mean 'match'?"),
        (["a.jpg", "b.jpg"], "to match photos: lumiglue match a.jpg b.jpg."),
        (["weights", "shwo"], "did you mean 'weights show'?"),
        (["eval", "homografy", "x"], "did you mean 'eval homography'?"),
        (["--hlep"], "did you mean '--help'?"),
        (["zzz"], "there is no command 'zzz'; `lumiglue --help`"),
    ]:
        assert run(*words) == 2
        printed = capsys.readouterr().err.strip()
        assert printed.startswith("error: ")
        assert answer in printed
        assert len(printed.splitlines()) == 1
    assert run("weights", "--help") == 0
    assert "lumiglue weights show: Print" in capsys.readouterr().out


# -- completion -------------------------------------------------------------------------------------------------------


def complete(shell_script: Path, *words: str) -> list[str]:
    """What bash offers after these words, the last of which is being typed."""
    listed = " ".join(f"'{word}'" for word in ("lumiglue", *words))
    setup = f"source {shell_script}; COMP_WORDS=({listed}); COMP_CWORD={len(words)}; _lumiglue"
    ask = setup + "; printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(os.name == "nt", reason="Windows has other shells")
def test_bash_completes_commands_flags_and_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion", "bash") == 0
    path = tmp_path / "lumiglue.bash"
    path.write_text(capsys.readouterr().out)
    assert complete(path, "ma") == ["match", "matches"]
    assert complete(path, "eval", "ho") == ["homography"]
    assert complete(path, "weights", "") == ["list", "download", "import", "mean", "show"]
    assert complete(path, "match", "a.jpg", "b.jpg", "--geo") == ["--geometry"]
    assert complete(path, "match", "--geometry", "") == ["fundamental", "homography", "essential", "none"]
    assert complete(path, "eval", "homography", "x", "--thr") == ["--thresholds"]
    assert complete(path, "eval", "--thr") == ["--thresholds"]
    assert complete(path, "eval", "pose", "--backend", "o") == ["onnxruntime", "openvino"]
    assert complete(path, "completion", "") == ["bash", "zsh"]
    assert complete(path, "match", "") == []  # files, which bash itself completes
    assert complete(path, "match", "--out", "") == []


def test_completion_knows_the_flags_that_help_lists(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("match", "pairs", "sfm", "train", "eval pose", "bench", "export onnx", "doctor"):
        assert run(*name.split(), "--help") == 0
        printed = capsys.readouterr().out
        listed = {word.strip(",") for line in printed.splitlines() for word in line.split() if word.startswith("--")}
        ours = set(flags_of(COMMANDS[name]))
        assert {flag for flag in listed if flag.removesuffix("|") in ours | {"--help"}} >= {
            f for f in ours if f.startswith("--")
        } - {f for f in ours if f.startswith("--no-")}, name


def test_completion_offers_all_values_of_a_flag() -> None:
    offered = flags_of(COMMANDS["match"])
    assert offered["--precision"] == ("bf16", "fp32", "auto")
    assert {"torch", "openvino", "auto"} <= set(offered["--backend"])
    assert offered["--max-keypoints"] == ()


def test_the_scripts_are_whole() -> None:
    for shell in get_args(inspect.signature(script).parameters["shell"].annotation):
        text = script(COMMANDS, shell)
        assert "@" not in text.replace("${COMPREPLY[@]}", "")
        assert f"completion {shell}" in text
    if zsh := shutil.which("zsh"):
        ask = f"{script(COMMANDS, 'zsh')}\nCOMP_WORDS=(lumiglue ma)\nprint -r -- $_comps[lumiglue]"
        done = subprocess.run([zsh, "-f", "-c", ask], capture_output=True, text=True, check=True)
        assert "_lumiglue" in done.stdout
