"""Published files by name: downloaded from a server on this machine, verified, converted, kept; what is said offline."""

import http.server
import inspect
import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import lumiglue
from helpers import draw_photo, make_features, make_model
from lumiglue import InputError, Pipeline, WeightsError, compat
from lumiglue.cli import _LabelFormatter
from lumiglue.cli import main as run
from lumiglue.cli.checkpoints import export_onnx, show_weights
from lumiglue.cli.speed import BenchFlags
from lumiglue.io.download import file_sha256
from lumiglue.weights import registry
from lumiglue.weights.files import BUILT_IN, load_weights, read_metadata, save_weights
from lumiglue.weights.registry import MATCHERS, NETWORKS, default_weights, fetch, needed_files, resolve
from lumiglue.weights.released import import_released, released_names


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a server on this machine offers in place of the published addresses; the cache is empty."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("LUMIGLUE_CACHE", str(tmp_path / "cache"))
    for name in ("ALIKED", "DISK", "XFEAT", "SUPERPOINT"):
        monkeypatch.delenv(f"LUMIGLUE_{name}", raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("LUMIGLUE_MIRROR", f"http://127.0.0.1:{server.server_address[1]}/")
        yield folder
        server.shutdown()
        thread.join()


@pytest.fixture
def publish(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Path]:
    """Offers a matcher with random weights as the published file of that name, with its own checksum where one is known."""

    def offer(name: str, seed: int = 0) -> Path:
        file = MATCHERS[name]
        dim = {"xfeat": 64, "superpoint": 256}.get(file.features, 128)
        encoding = "xy-scale-orientation" if file.features == "sift" else "xy"
        model = make_model(seed, descriptor_dim=dim, encoding=encoding)
        path = mirror / file.file_name
        torch.save(released_names(model), path)
        if file.sha256 is not None:
            monkeypatch.setitem(MATCHERS, name, replace(file, sha256=file_sha256(path)))
        return path

    return offer


def test_a_published_matcher_is_downloaded_once_and_converted_exactly(
    publish: Callable[..., Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = publish("disk-lightglue")
    want = import_released(published, "disk")
    arrived: list[tuple[int, int | None]] = []
    with caplog.at_level(logging.WARNING):
        path = fetch("disk-lightglue", progress=lambda received, total: arrived.append((received, total)))
    size = published.stat().st_size
    assert sum(received for received, _ in arrived) == size
    assert {total for _, total in arrived} == {size}
    assert [re.sub("http.*", "", record.message) for record in caplog.records] == [
        "downloading disk-lightglue (47.6 MB, licence: Apache-2.0) from "
    ]
    assert _LabelFormatter().format(caplog.records[0]).startswith("note: downloading disk-lightglue")
    got = load_weights(path)
    assert got.config == want.config
    assert got.config.extractor == "disk"
    assert all(torch.equal(tensor, want.state_dict()[name]) for name, tensor in got.state_dict().items())
    assert read_metadata(path)[1]["licence"] == "Apache-2.0"
    assert MATCHERS["disk-lightglue"].is_here()
    monkeypatch.setenv("LUMIGLUE_MIRROR", "http://127.0.0.1:9")  # from now on without a connection
    caplog.clear()
    assert resolve("disk-lightglue") == path
    assert not caplog.records
    assert sorted(p.name for p in path.parent.iterdir() if p.is_file()) == ["disk-lightglue.safetensors"]


def test_a_file_with_another_checksum_is_refused(publish: Callable[..., Path]) -> None:
    publish("aliked-lightglue").write_bytes(b"another file")
    with pytest.raises(WeightsError, match="it is not the requested file"):
        fetch("aliked-lightglue")
    assert not MATCHERS["aliked-lightglue"].is_here()


def test_a_published_file_that_changed_is_converted_again(
    publish: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("disk-lightglue", seed=0)
    first = load_weights(fetch("disk-lightglue")).state_dict()
    publish("disk-lightglue", seed=1)  # a later version of the package asks for another checksum
    assert not MATCHERS["disk-lightglue"].is_here()
    again = load_weights(fetch("disk-lightglue")).state_dict()
    assert any(not torch.equal(tensor, first[name]) for name, tensor in again.items())
    fetch("disk-lightglue").write_bytes(b"damaged")
    assert load_weights(fetch("disk-lightglue")).state_dict().keys() == again.keys()


def test_without_a_known_checksum_the_one_received_is_reported(
    publish: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    received = file_sha256(publish("superpoint-lightglue"))
    with pytest.raises(WeightsError, match="it is not the requested file"):
        fetch("superpoint-lightglue", sha256="0" * 64)
    with pytest.raises(WeightsError, match="is not a SHA-256"):
        fetch("superpoint-lightglue", sha256="0" * 63)
    with caplog.at_level(logging.WARNING):
        path = fetch("superpoint-lightglue")
    messages = "\n".join(record.message for record in caplog.records)
    assert f"--sha256 {received}" in messages
    assert "non-commercial research only" in messages
    assert read_metadata(path)[1]["source_sha256"] == received
    assert "non-commercial" in read_metadata(path)[1]["notice"]
    assert fetch("superpoint-lightglue", sha256=received) == path


def test_offline_one_sentence_has_the_address_the_place_and_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publish: Callable[..., Path]
) -> None:
    file = publish("aliked-lightglue")
    monkeypatch.setenv("LUMIGLUE_MIRROR", "http://127.0.0.1:9")
    place = tmp_path / "cache" / f"{file_sha256(file)[:16]}-aliked_lightglue.pth"
    expected = (
        r"http://127.0.0.1:9/aliked_lightglue.pth cannot be downloaded \(.*\); .* "
        rf"save the file as {re.escape(str(place))}, or omit --features and --weights"
    )
    with pytest.raises(WeightsError, match=expected) as caught:
        resolve("aliked-lightglue")
    assert "\n" not in str(caught.value)
    place.write_bytes(file.read_bytes())  # as the sentence says
    assert load_weights(resolve("aliked-lightglue")).config.extractor == "aliked-n16"


def test_names_of_weights_and_features_go_together(tmp_path: Path, publish: Callable[..., Path]) -> None:
    """The extractor follows the weights, where they are named and the features are not, or name a family."""
    pytest.importorskip("kornia")
    publish("aliked-lightglue")
    publish("xfeat-lighterglue")
    publish("sift-lightglue")
    cases: list[tuple[dict, str]] = [
        ({}, "sift"),
        ({"features": "aliked"}, "aliked-n16"),
        ({"features": "aliked-n16"}, "aliked-n16"),
        ({"features": "aliked-n16rot"}, "aliked-n16rot"),
        ({"features": "aliked", "weights": "aliked-n16rot-deep"}, "aliked-n16rot"),
        ({"weights": "aliked-n16rot-deep"}, "aliked-n16rot"),
        ({"weights": "aliked-n16-compact"}, "aliked-n16"),
        ({"weights": "aliked-n16-deep"}, "aliked-n16"),
        ({"weights": "xfeat-lighterglue"}, "xfeat"),
        ({"features": "xfeat"}, "xfeat"),
        ({"weights": "sift-lightglue"}, "sift"),
    ]
    for names, extractor in cases:
        assert Pipeline.pretrained(**names).extractor.name == extractor, names
    assert Pipeline.pretrained("aliked").matcher.config.d == 32  # the published one, not the package's
    with pytest.raises(InputError, match="for 'aliked-n16' features, but the extractor is 'sift'"):
        Pipeline.pretrained("sift", weights="aliked-lightglue")
    with pytest.raises(WeightsError, match="no default weights for 'aliked-t16' features"):
        Pipeline.pretrained("aliked-t16")
    save_weights(make_model(descriptor_dim=128), tmp_path / "any.safetensors", {})
    with pytest.raises(InputError, match="the weights are for 'any' features; name an extractor"):
        Pipeline.pretrained(weights=tmp_path / "any.safetensors")


def test_commands_start_with_the_default_weights() -> None:
    """The command line starts without this table, so it repeats the name."""
    name = default_weights("sift")
    for command in (show_weights, export_onnx):
        assert inspect.signature(command).parameters["weights"].default == name
    assert BenchFlags().weights == name
    chosen, named = Pipeline.pretrained().matcher, Pipeline.pretrained(weights=name).matcher
    assert isinstance(chosen, torch.nn.Module)
    assert isinstance(named, torch.nn.Module)
    assert all(torch.equal(tensor, named.state_dict()[key]) for key, tensor in chosen.state_dict().items())


def test_changing_one_import_is_all(publish: Callable[..., Path]) -> None:
    """The released signature with no weights given takes the published ones, by the names that the original takes."""
    for features, name in {"aliked": "aliked-lightglue", "disk": "disk-lightglue", "sift": "sift-lightglue"}.items():
        want = import_released(publish(name), features)
        got = compat.LightGlue(features=features).matcher
        assert all(torch.equal(tensor, want.state_dict()[key]) for key, tensor in got.state_dict().items())
    a, b = (make_features(40, seed, dim=128) for seed in (1, 2))
    image0, image1 = (
        {"keypoints": f.keypoints[None], "descriptors": f.descriptors[None], "image_size": torch.tensor([f.image_size])}
        for f in (a, b)
    )
    assert compat.LightGlue(features="disk")({"image0": image0, "image1": image1})["matches0"].shape == (1, 40)


def test_the_command_line_lists_and_downloads(
    publish: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("xfeat-lighterglue")

    def listed() -> dict[str, str]:
        assert run(["weights", "list"]) == 0
        return {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]}

    before = listed()
    assert before.keys() == {*BUILT_IN, *MATCHERS, *NETWORKS}
    assert before["xfeat-lighterglue"] == "no"
    assert before["sift-compact"] == "package"
    assert run(["weights", "download", "xfeat-lighterglue"]) == 0
    assert "xfeat-lighterglue.safetensors" in capsys.readouterr().out
    assert listed() == {**before, "xfeat-lighterglue": "here"}
    monkeypatch.setenv("LUMIGLUE_MIRROR", "http://127.0.0.1:9")
    assert run(["weights", "show", "xfeat-lighterglue"]) == 0
    assert '"licence": "Apache-2.0"' in capsys.readouterr().out
    assert run(["weights", "download", "sift-deep"]) == 0
    assert run(["weights", "download", "sfit"]) == 2
    assert "no published file is called 'sfit'" in capsys.readouterr().err


def test_what_a_matcher_needs() -> None:
    def names(features: str | None, weights: str | None = None) -> list[str]:
        return [file.name for file in needed_files(features, weights)]

    assert names("sift") == []
    assert names("aliked") == ["aliked-n16", "aliked-lightglue"]
    assert names("aliked-n16rot") == ["aliked-n16rot"]
    assert names(None, "disk-lightglue") == ["disk", "disk-lightglue"]
    assert names("superpoint", "superglue-outdoor") == ["superglue-outdoor"]


def test_the_tables_agree() -> None:
    for name, file in {**MATCHERS, **NETWORKS}.items():
        assert file.name == name
        assert file.url.startswith("https://")
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
    assert set(registry.DEFAULT_WEIGHTS.values()) <= {*BUILT_IN, *MATCHERS}
    assert not {*BUILT_IN} & {*MATCHERS}
    with pytest.raises(WeightsError, match="no default weights for 'sfit' features"):
        default_weights("sfit")


def test_the_default_needs_no_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LUMIGLUE_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("LUMIGLUE_CACHE", str(tmp_path))
    assert len(lumiglue.Pipeline.pretrained(max_keypoints=64).match(draw_photo(1), draw_photo(1))) > 20
