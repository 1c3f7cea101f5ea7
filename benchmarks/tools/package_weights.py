"""Puts trained weights into the package, as float16, with the record of how they were made and how well they do.

    python benchmarks/tools/package_weights.py run/weights.safetensors --name sift --data "..." --hours 1.5 \\
        --machine "..." --before first.safetensors --scores scores.csv
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lumiglue.evaluation.scores import read_scores
from lumiglue.evaluation.scoring import summarise
from lumiglue.io.download import file_sha256
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.training.averaging import mean_of
from lumiglue.weights.files import BUILT_IN, load_weights, pretrained_path, read_metadata, save_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "weights", type=Path, nargs="+", help="run/weights.safetensors of `lumiglue train`; several: their mean"
    )
    parser.add_argument("--name", required=True, choices=sorted(BUILT_IN))
    parser.add_argument("--data", required=True, help="one sentence: which photos, under which licences")
    parser.add_argument("--hours", type=float, required=True, help="wall time of the training, and on what machine")
    parser.add_argument("--machine", required=True)
    parser.add_argument("--scores", type=Path, required=True, help="the .csv of `lumiglue eval --out`")
    parser.add_argument("--method", default="lumiglue")
    parser.add_argument("--features", help="name of the features, where the dataset called them otherwise")
    parser.add_argument("--before", type=Path, help="the weights that the run started from, whose record is kept too")
    parser.add_argument("--exit-ratio", type=float, help="alpha that the weights run with; by default the run's")
    parser.add_argument("--prune-below", type=float, help="beta that the weights run with; by default the run's")
    options = parser.parse_args()

    record = without_paths(read_metadata(options.weights[-1])[1])
    if options.before:
        before = without_paths(read_metadata(options.before)[1])
        record["before"] = {name: before[name] for name in ("recipe", "dataset", "datasets", "before") if name in before}
    record.update(
        licence="Apache-2.0",
        training_data=options.data,
        training_hours=options.hours,
        machine=options.machine,
        metrics=read_metrics(options.scores, options.method),
    )
    target = pretrained_path(options.name)
    target.parent.mkdir(exist_ok=True)
    models = [model for file in options.weights if isinstance(model := load_weights(file), LightGlue)]
    assert len(models) == len(options.weights)
    model = mean_of(models).half()
    model.config = replace(model.config, extractor=options.features or model.config.extractor)
    given = {name: getattr(options, name) for name in ("exit_ratio", "prune_below")}
    model.config = replace(model.config, **{name: value for name, value in given.items() if value is not None})
    save_weights(model, target, record)
    write_checksums(target.parent)
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB): {record['metrics']}")


def write_checksums(folder: Path) -> None:
    """SHA256SUMS, by which `lumiglue doctor` knows the files."""
    files = sorted(folder.glob("*.safetensors"))
    (folder / "SHA256SUMS").write_text("".join(f"{file_sha256(file)}  {file.name}\n" for file in files))


def without_paths(value: Any) -> Any:
    """A record without the paths of the machine that made it."""
    if isinstance(value, dict):
        path = {key for key in ("start_from", "teacher") if isinstance(value.get(key), str)}
        return {key: without_paths(item) for key, item in value.items() if not key.startswith("_") and key not in path}
    return [without_paths(item) for item in value] if isinstance(value, list) else value


def read_metrics(scores: Path, method: str) -> dict[str, object]:
    """The summary of one method from the per-pair figures."""
    summary = summarise([score for score in read_scores(scores) if score.method == method])[0]
    shares = {name: round(getattr(summary, name), 1) for name in ("precision", "recall", "f1")}
    areas = {name: np.round(getattr(summary, name), 1).tolist() for name in ("corner_auc", "pose_auc", "epipolar_auc")}
    return {
        "pairs": summary.pairs,
        "unit": "percent, at 3 px; AUCs at 1/3/5/10 px, 5/10/20 deg, 3/10/20 px",
        **shares,
        **areas,
    }


if __name__ == "__main__":
    main()
