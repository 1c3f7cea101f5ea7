"""Learning curves by class: what `yardstick.py measure` found for the snapshots of a run.

    for n in 600 1200 1800; do
        python benchmarks/accuracy/yardstick.py measure YARDSTICK -o SCORES --cache CACHE --features sift \\
            --weights run/snapshots/pairs-$n.safetensors --methods lumiglue --name run-$n --max-keypoints 2048
    done
    python benchmarks/accuracy/yardstick_curves.py SCORES --runs run --levels nn ratio-0.9 -o curves.png

Names of the form RUN-PAIRS are points of a curve; other methods, such as nearest neighbours, are levels. Prints a table and
draws a panel for each class and figure: planar F1, pose AUC at 5 degrees, epipolar AUC at 3 px.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from lumiglue.evaluation.classes import by_class, figures
from lumiglue.evaluation.pairs import read_pairs
from lumiglue.evaluation.scores import read_record, read_scores
from lumiglue.evaluation.scoring import PairScore
from lumiglue.visualization import draw_curves, save_figure

SHOWN = ("planar F1", "pose AUC@5", "epipolar AUC@3")


def read_method(path: Path) -> list[PairScore]:
    """The scores of a file, with the groups of its folder's pairs.json today."""
    groups = {(pair.a, pair.b): pair.group for pair in read_pairs(read_record(path)["folder"])}
    return [replace(s, group=groups[s.a, s.b]) for s in read_scores(path) if (s.a, s.b) in groups]


def of_classes(scores: list[PairScore]) -> dict[str, float]:
    """The figures of all pairs and of each class, by "CLASS, FIGURE"."""
    found = {}
    for name, members in {"all": scores, **by_class(scores)}.items():
        values = figures(members, rounds=0)
        found |= {f"{name}, {figure}": values[figure].value for figure in SHOWN if figure in values}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--runs", nargs="+", required=True, help="names before the number of pairs")
    parser.add_argument("--levels", nargs="*", default=[], help="methods that do not learn")
    parser.add_argument("--features", default="sift")
    parser.add_argument("--max-keypoints", type=int, default=2048)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()

    curves: dict[str, dict[int, dict[str, float]]] = {}
    for run in args.runs:
        files = args.scores.glob(f"{args.features}-{args.max_keypoints}-{run}-*.csv")
        numbered = {int(number): file for file in files if (number := file.stem.rsplit("-", 1)[1]).isdigit()}
        curves[run] = {number: of_classes(read_method(numbered[number])) for number in sorted(numbered)}
        if not curves[run]:
            parser.error(f"{args.scores} has no scores of {args.features}, {args.max_keypoints} points, {run}-PAIRS")
    longest = max(max(curve) for curve in curves.values())
    for level in args.levels:
        found = of_classes(read_method(args.scores / f"{args.features}-{args.max_keypoints}-{level}.csv"))
        curves[level] = {0: found, longest: found}

    names = list(dict.fromkeys(name for curve in curves.values() for found in curve.values() for name in found))
    print("| run | pairs | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names))
    for run, curve in curves.items():
        for number, found in curve.items():
            print(f"| {run} | {number} | " + " | ".join(f"{found[name]:.1f}" for name in names) + " |")
    panels = {
        name: {run: (list(curve), [found[name] for found in curve.values()]) for run, curve in curves.items()}
        for name in names
    }
    save_figure(draw_curves(panels, "percent"), args.out)


if __name__ == "__main__":
    main()
