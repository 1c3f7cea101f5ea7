"""What the tests share: small random features, random matchers that really adapt, photos that they draw themselves."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

# As the command line does (lumiglue.cli), before PyTorch is loaded: else threads that wait for each other spin for
# milliseconds, and on a busy machine the suite takes several times as long.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import jaxtyping
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

from helpers import SHARED, make_features
from lumiglue import Features

# The same examples each time, few of them; LUMIGLUE_EXAMPLES=1000 tries more.
settings.register_profile(
    "suite", derandomize=True, database=None, deadline=None, phases=(Phase.explicit, Phase.generate),
    max_examples=int(os.environ.get("LUMIGLUE_EXAMPLES", "12")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


settings.load_profile("suite")


# Files whose tests take a minute or two, the longest first: started last, they would run alone at the end.
LONG = (
    "training/test_training_loop.py", "test_docs.py", "collection/test_collection.py", "weights/test_released.py",
    "demo/test_demo.py", "onnx/test_onnx.py", "test_reliability.py", "training/test_taught.py", "collection/test_sfm.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests by file, and leaves those of a file in their order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


def pytest_collection_finish() -> None:
    """The search for cycles of objects, which tests cause often, need not go through all imported modules each time."""
    gc.freeze()


@pytest.fixture
def pairs() -> list[tuple[Features, Features]]:
    """Unequal pairs, with an image of one point and empty images among them."""
    sizes = [(60, 45), (7, 90), (33, 33), (0, 20), (1, 1), (20, 0), (0, 0), (50, 64)]
    images = [(make_features(m, 10 * i), n, 10 * i + 1) for i, (m, n) in enumerate(sizes)]
    return [(a, make_features(n, seed, like=a)) for a, n, seed in images]


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
