"""The figures of docs/results/accuracy.md from the per-pair figures of `lumiglue eval --out scores.csv`."""

import sys
from pathlib import Path

from lumiglue.evaluation.metrics import auc
from lumiglue.evaluation.scores import read_scores
from lumiglue.evaluation.scoring import POSE_THRESHOLDS, PairScore, summarise

WIDE = ("strecha", "fox")
POSE_SETS = {
    "fountain (40)": ("strecha_fountain",),
    "entry (24)": ("strecha_entry",),
    "fox (71)": ("fox",),
    "KITTI (91)": ("kitti",),
    "fountain, entry, fox together": WIDE,
}
PLANAR_SETS = ("oxford_graf", "oxford_boat", "oxford_bikes", "oxford_ubc", "homogr")


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def shares(*values: float) -> str:
    return " / ".join(f"{value:.1f}" for value in values)


def main(scores: list[PairScore]) -> None:
    print(row("matcher", "P / R / F1 at 3 px", "corner AUC 1/3/5/10 px", "pose AUC 5/10/20 deg", "epipolar AUC 3/10/20 px",
              "matches", "ms", "stop layer"))  # fmt: skip
    print("|---" * 8 + "|")
    for s in summarise(scores):
        areas = (shares(*values) for values in (s.corner_auc, s.pose_auc, s.epipolar_auc))
        numbers = f"{s.matches:.0f}", f"{s.milliseconds:.0f}", f"{s.stop_layer:.2f}"
        print(row(s.method, shares(s.precision, s.recall, s.f1), *areas, *numbers))
    methods = list(dict.fromkeys(s.method for s in scores))
    print("\n" + row("matcher", *POSE_SETS) + "\n" + "|---" * (len(POSE_SETS) + 1) + "|")
    for method in methods:
        errors = [[s.error for s in scores if s.method == method and s.group.startswith(g)] for g in POSE_SETS.values()]
        print(row(method, *(shares(*auc(values, POSE_THRESHOLDS)) for values in errors)))
    print("\n" + row("matcher", *PLANAR_SETS) + "\n" + "|---" * (len(PLANAR_SETS) + 1) + "|")
    for method in methods:
        parts = [summarise([s for s in scores if s.method == method and s.group == g])[0] for g in PLANAR_SETS]
        print(row(method, *(shares(p.precision, p.recall, p.f1) for p in parts)))


if __name__ == "__main__":
    main(read_scores(Path(sys.argv[1])))
