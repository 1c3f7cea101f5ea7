"""Whether the released matchers give here what the original implementation gives, on real pairs.

    python benchmarks/accuracy/parity_released.py EVAL [--pairs 30 12 30] [--max-keypoints 1024]

For each released file of tests/released.txt, adaptive and at full depth, one pair at a time: matches of ours, of the
original and common to both; the largest difference of a score; pairs that stop at the same layer; pairs in which every
point leaves after the same layer. The pairs are spread over the whole of EVAL.
"""

import argparse
import sys
from pathlib import Path

import torch

from lumiglue import Features, LightGlue, MatchSettings
from lumiglue.evaluation.pairs import read_pairs
from lumiglue.images import read_image
from lumiglue.matcher.inputs import pack
from lumiglue.weights.released import import_released

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from released_files import MATCHERS, ask_original, extractor_for, original_matcher, released_file

SETTINGS = {"adaptive": MatchSettings(), "full": MatchSettings(exit_ratio=0, prune_below=0)}
HEADS = (
    "file", "depth", "pairs", "ours", "original", "both", "same of all", "largest difference of a score",
    "same stop layer", "same layers of each point",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, nargs=3, default=[30, 12, 30], help="of " + ", ".join(MATCHERS))
    parser.add_argument("--max-keypoints", type=int, default=1024)
    options = parser.parse_args()
    print("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|", flush=True)
    records = read_pairs(options.folder)
    for (features, name), count in zip(MATCHERS.items(), options.pairs, strict=True):
        chosen = [records[round(i * (len(records) - 1) / max(count - 1, 1))] for i in range(count)]
        extractor = extractor_for(features, max_keypoints=options.max_keypoints)
        pairs = [(extractor(read_image(options.folder / r.a)), extractor(read_image(options.folder / r.b))) for r in chosen]
        file = released_file(name)
        assert file is not None
        model = import_released(file, features)
        assert isinstance(model, LightGlue)
        for title, settings in SETTINGS.items():
            row = compare(model, settings, original_matcher(features, adaptive=title == "adaptive"), pairs)
            print(f"| {name} | {title} | {len(pairs)} | {row} |", flush=True)


def compare(
    model: LightGlue, settings: MatchSettings, original: torch.nn.Module, pairs: list[tuple[Features, Features]]
) -> str:
    """The columns of a row from `ours` on."""
    ours = theirs = both = stops = layers = 0
    largest = 0.0
    for pair in pairs:
        mine, answer = model.match(pack([pair], model.config), settings)[0], ask_original(original, pair)
        our_scores = dict(zip(map(tuple, mine.pairs.tolist()), mine.scores.tolist(), strict=True))
        expected = dict(zip(map(tuple, answer["matches"].tolist()), answer["scores"].tolist(), strict=True))
        common = our_scores.keys() & expected.keys()
        ours, theirs, both = ours + len(our_scores), theirs + len(expected), both + len(common)
        largest = max([largest, *(abs(our_scores[key] - expected[key]) for key in common)])
        stops += mine.stop_layer == answer["stop"]
        layers += torch.equal(mine.layers0, answer["layers0"]) and torch.equal(mine.layers1, answer["layers1"])
    share = 100 * both / max(ours + theirs - both, 1)
    counts = f"{ours:,} | {theirs:,} | {both:,} | {share:.3f} % | {largest:.1e}"
    return f"{counts} | {stops} of {len(pairs)} | {layers} of {len(pairs)}"


if __name__ == "__main__":
    main()
