"""The documentation holds: its Python runs, its commands are real, its links lead somewhere, its notebooks run.

What is run and what is only checked is said here, in `LONG`, `NEEDS_MORE` and `NOT_RUN`, and nowhere else:

- Python blocks run, those of a page one after the other in one namespace, in a folder made by `furnish` and `PREPARE`.
- JSON blocks are read.
- Lines of commands that begin with `lumiglue` (or `torchrun ... -m lumiglue`) go through the real command line. They run, in
  their order among the page's Python, unless `LONG` or `NEEDS_MORE` applies, or the page before ran the same `match` or
  `sample`: then they are parsed, with all flags.
- `pip install "lumiglue[x]"` names an extra that is there, `python FILE --flag` a file that knows it, `make x` a target.
- A command inside a sentence may leave things out: its flags must be there.
"""

import ast
import functools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from nbclient import NotebookClient
from PIL import Image

import lumiglue.cli
from helpers import make_model
from lumiglue import LightGlue
from lumiglue.collection.pairs import write_pairs
from lumiglue.samples import sample_pair
from lumiglue.weights.files import BUILT_IN, load_weights, pretrained_path, save_weights
from lumiglue.weights.released import released_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

# Commands that take minutes or open a server.
LONG = {"dataset", "train", "sfm", "localize", "bench", "demo", "serve"}
# What a command needs that a test has not: weights from the internet, a cluster, data sets (written in capitals).
NEEDS_MORE = re.compile(
    r"^(?!weights import).*--features (aliked|superpoint|xfeat|disk)|^match.*--weights (aliked|xfeat|disk)|weights download"
    r"|--engine ray|--device cuda|\b[A-Z]{2,}\b|run/|scores\.csv"
)
# Python that needs the internet, or the demo's server: tests/demo/test_demo.py runs that.
NOT_RUN = re.compile(r"from_pretrained\(|127\.0\.0\.1:7860|lumiglue\.(reconstruct|localize)\(|project_costs\(")
RUN_BEFORE: set[str] = set()
OTHER_TOOLS = {"eval", "mkdocs", ".venv/bin/pre-commit", "python", "curl", "docker"}


@dataclass(frozen=True)
class Block:
    """A code block of a page: its language, text and first line."""

    kind: str
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    """Fenced blocks by their language; indented ones are commands, or what they look like."""
    blocks = []
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence" and token.map:
            blocks.append(Block(token.info.strip() or "text", token.content, token.map[0] + 1))
        elif token.type == "code_block" and token.map:
            blocks.append(Block("sh", token.content, token.map[0] + 1))
    return blocks


def commands_of(text: str) -> list[list[str]]:
    """The words of each command of a block; a backslash goes on, a semicolon or && begins another."""
    commands = []
    for line in text.replace("\\\n", " ").replace("$ ", "").splitlines():
        for words in re.split(r"\s*(?:;|&&)\s*", re.sub(r"\s+#\s.*|^#.*", "", line)):
            if words.strip():
                commands.append(shlex.split(words))
    return [[w for w in words if w not in ("...", "|")] for words in commands]


def lumiglue_words(words: list[str]) -> list[str] | None:
    """What follows `lumiglue` in a command, if that is what it runs."""
    if words[0] == "lumiglue":
        return words[1:]
    if words[0] == "torchrun" and "lumiglue" in words:
        return words[words.index("lumiglue") + 1 :]
    return None


def command_name(words: list[str]) -> str:
    """The longest name of a command that the words begin with."""
    two = " ".join(words[:2])
    return two if two in lumiglue.cli.COMMANDS else words[0]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Sends words through the command line's parser, and nothing is run."""

    def recorded(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)
        def instead(*args: object, **kwargs: object) -> int:
            return 0

        return instead

    real = dict(lumiglue.cli.COMMANDS)

    def parse(words: list[str]) -> None:
        with monkeypatch.context() as patch:
            for name, command in real.items():
                patch.setitem(lumiglue.cli.COMMANDS, name, recorded(command))
            assert lumiglue.cli.main(words) == 0

    return parse


def test_unknown_flags_are_noticed(parse: Callable[[list[str]], None]) -> None:
    parse(["match", "a.jpg", "b.jpg", "--max-keypoints", "5"])
    for wrong in (
        ["match", "a.jpg", "b.jpg", "--keypoints", "5"],
        ["mtach", "a.jpg"],
        ["match", "a.jpg", "--exit-ratio", "x"],
    ):
        with pytest.raises((SystemExit, AssertionError)):
            parse(wrong)


@pytest.fixture(scope="module")
def photos() -> dict[str, np.ndarray]:
    """The sample photos, small, under the names that pages use."""
    sample = sample_pair()
    small = [np.asarray(Image.fromarray(image).resize((400, 300))) for image in (sample.image0, sample.image1)]
    return {"a.jpg": small[0], "b.jpg": small[1], "c.jpg": small[0][:, ::-1].copy()}


def furnish(photos: dict[str, np.ndarray]) -> None:
    """The working directory as pages suppose it."""
    for folder in (Path(), Path("photos")):
        folder.mkdir(exist_ok=True)
        for name, image in photos.items():
            Image.fromarray(image).save(folder / name, quality=92)
    write_pairs(Path("pairs.txt"), [("a.jpg", "b.jpg"), ("a.jpg", "c.jpg")])
    shutil.copytree(ROOT / "examples", "examples")
    # A stand-in for the released checkpoints, which are not ours to carry: random weights under their names.
    model = make_model(descriptor_dim=256, d=256, heads=4, n_layers=3, project_input=False)
    torch.save(released_names(model), "superpoint_lightglue.pth")
    save_weights(make_model(descriptor_dim=128), "other.safetensors", {})


def for_readme(names: dict[str, Any]) -> None:
    """Two images in the released form."""
    generator = torch.Generator().manual_seed(0)
    for name in ("image0", "image1"):
        points, descriptors = torch.rand(1, 30, 2, generator=generator) * 400, torch.rand(1, 30, 256, generator=generator)
        names[name] = {"keypoints": points, "descriptors": descriptors, "image_size": torch.tensor([[400, 300]])}


def for_export(names: dict[str, Any]) -> None:
    """The inputs of an ONNX file, and OpenCV's arguments."""
    generator = torch.Generator().manual_seed(0)
    features = {
        "keypoints": torch.rand(40, 2, generator=generator) * 300,
        "descriptors": torch.rand(40, 128, generator=generator),
    }
    features |= {"image_size": torch.tensor([400.0, 300.0]), "scales": torch.ones(40), "orientations": torch.zeros(40)}
    names["inputs"] = {f"{name}{side}": value.numpy() for name, value in features.items() for side in (0, 1)}
    names |= {name: names["inputs"][name] for name in ("keypoints0", "keypoints1", "descriptors0", "descriptors1")}
    names |= {"width": 400, "height": 300}


def for_own_features(names: dict[str, Any]) -> None:
    """The page shows a part of this file; it must be that part, and runs with the file's imports."""
    example = ROOT / "examples" / "orb.py"
    shown = next(b.text for b in blocks_of(ROOT / "docs" / "train-your-own.md") if "class Orb" in b.text)
    assert shown in example.read_text()
    names |= runpy.run_path(str(example))


def for_evaluation(names: dict[str, Any]) -> None:
    """The pairs.json that the page shows."""
    shown = next(b.text for b in blocks_of(ROOT / "docs" / "evaluate.md") if b.kind == "json")
    shutil.copytree("photos", "my_pairs")
    (Path("my_pairs") / "pairs.json").write_text(shown)


PREPARE: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": for_readme,
    "export.md": for_export,
    "train-your-own.md": for_own_features,
    "evaluate.md": for_evaluation,
    "posed-data.md": lambda _: Path("model").mkdir(),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_runs(
    page: Path,
    photos: dict[str, np.ndarray],
    parse: Callable[[list[str]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unchecked: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    furnish(photos)
    names: dict[str, Any] = {"__name__": "page"}
    PREPARE.get(page.name, lambda _: None)(names)
    for block in blocks_of(page):
        where = f"{page.name}, line {block.line}"
        if block.kind == "python":
            code = compile(ast.parse("\n" * block.line + block.text, str(page)), str(page), "exec")
            if not NOT_RUN.search(block.text):
                exec(code, names)
        elif block.kind == "json":
            json.loads(block.text)
        elif block.kind in ("sh", "bash", "console"):
            for words in commands_of(block.text):
                check_command(words, parse, where)


def check_command(words: list[str], parse: Callable[[list[str]], None], where: str) -> None:
    """Runs, parses or looks up a command."""
    ours = lumiglue_words(words)
    if ours is not None and ours[0] != "--version" and "--help" not in ours:
        line = " ".join(ours)
        try:
            repeated = line in RUN_BEFORE and ours[0] in ("match", "sample")
            if command_name(ours).split()[0] in LONG or NEEDS_MORE.search(line) or repeated:
                parse(ours)
            else:
                assert lumiglue.cli.main(ours) == 0, f"{where}: {line}"
                RUN_BEFORE.add(line)
        except SystemExit:
            pytest.fail(f"{where}: the command line does not know `lumiglue {line}`")
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"lumiglue\[(.*?)\]", " ".join(words))
        assert {name for group in named for name in group.split(",")} <= extras.keys(), where
    elif words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), where
    elif words[0] == "python" and words[1].endswith(".py"):
        source = (ROOT / words[1]).read_text()
        for flag in (word for word in words if word.startswith("--")):
            assert flag in source or flag[2:].replace("-", "_") in source, f"{where}: {flag}"
    else:
        assert ours is not None or words[0] in OTHER_TOOLS, f"{where}: what is {words[0]!r}?"


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """The flags of each command, by its own help."""
    script = """
import contextlib, io, json, re
from lumiglue.cli import COMMANDS, main
found = {}
for name in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    found[name] = re.findall(r"--[a-z][a-z0-9-]*", text.getvalue())
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name: set(listed) for name, listed in json.loads(done.stdout).items()}


@functools.cache
def flags_of_bench() -> set[str]:
    """The parameters of the scripts beside the package, as flags."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "benchmarks").rglob("*.py")]
    parameters = {node.arg for tree in trees for node in ast.walk(tree) if isinstance(node, ast.arg)}
    written = {str(node.value) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return {"--" + name.replace("_", "-") for name in parameters} | {name for name in written if name.startswith("--")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_inside_sentences_have_real_flags(page: Path, flags: dict[str, set[str]]) -> None:
    for token in MarkdownIt().enable("table").parse(page.read_text()):
        for inline in token.children or ():
            words = inline.content.split() if inline.type == "code_inline" else []
            if len(words) > 1 and words[0] == "lumiglue" and command_name(words[1:]) in flags:
                used = {word.partition("=")[0] for word in words if word.startswith("--")}
                assert used <= flags[command_name(words[1:])], f"{page.name}: `{inline.content}`"
            elif words and words[0].startswith("--"):
                known = set().union(*flags.values()) | {"--version"} | flags_of_bench()
                used = {word.rstrip(",") for word in words if re.fullmatch(r"--[a-z][a-z0-9-]*,?", word)}
                assert used <= known or "lightglue_model_path" in inline.content, f"{page.name}: `{inline.content}`"


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text()
        outside = re.search(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^>]*>", text)
        assert outside is None, f"{page.name} loads {outside.group()}"
        assert "|---" not in text, f"{page.name} has a table that is none; leave a line free before it"
    reference = (tmp_path / "site" / "api.html").read_text()
    for name in lumiglue.__all__:
        assert f"{name}</span>" in reference or name in ("EXTRACTORS", "__version__", "collection"), (
            f"{name} is not in the API reference"
        )


# What a notebook computes much of, and how much of it is enough to see that it runs.
LESS = {
    "train-in-two-minutes": {
        "n_views=8": "n_views=2",
        "pairs=800": "pairs=64",
        "confidence_pairs=80": "confidence_pairs=8",
        "warmup_pairs=100": "warmup_pairs=16",
        "evaluate_every=200": "evaluate_every=16",
        "batches=8": "batches=2",
        "import train": "import train\\nfrom lumiglue.training import validation\\nvalidation.BATCHES = 2",
    },
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    """And print what is stored, but for the numbers."""
    notebook = nbformat.read(path, as_version=4)
    for much, less in LESS.get(path.stem, {}).items():
        (cell,) = [cell for cell in notebook.cells if re.search(rf"\b{much}\b", cell.source)]
        cell.source = re.sub(rf"\b{much}\b", less, cell.source)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))  # stored as they ran, in order
    stored = ["".join(out.get("text", "") for out in cell.outputs) for cell in cells]
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    got = ["".join(out.get("text", "") for out in cell.outputs) for cell in cells]
    assert [re.sub(r"\d+", "0", text) for text in got] == [re.sub(r"\d+", "0", text) for text in stored]
    assert any("image/jpeg" in out.get("data", {}) for cell in cells for out in cell.outputs)


def test_notebooks_are_light() -> None:
    assert len(NOTEBOOKS) == 2
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 400_000


def test_built_in_weights_are_those_of_the_page() -> None:
    text = (ROOT / "docs" / "weights.md").read_text()
    for name in BUILT_IN:
        model = load_weights(pretrained_path(name))
        assert isinstance(model, LightGlue)
        assert f"`{pretrained_path(name).name}`" in text
        expected = {5: 1.7, 9: 3.0}[model.config.n_layers]
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == expected
