"""Fuzzes readers by coverage: `python tests/fuzz/run.py READER --seconds 60`, several, or `all`; without any, their names.

What a reader raises besides Lumiglue's own errors is a finding, and so is a file that takes it more than 5 s or 1 GB.
Each kind of finding is saved once, as fuzz/found/READER/NAME; what is mended moves to tests/fuzz/regressions/, which the
tests read. Files that reached something new stay in fuzz/corpus/, to begin from next time. A line for each reader says how
many files were tried, and how many edges of the Python code they reached.
"""

import argparse
import contextlib
import hashlib
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lumiglue", "targets", "PIL"]):  # pyright: ignore[reportAttributeAccessIssue]
    from targets import TARGETS

import torch

from lumiglue.errors import LumiglueError

HERE = Path(__file__).parent
FOUND, CORPUS = HERE / "found", HERE / "corpus"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    if not options.readers:
        print("\n".join(TARGETS))
        return 0
    names = list(TARGETS) if options.readers == ["all"] else options.readers
    return max([run(name, options.seconds) for name in names])


def run(name: str, seconds: int) -> int:
    """Fuzzes in processes of its own, as a crash of a library takes the process along; another goes on."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        scratch, corpus = Path(folder), CORPUS / name
        (scratch / "seeds").mkdir()
        corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(TARGETS[name].seeds(scratch / "seeds")):
            (corpus / f"seed{number}").write_bytes(data)
        executions, edges, crashes, start = 0, 0, 0, time.monotonic()
        while (left := seconds - (time.monotonic() - start)) > 3:
            status = _in_a_fork(name, int(left), scratch)
            text = (scratch / "log").read_text(errors="replace")
            for line in text.splitlines():
                words = line.split()
                if line.startswith("#") and "cov:" in words:
                    edges = max(edges, int(words[words.index("cov:") + 1]))
            executions += int((scratch / "count").read_text())
            if status == 0:
                break
            crashes += 1
            save(name, f"crash{crashes}", (scratch / "now").read_bytes(), text[-4000:])
        files = sorted(path.name for path in (FOUND / name).glob("*") if path.suffix != ".txt")
        taken = time.monotonic() - start
        print(f"{name}: {executions} files, {edges} edges, {taken:.0f} s, {crashes} crashes, found {files}", flush=True)
    return int(bool(files))


def _in_a_fork(name: str, seconds: int, scratch: Path) -> int:
    (scratch / "count").write_text("0")
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log = os.open(scratch / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with contextlib.suppress(BaseException):
        fuzz(name, seconds, scratch)
    os._exit(9)


def save(name: str, kind: str, data: bytes, why: str) -> None:
    """Once for each kind."""
    folder = FOUND / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / kind).exists():
        (folder / kind).write_bytes(data)
        (folder / f"{kind}.txt").write_text(why)


def fuzz(name: str, seconds: int, scratch: Path) -> None:
    """Never returns: libFuzzer ends the process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    target, count, folder = TARGETS[name], [0], scratch / "files"

    def one(data: bytes) -> None:
        count[0] += 1
        (scratch / "count").write_text(str(count[0]))
        (scratch / "now").write_bytes(data)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            target.read(data, folder)
        except LumiglueError as error:
            if "\n" in str(error).strip():
                save(name, "two-lines-" + type(error).__name__, data, str(error))
        except Exception as error:
            save(name, signature(error), data, traceback.format_exc())
        if (taken := time.process_time() - start) > 5:
            save(name, "slow", data, f"{taken} s")
        if (grown := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) > 10**6:
            save(name, "memory", data, f"{grown} kB")

    arguments = [
        sys.argv[0], f"-max_total_time={seconds}", "-timeout=100", "-rss_limit_mb=6000", "-max_len=65536",
        f"-artifact_prefix={scratch}/", str(CORPUS / name),
    ]  # fmt: skip
    atheris.Setup(arguments, one)
    atheris.Fuzz()


def signature(error: Exception) -> str:
    """Names a finding by the error and the last line of ours that it came through."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "lumiglue/" in frame.filename]
    where = f"{Path(ours[-1].filename).stem}-{ours[-1].name.strip('<>')}" if ours else "target"
    text = hashlib.sha256(f"{type(error).__name__} {ours[-1].lineno if ours else 0}".encode()).hexdigest()[:4]
    return f"{type(error).__name__}-{where}-{text}"


if __name__ == "__main__":
    sys.exit(main())
