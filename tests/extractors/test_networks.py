"""DISK, XFeat and SuperPoint with random weights from files: shapes, pixels, order, what is said without weights."""

import logging
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch

from helpers import draw_photo
from lumiglue import InputError, WeightsError
from lumiglue.extractors import create_extractor
from lumiglue.extractors.networks import Disk, NetworkExtractor, SuperPoint, XFeat, _load
from released_files import NETWORKS, released_file

pytestmark = pytest.mark.numeric

pytest.importorskip("kornia")
pytest.importorskip("transformers")

KINDS: dict[str, type[NetworkExtractor]] = {"disk": Disk, "xfeat": XFeat, "superpoint": SuperPoint}
SUFFIX = {"disk": ".pth", "xfeat": ".pt", "superpoint": ".pth"}


@pytest.fixture(params=list(KINDS))
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A network's name and a file of random weights for it, which find points: detection is scaled up."""
    name, file = request.param, tmp_path / f"{request.param}{SUFFIX[request.param]}"
    torch.manual_seed(0)
    network = KINDS[name].build()
    tensors = network.state_dict()
    torch.save({"extractor": tensors} if name == "disk" else tensors, file)
    _load.cache_clear()
    return name, file


def test_features_of_a_photo(saved: tuple[str, Path]) -> None:
    name, file = saved
    photo = draw_photo(1, 320, 250)
    extractor = create_extractor(name, max_keypoints=60, resize=160, weights=file)
    features = extractor(photo)
    assert (extractor.name, extractor.descriptor_dim) == (name, {"disk": 128, "xfeat": 64, "superpoint": 256}[name])
    assert 0 < len(features) <= 60 or name == "xfeat"  # random weights may find none
    assert features.descriptors.shape == (len(features), extractor.descriptor_dim)
    assert features.image_size == (320, 250)
    assert torch.allclose(features.descriptors.norm(dim=1), torch.ones(len(features)), atol=1e-5)
    assert bool((features.keypoints >= -0.5).all())
    assert bool((features.keypoints <= torch.tensor([319.5, 249.5])).all())
    assert features.scores is not None
    assert features.scores.tolist() == sorted(features.scores.tolist(), reverse=True)
    again = extractor(photo)
    assert torch.equal(features.keypoints, again.keypoints)
    assert torch.equal(features.descriptors, again.descriptors)
    assert not features.descriptors.is_inference()


def test_keypoints_come_back_to_the_photos_pixels(saved: tuple[str, Path]) -> None:
    """The features of a photo that is shrunk before detection are those of the shrunk photo, scaled."""
    name, file = saved
    big = draw_photo(1, 320, 256)
    extractor = create_extractor(name, max_keypoints=40, resize=160, weights=file)
    from lumiglue.images import resize_long_side

    small = extractor(resize_long_side(big, 160))
    features = extractor(big)
    assert torch.allclose(features.keypoints, (small.keypoints + 0.5) * 2 - 0.5)


def test_a_threshold_drops_weak_keypoints(saved: tuple[str, Path]) -> None:
    """Those that are left are those of the lower threshold, or fewer."""
    name, file = saved
    photo = draw_photo(1, 160, 120)
    settings = {"max_keypoints": 5000, "weights": file}
    every = create_extractor(name, **settings, detection_threshold=0.0)(photo)
    assert every.scores is not None
    assert len(every) > 0
    threshold = max(0.05, float(every.scores.max()))
    some = create_extractor(name, **settings, detection_threshold=threshold)(photo)
    assert len(some) < len(every)
    assert {tuple(point) for point in some.keypoints.tolist()} <= {tuple(point) for point in every.keypoints.tolist()}
    with pytest.raises(InputError, match="detection_threshold is -1; give a score of at least 0"):
        create_extractor(name, **settings, detection_threshold=-1)


def test_tiny_and_blank_images_have_features_or_none(saved: tuple[str, Path]) -> None:
    name, file = saved
    extractor = create_extractor(name, weights=file)
    assert len(extractor(np.zeros((5, 90, 3), np.uint8))) == 0
    assert extractor(np.zeros((64, 64, 3), np.uint8)).descriptors.shape[1] == extractor.descriptor_dim


def test_weights_that_do_not_fit_are_refused(saved: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = saved
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=f"does not fit {name}"):
        create_extractor(name, weights=tmp_path / "other.pth")(draw_photo(1))
    with pytest.raises(WeightsError, match="does not exist"):
        create_extractor(name, weights=tmp_path / "none.pth")(draw_photo(1))
    with pytest.raises(InputError, match="max_keypoints is 0"):
        create_extractor(name, max_keypoints=0)
    with pytest.raises(InputError, match="resize is 8"):
        create_extractor(name, resize=8)


def test_offline_says_what_to_get(saved: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a file and without a network: one sentence with the place and the variable; with the variable, it works."""
    name, file = saved
    monkeypatch.setenv("LUMIGLUE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LUMIGLUE_MIRROR", "http://127.0.0.1:9")

    def offline() -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(SuperPoint, "fetch", staticmethod(offline))
    expected = {
        "superpoint": r"cannot be downloaded \(no route to host\); download .* set LUMIGLUE_SUPERPOINT",
        "disk": r"depth-save.pth cannot be downloaded .*; to use it, save .*/cache/9c2ee4ded238892d-depth-save.pth",
        "xfeat": r"xfeat.pt cannot be downloaded .*; to use it, save the file as .*/cache/0f5187fd7bedd26c-xfeat.pt",
    }
    with pytest.raises(WeightsError, match=expected[name]):
        create_extractor(name)(draw_photo(1))
    monkeypatch.setenv(f"LUMIGLUE_{name.upper()}", str(file))
    assert create_extractor(name, max_keypoints=10)(draw_photo(1)).descriptors.shape[1] == KINDS[name].dim


def test_superpoints_licence_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(SuperPoint.build().state_dict(), tmp_path / "s.pth")
    _load.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            create_extractor("superpoint", max_keypoints=5, weights=tmp_path / "s.pth")(draw_photo(1))
    assert [r.message for r in caplog.records if "non-commercial" in r.message] == [
        "SuperPoint's weights are licensed for non-commercial research only (Magic Leap's licence)"
    ]


def test_xfeat_of_a_size_that_its_network_does_not_take() -> None:
    """kornia shrinks 191 x 127 to 160 x 96. The centre of pixel i of that is (i + 0.5) * ratio - 0.5 of the photo."""
    file = released_file(NETWORKS["xfeat"])
    if file is None:
        pytest.skip("install the packages of tests/released.txt")
    features = XFeat(weights=file, resize=None)(skimage.data.astronaut()[100:227, 100:291])
    assert len(features) > 20
    pixels = (features.keypoints + 0.5) * torch.tensor([160 / 191, 96 / 127]) - 0.5
    assert torch.allclose(pixels, pixels.round(), atol=1e-4)
