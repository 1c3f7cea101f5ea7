"""ALIKED: pixel convention, where weights come from, worker processes."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from helpers import draw_photo
from lumiglue import Extractor, Features, InputError, Pipeline, WeightsError
from lumiglue.cli import main
from lumiglue.evaluation.baselines import mutual_nearest_neighbours
from lumiglue.extractors import create_extractor
from lumiglue.extractors.aliked_network import CONFIGS, AlikedNetwork
from lumiglue.extractors.networks import Aliked
from lumiglue.images import read_image, resize_long_side

PHOTO = draw_photo(3)
SMALL = "aliked-t16"


@pytest.fixture
def random_weights(tmp_path: Path) -> Path:
    """A folder with the file of the smallest model, untrained."""
    torch.manual_seed(0)
    torch.save(AlikedNetwork(SMALL).state_dict(), tmp_path / f"{SMALL}.pth")
    return tmp_path


@pytest.fixture
def released(shared: Path) -> Callable[..., Aliked]:
    """Makes extractors with the released weights of n16rot, trained with rotations."""

    def make(**settings: object) -> Aliked:
        return Aliked(**{"model": "aliked-n16rot", "weights": shared / "weights", **settings})  # pyright: ignore[reportArgumentType]

    return make


def same(a: Features, b: Features) -> bool:
    assert a.scores is not None
    assert b.scores is not None
    tensors = ((a.keypoints, b.keypoints), (a.descriptors, b.descriptors), (a.scores, b.scores))
    return all(torch.equal(x, y) for x, y in tensors)


def moved(points: np.ndarray, features: Features, near: float = 1.0) -> torch.Tensor:
    """How far the nearest keypoint lies from each of the points that have one at less than `near` pixels."""
    expected = torch.from_numpy(points).float()
    best, row = torch.cdist(expected, features.keypoints).min(1)
    return (features.keypoints[row] - expected)[best < near]


def test_strongest_first_unit_descriptors_no_frames(random_weights: Path) -> None:
    read_only = PHOTO.copy()  # as decoders hand out images
    read_only.flags.writeable = False
    features = Aliked(model=SMALL, weights=random_weights, max_keypoints=40)(read_only)
    assert len(features) == 40
    assert features.scores is not None
    assert bool((features.scores.diff() <= 0).all())
    assert features.descriptors.shape == (40, CONFIGS[SMALL].dim)
    assert features.descriptors.dtype == torch.float32
    assert torch.allclose(features.descriptors.norm(dim=1), torch.ones(40), atol=1e-5)
    assert features.scales is None
    assert features.orientations is None
    assert features.extractor == SMALL
    assert not features.descriptors.is_inference()


def test_the_same_twice_and_after_pickling(random_weights: Path) -> None:
    extractor = Aliked(model=SMALL, weights=random_weights, max_keypoints=100)
    features = extractor(PHOTO)
    assert same(features, extractor(PHOTO))
    sent = pickle.dumps(extractor)
    assert len(sent) < 1000  # settings, no tensors
    assert same(features, pickle.loads(sent)(PHOTO))


def test_loading_leaves_the_random_state(random_weights: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Aliked(model=SMALL, weights=random_weights, max_keypoints=17)(PHOTO)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (3, 300), (200, 200), (33, 1500)])
def test_blank_tiny_and_long_images_are_legal(random_weights: Path, shape: tuple[int, int]) -> None:
    features = Aliked(model=SMALL, weights=random_weights)(np.zeros((*shape, 3), np.uint8))
    assert features.image_size == (shape[1], shape[0])
    assert features.descriptors.shape == (len(features), CONFIGS[SMALL].dim)
    assert min(shape) > 4 or len(features) == 0  # a maximum needs its neighbours


@pytest.mark.parametrize("resize", [None, 100])
def test_given_keypoints_are_described_like_its_own(random_weights: Path, resize: int | None) -> None:
    extractor = Aliked(model=SMALL, weights=random_weights, max_keypoints=60, resize=resize)
    features = extractor(PHOTO)
    described = extractor.describe(PHOTO, features.keypoints)
    torch.testing.assert_close(described, features.descriptors, rtol=0, atol=2e-4)
    assert not described.is_inference()
    elsewhere = extractor.describe(PHOTO, features.keypoints + 3)
    assert float((elsewhere - features.descriptors).norm(dim=1).median()) > 0.005
    assert extractor.describe(PHOTO, torch.zeros(0, 2)).shape == (0, CONFIGS[SMALL].dim)
    with pytest.raises(InputError, match="the image has 9 x 3 pixels; a descriptor needs 4 x 4"):
        extractor.describe(PHOTO[:3, :9], torch.zeros(1, 2))


def test_threshold_drops_the_weak_ones(random_weights: Path) -> None:
    settings = {"model": SMALL, "weights": random_weights, "max_keypoints": 60}
    features = Aliked(**settings)(PHOTO)
    assert features.scores is not None
    limit = float(features.scores[20])
    strong = Aliked(**settings, detection_threshold=limit)(PHOTO)
    assert same(strong, features[(features.scores > limit).nonzero()[:, 0]])
    assert 0 < len(strong) <= 20


def test_weights_are_found_where_they_are_said_to_be(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = random_weights / f"{SMALL}.pth"
    expected = Aliked(model=SMALL, weights=file, max_keypoints=30)(PHOTO)
    for place in (file, random_weights):
        monkeypatch.setenv("LUMIGLUE_ALIKED", str(place))
        assert same(expected, Aliked(model=SMALL, max_keypoints=30)(PHOTO))
    monkeypatch.delenv("LUMIGLUE_ALIKED")
    monkeypatch.setenv("LUMIGLUE_CACHE", str(random_weights))
    assert same(expected, Aliked(model=SMALL, max_keypoints=30)(PHOTO))


def test_missing_weights_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUMIGLUE_ALIKED", raising=False)
    monkeypatch.setenv("LUMIGLUE_CACHE", str(tmp_path))
    monkeypatch.setenv("LUMIGLUE_MIRROR", "http://127.0.0.1:9")
    for model in ("aliked-n32", SMALL):
        expected = (
            rf"http://127.0.0.1:9/{model}.pth cannot be downloaded .*; to use it, save the file as {tmp_path}/\w+-{model}"
        )
        with pytest.raises(WeightsError, match=expected):
            Aliked(model=model)(PHOTO)
    with pytest.raises(WeightsError, match=r"nowhere.pth, named by weights, does not exist"):
        Aliked(weights=tmp_path / "nowhere.pth")(PHOTO)
    monkeypatch.setenv("LUMIGLUE_ALIKED", str(tmp_path))
    with pytest.raises(WeightsError, match=r"aliked-n16.pth, named by \$LUMIGLUE_ALIKED, does not exist"):
        Aliked(model="aliked-n16")(PHOTO)


def test_weights_of_another_model_are_refused(random_weights: Path) -> None:
    file = random_weights / f"{SMALL}.pth"
    with pytest.raises(WeightsError, match=r"does not fit aliked-n16: .* has shape"):
        Aliked(weights=file)(PHOTO)
    state = torch.load(file, weights_only=True)
    first = min(state)
    del state[first]
    torch.save({**state, "extra": torch.zeros(1)}, random_weights / "cut.pth")
    with pytest.raises(WeightsError, match=rf"it lacks '{first}' \(it has 'extra'\)"):
        Aliked(model=SMALL, weights=random_weights / "cut.pth")(PHOTO)
    (random_weights / "text.pth").write_text("no checkpoint")
    with pytest.raises(WeightsError, match=r"text.pth cannot be read as tensors"):
        Aliked(model=SMALL, weights=random_weights / "text.pth")(PHOTO)


def test_settings_are_checked() -> None:
    extractor = create_extractor("aliked", max_keypoints=5, model="aliked-n16")
    assert isinstance(extractor, Extractor)
    assert extractor.config() == {"name": "aliked-n16"}
    with pytest.raises(InputError, match=r"unknown ALIKED model 'n16'; choose from \['aliked-n16', "):
        Aliked(model="n16")
    with pytest.raises(InputError, match="max_keypoints is 0"):
        Aliked(max_keypoints=0)
    with pytest.raises(InputError, match="resize is 4"):
        Aliked(resize=4)
    with pytest.raises(InputError, match=r"detection_threshold is -1"):
        Aliked(detection_threshold=-1)


def test_without_kornia_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["kornia"] = None
import lumiglue
from lumiglue.evaluation.baselines import mutual_nearest_neighbours
from lumiglue.extractors import create_extractor
try:
    create_extractor("xfeat")
except lumiglue.InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert 'pip install "lumiglue[kornia]"' in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("flag", [("--features", "xfeat"), ("--weights", "xfeat-lighterglue"), ("--features", "superpoint")])
def test_a_missing_package_is_named_before_anything_is_downloaded(
    flag: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lumiglue.extractors.find_spec", lambda package: None)
    monkeypatch.setattr("lumiglue.weights.registry.fetch", lambda *_, **__: pytest.fail("a file was downloaded"))
    monkeypatch.setenv("LUMIGLUE_CACHE", str(tmp_path / "cache"))
    for name in ("a.png", "b.png"):
        Image.fromarray(draw_photo(0)).save(tmp_path / name)
    assert main(["match", str(tmp_path / "a.png"), str(tmp_path / "b.png"), *flag, "-o", str(tmp_path / "m.png")]) == 2
    assert 'install it with `pip install "lumiglue[' in capsys.readouterr().err
    name, value = flag
    with pytest.raises(InputError, match="install it with"):
        Pipeline.pretrained(value) if name == "--features" else Pipeline.pretrained(weights=value)


def test_aliked_does_not_need_kornia(random_weights: Path) -> None:
    script = f"""
import sys
sys.modules["kornia"] = None
import numpy
from lumiglue.extractors import create_extractor
extractor = create_extractor("{SMALL}", weights={str(random_weights)!r})
print(len(extractor(numpy.random.default_rng(0).integers(0, 255, (64, 64, 3), numpy.uint8))))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 10


@pytest.mark.parametrize("size", [(384, 256), (411, 300)])
def test_keypoints_mirror_with_the_image(released: Callable[..., Aliked], shared: Path, size: tuple[int, int]) -> None:
    """(0, 0) is the centre of the top-left pixel: flipping an image of width w maps x to w - 1 - x, without bias, be the
    size a multiple of the network's stride or not."""
    photo = read_image(min((shared / "eval" / "kodak").iterdir()))[: size[1], : size[0]]
    extractor = released(detection_threshold=0.2, resize=None)
    features = extractor(photo)
    for axis, flip in ((0, np.s_[:, ::-1]), (1, np.s_[::-1])):
        mirrored = features.keypoints.numpy().copy()
        mirrored[:, axis] = size[axis] - 1 - mirrored[:, axis]
        offsets = moved(mirrored, extractor(np.ascontiguousarray(photo[flip])))
        assert len(offsets) > 0.5 * len(features) > 50
        assert float(offsets.median(0).values.abs().max()) < 0.1


def test_resizing_for_detection_keeps_the_input_pixels(released: Callable[..., Aliked]) -> None:
    """Keypoints found on a half-size copy are reported where they are in the image that was given: (xy + 0.5) s - 0.5."""
    large = cv2.resize(PHOTO, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    full = released(max_keypoints=100, resize=None)(PHOTO)
    through = released(max_keypoints=100, resize=320)(large)
    assert through.image_size == (640, 480)
    offsets = moved((full.keypoints.numpy() + 0.5) * 2 - 0.5, through, near=2.0)
    assert len(offsets) > 80
    assert float(offsets.median(0).values.abs().max()) < 0.05


def test_a_turned_photo_is_matched_by_descriptors(released: Callable[..., Aliked], shared: Path) -> None:
    """The released weights do their work: 30 degrees of rotation, mutual nearest neighbours, most of them right."""
    photo = resize_long_side(read_image(min((shared / "eval").rglob("*.jpg"))), 400)
    height, width = photo.shape[:2]
    turned_from_photo = cv2.getRotationMatrix2D((width / 2, height / 2), 30, 1.0)
    turned = cv2.warpAffine(photo, turned_from_photo, (width, height))
    extractor = released(max_keypoints=300)
    features = extractor(photo), extractor(turned)
    pairs = mutual_nearest_neighbours(*features).pairs
    points = features[0].keypoints.numpy()[pairs[:, 0]] @ turned_from_photo[:, :2].T + turned_from_photo[:, 2]
    error = np.linalg.norm(points - features[1].keypoints.numpy()[pairs[:, 1]], axis=1)
    assert (error < 3).sum() > 60
    assert (error < 3).mean() > 0.5
