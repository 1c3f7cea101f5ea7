"""What is handed out: the wheel and the source archive, their metadata, and the files that a host of projects looks for."""

import ast
import configparser
import email
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lumiglue

pytestmark = pytest.mark.portable

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, GROUPS = PYPROJECT["project"], PYPROJECT["dependency-groups"]
INFO = f"lumiglue-{lumiglue.__version__}.dist-info"
Archives = tuple[zipfile.ZipFile, tarfile.TarFile]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    """The wheel and the source archive, the wheel built of the archive as installers do; kernels without optimisation."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    environment = dict(os.environ)
    for variable, compiler in (("CC", "cc"), ("CXX", "c++")):
        if os.name == "posix" and shutil.which(compiler):  # .ci/wheel builds them as users do, in four times as long
            quick = out / f"quick-{compiler}"
            quick.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
            quick.chmod(0o755)
            environment[variable] = str(quick)
    done = subprocess.run(build, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return zipfile.ZipFile(wheel), tarfile.open(archive)


def test_the_wheel_holds_the_package_and_nothing_else(archives: Archives) -> None:
    wheel, source = archives[0], ROOT / "src"
    inside = {name for name in wheel.namelist() if not name.startswith(INFO)}
    built = {name for name in inside if name.endswith(".so")}
    files = (path for path in (source / "lumiglue").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert inside - built == {path.relative_to(source).as_posix() for path in files if path.suffix != ".so"}
    assert {
        "lumiglue/py.typed",
        "lumiglue/weights/data/sift-compact.safetensors",
        "lumiglue/evaluation/report.html",
    } <= inside
    for name in inside - built:
        assert wheel.read(name) == (source / name).read_bytes(), name
    for line in wheel.read(f"{INFO}/RECORD").decode().splitlines():
        name, digest, _ = line.rsplit(",", 2)
        if digest:
            encoded = urlsafe_b64encode(hashlib.sha256(wheel.read(name)).digest()).rstrip(b"=").decode()
            assert digest == f"sha256={encoded}"


def test_the_wheel_has_kernels_where_there_is_a_compiler(archives: Archives) -> None:
    wheel = archives[0]
    assert wheel.filename is not None
    names = {Path(name).name for name in wheel.namelist() if name.endswith(".so")}
    machine = platform.machine().lower()
    if not shutil.which(os.environ.get("CXX") or "c++") or machine not in ("x86_64", "aarch64", "arm64"):
        assert not names
        assert wheel.filename.endswith("-py3-none-any.whl")
        return
    assert names >= ({"avx2.so", "avx512.so"} if machine == "x86_64" else {"neon.so"})
    assert "-py3-none-any" not in wheel.filename
    assert "Root-Is-Purelib: false" in wheel.read(f"{INFO}/WHEEL").decode()


@pytest.mark.parametrize(("given", "ends"), [("", True), ("1", False), ("0", True)])
def test_without_a_compiler_the_package_is_built_without_kernels(given: str, ends: bool, tmp_path: Path) -> None:
    """And says so; LUMIGLUE_BUILD_KERNELS=1 makes it an error."""
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("__init__.py", "matcher/ops/native/layer.cpp"):
        (tmp_path / "src/lumiglue" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "src/lumiglue" / name, tmp_path / "src/lumiglue" / name)
    environment = {**os.environ, "CXX": "no-such-compiler", "LUMIGLUE_BUILD_KERNELS": given}
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode == 0) == ends, done.stdout + done.stderr
    assert [path.name.endswith("-py3-none-any.whl") for path in tmp_path.glob("*.whl")] == [True] * ends
    if given != "0" and platform.machine().lower() in ("x86_64", "aarch64", "arm64"):
        assert "no-such-compiler: No such file or directory" in done.stdout + done.stderr


def test_metadata_says_what_pyproject_says(archives: Archives) -> None:
    wheel = archives[0]
    metadata = email.message_from_bytes(wheel.read(f"{INFO}/METADATA"))
    assert metadata["Version"] == lumiglue.__version__
    assert metadata["License-Expression"] == PROJECT["license"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert set(metadata.get_all("Provides-Extra") or []) == set(PROJECT["optional-dependencies"])
    assert wheel.read(f"{INFO}/METADATA").decode().endswith((ROOT / "README.md").read_text(encoding="utf-8"))
    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(f"{INFO}/entry_points.txt").decode())
    assert dict(entries["console_scripts"]) == PROJECT["scripts"]
    assert f"{INFO}/licenses/LICENSE" in wheel.namelist()


def test_the_source_archive_can_be_tested_and_built(archives: Archives) -> None:
    names = {name.split("/", 1)[-1] for name in archives[1].getnames()}
    for path in ("pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt", ".ci/wheel", "CITATION.cff"):
        assert path in names
    for folder in ("src", "tests", "benchmarks"):
        assert {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", "docs/images"))]


def test_every_requirement_is_pinned() -> None:
    """constraints.txt has an exact version of each, in order, that the requirement allows."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(pins) == len(lines)
    for requirement in requirements():
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def requirements(*, of_users: bool = False) -> Iterator[Requirement]:
    """Of the package, its extras and its development groups; of users: without the groups."""
    extras = [line for group in PROJECT["optional-dependencies"].values() for line in group]
    groups = [line for group in GROUPS.values() for line in group if isinstance(line, str) and not of_users]
    for requirement in map(Requirement, (*PROJECT["dependencies"], *extras, *groups)):
        if requirement.name != "lumiglue":
            yield requirement


def test_the_oldest_versions_are_the_declared_floors() -> None:
    """Each package has one floor, and constraints-lowest.txt has the oldest version of it, by whatever suffix it came."""
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): Version(pin) for name, pin in (line.split("==") for line in lines if line[0] != "#")}
    floors: dict[str, Version] = {}
    for requirement in requirements():
        (floor,) = (Version(part.version) for part in requirement.specifier if part.operator == ">=")
        assert floors.setdefault(canonicalize_name(requirement.name), floor) == floor, requirement
    assert pins.keys() == floors.keys() - {"ruff", "pyright", "pre-commit", "atheris"}  # tools that no test runs with
    for name in pins.keys() - {"torch"}:  # see the file's first lines
        assert pins[name].release[: len(floors[name].release)] == floors[name].release, name


# Where a module is not called as what is installed.
INSTALLED_AS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "faiss": "faiss-cpu",
    "markdown_it": "markdown-it-py",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
}


@pytest.mark.parametrize(("folder", "of_users"), [("src", True), ("tests", False), ("benchmarks", False), ("docs", False)])
def test_what_is_imported_is_declared(folder: str, of_users: bool) -> None:
    """Not left to what a requirement happens to bring along."""
    declared = {canonicalize_name(requirement.name) for requirement in requirements(of_users=of_users)}
    own = {"lumiglue"} | {path.stem for path in (*(ROOT / folder).rglob("*.py"), *(ROOT / "tests").rglob("*.py"))}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import():
                    modules = [alias.name for alias in node.names]
                case ast.ImportFrom(level=0, module=str(module)):
                    modules = [module]
                case _:
                    continue
            for name in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - own:
                assert canonicalize_name(INSTALLED_AS.get(name, name)) in declared, f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", [f".github/workflows/{name}.yml" for name in ("ci", "release", "docs")]),
        ("dependabot", [".github/dependabot.yml"]),
        ("github-issue-config", [".github/ISSUE_TEMPLATE/config.yml"]),
        ("github-issue-forms", [f".github/ISSUE_TEMPLATE/{name}.yml" for name in ("bug", "accuracy", "idea")]),
        ("citation-file-format", ["CITATION.cff"]),
    ],
)
def test_files_fit_their_schemas(schema: str, files: list[str]) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*check, *(str(ROOT / file) for file in files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_tests_the_versions_that_are_promised() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    promised = [name.rsplit(" ", 1)[1] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    for name in ("tests", "wheel"):
        assert jobs[name]["strategy"]["matrix"]["python"] == promised
    assert ".ci/run" in [step.get("run") for step in jobs["whole"]["steps"]]
    for name in ("tests", "lowest"):
        (marker,) = re.findall(r"pytest -m (\w+)", json.dumps(jobs[name]["steps"]))
        assert any(line.startswith(f"{marker}:") for line in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"])


def test_extras_and_groups_that_workflows_and_make_install_exist() -> None:
    files = [ROOT / "Makefile", *(ROOT / ".github/workflows").glob("*.yml")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    extras = {name for group in re.findall(r'-e "\.\[(.*?)\]"', text) for name in group.split(",")}
    assert extras
    assert extras <= PROJECT["optional-dependencies"].keys()
    groups = set(re.findall(r"--group (\w+)", text))
    assert groups
    assert groups <= GROUPS.keys()


def test_pre_commit_runs_the_pinned_ruff() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (rev,) = [repo["rev"] for repo in hooks if repo["repo"].endswith("/ruff-pre-commit")]
    assert f"ruff=={rev.removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_a_release_needs_one_version_everywhere(tmp_path: Path) -> None:
    places = ("src/lumiglue/__init__.py", "CITATION.cff", "CHANGELOG.md", ".ci/version")
    for name in places:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    heading = f"## [{lumiglue.__version__}] - 2026-01-31\n\n"
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(heading + changelog.read_text(encoding="utf-8"), encoding="utf-8")

    def check(version: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / ".ci/version"), version]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert check(lumiglue.__version__).returncode == 0
    done = check("99.0.0")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 3


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (lumiglue.__version__, PROJECT["license"])
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Lindenberger", "Sarlin", "Pollefeys"]


def test_forms_ask_for_doctor() -> None:
    for name in ("bug", "accuracy"):
        form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text(encoding="utf-8"))
        (field,) = [entry for entry in form["body"] if entry.get("id") == "doctor"]
        assert "lumiglue doctor --json" in field["attributes"]["label"]
        assert field["validations"]["required"]
