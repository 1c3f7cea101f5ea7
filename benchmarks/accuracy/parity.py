"""Whether every form of the matcher gives the matches of float32: bfloat16, ONNX Runtime, OpenVINO, fp16 and int8 files.

    python benchmarks/accuracy/parity.py EVAL [--every 11] [--max-keypoints 1024]

On every N-th real pair: of float32's matches the share that the form finds too, and of the form's matches the share
that are float32's; of the matches that either finds, the share that both find; the largest difference of a score; pairs
that stop at another layer. Adaptive, then at full depth.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from lumiglue import Features, MatchSettings, Pipeline
from lumiglue.evaluation.pairs import read_pairs
from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.onnx.export import OnnxSettings, export_onnx
from lumiglue.onnx.runtime import OnnxMatcher
from lumiglue.types import Matches

FULL = MatchSettings(exit_ratio=0, prune_below=0)
Match = Callable[[tuple[Features, Features]], Matches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--features", default="sift")
    parser.add_argument("--every", type=int, default=11)
    parser.add_argument("--max-keypoints", type=int, default=1024)
    parser.add_argument("--forms", default="", help="only forms whose name contains this")
    options = parser.parse_args()
    usual = Pipeline.pretrained(options.features, max_keypoints=options.max_keypoints, resize=None, precision="fp32")
    rough = Pipeline.pretrained(options.features, max_keypoints=options.max_keypoints, resize=None, precision="bf16")
    model = usual.matcher
    assert isinstance(model, LightGlue)
    partly = {part: _partly_in_bf16(model, part) for part in ("self_attention", "cross_attention")}
    pairs = [
        (usual.extract(options.folder / pair.a), usual.extract(options.folder / pair.b))
        for pair in read_pairs(options.folder)[:: options.every]
    ]
    heads = ("form", "adaptivity", "kept", "not new", "same of all", "largest difference of a score", "other stop layer")
    print(f"{len(pairs)} pairs\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for title, settings in (("on", MatchSettings()), ("off", FULL)):
            forms: dict[str, Match] = {
                "bfloat16": lambda pair, s=settings: rough.with_settings(s).match_features([pair])[0],
                **{f"bfloat16 in {part} alone": _matching(low, settings) for part, low in partly.items()},
                "packed, all pairs at once": lambda pair: together[id(pair)],  # noqa: B023
            }
            low = OnnxMatcher(model, "openvino", precision="bf16")
            forms["bfloat16, openvino"] = lambda pair, m=low, s=settings: m.match_features([pair], s)[0]
            reference = usual.with_settings(settings)
            together = dict(zip(map(id, pairs), reference.match_features(pairs), strict=True))
            for precision in ("fp32", "fp16", "int8"):
                file = Path(folder) / f"{title}-{precision}.onnx"
                export_onnx(model, file, OnnxSettings(match=settings, precision=precision))
                for runtime in ("onnxruntime", "openvino"):
                    matcher = OnnxMatcher(file, runtime)
                    forms[f"{precision}, {runtime}"] = lambda pair, m=matcher: m.match_features([pair])[0]
            expected = [reference.match_features([pair])[0] for pair in pairs]
            for name, form in forms.items():
                if options.forms not in name:
                    continue
                both = mine_all = theirs_all = other = 0
                largest = 0.0
                for pair, theirs in zip(pairs, expected, strict=True):
                    mine = form(pair)
                    scores = [
                        dict(zip(map(tuple, m.pairs.tolist()), m.scores.tolist(), strict=True)) for m in (mine, theirs)
                    ]
                    common = scores[0].keys() & scores[1].keys()
                    both, mine_all, theirs_all = both + len(common), mine_all + len(scores[0]), theirs_all + len(scores[1])
                    largest = max([largest, *(abs(scores[0][key] - scores[1][key]) for key in common)])
                    other += mine.stop_layer != theirs.stop_layer
                shares = (both / theirs_all, both / mine_all, both / (mine_all + theirs_all - both))
                columns = " | ".join(f"{100 * share:.2f} %" for share in shares)
                print(f"| {name} | {title} | {columns} | {largest:.2g} | {other} |", flush=True)


def _matching(model: LightGlue, settings: MatchSettings) -> Match:
    return lambda pair: model.match(pack([pair], model.config), settings)[0]


def _partly_in_bf16(model: LightGlue, part: str) -> LightGlue:
    copy = LightGlue(model.config)
    copy.load_state_dict(model.state_dict())
    for layer in copy.layers:
        getattr(layer, part).to(torch.bfloat16)
    return copy.eval()


if __name__ == "__main__":
    main()
