"""Output of the commands: results to stdout, notes and progress to stderr."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
command = "lumiglue"  # as it was called, for what records how it was made


def say(text: str) -> None:
    """Prints a line of a result."""
    out.print(text, markup=False)


def table(title: str, first: str, *columns: str) -> Table:
    """An empty table, whose columns after the first are numbers."""
    made = Table(first, title=title)
    for column in columns:
        made.add_column(column, justify="right")
    return made


class ProgressBar:
    """A progress bar on stderr: `advance(steps, note, total=None)`. A step is an item, or a byte."""

    def __init__(self, label: str, total: int | None, *, of_bytes: bool = False) -> None:
        counted = DownloadColumn() if of_bytes else MofNCompleteColumn()
        columns: tuple[Any, ...] = (
            TextColumn("{task.description}"), BarColumn(), counted, TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self.bar = Bar(*columns, console=err)
        self.task = self.bar.add_task(label, total=total, note="")

    def __enter__(self) -> Callable[..., None]:
        return self.advance

    def advance(self, steps: int, note: str = "", total: int | None = None) -> None:
        self.bar.start()  # not earlier, so that an error before the first step has no bar above it
        if total is not None:
            self.bar.update(self.task, total=total)
        self.bar.update(self.task, advance=steps, note=note)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
