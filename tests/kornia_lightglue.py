"""kornia's LightGlue with weights that find matches, as a black box to compare with."""

from pathlib import Path

import pytest
import torch

from lumiglue import Features, LightGlue
from lumiglue.weights.released import import_released

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
