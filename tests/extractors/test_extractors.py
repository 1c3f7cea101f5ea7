"""Features by name, and features of one's own: a class from a file or a module, its settings, worker processes."""

import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import draw_photo, make_model
from lumiglue import Features, InputError, LightGlue, Pipeline, Sift, WeightsError
from lumiglue.cli import main
from lumiglue.extractors import Extractor, OwnExtractor, create_extractor
from lumiglue.training.data.build import DatasetSettings, build_dataset
from lumiglue.training.data.dataset import FeatureDataset
from lumiglue.training.data.homographies import PhotoViews
from lumiglue.weights.files import read_metadata, save_weights

PHOTO = draw_photo(3)
ORB = Path(__file__).parents[2] / "examples" / "orb.py"

# A grid of points, weakest first; the lambda and the neighbour module are what pickling by value would stumble on.
GRID = """
import numpy as np
import torch
from grid_step import STEP
from lumiglue import Features

class Grid:
    name = "grid"
    descriptor_dim = 4

    def __init__(self):
        self.not_picklable = lambda x: x

    def config(self):
        return {"step": STEP}

    def __call__(self, image):
        height, width = image.shape[:2]
        y, x = np.mgrid[0:height:STEP, 0:width:STEP].reshape(2, -1)
        colours = image[y, x].astype(np.float32) / 255
        rows = np.column_stack([colours, np.ones(len(x), np.float32)])
        return Features(
            keypoints=torch.from_numpy(np.column_stack([x, y]).astype(np.float32)),
            descriptors=torch.nn.functional.normalize(torch.from_numpy(rows), dim=1),
            image_size=(width, height),
            scores=torch.arange(len(x)).float(),
        )

class Limited(Grid):
    name = "limited"

    def __init__(self, max_keypoints=7, resize=64, device="cpu"):
        super().__init__()
        self.given = (max_keypoints, resize, device)
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A file with two extractors, and the module beside it that it imports."""
    (tmp_path / "grid_step.py").write_text("STEP = 8\n")
    file = tmp_path / "grid.py"
    file.write_text(GRID)
    return file


def test_an_unknown_name_is_one_sentence() -> None:
    expected = r"unknown extractor 'sfit'; choose from \['aliked', .*'sift', .*\], or your own as path/to/file.py:Class"
    with pytest.raises(InputError, match=expected):
        create_extractor("sfit")
    with pytest.raises(InputError, match=r"'sift' cannot be created: .*rotsift"):
        create_extractor("sift", rotsift=True)
    assert create_extractor("sift", max_keypoints=5, device="cuda") == Sift(max_keypoints=5)  # it runs no network


def test_a_class_from_a_file(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(grid.parent)
    path = list(sys.path)
    extractor = create_extractor("grid.py:Grid")
    assert isinstance(extractor, Extractor)
    assert (extractor.name, extractor.descriptor_dim) == ("grid", 4)
    assert extractor.config() == {"name": "grid", "step": 8}
    features = extractor(PHOTO)
    assert features.extractor == "grid"
    assert len(features) == 40 * 30
    assert sys.path == path
    assert len(create_extractor("grid:Grid")(PHOTO)) == len(features)  # a module of the working directory


def test_the_settings_hold_for_a_class_without_them(grid: Path) -> None:
    """The strongest are kept; what is found on a shrunk image is reported in pixels of the one given, (xy + 0.5) s - 0.5."""
    everything = create_extractor(f"{grid}:Grid")(PHOTO)
    assert everything.scores is not None
    strongest = create_extractor(f"{grid}:Grid", max_keypoints=10)(PHOTO)
    assert torch.equal(strongest.keypoints, everything.keypoints.flip(0)[:10])
    shrunk = create_extractor(f"{grid}:Grid", resize=160)(PHOTO)
    assert shrunk.image_size == (320, 240)
    assert shrunk.keypoints[1].tolist() == [(8 + 0.5) * 2 - 0.5, 0.5]


def test_the_settings_are_handed_to_a_class_that_takes_them(grid: Path) -> None:
    extractor = create_extractor(f"{grid}:Limited", max_keypoints=30, resize=None, device="cuda")
    assert isinstance(extractor, OwnExtractor)
    assert extractor.extractor.given == (30, None, "cuda")
    assert len(extractor(PHOTO)) == 30  # held to, though the class disregards it
    plain = create_extractor(f"{grid}:Limited")
    assert isinstance(plain, OwnExtractor)
    assert plain.extractor.given == (7, None, "cpu")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.py:Grid", "nowhere.py does not exist"),
        ("no_such_module:Grid", "no_such_module cannot be imported .*No module named 'no_such_module'"),
        ("{grid}:Gird", r"grid.py has no class 'Gird'; it has \['Grid', 'Limited'\]"),
        ("{grid}:", "is not the name of a class; give path/to/file.py:Class"),
        ("{wrong}:Nothing", r"wrong.py:Nothing lacks name and descriptor_dim and config\(\); an extractor has name"),
        ("{wrong}:Nameless", "has the name ''; give a word"),
        ("{wrong}:Wide", "has descriptor_dim '4'; give the number of channels"),
        ("{wrong}:Vague", r"has a config\(\) of .*return a dict of strings"),
        ("{wrong}:Asks", r"cannot be created \(.*missing 1 required.*give its parameters default values"),
        ("{broken}:Grid", r"broken.py cannot be imported \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_what_is_wrong_with_a_class_is_one_sentence(grid: Path, source: str, message: str) -> None:
    wrong = grid.with_name("wrong.py")
    wrong.write_text("""
class Nothing:
    def __call__(self, image): ...
class Nameless(Nothing):
    name, descriptor_dim = "", 4
    def config(self): return {}
class Wide(Nameless):
    name, descriptor_dim = "wide", "4"
class Vague(Nameless):
    name = "vague"
    def config(self): return {"detector": self}
class Asks(Nameless):
    def __init__(self, network): ...
""")
    broken = grid.with_name("broken.py")
    broken.write_text("1 / 0\n")
    with pytest.raises(InputError, match=message) as caught:
        create_extractor(source.format(grid=grid, wrong=wrong, broken=broken))
    assert "\n" not in str(caught.value)


def test_what_it_returns_is_checked(grid: Path) -> None:
    file = grid.with_name("returns.py")
    file.write_text(
        GRID.replace("descriptor_dim = 4", "descriptor_dim = 5")
        + "\nclass Table(Grid):\n    def __call__(self, image): return 3\n"
    )
    with pytest.raises(InputError, match="returned descriptors of 4 channels; its descriptor_dim is 5"):
        create_extractor(f"{file}:Grid")(PHOTO)
    with pytest.raises(InputError, match=r"returned int; return lumiglue\.Features"):
        create_extractor(f"{file}:Table")(PHOTO)


def test_it_is_pickled_by_its_settings(grid: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(grid.parent)
    extractor = create_extractor("grid.py:Grid", max_keypoints=9)
    monkeypatch.chdir(tmp_path.parent)  # a relative path is not lost
    again = pickle.loads(pickle.dumps(extractor))
    assert again == extractor
    assert torch.equal(again(PHOTO).descriptors, extractor(PHOTO).descriptors)


def test_a_dataset_of_own_features_by_two_workers(
    grid: Path, tmp_path: Path, save_photo: Callable[[str, np.ndarray], Path]
) -> None:
    for number in range(4):
        save_photo(f"photos/{number}.png", draw_photo(number, 160, 120))
    source = PhotoViews.of_folder(tmp_path / "photos", n_views=2, long_side=128, seed=0)
    extractor = create_extractor(f"{grid}:Grid", max_keypoints=64, resize=None)
    settings = DatasetSettings(max_keypoints=40, items_per_part=1)
    datasets = []
    for workers in (1, 2):
        out = tmp_path / f"dataset{workers}.h5"
        assert list(build_dataset(source, out, extractor, settings, workers=workers))[-1].items_done == 4
        datasets.append(FeatureDataset(out))
    one, two = datasets
    assert len(one) == len(two) == 8
    assert one.extractor == two.extractor == {"name": "grid", "step": 8, "descriptor_dim": 4}
    assert not one.has_orientation
    for view in range(8):
        first, second = one.view(view), two.view(view)
        assert all(np.array_equal(first[name], second[name], equal_nan=True) for name in first)


def weights_of(model: LightGlue, name: str, path: Path) -> Path:
    model.config = replace(model.config, extractor=name)
    save_weights(model, path, {})
    return path


def test_match_with_own_features_and_weights(
    grid: Path, tmp_path: Path, save_photo: Callable[[str, np.ndarray], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [str(save_photo(f"{number}.png", draw_photo(number, 160, 120))) for number in range(2)]
    weights = weights_of(make_model(descriptor_dim=4), "grid", tmp_path / "weights.safetensors")
    arguments = ["match", *photos, "--features", f"{grid}:Grid", "--weights", str(weights), "--max-keypoints", "50"]
    assert main([*arguments, "--device", "cpu", "--out", str(tmp_path / "m.npz"), "--geometry", "none"]) == 0
    assert "50 and 50 keypoints" in capsys.readouterr().out
    other = weights_of(make_model(descriptor_dim=4), "kaze", tmp_path / "other.safetensors")
    arguments[6] = str(other)
    assert main(arguments) == 2
    assert "error: the weights are for 'kaze' features, but the extractor is 'grid'" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="there are no default weights for"):
        Pipeline.pretrained(f"{grid}:Grid")


def test_dataset_train_match_with_own_features(
    tmp_path: Path,
    save_photo: Callable[[str, np.ndarray], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole way on the command line; features that have scale and orientation are trained with them."""
    monkeypatch.setattr("lumiglue.training.validation.BATCHES", 1)
    photos = [save_photo(f"photos/{number}.png", draw_photo(number)) for number in range(6)]
    orb, dataset, run = f"{ORB}:Orb", str(tmp_path / "dataset.h5"), tmp_path / "run"
    arguments = ["--features", orb, "--views", "3", "--max-keypoints", "96", "--workers", "1"]
    assert main(["dataset", "homographies", str(photos[0].parent), "-o", dataset, *arguments]) == 0
    lengths = ["--pairs", "8", "--confidence-pairs", "4", "--batch-size", "4", "--points", "64", "--long-points", "64"]
    lengths += ["--precision", "fp32"]
    assert main(["train", dataset, "-o", str(run), *lengths]) == 0
    config, _ = read_metadata(run / "weights.safetensors")
    assert (config.extractor, config.descriptor_dim, config.encoding) == ("orb", 256, "xy-logscale-angle")
    matching = ["match", str(photos[0]), str(photos[1]), "--features", orb, "--out", str(tmp_path / "m.npz")]
    assert main([*matching, "--weights", str(run / "weights.safetensors"), "--geometry", "none"]) == 0
    assert "keypoints" in capsys.readouterr().out


def nearest(points: np.ndarray, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cdist(torch.from_numpy(points).float(), features.keypoints).min(1)


def test_the_orb_example() -> None:
    """Unit vectors whose cosine counts equal bits, in pixels that mirror with the image on every level of the pyramid."""
    orb = create_extractor(f"{ORB}:Orb", max_keypoints=400)
    features = orb(PHOTO)
    assert len(features) > 200
    assert torch.allclose(features.descriptors.norm(dim=1), torch.ones(len(features)))
    agreement = (features.descriptors[0] * 16 == features.descriptors[1] * 16).float().mean()
    assert float(features.descriptors[0] @ features.descriptors[1]) == pytest.approx(float(2 * agreement - 1))
    assert len(orb(np.zeros((5, 5, 3), np.uint8))) == 0
    assert len(orb(np.zeros((90, 90, 3), np.uint8))) == 0
    assert features.scales is not None
    mirrored = features.keypoints.numpy() * [-1, 1] + [PHOTO.shape[1] - 1, 0]
    best, _ = nearest(mirrored, orb(np.ascontiguousarray(PHOTO[:, ::-1])))
    for level in features.scales.unique():
        on_level = features.scales == level
        assert float((best[on_level] < 0.1).float().mean()) > 0.8, f"level {level}"
