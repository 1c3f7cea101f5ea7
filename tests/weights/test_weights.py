"""Weights: strict loading, downloads that are checked, and released checkpoints without pickle execution."""

import hashlib
import http.server
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers import make_features, make_model
from lumiglue import Pipeline, Sift, WeightsError
from lumiglue.errors import InputError
from lumiglue.io.download import download
from lumiglue.matcher.inputs import pack
from lumiglue.weights.files import BUILT_IN, load_weights, pretrained_path, read_metadata, save_weights
from lumiglue.weights.registry import resolve
from lumiglue.weights.released import import_released

pytestmark = pytest.mark.portable


def test_saved_weights_load_to_the_same_matcher(tmp_path: Path) -> None:
    model = make_model(extractor="sift", encoding="xy-logscale-angle")
    save_weights(model, tmp_path / "w.safetensors", {"licence": "Apache-2.0"})
    again = load_weights(tmp_path / "w.safetensors")
    config, metadata = read_metadata(tmp_path / "w.safetensors")
    assert config == model.config == again.config
    assert metadata == {"licence": "Apache-2.0"}
    a = make_features(40, 1)
    pairs = [(a, make_features(40, 2, like=a))]
    actual, expected = again.match(pack(pairs, config))[0], model.match(pack(pairs, config))[0]
    assert torch.equal(actual.pairs, expected.pairs)
    assert torch.equal(actual.scores, expected.scores)


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    save_weights(make_model(), tmp_path / "w.safetensors", {})
    before = torch.random.get_rng_state()
    load_weights(tmp_path / "w.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.safetensors").write_bytes(b"\x00" * 40)
    torch.save({"x": torch.zeros(1)}, tmp_path / "released.pth")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_weights(make_model(), tmp_path / "cut.safetensors", {})
    data = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    model = make_model()
    del model.heads[-1]  # pyright: ignore[reportIndexIssue]
    save_weights(model, tmp_path / "partial.safetensors", {})
    for name, message in [
        ("none.safetensors", "does not exist"),
        ("noise.safetensors", "cannot be read as safetensors"),
        ("other.safetensors", "not a Lumiglue weights file"),
        ("cut.safetensors", "cannot be read as safetensors"),
        ("partial.safetensors", "does not fit its own config"),
        ("released.pth", "PyTorch checkpoint; convert it with .* import .*released.pth -o released.safetensors`"),
    ]:
        with pytest.raises(WeightsError, match=message) as caught:
            load_weights(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_weights_for_other_features_are_refused() -> None:
    with pytest.raises(InputError, match="for 'disk' features, but the extractor is 'sift'"):
        Pipeline(Sift(), make_model(extractor="disk", descriptor_dim=128))
    with pytest.raises(InputError, match="gives 128-channel descriptors, but the weights take 32"):
        Pipeline(Sift(), make_model())
    with pytest.raises(WeightsError, match="no built-in weights for 'disk'"):
        pretrained_path("disk")


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_weights_are_whole_and_documented(name: str) -> None:
    path = pretrained_path(name)
    config, metadata = read_metadata(path)
    n16 = dict.fromkeys(("aliked-n16-compact", "aliked-n16-deep"), "aliked-n16")
    sift = dict.fromkeys(("sift-compact", "sift-deep", "sift-clean"), "sift")
    assert config.extractor == (sift | n16 | {"aliked-n16rot-deep": "aliked-n16rot"})[name]
    assert metadata["licence"] == "Apache-2.0"
    assert metadata["training_data"]
    stages = [metadata["recipe"], metadata.get("before", {}).get("recipe", {})]  # the last may train the exits alone
    assert any(stage.get("pairs", 0) > 0 for stage in stages)
    assert metadata["metrics"]
    assert all(bool(torch.isfinite(p).all()) for p in load_weights(path).parameters())


# -- download ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server on this machine that offers one file and counts how often it was asked."""
    content = b"weights" * 1000

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            Handler.requests += 1
            exists = self.path.endswith("w.safetensors")
            self.send_response(200 if exists else 404)
            self.end_headers()
            self.wfile.write(content if exists else b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

        requests = 0

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


CHECKSUM = hashlib.sha256(b"weights" * 1000).hexdigest()


def test_a_download_is_checked_and_kept(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUMIGLUE_CACHE", str(tmp_path / "cache"))
    path = resolve(f"{server}/w.safetensors#sha256={CHECKSUM}")
    assert path.read_bytes() == b"weights" * 1000
    assert path.parent == tmp_path / "cache"
    offline = "http://127.0.0.1:9/w.safetensors"  # the same file name and checksum: the kept copy serves
    assert download(offline, CHECKSUM) == path
    path.write_bytes(b"damaged")
    assert download(f"{server}/w.safetensors", CHECKSUM).read_bytes() == b"weights" * 1000


def test_downloads_that_fail_say_so(server: str, tmp_path: Path) -> None:
    cases = [
        (f"{server}/w.safetensors", "0" * 64, "has SHA-256"),
        (f"{server}/gone.bin", CHECKSUM, "404"),
        ("http://127.0.0.1:9/w.safetensors", CHECKSUM, "cannot be downloaded"),
    ]
    for url, checksum, message in cases:
        with pytest.raises(WeightsError, match=message):
            download(url, checksum, tmp_path / "cache", timeout=5)
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(WeightsError, match="has no checksum"):
        resolve(f"{server}/w.safetensors")


# -- released checkpoints ---------------------------------------------------------------------------------------------


def released(scale_orientation: bool = False) -> dict[str, torch.Tensor]:
    """A state dict in the released naming, from kornia's model."""
    feature = pytest.importorskip("kornia.feature")
    torch.manual_seed(0)
    model = feature.LightGlue(
        None, input_dim=32, add_scale_ori=scale_orientation, descriptor_dim=64, n_layers=3, num_heads=4
    )
    return model.state_dict()


def test_old_and_new_names_and_files_give_the_same_matcher(tmp_path: Path) -> None:
    new = released()
    old = {}
    for name, tensor in new.items():
        part = name.split(".")
        old[".".join([part[2], part[1], *part[3:]]) if part[0] == "transformers" else name] = tensor
    assert any(name.startswith("self_attn.0.") for name in old)
    torch.save(new, tmp_path / "new.pth")
    torch.save(old, tmp_path / "old.pth")
    torch.save({"model": {f"matcher.{k}": v for k, v in new.items()}, "epoch": 3}, tmp_path / "wrapped.pth")
    save_file(new, tmp_path / "new.safetensors")
    models = [import_released(tmp_path / n, "disk") for n in ("new.pth", "old.pth", "wrapped.pth", "new.safetensors")]
    first = models[0].state_dict()
    for model in models:
        assert model.config == models[0].config
        assert all(torch.equal(tensor, first[name]) for name, tensor in model.state_dict().items())
    assert models[0].config.n_layers == 3
    assert models[0].config.heads == 4
    assert models[0].config.extractor == "disk"
    torch.save(released(True), tmp_path / "sift.pth")
    assert import_released(tmp_path / "sift.pth", "sift").config.encoding == "xy-scale-orientation"


class Trap:
    """Runs when unpickled without `weights_only`."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("trap-was-sprung"),))


def test_checkpoints_that_are_no_lightglue_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"x": Trap()}))
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    state = released()
    torch.save({k: v for k, v in state.items() if "log_assignment.1" not in k}, tmp_path / "part.pth")
    torch.save({**state, "transformers.1.self_attn.gate": torch.zeros(1)}, tmp_path / "extra.pth")
    for name, message in [
        ("trap.pth", "nothing else is executed"),
        ("text.pth", "cannot be read as tensors"),
        ("none.pth", "does not exist"),
        ("other.pth", "not a released LightGlue checkpoint"),
        ("list.pth", "is not a state dict"),
        ("part.pth", "not a complete LightGlue checkpoint .*is missing"),
        ("extra.pth", "unknown tensor 'transformers.1.self_attn.gate'"),
    ]:
        with pytest.raises(WeightsError, match=message) as caught:
            import_released(tmp_path / name, "")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "trap-was-sprung").exists()
