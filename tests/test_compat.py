"""The released call signature: kornia's LightGlue as a black box under the same weights, and our own pipeline."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from helpers import draw_photo, make_features
from kornia_lightglue import kornia_feature, kornia_matcher
from lumiglue import Features, InputError, MatchSettings, Pipeline, WeightsError
from lumiglue.compat import LightGlue

pytestmark = pytest.mark.numeric

FULL = MatchSettings(exit_ratio=0, prune_below=0)


def batch(images: list[Features]) -> dict[str, torch.Tensor]:
    """The released form of images with equally many points."""
    return {
        "keypoints": torch.stack([f.keypoints for f in images]),
        "descriptors": torch.stack([f.descriptors for f in images]),
        "image_size": torch.tensor([f.image_size for f in images]).float(),
        "scales": torch.stack([f.scales for f in images if f.scales is not None]),
        "oris": torch.stack([f.orientations for f in images if f.orientations is not None]),
    }


def ask(matcher: torch.nn.Module, a: list[Features], b: list[Features]) -> dict:
    with torch.inference_mode():
        return matcher({"image0": batch(a), "image1": batch(b)})


def pair(seed: int) -> tuple[Features, Features]:
    a = make_features(60, seed, dim=32)
    return a, make_features(80, seed + 100, dim=32, like=a)


@pytest.mark.parametrize(
    ("depth", "width", "threshold"), [(0.95, 0.99, 0.1), (-1, -1, 0.1), (0.95, -1, 0.0), (0.8, 0.9, 0.3), (0.9, 0.7, 0.9)]
)
def test_every_entry_is_kornias(tmp_path: Path, depth: float, width: float, threshold: float) -> None:
    stops, pruned, matched = set(), 0, 0
    for seed in range(6):
        theirs = kornia_matcher(32, False, adaptive=True, seed=seed)
        theirs.conf.depth_confidence, theirs.conf.width_confidence = depth, width  # pyright: ignore
        theirs.conf.filter_threshold = threshold  # pyright: ignore
        torch.save(theirs.state_dict(), tmp_path / "released.pth")
        ours = LightGlue(
            None,
            weights=tmp_path / "released.pth",
            depth_confidence=depth,
            width_confidence=width,
            filter_threshold=threshold,
        )
        a, b = pair(seed)
        got, want = ask(ours, [a], [b]), ask(theirs, [a], [b])
        assert set(want) - set(got) == {"log_assignment"}
        assert got["stop"] == want["stop"]
        for name in ("matches0", "matches1"):
            assert torch.equal(got[name], want[name]), name
        for name in ("matching_scores0", "matching_scores1"):
            assert_close(got[name], want[name], rtol=0, atol=1e-4)
        for name in ("prune0", "prune1"):
            assert torch.equal(got[name].float(), want[name].float()), name
        assert torch.equal(got["matches"][0], want["matches"][0])
        assert_close(got["scores"][0], want["scores"][0], rtol=0, atol=1e-4)
        stops.add(got["stop"])
        pruned += int((got["prune0"] < got["stop"]).sum())
        matched += len(got["matches"][0])
    assert len(stops) > 1 or depth < 0
    assert pruned > 0 or width < 0
    assert matched > 5


def test_fewer_layers_are_kornias(tmp_path: Path) -> None:
    whole = kornia_matcher(32, True, adaptive=True)
    torch.save(whole.state_dict(), tmp_path / "released.pth")
    theirs = kornia_feature.LightGlue(
        None, input_dim=32, add_scale_ori=True, descriptor_dim=64, n_layers=3, num_heads=4, flash=False, mp=False
    ).eval()
    state = theirs.state_dict()
    names = state.keys() - {"confidence_thresholds"}  # those depend on the number of layers
    theirs.load_state_dict({name: whole.state_dict()[name] for name in names}, strict=False)
    ours = LightGlue(None, weights=tmp_path / "released.pth", n_layers=3)
    a, b = pair(3)
    got, want = ask(ours, [a], [b]), ask(theirs, [a], [b])
    assert got["stop"] == want["stop"] <= 3
    assert torch.equal(got["matches0"], want["matches0"])
    assert_close(got["matching_scores0"], want["matching_scores0"], rtol=0, atol=1e-4)


def test_matches_are_the_pipelines() -> None:
    pipeline = Pipeline.pretrained("sift", max_keypoints=256, precision="fp32")
    a, b = (pipeline.extract(draw_photo(seed)) for seed in (1, 2))
    pairs = [(a, b), (b, a), (a, a)]
    matcher = LightGlue("sift", weights="sift-deep")
    for i, (f, g) in enumerate(pairs):
        got, (want,) = ask(matcher, [f], [g]), pipeline.match_features([(f, g)])
        assert torch.equal(got["matches"][0], want.pairs), i
        assert_close(got["scores"][0], want.scores, rtol=0, atol=1e-5)
        assert torch.equal(got["matches0"][0], want.matches0(len(f)))
        assert got["stop"] == want.stop_layer
    full = LightGlue("sift", weights="sift-deep", depth_confidence=-1, width_confidence=-1)
    (want,) = pipeline.with_settings(FULL).match_features([(a, b)])
    assert torch.equal(ask(full, [a], [b])["matches"][0], want.pairs)


def test_a_batch_gives_what_each_pair_gives_alone(tmp_path: Path) -> None:
    theirs = kornia_matcher(32, False, adaptive=True, seed=4)
    torch.save(theirs.state_dict(), tmp_path / "released.pth")
    matcher = LightGlue(None, weights=tmp_path / "released.pth")
    pairs = [pair(seed) for seed in range(4)]
    together = ask(matcher, [a for a, _ in pairs], [b for _, b in pairs])
    assert together["matches0"].shape == (4, 60)
    assert len(set(together["stops"].tolist())) > 1
    for i, (a, b) in enumerate(pairs):
        alone = ask(matcher, [a], [b])
        assert torch.equal(together["matches"][i], alone["matches"][0])
        assert_close(together["scores"][i], alone["scores"][0], rtol=0, atol=5e-5)
        for name in ("matches0", "matches1", "prune0", "prune1"):
            assert torch.equal(together[name][i], alone[name][0])
        assert int(together["stops"][i]) == alone["stop"]


def test_the_half_pixel_between_conventions_changes_nothing() -> None:
    """Only differences of positions enter, so it is the same whether (0, 0) is the top-left pixel's centre or corner."""
    pipeline = Pipeline.pretrained("sift", max_keypoints=256)
    a, b = (batch([pipeline.extract(draw_photo(seed))]) for seed in (1, 2))
    matcher = LightGlue("sift", weights="sift-deep")
    moved = [{**image, "keypoints": image["keypoints"] + 0.5} for image in (a, b)]
    want, got = matcher({"image0": a, "image1": b}), matcher({"image0": moved[0], "image1": moved[1]})
    assert torch.equal(got["matches0"], want["matches0"])
    assert_close(got["matching_scores0"], want["matching_scores0"], rtol=0, atol=1e-4)


def test_the_image_stands_for_its_size_and_empty_images_are_legal(tmp_path: Path) -> None:
    matcher = LightGlue("sift", weights="sift-deep")
    a, b = (make_features(n, n, dim=128) for n in (40, 30))
    by_size = ask(matcher, [a], [b])
    image = {name: value for name, value in batch([a]).items() if name != "image_size"} | {
        "image": torch.zeros(1, 3, 480, 640)
    }
    by_image = matcher({"image0": image, "image1": batch([b])})
    assert torch.equal(by_size["matching_scores0"], by_image["matching_scores0"])
    empty = ask(matcher, [a], [make_features(0, 0, dim=128)])
    assert empty["matches0"].tolist() == [[-1] * 40]
    assert empty["matches1"].shape == (1, 0)
    assert empty["stop"] == 0
    model = torch.nn.ModuleDict({"matcher": LightGlue("aliked", weights="aliked-n16rot-deep")})  # is a module like any other
    assert sum(p.numel() for p in model.parameters()) > 10**6
    assert not model["matcher"].training


def test_bfloat16_stays_close() -> None:
    """On points that match: among unrelated ones a weak match is mutual or not by the last digit."""
    a = make_features(50, 1, dim=128)
    b = make_features(50, 2, dim=128, like=a)
    exact, blurred = (
        ask(LightGlue("sift", weights="sift-deep"), [a], [b]),
        ask(LightGlue("sift", weights="sift-deep", mp=True), [a], [b]),
    )
    assert int((exact["matches0"] >= 0).sum()) > 10
    assert_close(exact["matching_scores0"], blurred["matching_scores0"], rtol=0, atol=0.1)


def test_errors_name_the_remedy(tmp_path: Path, unchecked: None) -> None:
    with pytest.raises(WeightsError, match="features=None has no weights of its own; give weights='file'"):
        LightGlue(None)
    with pytest.raises(WeightsError, match="no default weights for 'sfit' features; choose from"):
        LightGlue("sfit")
    with pytest.raises(WeightsError, match="does not exist"):
        LightGlue("superpoint", weights=tmp_path / "none.pth")
    with pytest.raises(InputError, match="the weights are for 'sift' features, not for 'aliked'"):
        LightGlue("aliked", weights="sift-deep")
    with pytest.raises(InputError, match="n_layers is 9; these weights have 1 to 5"):
        LightGlue("sift", weights="sift-compact", n_layers=9)
    matcher = LightGlue("sift", weights="sift-deep")
    a = batch([make_features(20, 0, dim=128)])
    for wrong, message in (
        ({"image_size": None}, "neither 'image_size'"),
        ({"keypoints": None}, "image1 has no 'keypoints'"),
        ({"descriptors": a["descriptors"][0]}, "give B x N x"),
        ({"image_size": torch.tensor([[640.5, 480.0]])}, "give the size in whole pixels"),
        ({"oris": None, "scales": None}, "needs scales and orientations"),
    ):
        image = {name: value for name, value in {**a, **wrong}.items() if value is not None}
        with pytest.raises(InputError, match=message):
            matcher({"image0": a, "image1": image})
    with pytest.raises(InputError, match="no 'image1'"):
        matcher({"image0": a})
    with pytest.raises(InputError, match="image0 has 1 images and image1 2"):
        matcher({"image0": a, "image1": batch([make_features(20, 0, dim=128)] * 2)})
