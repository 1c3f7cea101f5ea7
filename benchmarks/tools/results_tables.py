"""Writes the tables of docs/results/*.md from docs/results/data/*.json.

    python benchmarks/tools/results_tables.py            # rewrites what is between the markers of each page
    python benchmarks/tools/results_tables.py --check    # changes nothing; exits with 1 where a page and its data differ

A page has a marker for each table, `<!-- table: NAME -->`, and `<!-- end of table -->`. NAME.json has

    processor   what computed
    versions    of the packages that matter
    date        of the measurement, YYYY-MM-DD
    commands    that print the figures
    note        optional: what else to know, such as which weights were measured
    columns     of the table: name, and the digits after the decimal point of its numbers
    rows        cells: text, a number, a list of numbers, or null for an empty cell
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
PAGES = ROOT / "docs" / "results"
ABOUT = ("processor", "versions", "date", "commands", "note")
KEYS = {"processor", "versions", "date", "commands", "columns", "rows"}
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
LONGEST_LINE = 110


def render(table: dict[str, Any], above: dict[str, Any] | None = None) -> str:
    """The Markdown of a table, with the machine and the commands below it unless the table above has the same."""
    missing = KEYS - table.keys()
    if missing:
        raise ValueError(f"the table lacks {', '.join(sorted(missing))}")
    if not table["rows"]:
        return "\n*Not measured yet.*\n\n"
    columns = table["columns"]
    lines = [line_of([column["name"] for column in columns]), "|---" * len(columns) + "|"]
    for row in table["rows"]:
        if len(row) != len(columns):
            raise ValueError(f"a row has {len(row)} cells, not {len(columns)}: {row}")
        lines.append(line_of([text_of(cell, column.get("digits")) for cell, column in zip(row, columns, strict=True)]))
    if above is not None and all(above.get(key) == table.get(key) for key in ABOUT):
        return "\n" + "\n".join(lines) + "\n\n*Measured as the table above.*\n\n"
    machine = [f"*{table['processor']};", f"{table['versions']}; {table['date']}.*"]
    parts = ["\n".join(lines), "\n".join(machine), *([table["note"]] if table.get("note") else [])]
    commands = "\n".join(folded(command) for command in table["commands"])
    return "\n" + "\n\n".join([*parts, f"```sh\n{commands}\n```"]) + "\n\n"


def line_of(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def text_of(cell: Any, digits: int | None) -> str:
    """A cell: text as it is, numbers with the digits of their column."""
    if cell is None:
        return ""
    if isinstance(cell, list):
        return "/".join(text_of(value, digits) for value in cell)
    return cell if isinstance(cell, str) else f"{cell:.{digits or 0}f}"


def folded(command: str) -> str:
    """A long command over several lines, as a shell reads it."""
    first, *flags = re.split(r" (?=-)", command)  # a flag stays with its values
    lines = [first]
    for flag in flags:
        if len(lines[-1]) + len(flag) + 3 > LONGEST_LINE:
            lines.append("   ")
        lines[-1] += f" {flag}"
    return " \\\n".join(lines)


def rewritten(page: Path) -> str:
    """The page's text with each table as its data has it."""
    above: list[dict[str, Any]] = []

    def block(marker: re.Match[str]) -> str:
        file = page.parent / "data" / f"{marker[2]}.json"
        try:
            above.append(json.loads(file.read_text(encoding="utf-8")))
            return marker[1] + render(above[-1], above[-2] if len(above) > 1 else None) + marker[3]
        except (OSError, ValueError, KeyError) as error:
            raise SystemExit(f"{page.name}, table {marker[2]}: {error}") from None

    return BLOCK.sub(block, page.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a page is out of date")
    check, stale = parser.parse_args().check, []
    for page in sorted(PAGES.glob("*.md")):
        text = rewritten(page)
        if text == page.read_text(encoding="utf-8"):
            continue
        stale.append(page.name)
        if not check:
            page.write_text(text, encoding="utf-8")
    if stale:
        print(", ".join(stale), "out of date; run this without --check" if check else "written")
    return int(bool(stale) and check)


if __name__ == "__main__":
    sys.exit(main())
