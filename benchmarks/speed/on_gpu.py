"""The figures that need a GPU, in one command of half an hour: tests, speed, a trained matcher.

    python benchmarks/speed/on_gpu.py -o OUT --datasets homographies.h5 scenes.h5 --minutes 15
    python benchmarks/speed/on_gpu.py -o OUT --datasets taught.h5 homographies.h5 --teacher aliked-lightglue --minutes 8
    python benchmarks/speed/on_gpu.py -o OUT --datasets homographies.h5 scenes.h5 --dry-run  # on a CPU, at toy size

Each step writes a log to OUT; a step that fails does not stop the next one, and OUT/summary.txt has the exit codes. Training
first runs some steps to measure the pairs per second, then fits a recipe into the minutes: `gpu_30min`, or `student` if
there is a teacher. Its weights are written in pieces of at most 15 MiB: cat OUT/weights.* > weights.safetensors
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PIECE = 15 * 2**20
STEPS = ("tests", "speed", "train")


@dataclass(frozen=True)
class Job:
    """What to run.

    Attributes:
        out: Folder of the logs.
        datasets: Datasets for training.
        minutes: Length of the training.
        teacher: A matcher whose states the trained one follows; None if there is none.
        dry_run: On the CPU, at toy size.
    """

    out: Path
    datasets: tuple[str, ...]
    minutes: float
    teacher: str | None
    dry_run: bool

    def tests(self) -> None:
        """Tests marked gpu."""
        self._run("tests", "pytest", "-q", "-m", "gpu")

    def speed(self) -> None:
        """Ours beside kornia and transformers: one pair, a batch, early exit and pruning, memory."""
        device, rounds = ("cpu", "2") if self.dry_run else ("cuda", "15")
        sizes = ("64",) if self.dry_run else ("512", "1024", "2048", "4096")
        peers = ("lumiglue bf16", "kornia", "transformers", *(() if self.dry_run else ("kornia half",)))
        bench = ("lumiglue", "bench", "--device", device, "--rounds", rounds)
        self._run("speed", *bench, "--sizes", *sizes, "--against", *peers, "--memory")
        self._run("speed-batch", *bench, "--sizes", *sizes[:2], "--batch", "32", "--against", *peers, "one by one")
        self._run("speed-adaptive", *bench, "--sizes", *sizes[:3], "--adaptive", "--against", "lumiglue bf16")
        if not self.dry_run:
            self._run("speed-compiled", *bench, "--sizes", "512", "1024", "--against", "compiled", "bf16 compiled")
            graphs = ("graphs", "bf16 graphs")
            self._run("speed-graphs", *bench, "--sizes", *sizes, "--against", "lumiglue bf16", *graphs)
            self._run("speed-graphs-adaptive", *bench, "--sizes", *sizes[:3], "--adaptive", "--against", *graphs)

    def train(self) -> None:
        """Trains on as many pairs as fit."""
        if not self.datasets:
            raise SystemExit("training needs --datasets")
        batch = 4 if self.dry_run else 128 if self.teacher is None else 16
        if self.teacher is None:
            small = ("--preset", "compact", "--points", "64", "--long-points", "64", "--compile", "False")
            recipe, forced = ("--recipe", "gpu_30min", *(small if self.dry_run else ())), 0.0
        else:
            lengths = ("64",) if self.dry_run else ("512", "512", "1024")
            recipe, forced = ("--recipe", "student", "--teacher", self.teacher, "--lengths", *lengths), 0.2
        recipe = (*recipe, "--batch-size", str(batch))
        trial = ("--pairs", str(30 * batch), "--confidence-pairs", "0", "--evaluate-every", str(10**9))
        self._run("train-trial", "lumiglue", "train", *self.datasets, "-o", str(self.out / "trial"), *recipe, *trial)
        lines = [json.loads(line) for line in (self.out / "trial" / "metrics.jsonl").read_text().splitlines()]
        rate = float(lines[-1]["pairs_per_second"])
        pairs = max(batch, round(0.9 * 60 * self.minutes * rate) // batch * batch)
        self._say(f"{rate:.1f} pairs/s in the trial, so {pairs} pairs in {self.minutes:g} minutes")
        length = ("--pairs", str(pairs), "--confidence-pairs", str(max(batch, pairs // 40)))
        length += ("--forced-pairs", str(round(forced * pairs)), "--warmup-pairs", str(pairs // 30))
        every = ("--evaluate-every", str(max(batch, pairs // 12)), "--checkpoint-every", str(max(batch, pairs // 12)))
        run = self.out / "run"
        self._run("train", "lumiglue", "train", *self.datasets, "-o", str(run), *recipe, *length, *every)
        for name in ("metrics.jsonl", "curves.png"):
            shutil.copy(run / name, self.out / name)
        content = (run / "weights.safetensors").read_bytes()
        for number, start in enumerate(range(0, len(content), PIECE)):
            (self.out / f"weights.{number}").write_bytes(content[start : start + PIECE])

    def _run(self, name: str, module: str, *arguments: str) -> None:
        began = time.monotonic()
        with (self.out / f"{name}.log").open("w") as log:
            command = [sys.executable, "-m", module, *arguments]
            log.write(" ".join(command) + "\n")
            log.flush()
            environment = {**os.environ, "COLUMNS": "160", "PYTHONUNBUFFERED": "1"}
            ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
        self._say(f"{name}: exit {ended} after {time.monotonic() - began:.0f} s")

    def _say(self, line: str) -> None:
        print(line, flush=True)
        with (self.out / "summary.txt").open("a") as file:
            file.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--datasets", nargs="*", default=[])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--teacher", help="weights of a matcher whose states the trained one follows")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    job = Job(options.out, tuple(options.datasets), options.minutes, options.teacher, options.dry_run)
    for step in options.steps:
        getattr(job, step)()


if __name__ == "__main__":
    main()
