"""Layers carried over to other features: `carry_over.py` and `add_learned.py` of `benchmarks/tools`."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers import make_features, make_model
from lumiglue.errors import InputError
from lumiglue.matcher.inputs import pack

TOOLS = Path(__file__).parents[2] / "benchmarks" / "tools"


def _tool(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool() -> Any:
    return _tool("carry_over")


def test_turned_descriptors_get_the_same_matches(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """New descriptors that are the old ones turned in space: least squares undoes the turn."""
    model = make_model(encoding="xy", extractor="old")
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(3)))[0]
    described = torch.randn(400, 32, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(tool, "described_twice", lambda photos, old, new: (described, described @ turn))
    after = SimpleNamespace(extractor={"name": "new"}, descriptor_dim=32, has_orientation=False)
    carried = tool.carried_over(model, Path("photos"), after).eval()
    assert carried.config.extractor == "new"
    a = make_features(90, 0)
    b = make_features(70, 1, like=a)
    before = model.match(pack([(a, b)], model.config))[0]
    turned = [replace(image, descriptors=image.descriptors @ turn) for image in (a, b)]
    now = carried.match(pack([(turned[0], turned[1])], carried.config))[0]
    assert torch.equal(now.pairs, before.pairs)
    assert len(before.pairs) > 3
    torch.testing.assert_close(now.scores, before.scores, atol=1e-4, rtol=0)


def test_features_that_describe_only_their_own_keypoints_are_refused(tool: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sift describes its own keypoints only; leave out --photos"):
        tool.described_twice(tmp_path, "sift", "sift")


def test_what_was_learned_is_added_to_the_layers_alone() -> None:
    """The whole of it turns the old layers into the new ones, half of it goes half the way; the input stays as it is."""
    before, after, model = (make_model(encoding="xy", d=16, seed=seed) for seed in (1, 2, 1))
    for name, parameter in model.named_parameters():
        if name.startswith("input_projection."):
            parameter.data.add_(1)
    kept = {name: parameter.clone() for name, parameter in model.named_parameters() if name.startswith("input_projection.")}
    assert len(kept) == 2
    add = _tool("add_learned").with_learned
    half = {name: parameter.clone() for name, parameter in add(model, before, after, 0.5).named_parameters()}
    whole = dict(add(model, before, after, 0.5).named_parameters())
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    for name, parameter in whole.items():
        if name in kept:
            assert torch.equal(parameter, kept[name])
        else:
            torch.testing.assert_close(parameter, new[name])
            torch.testing.assert_close(half[name], (old[name] + new[name]) / 2)
    with pytest.raises(InputError, match="differ in the number or the width of their layers"):
        add(model, before, make_model(encoding="xy", d=16, n_layers=2), 0.5)
