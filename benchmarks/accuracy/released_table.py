"""Accuracy of the released matchers, ours, and nearest neighbours on five kinds of features, at 1,024 and 2,048 keypoints.

    python benchmarks/accuracy/released_table.py run EVAL --files FILES --out OUT
    python benchmarks/accuracy/released_table.py time EVAL --files FILES --out OUT
    python benchmarks/accuracy/released_table.py tables --out OUT                      # OUT/tables.json

EVAL is a folder with a pairs.json. FILES has the released extractors and matchers under the names in `SETUPS`. OUT gets
a .csv for each kind of features and number of keypoints (as from `lumiglue eval --out`), and the features of each image.

Pairs are measured in an order that covers all groups evenly, a few pairs of every kind of features at a time, so that the
tables of a partial run are already representative: they use the pairs that all kinds of features have in common.
"""

import argparse
import hashlib
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from lumiglue import Features, MatchSettings, Pipeline
from lumiglue.evaluation.baselines import BASELINES, Matcher
from lumiglue.evaluation.formats import read_upright
from lumiglue.evaluation.pairs import GroundTruthPair, read_pairs
from lumiglue.evaluation.run import matcher_of
from lumiglue.evaluation.scores import ScoresFile, read_record, read_scores
from lumiglue.evaluation.scoring import PairScore, Protocol, score_pairs, summarise
from lumiglue.extractors import Extractor, create_extractor
from lumiglue.matcher.models import MatcherModel
from lumiglue.weights import load_weights, resolve
from lumiglue.weights.released import import_released

ADAPTIVE, FULL = MatchSettings(), MatchSettings(exit_ratio=0, prune_below=0)
WIDE = ("strecha", "fox")  # groups with wide baselines
PAIRS_AT_A_TIME = 10
LARGEST = 2048
ROUNDS, TIMED_PAIRS = 5, 3


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One kind of features and the matchers that are measured on it.

    matcher: name in the tables; a name of built-in weights unless `checkpoint` is given.
    network, checkpoint: file names of the released extractor and matcher.
    nested: the features of n keypoints are the first n of 2,048, so that they are extracted once. (Measured on five photos.
        ALIKED refines scores after it has selected, and about ten of 1,024 keypoints differ.)
    """

    features: str
    matcher: str
    network: str | None = None
    checkpoint: str | None = None
    baselines: tuple[str, ...] = ("nn", "ratio-0.9")
    nested: bool = False

    def extractor(self, max_keypoints: int, files: Path) -> Extractor:
        """At full image size."""
        weights: dict[str, Any] = {} if self.network is None else {"weights": files / self.network}
        return create_extractor(self.features, max_keypoints=max_keypoints, resize=None, **weights)

    def model(self, files: Path) -> MatcherModel:
        """The matcher with its weights."""
        if self.checkpoint is None:
            return load_weights(resolve(self.matcher))
        return import_released(files / self.checkpoint, self.features)


SETUPS = (
    Setup(
        features="sift", matcher="sift-compact", baselines=("nn", "ratio-0.8", "ratio-0.85", "ratio-0.9", "adalam"),
        nested=True,
    ),
    Setup(features="aliked-n16rot", matcher="aliked-n16rot-deep", network="aliked-n16rot.pth"),
    Setup(
        features="aliked-n16", matcher="aliked-lightglue", network="aliked-n16.pth", checkpoint="aliked_lightglue.pth"
    ),
    Setup(
        features="disk", matcher="disk-lightglue", network="disk-depth-save.pth", checkpoint="disk_lightglue.pth",
        nested=True,
    ),
    Setup(
        features="xfeat", matcher="xfeat-lighterglue", network="xfeat.pt", checkpoint="xfeat-lighterglue.pt", nested=True
    ),
)  # fmt: skip


@dataclass(frozen=True)
class StoredFeatures:
    """An extractor whose features are stored in `folder`, one file an image, and read from there the next time.

    max_keypoints: how many of the extractor's keypoints are returned.
    """

    extractor: Extractor
    max_keypoints: int
    folder: Path

    @property
    def name(self) -> str:
        return self.extractor.name

    @property
    def descriptor_dim(self) -> int:
        return self.extractor.descriptor_dim

    def config(self) -> dict[str, Any]:
        return self.extractor.config()

    def __call__(self, image: np.ndarray) -> Features:
        shape = np.array(image.shape).tobytes()
        file = self.folder / f"{hashlib.sha256(shape + np.ascontiguousarray(image).tobytes()).hexdigest()[:32]}.npz"
        if not file.exists():
            save_features(self.extractor(image), file)
        return load_features(file)[: self.max_keypoints]


def save_features(features: Features, file: Path) -> None:
    """Writes an .npz that is complete as soon as it has its name."""
    parts = {name: getattr(features, name) for name in ("keypoints", "descriptors", "scores", "scales", "orientations")}
    arrays = {name: tensor.numpy() for name, tensor in parts.items() if tensor is not None}
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    with unfinished.open("wb") as stream:
        np.savez(stream, image_size=features.image_size, extractor=features.extractor, **arrays)
    unfinished.replace(file)


def load_features(file: Path) -> Features:
    with np.load(file) as arrays:
        named = {name: arrays[name] for name in arrays.files}
    width, height = named.pop("image_size").tolist()
    extractor = str(named.pop("extractor"))
    tensors = {name: torch.from_numpy(array) for name, array in named.items()}
    return Features(**tensors, image_size=(width, height), extractor=extractor)


@dataclass(frozen=True)
class Run:
    """A setup with its features and matchers ready, for one number of keypoints."""

    setup: Setup
    max_keypoints: int
    extractor: Extractor
    methods: dict[str, Matcher]
    fingerprint: str

    def scores_file(self, folder: Path, out: Path) -> ScoresFile:
        record = {
            "folder": folder.name, "features": self.setup.features, "max_keypoints": self.max_keypoints, "resize": 0,
            "protocol": asdict(Protocol()), "methods": list(self.methods), "matcher": self.fingerprint,
            "precision": "fp32", **machine(),
        }  # fmt: skip
        return ScoresFile(out / f"{self.setup.features}-{self.max_keypoints}.csv", record, len(self.methods))


def open_runs(setups: Sequence[Setup], points: Sequence[int], files: Path, out: Path) -> list[list[Run]]:
    """For each number of keypoints the runs of all setups; a setup's matcher is loaded once."""
    by_setup = []
    for setup in setups:
        model, runs = setup.model(files), []
        for n in points:
            extractor = setup.extractor(LARGEST if setup.nested else n, files)
            stored_as = f"{setup.features}-{LARGEST if setup.nested else n}"
            stored = StoredFeatures(extractor, n, out / "features" / stored_as)
            pipeline = Pipeline(stored, model, ADAPTIVE, device="cpu")
            names = {name: BASELINES[name] for name in setup.baselines}
            names[setup.matcher] = matcher_of(pipeline)
            names[f"{setup.matcher}-full"] = matcher_of(pipeline.with_settings(FULL))
            runs.append(Run(setup, n, stored, names, pipeline.fingerprint()))
        by_setup.append(runs)
    return [list(runs) for runs in zip(*by_setup, strict=True)]


def machine() -> dict[str, Any]:
    """What computed: processor, its widest instructions in use, threads, PyTorch."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    capability = torch.backends.cpu.get_cpu_capability()
    return {"processor": model, "kernels": capability, "threads": torch.get_num_threads(), "torch": torch.__version__}


def spread(pairs: Sequence[GroundTruthPair]) -> list[GroundTruthPair]:
    """The pairs in an order of which every beginning has about the same share of each group."""
    sizes, seen, places = Counter(pair.group for pair in pairs), Counter(), []
    for pair in pairs:
        group = pair.group
        places.append((seen[group] + 0.5) / sizes[group])
        seen[group] += 1
    return [pairs[k] for k in sorted(range(len(pairs)), key=lambda k: places[k])]


def run(folder: Path, setups: Sequence[Setup], points: Sequence[int], files: Path, out: Path) -> None:
    """Measures what is not in `out` yet. Pairs are written as they are done."""
    pairs = spread(read_pairs(folder))
    for runs in open_runs(setups, points, files, out):
        scores = [one.scores_file(folder, out) for one in runs]
        for start in range(0, len(pairs), PAIRS_AT_A_TIME):
            some = pairs[start : start + PAIRS_AT_A_TIME]
            for one, file in zip(runs, scores, strict=True):
                began, missing = time.perf_counter(), file.missing(some)
                scored = score_pairs(folder, missing, one.extractor, one.methods)
                for _, of_pair in groupby(scored, key=lambda score: (score.a, score.b)):
                    file.append(list(of_pair))
                if missing:
                    what, done, seconds = one.setup.features, start + len(some), time.perf_counter() - began
                    print(f"{one.max_keypoints} {what}: {done} of {len(pairs)} pairs, {seconds:.0f} s", flush=True)


def measure_times(folder: Path, setups: Sequence[Setup], points: Sequence[int], files: Path, out: Path) -> None:
    """Milliseconds of matching alone, all matchers in turns: medians of 5 rounds for each of 3 pairs, to OUT/times.json."""
    pairs = spread(read_pairs(folder))
    chosen = [pairs[(2 * k + 1) * len(pairs) // (2 * TIMED_PAIRS)] for k in range(TIMED_PAIRS)]
    load, taken = [os.getloadavg()[0]], {}
    for runs in open_runs(setups, points, files, out):
        of_points = taken[str(runs[0].max_keypoints)] = {}
        for pair in chosen:
            for key, times in rounds_on(folder, pair, runs):
                features, method = key
                of_points.setdefault(features, {}).setdefault(method, []).append(round(statistics.median(times), 2))
    load.append(os.getloadavg()[0])
    record = {
        **machine(), "precision": "fp32", "rounds": ROUNDS, "pairs": [[pair.a, pair.b] for pair in chosen],
        "load_average": load, "usable_cores": len(os.sched_getaffinity(0)),
        "note": "A load average above 1 means that other programs ran at the same time.", "milliseconds": taken,
    }  # fmt: skip
    (out / "times.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def rounds_on(folder: Path, pair: GroundTruthPair, runs: Sequence[Run]) -> Iterator[tuple[tuple[str, str], list[float]]]:
    """(features, method) and its milliseconds in each round on one pair."""
    images = [read_upright(folder / name, turns) for name, turns in ((pair.a, pair.turns_a), (pair.b, pair.turns_b))]
    times: dict[tuple[str, str], list[float]] = {}
    features = [tuple(one.extractor(image) for image in images) for one in runs]
    for _ in range(ROUNDS):
        for one, (a, b) in zip(runs, features, strict=True):
            for name, match in one.methods.items():
                start = time.perf_counter()
                match(a, b)
                times.setdefault((one.setup.features, name), []).append((time.perf_counter() - start) * 1000)
    yield from times.items()


def tables(out: Path, pages: Path | None) -> None:
    """Writes the figures of each number of keypoints to OUT/tables.json, and the data of the pages' tables."""
    times = json.loads((out / "times.json").read_text()) if (out / "times.json").exists() else {}
    files = sorted(out.glob("*-[0-9]*.csv"))
    records = {file: read_record(file) for file in files}
    rows: list[dict[str, Any]] = []
    pairs: dict[int, int] = {}
    for n in sorted({record["max_keypoints"] for record in records.values()}):
        of_points = {r["features"]: read_scores(file) for file, r in records.items() if r["max_keypoints"] == n}
        done = {features: {(s.a, s.b) for s in scores} for features, scores in of_points.items() if scores}
        if not done:
            continue
        common = set.intersection(*done.values())
        pairs[n] = len(common)
        print(f"\n{n:,} keypoints, {len(common)} pairs (done: {', '.join(f'{f} {len(p)}' for f, p in done.items())})\n")
        for setup in SETUPS:
            for row in rows_of([s for s in of_points.get(setup.features, []) if (s.a, s.b) in common]):
                measured = times.get("milliseconds", {}).get(str(n), {}).get(setup.features, {}).get(row["matcher"])
                row["milliseconds"] = None if measured is None else round(statistics.mean(measured), 1)
                rows.append({"features": setup.features, "max_keypoints": n, **row})
    about = ("protocol", "resize", "precision", "processor", "kernels", "threads", "torch")
    measured_with = {name: record[name] for record in records.values() for name in about}
    timed = {name: value for name, value in times.items() if name != "milliseconds"}
    (out / "tables.json").write_text(json.dumps({**measured_with, "times": timed, "rows": rows}, indent=2) + "\n")
    if pages is not None:
        write_pages(rows, measured_with, pairs, pages)


def shown(value: Any, digits: int) -> Any:
    """A figure, or a list of them, with the digits that a page shows."""
    if isinstance(value, list | tuple):
        return [shown(one, digits) for one in value]
    return value if value is None else round(value, digits) if digits else round(value)


def write_pages(rows: Sequence[dict[str, Any]], measured_with: dict[str, Any], pairs: dict[int, int], folder: Path) -> None:
    """Writes the data of the tables in docs/results/accuracy.md: accuracy, and how deep the matchers went."""
    accuracy = {"P / R / F1 (3 px)": "planar", "corner AUC 1/3/5/10 px": "corner_auc", "pose AUC 5/10/20": "pose_auc"}
    depth = {
        "pose, wide": "pose_auc_wide", "epipolar AUC 3/10/20 px": "epipolar_auc", "matches": "matches",
        "stop layer": "stop_layer", "layers a point": "layers_per_point", "ms": "milliseconds",
    }  # fmt: skip
    digits = {"matches": 0, "stop layer": 2, "layers a point": 2, "ms": 0}
    about = {
        "processor": f"2 cores of an {measured_with['processor']} ({measured_with['kernels']})",
        "versions": f"PyTorch {measured_with['torch']}, float32, one thread",
        "date": date.today().isoformat(),
        "commands": [
            "python benchmarks/accuracy/released_table.py run EVAL --files FILES --out OUT",
            "python benchmarks/accuracy/released_table.py tables --out OUT --pages docs/results/data",
        ],
    }
    for n, count in pairs.items():
        note = f"{count} of the 271 pairs, of all groups evenly: the run was stopped there and resumes."
        for name, columns in (("released", accuracy), ("released-depth", depth)):
            table = {
                **about,
                **({"note": note} if count < 271 else {}),
                "columns": [{"name": "features"}, {"name": "matcher"}]
                + [{"name": column, "digits": digits.get(column, 1)} for column in columns],
                "rows": [
                    [row["features"], row["matcher"], *(shown(row[key], digits.get(c, 1)) for c, key in columns.items())]
                    for row in rows
                    if row["max_keypoints"] == n
                ],
            }
            file = folder / f"{name}{'' if n == 1024 else f'-{n}'}.json"
            file.write_text(json.dumps(table, indent=1) + "\n")


def rows_of(scores: Sequence[PairScore]) -> list[dict[str, Any]]:
    """A row for each method, of rounded figures; None where there is none."""
    rows = []
    for s in summarise(scores):
        of_method = [score for score in scores if score.method == s.method]
        wide = [score for score in of_method if score.group.startswith(WIDE)]
        figures = {
            "pairs": s.pairs, "planar": [s.precision, s.recall, s.f1], "corner_auc": s.corner_auc, "pose_auc": s.pose_auc,
            "pose_auc_wide": summarise(wide)[0].pose_auc if wide else [float("nan")] * 3, "epipolar_auc": s.epipolar_auc,
            "matches": s.matches, "stop_layer": s.stop_layer or float("nan"),
            "layers_per_point": s.layers_per_point or float("nan"),
        }  # fmt: skip
        rows.append({"matcher": s.method, **{name: rounded(value) for name, value in figures.items()}})
    return rows


def rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return None if value != value else round(value, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "time", "tables"])
    parser.add_argument("folder", type=Path, nargs="?", help="photos and pairs.json")
    parser.add_argument("--files", type=Path, help="folder of the released extractors and matchers")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--features", nargs="+", choices=[setup.features for setup in SETUPS], default=None)
    parser.add_argument("--max-keypoints", nargs="+", type=int, default=[1024, LARGEST])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pages", type=Path, help="docs/results/data, to rewrite the data of its tables")
    options = parser.parse_args()
    if options.command == "tables":
        return tables(options.out, options.pages)
    if options.folder is None or options.files is None:
        parser.error("give the folder of pairs and --files")
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    setups = [setup for setup in SETUPS if options.features is None or setup.features in options.features]
    measure = run if options.command == "run" else measure_times
    return measure(options.folder, setups, options.max_keypoints, options.files, options.out)


if __name__ == "__main__":
    main()
