"""Makes one table of docs/results/data/ from the files of `lumiglue bench -o`, with a column for each machine.

    python benchmarks/tools/bench_table.py A.json B.json -o docs/results/data/speed-released.json

A cell is the median in ms and its ratio to the first contender. Files of one machine, say with other threads or another
`LUMIGLUE_KERNEL`, are columns too. Measure all files by the same command. results_tables.py writes the table to its page.
"""

import argparse
import json
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The table of some runs, as results_tables.py reads it."""
    cells: dict[tuple, list[str | None]] = {}
    for number, run in enumerate(runs):
        for row in run["rows"]:
            key = row["condition"], row["points"], row["busy"], row["contender"]
            text = f"{statistics.median(row['milliseconds']):.0f} ({row['ratio'][0]:.2f})"
            cells.setdefault(key, [None] * len(runs))[number] = text
    letters = [f"{chr(65 + number)}, ms (ratio)" for number in range(len(runs))]
    busy = any(key[2] for key in cells)
    heads = ["measured", "points", *(["busy"] if busy else []), "contender", *letters]
    about = [f"{chr(65 + number)}: {machine_of(run['machine'])}" for number, run in enumerate(runs)]
    versions = {f"{name} {number}": None for run in runs for name, number in run["versions"].items() if number}
    return {
        "processor": textwrap.fill("; ".join(about), 110),
        "versions": textwrap.fill(", ".join(versions), 110),
        "date": ", ".join(sorted({run["date"] for run in runs})),
        "commands": list(dict.fromkeys(run["command"].split(" -o ")[0].split(" --out ")[0] for run in runs)),
        "columns": [{"name": head} for head in heads],
        "rows": [[*key[:2], *key[2 : 3 if busy else 2], key[3], *texts] for key, texts in cells.items()],
    }


def machine_of(machine: dict[str, Any]) -> str:
    """A machine in words."""
    features = "/".join(machine["features"]) or machine["architecture"]
    kernels = machine["fp32_kernels"] if machine["fp32_kernels"].startswith("native") else "PyTorch"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return f"{machine['model']} ({features}), {threads}, float32 layers: {kernels}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    table = table_of([json.loads(path.read_text(encoding="utf-8")) for path in options.runs])
    options.output.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
