"""The same random weights in kornia's LightGlue and in ours, read through the importer of released checkpoints."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from helpers import make_features
from kornia_lightglue import ask_kornia, imported, kornia_matcher
from lumiglue import MatchSettings
from lumiglue.matcher.assignment import log_assignment
from lumiglue.matcher.inputs import pack

pytestmark = pytest.mark.numeric


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
        f0, f1 = head.features(x).split(packed.lengths[0])
        z0, z1 = head.matchability_logits(x).split(packed.lengths[0])
        log_p = log_assignment(f0 @ f1.T, z0, z1)
    assert_close(log_p.exp(), want["log_assignment"][0, :-1, :-1].exp(), rtol=0, atol=1e-4)
    result = ours.match(packed, MatchSettings(exit_ratio=0, prune_below=0))[0]
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
