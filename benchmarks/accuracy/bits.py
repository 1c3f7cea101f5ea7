"""Where a packed batch is bit for bit the single call, and where it differs by rounding: one line a case."""

import itertools

import torch

from lumiglue.matcher.inputs import pack
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.models import preset
from lumiglue.matcher.settings import MatchSettings
from lumiglue.types import Features

SIZES = {"equal": [(300, 300)] * 4, "unequal": [(300, 250), (64, 500), (1, 9), (128, 0), (411, 300)]}


def random_features(n: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        keypoints=torch.rand(n, 2, generator=generator) * 480,
        descriptors=torch.nn.functional.normalize(torch.rand(n, 128, generator=generator), dim=1),
        image_size=(640, 480),
        scales=torch.rand(n, generator=generator) + 1,
        orientations=torch.rand(n, generator=generator) * 6,
    )


def main() -> None:
    full = MatchSettings(exit_ratio=0, prune_below=0, score_threshold=0.0)
    print("| preset | dtype | threads | sizes | attention and state equal in bits | largest score difference | same pairs |")
    print("|---|---|---|---|---|---|---|")
    for name, dtype, threads, (kind, sizes) in itertools.product(
        ("compact", "base"), (torch.float32, torch.bfloat16), (1, 2), SIZES.items()
    ):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        model = LightGlue(preset(name, "", 128, "xy-logscale-angle"))
        for parameter in model.parameters():
            if parameter.abs().max() == 0:
                torch.nn.init.normal_(parameter, std=0.05)
        model = model.eval().to(dtype)
        pairs = [(random_features(m, i), random_features(n, i + 50)) for i, (m, n) in enumerate(sizes)]
        with torch.inference_mode():
            packed = pack(pairs, model.config).to("cpu", dtype)
            *_, together = model.states(packed)
            alone = [list(model.states(pack([pair], model.config).to("cpu", dtype)))[-1] for pair in pairs]
        batch, single = model.match(packed, full), [model.match(pack([pair], model.config), full)[0] for pair in pairs]
        same = all(torch.equal(a.pairs, b.pairs) for a, b in zip(batch, single, strict=True))
        gaps = [float((a.scores - b.scores).abs().max()) for a, b in zip(batch, single, strict=True) if same and len(a)]
        bits = torch.equal(together, torch.cat(alone))
        print(f"| {name} | {str(dtype)[6:]} | {threads} | {kind} | {bits} | {max(gaps, default=0):.1e} | {same} |")


if __name__ == "__main__":
    main()
