"""The same random weights in kornia's LightGlue and in ours, read through the importer of released checkpoints."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from helpers import make_features
from lumiglue import Features, LightGlue, MatchSettings
from lumiglue.matcher.assignment import log_assignment
from lumiglue.matcher.inputs import pack
from lumiglue.weights.released import import_released

pytestmark = pytest.mark.numeric

kornia_feature = pytest.importorskip("kornia.feature")


def kornia_matcher(dim: int, scale_orientation: bool, *, adaptive: bool, seed: int = 0) -> torch.nn.Module:
    """kornia's model with weights that find matches, stop at mixed layers and prune."""
    torch.manual_seed(seed)
    model = kornia_feature.LightGlue(
        None, input_dim=dim, add_scale_ori=scale_orientation, descriptor_dim=64, n_layers=5, num_heads=4, flash=False,
        mp=False, depth_confidence=0.95 if adaptive else -1, width_confidence=0.99 if adaptive else -1,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "final_proj.weight" in name:
                torch.nn.init.orthogonal_(parameter, 16.0)
            elif "input_proj.weight" in name:
                torch.nn.init.orthogonal_(parameter)
            elif "ffn.3" in name:
                parameter.mul_(0.25)
            elif "token_confidence" in name:
                parameter.copy_(torch.randn_like(parameter) * 1.5 + (2.5 if "bias" in name else 0))
            elif "matchability.weight" in name:
                parameter.copy_(torch.randn_like(parameter) * 4)
    return model


def ask_kornia(model: torch.nn.Module, a: Features, b: Features) -> dict:
    def image(f: Features) -> dict:
        size = torch.tensor([f.image_size]).float()
        assert f.scales is not None
        assert f.orientations is not None
        return {
            "keypoints": f.keypoints[None], "descriptors": f.descriptors[None], "image_size": size,
            "scales": f.scales[None], "oris": f.orientations[None],
        }  # fmt: skip

    with torch.inference_mode():
        return model({"image0": image(a), "image1": image(b)})


def imported(model: torch.nn.Module, folder: Path) -> LightGlue:
    torch.save(model.state_dict(), folder / "released.pth")
    model = import_released(folder / "released.pth", "")
    assert isinstance(model, LightGlue)
    return model


@pytest.mark.parametrize(("dim", "scale_orientation"), [(64, False), (32, False), (32, True)])
def test_full_depth_gives_the_same_assignment(tmp_path: Path, dim: int, scale_orientation: bool) -> None:
    theirs = kornia_matcher(dim, scale_orientation, adaptive=False)
    ours = imported(theirs, tmp_path)
    a = make_features(90, 1, dim=dim)
    b = make_features(70, 2, dim=dim, like=a)
    want = ask_kornia(theirs, a, b)
    packed = pack([(a, b)], ours.config)
    with torch.inference_mode():
        *_, x = ours.states(packed)
        head = ours.heads[-1]
        f0, f1 = head.features(x).split(packed.lengths)
        z0, z1 = head.matchability_logits(x).split(packed.lengths)
        log_p = log_assignment(f0 @ f1.T, z0, z1)
    assert_close(log_p.exp(), want["log_assignment"][0, :-1, :-1].exp(), rtol=0, atol=1e-4)
    result = ours.match(packed, MatchSettings(exit_ratio=None, prune_below=None))[0]
    assert len(result) > 5
    assert torch.equal(result.pairs, want["matches"][0])
    assert_close(result.scores, want["scores"][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale_orientation", [False, True])
def test_adaptivity_stops_and_prunes_alike(tmp_path: Path, scale_orientation: bool) -> None:
    stops, pruned = set(), 0
    for seed in range(8):
        theirs = kornia_matcher(32, scale_orientation, adaptive=True, seed=seed)
        ours = imported(theirs, tmp_path)
        a = make_features(60, seed, dim=32)
        b = make_features(80, seed + 100, dim=32, like=a)
        want = ask_kornia(theirs, a, b)
        result = ours.match(pack([(a, b)], ours.config))[0]
        assert result.stop_layer == want["stop"]
        assert torch.equal(result.pairs, want["matches"][0])
        assert_close(result.scores, want["scores"][0], rtol=0, atol=1e-4)
        assert torch.equal(result.layers0 < result.stop_layer, want["prune0"][0] < want["stop"])
        stops.add(result.stop_layer)
        pruned += int((result.layers0 < result.stop_layer).sum())
    assert len(stops) >= 2
    assert pruned > 0
