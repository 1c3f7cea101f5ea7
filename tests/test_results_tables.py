"""The tables of docs/results/ are those of their data."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
(SCRIPT,) = ROOT.glob("bench*/**/results_tables.py")
PAGES = sorted((ROOT / "docs" / "results").glob("*.md"))
DATA = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in PAGES[0].parent.glob("data/*.json")}
MARKER = re.compile(r"<!-- table: ([\w-]+) -->")


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def flat(cell: object) -> list[float]:
    """The numbers of a cell, whichever form it has."""
    if isinstance(cell, list):
        return [number for value in cell for number in flat(value)]
    return numbers(cell) if isinstance(cell, str) else [] if cell is None else [float(str(cell))]


def test_pages_and_data_agree() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_table_is_shown_once() -> None:
    shown = [name for page in PAGES for name in MARKER.findall(page.read_text(encoding="utf-8"))]
    assert sorted(shown) == sorted(DATA)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_numbers_of_tables_are_those_of_the_data(page: Path) -> None:
    """Read back independently of the script that wrote them."""
    text = page.read_text(encoding="utf-8")
    for name in MARKER.findall(text):
        block = text.partition(f"<!-- table: {name} -->")[2].partition("<!-- end of table -->")[0]
        lines = [line for line in block.splitlines() if line.startswith("|")][2:]
        rows = DATA[name]["rows"]
        assert len(lines) == len(rows), name
        for line, row in zip(lines, rows, strict=True):
            assert numbers(line) == [number for cell in row for number in flat(cell)], f"{name}: {line}"


def test_a_page_that_differs_is_noticed(tmp_path: Path) -> None:
    script = tmp_path / "bench" / SCRIPT.name
    pages = tmp_path / "docs" / "results"
    for folder in (script.parent, pages / "data"):
        folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    script.write_bytes(SCRIPT.read_bytes())
    columns = [{"name": "what"}, {"name": "F1", "digits": 1}]
    table = {"processor": "P", "versions": "V", "date": "2026-01-01", "commands": ["true"], "columns": columns}
    (pages / "data" / "one.json").write_text(json.dumps({**table, "rows": [["ours", [70, 2.25]], ["theirs", None]]}))
    page = pages / "page.md"
    page.write_text("# T\n\n<!-- table: one -->\n<!-- end of table -->\n\nText stays.\n")

    def run(*flags: str) -> int:
        return subprocess.run([sys.executable, str(script), *flags], capture_output=True, check=False).returncode

    assert run("--check") == 1
    assert run() == run("--check") == 0
    assert "| ours | 70.0/2.2 |\n| theirs |  |" in page.read_text()
    assert page.read_text().endswith("\n\nText stays.\n")
    (pages / "data" / "one.json").write_text(json.dumps({**table, "rows": [["ours", 71]]}))
    assert run("--check") == 1
    (pages / "data" / "one.json").write_text(json.dumps({**table, "rows": [["ours"]]}))
    assert run() == 1
