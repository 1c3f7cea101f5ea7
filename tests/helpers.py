"""Small random features, random matchers that really adapt, and photos that are drawn here."""

import os
from pathlib import Path

import cv2
import numpy as np
import torch

from lumiglue import Features, LightGlue, LightGlueConfig
from lumiglue.cli import main

SHARED = Path(os.environ.get("LUMIGLUE_SHARED", Path(__file__).parents[2] / "shared"))


def make_features(n: int, seed: int, *, dim: int = 32, like: Features | None = None, noise: float = 0.05) -> Features:
    """n random features; with `like`, the first of them are noisy, shuffled copies of that image's."""
    generator = torch.Generator().manual_seed(seed)
    descriptors = torch.randn(n, dim, generator=generator)
    if like is not None and n:
        common = min(n, len(like)) // 2
        chosen = torch.randperm(len(like), generator=generator)[:common]
        descriptors[:common] = like.descriptors[chosen] * dim**0.5 + noise * descriptors[:common]
    return Features(
        keypoints=torch.rand(n, 2, generator=generator) * torch.tensor([639.0, 479.0]),
        descriptors=torch.nn.functional.normalize(descriptors, dim=1),
        image_size=(640, 480),
        scores=torch.rand(n, generator=generator),
        scales=torch.rand(n, generator=generator) * 5 + 1,
        orientations=torch.rand(n, generator=generator) * 6.28,
    )


def make_model(seed: int = 0, **config: object) -> LightGlue:
    """A matcher with random weights in every part, whose confidences make pairs stop and points leave at mixed layers."""
    defaults: dict[str, object] = {"descriptor_dim": 32, "d": 32, "heads": 2, "n_layers": 5, "project_input": True}
    torch.manual_seed(seed)
    model = LightGlue(LightGlueConfig(**{**defaults, **config}))  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ffn.3" in name:
                parameter.normal_(std=0.15)
            elif name.startswith("confidences") or "matchability" in name:
                parameter.normal_(std=1.2 if name.startswith("confidences") else 0.9)
    return model.eval()


def draw_photo(seed: int, width: int = 320, height: int = 240) -> np.ndarray:
    """A picture with plenty of corners: random discs, boxes and lines, blurred a little; RGB."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), rng.integers(60, 200, 3), np.uint8)
    for _ in range(140):
        colour = rng.integers(0, 256, 3).tolist()
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        size = int(rng.integers(4, 30))
        match int(rng.integers(3)):
            case 0:
                cv2.circle(image, (x, y), size, colour, -1)
            case 1:
                cv2.rectangle(image, (x, y), (x + size, y + int(rng.integers(4, 30))), colour, -1)
            case _:
                cv2.line(image, (x, y), (x + size * 2, y + int(rng.integers(-30, 30))), colour, 2)
    return cv2.GaussianBlur(image, (0, 0), 0.8)


def run(*arguments: object) -> int:
    """Runs a command in this process and returns its exit code, also for those that tyro ends."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
