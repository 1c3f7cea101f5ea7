"""No file makes a reader do anything but read it or say in one sentence why not: damaged, hostile, or of another kind.

The readers and their files are those of tests/fuzz/targets.py; tests/fuzz/regressions/ holds what fuzzing found.
"""

import io
import os
import pickle
import random
import resource
import struct
import tarfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

import targets
from helpers import draw_photo
from lumiglue import ImageError, InputError
from lumiglue.collection.hloc import FeaturesFile
from lumiglue.collection.pairs import read_pairs, write_pairs
from lumiglue.errors import DatasetError, LumiglueError, WeightsError
from lumiglue.images import read_image
from lumiglue.training.data import dataset as datasets
from lumiglue.training.data import posed_formats
from lumiglue.weights.files import load_weights
from lumiglue.weights.released import import_released

REGRESSIONS = Path(__file__).parent / "fuzz" / "regressions"
SEEDS: dict[str, list[bytes]] = {}


def seeds(name: str, folder: Path) -> list[bytes]:
    if name not in SEEDS:
        folder.mkdir()
        SEEDS[name] = targets.TARGETS[name].seeds(folder)
    return SEEDS[name]


def read(name: str, data: bytes, folder: Path) -> LumiglueError | None:
    """The reader's refusal, if any; a failure of any other kind fails the test."""
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow and NumPy say beside; it is not shown to users
        try:
            targets.TARGETS[name].read(data, folder)
        except LumiglueError as error:
            refusal = error
        else:
            return None
    assert "\n" not in str(refusal).strip(), refusal
    return refusal


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut short, some bytes changed, a part repeated, removed or filled."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(6):
            case 0:
                del content[at:]
            case 1:
                del content[at : at + length]
            case 2:
                content[at : at + length] = rng.randbytes(length)
            case 3:
                content[at:at] = content[at : at + length]
            case 4:
                content[at : at + length] = rng.choice((b"\xff", b"\0", b"9", b"[", b" ", b"-")) * length
            case _:
                content[at : at + 1] = bytes([content[at] ^ 1 << rng.randrange(8)]) if at < len(content) else b""
    return bytes(content)


@pytest.mark.parametrize("name", targets.TARGETS)
@given(seed=st.integers(0, 2**32))
def test_damaged_files_are_read_or_refused(name: str, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, rng = tmp_path_factory.mktemp("files"), random.Random(seed)
    if name.endswith("-structure"):
        data = rng.randbytes(32)
    else:
        data = damaged(rng.choice(seeds(name, folder / "seeds")), rng)
    read(name, data, folder / "read")


def test_whole_files_are_read(tmp_path: Path) -> None:
    for name in targets.TARGETS:
        for number, data in enumerate(seeds(name, tmp_path / f"{name}-seeds")):
            error = read(name, data, tmp_path / f"{name}-{number}")
            assert error is None or name.endswith("-structure") or name == "pairs", error


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_fuzzing_found_stays_mended(path: Path, tmp_path: Path) -> None:
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read(path.parent.name, path.read_bytes(), tmp_path / "read")
    assert time.process_time() - start < 20  # nothing that hangs
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # kB


# --- pickles ------------------------------------------------------------------------------------------------------------


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "sprung")


def traps(path: Path) -> dict[str, bytes]:
    """A hostile pickle in every wrapping that some loader of Python would execute."""
    trap = Trap(path)
    array, archive, objects, zipped = (io.BytesIO() for _ in range(4))
    np.save(array, np.array([trap], object), allow_pickle=True)
    columns = {name: np.array([trap], object) for name in ("image_paths", "depth_paths", "intrinsics", "poses")}
    np.savez(archive, **columns)  # pyright: ignore[reportArgumentType]
    torch.save({"model": trap, "weight": torch.zeros(1)}, objects)
    torch.save({"model": trap}, zipped, _use_new_zipfile_serialization=False)
    return {
        "pickle": pickle.dumps(trap), "protocol 0": pickle.dumps(trap, 0), "npy": array.getvalue(),
        "npz": archive.getvalue(), "torch": objects.getvalue(), "old torch": zipped.getvalue(),
    }  # fmt: skip


@pytest.mark.parametrize("name", targets.TARGETS)
def test_no_reader_executes_a_pickle(name: str, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    for number, (kind, data) in enumerate(traps(sprung).items()):
        for prefix in (b"n", b"h") if name == "depth" else (b"",):
            error = read(name, prefix + data, tmp_path / f"{number}{prefix.decode()}")
            assert error is not None or name.endswith("-structure"), kind
            assert not sprung.exists(), kind
    pickle.loads(traps(sprung)["pickle"])
    assert sprung.exists()  # so the trap is one


def test_objects_in_hdf5_and_archives_are_not_executed(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    with h5py.File(tmp_path / "f.h5", "w") as file:
        group = file.create_group("a.jpg")
        for key in ("keypoints", "descriptors", "image_size"):
            group[key] = np.void(pickle.dumps(Trap(sprung)))
    with FeaturesFile(tmp_path / "f.h5") as features, pytest.raises(InputError, match="is not numeric"):
        features.read("a.jpg")
    with tarfile.open(tmp_path / "r.pth", "w") as archive:  # PyTorch's oldest format
        for name in ("storages", "tensors", "pickle"):
            data, entry = pickle.dumps(Trap(sprung)), tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    with pytest.raises(WeightsError, match="nothing else is executed"):
        import_released(tmp_path / "r.pth", "")
    assert not sprung.exists()


def test_nothing_in_the_package_unpickles_unguarded() -> None:
    """By the source: `torch.load` with weights_only, `np.load` without pickles, one unpickler that knows arrays alone."""
    for path in (Path(__file__).parents[1] / "src").rglob("*.py"):
        text = path.read_text()
        for call, guard in (("torch.load(", "weights_only=True"), ("np.load(", "allow_pickle=False")):
            for part in text.split(call)[1:]:
                assert guard in part.partition("\n")[0], path
        for call in ("pickle.load", "joblib", "marshal", "shelve", "yaml.", "dill", "allow_pickle=True"):
            # What the demo and its own workers hand each other comes from no file, and from no user.
            assert call not in text or (call == "pickle.load" and path.parent.name == "demo"), path
        assert ("pickle.Unpickler" in text) == (path.name == "posed_formats.py")


# --- bombs --------------------------------------------------------------------------------------------------------------


def grown(run: Callable[[], object]) -> float:
    """MB by which the process's largest memory grows."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000


def refused(error: type[Exception], message: str, run: Callable[[], object]) -> Callable[[], object]:
    def check() -> None:
        with pytest.raises(error, match=message) as caught:
            run()
        assert "\n" not in str(caught.value)

    return check


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff16(width: int, height: int) -> bytes:
    """The header of a 16-bit RGB TIFF, which Pillow does not know."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 2), (277, 3, 1, 3),
            (273, 4, 1, 8), (278, 4, 1, height), (279, 4, 1, 100)]  # fmt: skip
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + body


def test_image_bombs_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for data, message in [
        (png(60000, 60000), "above the limit of 179 megapixels; downscale it first"),
        (tiff16(60000, 60000), "above the limit of 179 megapixels; downscale it first"),
        (png(0, 5), "is damaged|is not an image|no pixels"),
        (b"P6 0 5 255\n", "is damaged|is not an image|no pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),  # Pillow would start Ghostscript
        (png(24, 16)[:30] + b"\xdf" + png(24, 16)[31:], "is damaged|is not an image"),
    ]:
        path.write_bytes(data)
        assert grown(refused(ImageError, message, lambda: read_image(path))) < 100


def test_claims_of_huge_arrays_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        group = file.create_group("a.jpg")
        group.create_dataset("keypoints", (10**10, 2), "f4", chunks=(1000, 2))
        group["descriptors"], group["image_size"] = np.zeros((8, 3)), [64, 48]
    with FeaturesFile(tmp_path / "f.h5") as features:
        assert grown(refused(InputError, "keypoints has shape .* more than 1024 MiB", lambda: features.read("a.jpg"))) < 100

    tensors = {name: t.detach() for name, t in targets.small_models()[0].state_dict().items()}
    for field, value in (
        ("d", 60000),
        ("n_layers", 60000),
        ("heads", 30000),
        ("descriptor_dim", 10**9),
        ("d", "8"),
        ("d", 8.0),
    ):
        config = {"d": 8, "heads": 1, "n_layers": 2, "descriptor_dim": 8, "project_input": field == "d", field: value}
        header = {"format": "lumiglue-lightglue", "config": str(config).replace("'", '"').lower(), "metadata": "{}"}
        (tmp_path / "w.safetensors").write_bytes(save(tensors, header))
        claim = refused(WeightsError, "config", lambda: load_weights(tmp_path / "w.safetensors"))
        assert grown(claim) < 100

    shapes = {name: torch.zeros(1).expand([10**6] * max(t.ndim, 1)) for name, t in targets.small_released().items()}
    torch.save(shapes, tmp_path / "r.pth")
    assert grown(refused(WeightsError, "does not contain all of", lambda: import_released(tmp_path / "r.pth", ""))) < 100

    (tmp_path / "scene_info").mkdir()
    np.savez_compressed(tmp_path / "scene_info" / "0.npz", poses=np.zeros(2**17))
    monkeypatch.setattr(posed_formats, "_LARGEST_ARCHIVE", 2**20 - 1)
    with pytest.raises(InputError, match="unpacks to 1 MiB"):
        posed_formats.read_posed(tmp_path)


def test_weights_that_hold_nan_are_refused(tmp_path: Path) -> None:
    model = targets.small_models()[0]
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    from lumiglue.weights.files import save_weights

    save_weights(model, tmp_path / "w.safetensors", {})
    with pytest.raises(WeightsError, match=r"contains NaN, infinity or complex numbers\); copy it again"):
        load_weights(tmp_path / "w.safetensors")


def test_a_dataset_whose_arrays_do_not_fit_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    """A training run would find out hours later, or learn from wrong rows."""
    for name, value in (("pairs", [[0, 7]]), ("offsets", [0, 9, 6]), ("view_scenes", [0, 3]), ("cameras", np.eye(4)),
                        ("scores", np.ones(3, np.float32)), ("pairs", [[-1, 0]])):  # fmt: skip
        path = tmp_path / "dataset.h5"
        targets.write_dataset(path)
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = value
        with pytest.raises(DatasetError, match=f"{name}.*build it again"):
            datasets.FeatureDataset(path)


# --- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a b.png", "Grüße-日本.png", "#1.png", "x#y.png", "-.png", "a\tb.png", "n" * 240 + ".png"])
def test_photos_of_any_name_go_through_lists(name: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(draw_photo(0, 40, 30)).save(tmp_path / "photos" / name)
    assert read_image(tmp_path / "photos" / name).shape == (30, 40, 3)
    pairs = [(name, "other.png")]
    if "\t" in name or name.startswith("#"):
        with pytest.raises(InputError, match="cannot be written on a line of a list; rename the file"):
            write_pairs(tmp_path / "pairs.txt", pairs)
    else:
        write_pairs(tmp_path / "pairs.txt", pairs)
        assert read_pairs(tmp_path / "pairs.txt") == pairs


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in [
        (tmp_path / "pipe", "is not a file"), ("/dev/zero", "is not a file"), (tmp_path / ("n" * 5000), "name too long"),
        ("a\0b", "is not a path"), (tmp_path / "a\nb", "does not exist"),
    ]:  # fmt: skip
        with pytest.raises(ImageError, match=message):
            read_image(path)
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match="is not a file; give a file with two image names"):
            read_pairs(path)
    (tmp_path / "latin.txt").write_bytes("Grüße.png b.png\n".encode("latin-1"))
    with pytest.raises(InputError, match="not a text file in UTF-8"):
        read_pairs(tmp_path / "latin.txt")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa.png b.png\r\n")
    assert read_pairs(tmp_path / "bom.txt") == [("a.png", "b.png")]
