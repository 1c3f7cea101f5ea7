"""The command line: which commands there are, and how errors reach the user."""

import errno
import logging
import sys
from collections.abc import Callable

import tyro

from lumiglue import __version__
from lumiglue.cli.checkpoints import export_onnx, import_weights, show_weights
from lumiglue.cli.collections import features, matches, pairs, sfm
from lumiglue.cli.evaluation import (
    evaluate,
    evaluate_adaptivity,
    evaluate_homography,
    evaluate_pose,
    evaluate_strecha,
    report,
)
from lumiglue.cli.matching import match, sample
from lumiglue.cli.posed import posed_bank, posed_from_sfm
from lumiglue.cli.speed import bench
from lumiglue.cli.terminal import err, say
from lumiglue.cli.training import bank, train
from lumiglue.errors import LumiglueError

COMMANDS: dict[str, Callable[..., int]] = {
    "match": match,
    "sample": sample,
    "features": features,
    "pairs": pairs,
    "matches": matches,
    "sfm": sfm,
    "bank": bank,
    "posed-bank": posed_bank,
    "posed-from-sfm": posed_from_sfm,
    "train": train,
    "eval": evaluate,
    "eval homography": evaluate_homography,
    "eval pose": evaluate_pose,
    "eval strecha": evaluate_strecha,
    "eval adaptivity": evaluate_adaptivity,
    "eval report": report,
    "bench": bench,
    "export onnx": export_onnx,
    "weights import": import_weights,
    "weights show": show_weights,
}


DESCRIPTION = (
    "Sparse feature matching: two photos in, correspondences out. Pixels: (0, 0) is the centre of the top-left one."
)


def _of_the_system(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk{f' of {error.filename}' if error.filename else ''} is full; make room and run the same command again"
        )
    what = f"{error.filename or 'a file'}: {error.strerror or error}"
    return f"{what}; check the path, and whether you may write there"


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Exit code 2 with one sentence for input that cannot be used."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words == ["--version"]:
        say(f"lumiglue {__version__}")
        return 0
    if " ".join(words[:2]) in COMMANDS:  # a command of two words is one to tyro
        words[:2] = [" ".join(words[:2])]
    app = tyro.extras.SubcommandApp()
    for name, command in COMMANDS.items():
        app.command(name=name)(command)
    try:
        return app.cli(prog="lumiglue", description=DESCRIPTION, args=words)
    except LumiglueError as error:
        err.print(f"error: {error}", markup=False)
        return 2
    except OSError as error:
        err.print(f"error: {_of_the_system(error)}", markup=False)
        return 2
    except KeyboardInterrupt:
        err.print("interrupted")
        return 130
