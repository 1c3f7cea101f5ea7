"""The command line: which commands there are, and how errors reach the user."""

import atexit
import difflib
import gc
import logging
import os
import re
import select
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import tyro

from lumiglue import __version__
from lumiglue.cli import terminal
from lumiglue.cli.checkpoints import (
    average_weights,
    download_weights,
    export_onnx,
    import_weights,
    list_weights,
    show_weights,
)
from lumiglue.cli.collections import export_colmap, features, localize, matches, pairs, sfm
from lumiglue.cli.completion import completion
from lumiglue.cli.dataset import dataset_from_colmap, dataset_homographies, dataset_posed, dataset_scenes, teach
from lumiglue.cli.doctor import doctor
from lumiglue.cli.evaluation import (
    evaluate,
    evaluate_adaptivity,
    evaluate_homography,
    evaluate_pose,
    evaluate_strecha,
    report,
)
from lumiglue.cli.help import explained
from lumiglue.cli.matching import demo, match, sample
from lumiglue.cli.speed import bench
from lumiglue.cli.terminal import err, out, say
from lumiglue.cli.training import compress, train
from lumiglue.errors import LumiglueError
from lumiglue.io.atomic import disk_is_full
from lumiglue.system.extras import EXTRAS, remedy
from lumiglue.system.threads import shorten_spins

COMMANDS: dict[str, Callable[..., int]] = {
    "match": match,
    "sample": sample,
    "features": features,
    "pairs": pairs,
    "matches": matches,
    "sfm": sfm,
    "localize": localize,
    "dataset homographies": dataset_homographies,
    "dataset scenes": dataset_scenes,
    "dataset posed": dataset_posed,
    "dataset from-colmap": dataset_from_colmap,
    "dataset teach": teach,
    "train": train,
    "compress": compress,
    "eval": evaluate,
    "eval homography": evaluate_homography,
    "eval pose": evaluate_pose,
    "eval strecha": evaluate_strecha,
    "eval adaptivity": evaluate_adaptivity,
    "eval report": report,
    "bench": bench,
    "export colmap": export_colmap,
    "export onnx": export_onnx,
    "weights list": list_weights,
    "weights download": download_weights,
    "weights import": import_weights,
    "weights mean": average_weights,
    "weights show": show_weights,
    "demo": demo,
    "doctor": doctor,
    "completion": completion,
}


DESCRIPTION = "Sparse feature matching: two photos in, correspondences out. (0, 0) is the centre of the top-left pixel."
# Headings of the list of commands, by the module of the commands.
HEADINGS = {
    "matching": "Match",
    "collections": "Collections of photos",
    "training": "Train",
    "dataset": "Train",
    "evaluation": "Measure",
    "speed": "Measure",
    "checkpoints": "Weights",
    "doctor": "This installation",
    "completion": "This installation",
}


# Commands that had other names before 0.1.0.
MOVED = {
    "bank": "`lumiglue dataset homographies`, and with --kind worlds `lumiglue dataset scenes`",
    "posed-bank": "`lumiglue dataset posed`",
    "posed-from-sfm": "`lumiglue dataset from-colmap`",
}

_MOST_OF_A_KIND = 10
# Python's search for cycles of objects, which at each 700 allocations and at exit goes through all that PyTorch's import
# made, takes half a second of a short command.
_ALLOCATIONS = 50_000


def _of_the_system(error: OSError) -> str:
    if disk_is_full(error):
        disk = f"the disk of {error.filename}" if error.filename else "the disk"
        return f"{disk} is full; make room and run the same command again"
    return f"{error.filename or 'a file'}: {error.strerror or error}; check the path and its permissions"


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader, such as `head`, has exited. Other pipes may break too."""
    if not hasattr(select, "poll"):  # Windows
        return False
    pipe = select.poll()
    pipe.register(sys.stdout, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in pipe.poll(0))


class _LabelFormatter(logging.Formatter):
    """Log lines as "warning: ...", or with the label that a record carries, as "note: ..."."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{getattr(record, 'label', record.levelname.lower())}: {super().format(record)}"


class _Repeats(logging.Filter):
    """Passes a log line once, and ten lines of a kind: a folder may have thousands of photos with the same flaw."""

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.kinds = set[str](), Counter[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        if line in self.lines or self.kinds[record.msg] >= _MOST_OF_A_KIND:
            return False
        self.lines.add(line)
        self.kinds[record.msg] += 1
        if self.kinds[record.msg] == _MOST_OF_A_KIND:
            record.msg, record.args = f"{line} (more messages of this kind are not shown)", None
        return True


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Exit code 2 with one sentence for input that cannot be used."""
    shorten_spins()
    gc.set_threshold(_ALLOCATIONS)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    log_handler = logging.StreamHandler()
    log_handler.setFormatter(_LabelFormatter())
    log_handler.addFilter(_Repeats())
    logging.basicConfig(level=logging.WARNING, handlers=[log_handler])
    words = sys.argv[1:] if arguments is None else list(arguments)
    terminal.command = shlex.join(["lumiglue", *words])
    if words == ["--version"]:
        say(f"lumiglue {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        say(overview())
        return 0 if words else 2
    if " ".join(words[:2]) in COMMANDS:  # a command of two words is one to tyro
        words[:2] = [" ".join(words[:2])]
    if words[0] in MOVED:
        err.print(f"error: `lumiglue {words[0]}` is now {MOVED[words[0]]}", markup=False)
        return 2
    if words[0] not in COMMANDS or _mistyped(words):
        return _unknown(words)
    try:
        return tyro.cli(explained(COMMANDS[words[0]]), prog=f"lumiglue {words[0]}", args=words[1:])
    except LumiglueError as error:
        err.print(f"error: {error}", markup=False)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        err.print(f"error: {remedy(package)}", markup=False)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1  # as where rich prints
        err.print(f"error: {_of_the_system(error)}", markup=False)
        return 2
    except KeyboardInterrupt:
        err.print("interrupted")
        return 130


def overview() -> str:
    """Lists the commands by purpose, one line each."""
    width = max(map(len, COMMANDS)) + 2
    groups: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        heading = HEADINGS.get(command.__module__.rpartition(".")[2], "More")
        description = textwrap.wrap(summary(command), max(out.width, 60) - width - 2)
        groups.setdefault(heading, []).append(f"  {name:<{width}}" + f"\n{'':{width + 2}}".join(description))
    lines = [
        *textwrap.wrap(DESCRIPTION, max(out.width, 60)),
        "",
        "usage: lumiglue COMMAND ...",
        "       lumiglue COMMAND --help",
    ]
    for heading, entries in groups.items():
        lines += ["", heading, *entries]
    return "\n".join(lines)


def summary(command: Callable[..., int]) -> str:
    """Returns the first sentence of a command's description."""
    text = " ".join((command.__doc__ or "").split("\n\n", 1)[0].split())
    return re.split(r"\.\s+(?=[A-Z])", text)[0].rstrip("., ")


def _mistyped(words: list[str]) -> bool:
    """Whether `eval homografy` is a mistyped command of two words, and not a folder of that name."""
    second = [name.split()[1] for name in COMMANDS if name.startswith(f"{words[0]} ")]
    return len(words) > 1 and bool(difflib.get_close_matches(words[1], second)) and not Path(words[1]).exists()


def _unknown(words: list[str]) -> int:
    """Reports an unknown command and suggests a similar one."""
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if group and (len(words) == 1 or words[1] in ("-h", "--help")):
        say("\n".join(f"lumiglue {name}: {summary(COMMANDS[name])}" for name in group))
        return 0 if len(words) > 1 else 2
    given = " ".join(words[:2]) if group else words[0]
    near = difflib.get_close_matches(given, [*COMMANDS, "--help", "--version"], n=1) or group
    hint = f"did you mean {near[0]!r}? " if near else ""
    if Path(words[0]).suffix:
        hint = f"to match photos: lumiglue match {' '.join(words[:2])}. "
    err.print(f"error: there is no command {given!r}; {hint}`lumiglue --help` lists them", markup=False)
    return 2
