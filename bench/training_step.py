"""Pairs per second of one training step of `compact` (16 pairs of 256 points): fp32 and bf16 autocast in turns."""

import time

import numpy as np
import torch

from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.packed import PackedPairs
from lumiglue.matcher.presets import preset
from lumiglue.training.labels import Labels
from lumiglue.training.loss import matcher_loss

PAIRS, POINTS, ROUNDS = 16, 256, 7


def main() -> None:
    torch.manual_seed(0)
    model = LightGlue(preset("compact", "sift", 128, "xy-logscale-angle"))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    descriptors = torch.nn.functional.normalize(torch.rand(2 * PAIRS * POINTS, 128), dim=1)
    packed = PackedPairs(descriptors, torch.rand(len(descriptors), 4), (POINTS,) * (2 * PAIRS))
    matches = torch.stack(torch.meshgrid(torch.arange(PAIRS), torch.arange(60), indexing="ij"), -1).reshape(-1, 2)
    alone = (torch.arange(POINTS) >= 60).expand(PAIRS, POINTS)
    labels = Labels(torch.cat([matches, matches[:, 1:]], dim=1), alone, alone)
    rates: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(ROUNDS):
        for precision, measured in rates.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = matcher_loss(model, packed, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            measured.append(PAIRS / (time.perf_counter() - start))
    for precision, measured in rates.items():
        low, middle, high = np.quantile(measured[1:], [0.0, 0.5, 1.0])  # the first round warms up
        print(f"{precision}: {middle:.1f} pairs/s ({low:.1f} to {high:.1f})")
    print(f"bf16 over fp32: {np.median(rates['bf16'][1:]) / np.median(rates['fp32'][1:]):.2f}")


if __name__ == "__main__":
    main()
