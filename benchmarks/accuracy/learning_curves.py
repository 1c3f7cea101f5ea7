"""Learning curves of runs made with `lumiglue train --keep-every N`: every snapshot on the same pairs.

    python benchmarks/accuracy/learning_curves.py one=runs/one two=runs/two --datasets h=h.h5 w=w.h5 --folder EVAL \\
        --real 8000 -o curves

Held-out pairs of each dataset (64): recall, precision and average precision (the area under the curve of the two) at full
depth. Pairs of two scenes (64): matches a pair, all of them wrong. With --folder, real pairs for the snapshots after --real
pairs seen: planar F1 and pose AUC. Writes OUT.csv and OUT.png, prints a table. With --layers, also the figures of each layer
of the last snapshot of those runs: what stopping at layer l of L costs.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import torch

from lumiglue.cli.flags import PipelineFlags
from lumiglue.evaluation.baselines import Matcher
from lumiglue.evaluation.metrics import auc
from lumiglue.evaluation.pairs import only_groups, read_pairs
from lumiglue.evaluation.scoring import score_pairs, summarise
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.models import MatcherModel
from lumiglue.matcher.settings import MatchSettings
from lumiglue.training.config import TrainSettings
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.sampling import PairSampler
from lumiglue.training.validation import predict_layers, validate
from lumiglue.visualization import draw_curves, save_figure
from lumiglue.weights.files import load_weights

FULL = MatchSettings(exit_ratio=0, prune_below=0)
SETTINGS = TrainSettings(precision="fp32")


def snapshots(run: Path) -> dict[int, Path]:
    """Pairs seen -> weights file."""
    return {int(file.stem.removeprefix("pairs-")): file for file in sorted((run / "snapshots").glob("pairs-*.safetensors"))}


def on_datasets(model: MatcherModel, datasets: dict[str, FeatureDataset]) -> dict[str, float]:
    """Figures on held-out pairs of each dataset, and the matches that pairs of two scenes are given."""
    figures = {}
    for name, dataset in datasets.items():
        sampler = PairSampler([dataset], model.config, split="validation", seed=0, negative_pair_ratio=0.0)
        last = validate(model, sampler, SETTINGS, 1)[-1]
        figures |= {f"{name} {key}": value for key, value in last.items()}
    unrelated = PairSampler(list(datasets.values()), model.config, split="validation", seed=0, negative_pair_ratio=1.0)
    wrong = []
    for step in range(8):
        batch = unrelated.batch(step, 8, SETTINGS.validation_points)
        matched = predict_layers(model, batch, "fp32")[-1].matches[:, 0] >= 0
        wrong.append(matched[~batch.related].sum(1).float())
    return figures | {"matches of two scenes": float(torch.cat(wrong).mean())}


def on_real_pairs(models: dict[str, MatcherModel], folder: Path, flags: PipelineFlags) -> dict[str, dict[str, float]]:
    """Planar F1 and pose AUC of each, in one pass over the same features."""

    def matcher(model: MatcherModel) -> Matcher:
        return lambda a, b: model.match(pack([(a, b)], model.config), FULL)[0]

    methods = {name: matcher(model) for name, model in models.items()}
    pairs = only_groups(read_pairs(folder), ("oxford", "homogr", "strecha", "fox"))
    scores = list(score_pairs(folder, pairs, flags.pipeline().extractor, methods))
    figures = {}
    for name in methods:
        mine = [score for score in scores if score.method == name]
        summary = summarise(mine)[0]
        pose = auc([score.error for score in mine if score.type == "pose"], (5.0, 10.0, 20.0))
        figures[name] = {"planar F1": summary.f1, "corner AUC@5": summary.corner_auc[2]}
        figures[name] |= {f"wide pose AUC@{limit}": value for limit, value in zip((5, 10, 20), pose, strict=True)}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="name=folder")
    parser.add_argument("--datasets", nargs="+", required=True, help="name=file.h5, whose held-out pairs count")
    parser.add_argument("--folder", type=Path, help="real pairs with a pairs.json")
    parser.add_argument("--real", type=int, nargs="+", default=[], help="pairs seen of the snapshots that match real pairs")
    parser.add_argument("--only-real", action="store_true", help="leave the held-out pairs of the datasets out")
    parser.add_argument("--features", default="sift")
    parser.add_argument("--layers", nargs="+", default=[], help="names of runs whose layers are listed")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    runs = {name: Path(folder) for name, _, folder in (run.partition("=") for run in options.runs)}
    datasets = {name: FeatureDataset(file) for name, _, file in (dataset.partition("=") for dataset in options.datasets)}

    rows: list[dict[str, object]] = []
    for name, run in runs.items():
        for seen, file in snapshots(run).items():
            if options.only_real and seen not in options.real:
                continue
            figures = {} if options.only_real else on_datasets(load_weights(file).eval(), datasets)
            rows.append({"run": name, "pairs": seen, **figures})
    if options.folder:
        chosen = {
            f"{name} {seen}": load_weights(file).eval()
            for name, run in runs.items()
            for seen, file in snapshots(run).items()
            if seen in options.real
        }
        flags = replace(PipelineFlags(), features=options.features, max_keypoints=1024, resize=0)
        real = on_real_pairs(chosen, options.folder, flags)
        for row in rows:
            row |= real.get(f"{row['run']} {row['pairs']}", {})

    for name in options.layers:
        seen, file = list(snapshots(runs[name]).items())[-1]
        model = load_weights(file).eval()
        for dataset_name, dataset in datasets.items():
            sampler = PairSampler([dataset], model.config, split="validation", seed=0, negative_pair_ratio=0.0)
            print(f"\n| {name} after {seen} pairs, {dataset_name}: layer | R / P / AP |\n|---|---|")
            for layer, figures in enumerate(validate(model, sampler, SETTINGS, 1), start=1):
                shown = " / ".join(f"{figures[key]:.1f}" for key in ("recall", "precision", "average_precision"))
                print(f"| {layer} | {shown} |")

    names = list(dict.fromkeys(key for row in rows for key in row))
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for row in rows:
        print("| " + " | ".join(f"{v:.1f}" if isinstance(v := row.get(k, ""), float) else str(v) for k in names) + " |")
    panels = {}
    for name in names[2:]:
        lines = {}
        for run in runs:
            drawn = [(float(str(row["pairs"])), float(str(row[name]))) for row in rows if row["run"] == run and name in row]
            lines[run] = ([x for x, _ in drawn], [y for _, y in drawn])
        panels[name] = lines
    save_figure(draw_curves(panels, "percent; matches"), options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
