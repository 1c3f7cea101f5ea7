"""The mean of several runs' weights."""

from pathlib import Path

import pytest
import torch

from helpers import make_features, make_model
from lumiglue.cli import main
from lumiglue.errors import WeightsError
from lumiglue.matcher.inputs import pack
from lumiglue.training.averaging import mean_of
from lumiglue.training.deepening import deepened
from lumiglue.weights.files import load_weights, read_metadata, save_weights


def test_the_mean_is_that_of_each_parameter_and_has_the_last_thresholds() -> None:
    one, other = make_model(0, exit_ratio=0.8), make_model(1, exit_ratio=0.9)
    mean = mean_of([one, other])
    assert mean.config == other.config
    of_one, of_other = one.state_dict(), other.state_dict()
    for name, value in mean.state_dict().items():
        torch.testing.assert_close(value, (of_one[name] + of_other[name]) / 2)
    assert all(torch.equal(value, of_other[name]) for name, value in other.state_dict().items())


def test_weights_of_fewer_layers_are_deepened_first() -> None:
    shallow = make_model(0, exit_ratio=0.0, prune_below=0.0)
    mean = mean_of([shallow, deepened(shallow, 8)])
    assert mean.config.n_layers == 8
    a = make_features(60, 0)
    b = make_features(50, 1, like=a)
    before, after = (model.match(pack([(a, b)], model.config))[0] for model in (shallow, mean))
    assert len(before.pairs) > 0
    assert torch.equal(before.pairs, after.pairs)


def test_weights_of_other_shapes_have_no_mean() -> None:
    with pytest.raises(WeightsError, match=r"differ in d \(64 and 32\)"):
        mean_of([make_model(0, d=64), make_model(0)])
    with pytest.raises(WeightsError, match="at least one"):
        mean_of([])


def test_the_command_writes_the_mean_and_says_of_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "mean.safetensors")]
    for seed, file in enumerate(files[:2]):
        save_weights(make_model(seed), Path(file), {"seed": seed})
    assert main(["weights", "mean", *files[:2], "-o", files[2]]) == 0
    config, metadata = read_metadata(Path(files[2]))
    assert metadata == {"seed": 1, "mean_of": files[:2]}
    assert config == make_model().config
    value = next(load_weights(Path(files[2])).parameters())
    torch.testing.assert_close(value, sum(next(make_model(seed).parameters()) for seed in (0, 1)) / 2)
    assert main(["weights", "mean", files[0], "-o", files[2]]) == 2
    assert "two or more" in capsys.readouterr().err
