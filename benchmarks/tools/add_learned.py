"""Adds to a matcher what another has learned since: weights + share * (after - before), but for the input projection.

    python benchmarks/tools/add_learned.py aliked-n16rot-deep --before OLD --after aliked-n16-deep --share 0.5 \\
        -o start.safetensors

The matcher's layers should once have been those of `--before` (see carry_over.py); the features may differ. Ilharco et al.,
2023, "Editing Models with Task Arithmetic". Try several shares on held-out pairs.
"""

import argparse
from pathlib import Path

import torch

from lumiglue.errors import InputError
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.weights.files import load_weights, save_weights
from lumiglue.weights.registry import resolve


@torch.no_grad()
def with_learned(model: LightGlue, before: LightGlue, after: LightGlue, share: float) -> LightGlue:
    """`model`, changed in place. Raises InputError if the layers differ in shape."""
    states = [
        {name: parameter for name, parameter in matcher.named_parameters() if not name.startswith("input_projection.")}
        for matcher in (model, before, after)
    ]
    shapes = [{name: parameter.shape for name, parameter in state.items()} for state in states]
    if not shapes[0] == shapes[1] == shapes[2]:
        raise InputError("the three matchers differ in the number or the width of their layers")
    for name, parameter in states[0].items():
        parameter += share * (states[2][name] - states[1][name])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a name or a .safetensors file")
    parser.add_argument("--before", required=True, help="the weights that the layers once came from")
    parser.add_argument("--after", required=True, help="what became of those weights")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    models = [load_weights(resolve(name)).float() for name in (args.weights, args.before, args.after)]
    matchers = [model for model in models if isinstance(model, LightGlue)]
    if len(matchers) != len(models):
        parser.error("all three must be LightGlue matchers")
    model, before, after = matchers
    save_weights(with_learned(model, before, after, args.share), args.out, {"learned_from": args.after, "share": args.share})
    print(args.out)


if __name__ == "__main__":
    main()
