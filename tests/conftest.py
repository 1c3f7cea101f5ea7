"""What the tests share: small random features, random matchers that really adapt, photos that they draw themselves."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# As the command line does (lumiglue.cli), before PyTorch is loaded: else threads that wait for each other spin for
# milliseconds, and on a busy machine the suite takes several times as long.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import cv2
import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from lumiglue import Features, LightGlue, LightGlueConfig

SHARED = Path(os.environ.get("LUMIGLUE_SHARED", Path(__file__).parents[2] / "shared"))


# The same examples each time, few of them; LUMIGLUE_EXAMPLES=1000 tries more.
settings.register_profile(
    "suite", derandomize=True, database=None, deadline=None, phases=(Phase.explicit, Phase.generate),
    max_examples=int(os.environ.get("LUMIGLUE_EXAMPLES", "12")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
settings.load_profile("suite")


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


@pytest.fixture
def pairs() -> list[tuple[Features, Features]]:
    """Unequal pairs, with an image of one point and empty images among them."""
    sizes = [(60, 45), (7, 90), (33, 33), (0, 20), (1, 1), (20, 0), (0, 0), (50, 64)]
    images = [(make_features(m, 10 * i), n, 10 * i + 1) for i, (m, n) in enumerate(sizes)]
    return [(a, make_features(n, seed, like=a)) for a, n, seed in images]


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


@pytest.fixture
def save_photo(tmp_path: Path) -> Callable[[str, np.ndarray], Path]:
    """Writes an RGB image below the test's folder and returns its path."""

    def save(name: str, image: np.ndarray) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image[..., ::-1])
        return path

    return save


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turns the run-time check of annotations off, as it is for users, to see what our own checks say."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def shared() -> Path:
    """The folder of real photos beside the project; tests that need it are skipped without it."""
    if not (SHARED / "eval" / "pairs.json").exists():
        pytest.skip(f"{SHARED} is absent; it holds real pairs with ground truth")
    return SHARED
