"""What is fuzzed: every reader of Lumiglue, with real files to begin from.

A target turns bytes into a file, has it read whole, and may raise nothing but Lumiglue's own errors. Those that end in
"-structure" do not mutate a file's bytes but build a well-formed file with wrong contents, guided by the bytes.
"""

import copy
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from lumiglue import Features, LightGlue, LightGlueConfig
from lumiglue.cli.matching import _read_list
from lumiglue.collection.hloc import FeaturesFile, MatchesReader
from lumiglue.collection.pairs import read_pairs, read_position
from lumiglue.evaluation import pairs as evaluation_pairs
from lumiglue.evaluation.formats import read_hpatches, read_pose_pairs, read_strecha
from lumiglue.evaluation.scores import ScoresFile, read_record, read_scores
from lumiglue.evaluation.scoring import PairScore, score_pairs
from lumiglue.images import read_image
from lumiglue.io.hdf5 import GrowingFile
from lumiglue.matcher.superglue import SuperGlue, SuperGlueConfig
from lumiglue.training.config import TrainSettings
from lumiglue.training.data import dataset as datasets
from lumiglue.training.data.posed import DepthSource, stored_size
from lumiglue.training.data.posed_formats import read_posed
from lumiglue.training.learner import Learner
from lumiglue.training.run_folder import RunFolder, read_checkpoint
from lumiglue.weights.files import load_weights, read_metadata, save_weights
from lumiglue.weights.released import import_released, released_names

SMALL = LightGlueConfig(descriptor_dim=8, d=8, heads=1, n_layers=2)


@dataclass(frozen=True)
class Target:
    """seeds: the bytes to begin from, made in an empty folder. read: reads a file of the given bytes in an empty folder."""

    seeds: Callable[[Path], list[bytes]]
    read: Callable[[bytes, Path], object]


class Draw:
    """Choices taken from bytes, one byte each; zeros when they run out."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[self.byte() % len(choices)]

    def text(self) -> str:
        length = self.byte() % 8
        return bytes(self.byte() for _ in range(length)).decode("latin-1")


def small_features(n: int, seed: int = 0, dim: int = 8) -> Features:
    """n random features."""
    generator = torch.Generator().manual_seed(seed)
    return Features(
        keypoints=torch.rand(n, 2, generator=generator) * 50,
        descriptors=torch.randn(n, dim, generator=generator),
        image_size=(64, 48),
        scores=torch.rand(n, generator=generator),
        scales=torch.rand(n, generator=generator) + 1,
        orientations=torch.rand(n, generator=generator),
    )


def small_photo() -> np.ndarray:
    """24 x 16 pixels of some colours."""
    return np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)


# --- images -------------------------------------------------------------------------------------------------------------


def image_seeds(folder: Path) -> list[bytes]:
    photo, seeds = Image.fromarray(small_photo()), []
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0), 3: "W", 4: (4.0, 5.0, 6.0)}
    deep = Image.fromarray(small_photo()[..., 0].astype(np.uint16) * 257)
    for name, image, options in [
        ("JPEG", photo, {"exif": exif}), ("JPEG", photo, {"progressive": True}), ("JPEG", photo.convert("CMYK"), {}),
        ("PNG", photo, {"exif": exif}), ("PNG", photo.quantize(16), {"transparency": 0}), ("PNG", deep, {}),
        ("PNG", photo.convert("RGBA"), {}), ("PNG", photo.convert("LA"), {}), ("PNG", photo.convert("1"), {}),
        ("TIFF", photo, {}), ("TIFF", photo, {"compression": "tiff_lzw"}), ("TIFF", deep, {}),
        ("TIFF", photo.convert("F"), {}), ("TIFF", photo, {"compression": "jpeg"}), ("WEBP", photo, {"exif": exif}),
        ("WEBP", photo.convert("RGBA"), {"lossless": True}), ("BMP", photo, {}), ("BMP", photo.quantize(8), {}),
        ("PPM", photo, {}), ("PPM", deep, {}), ("GIF", photo.quantize(8), {}),
    ]:  # fmt: skip
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        seeds.append(buffer.getvalue())
    for suffix in (".tif", ".png", ".ppm"):
        coded, data = cv2.imencode(suffix, small_photo().astype(np.uint16) * 257)
        assert coded
        seeds.append(data.tobytes())
    return seeds


def read_as_image(data: bytes, folder: Path) -> None:
    path = folder / "photo.jpg"
    path.write_bytes(data)
    read_position(path)
    image = read_image(path)
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.dtype == np.uint8
    assert min(image.shape) > 0


# --- HDF5 ---------------------------------------------------------------------------------------------------------------


def write_features(path: Path) -> None:
    """Two images in hloc's layout."""
    with h5py.File(path, "w") as file:
        file.attrs["record"] = "{}"
        for seed, name in enumerate(("a.jpg", "b/c.jpg")):
            features, group = small_features(4, seed), file.create_group(name)
            group["keypoints"], group["descriptors"] = features.keypoints.numpy(), features.descriptors.T.half().numpy()
            group["image_size"] = np.array([64, 48])
            assert features.scores is not None
            for key, values in (("scores", features.scores), ("scales", features.scales), ("oris", features.orientations)):
                assert values is not None
                group[key] = values.numpy()
            group.attrs["extractor"] = "sift"


def write_matches(path: Path) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("a.jpg/b.jpg")
        group["matches0"] = np.array([1, -1, 0], np.int32)
        group["matching_scores0"] = np.array([0.5, 0, 1], np.float16)


def read_features(path: Path) -> None:
    with FeaturesFile(path) as file:
        for name in [*file.names()[:5], "a.jpg", "b/c.jpg"]:
            file.read(name)


def read_matches(path: Path) -> None:
    with MatchesReader(path) as file:
        file.read("a.jpg", "b.jpg")
        file.read("b.jpg", "a.jpg")


def odd_dataset(group: h5py.Group, name: str, draw: Draw, usual: Any) -> None:
    """Puts under `name` what is usual, or something that does not belong there."""
    if name in group:
        del group[name]
    shape = tuple(draw.byte() % 5 for _ in range(draw.byte() % 4))
    match draw.byte() % 11:
        case 0 | 1:
            group[name] = usual
        case 2:
            pass
        case 3:
            group.create_group(name)
        case 4:
            group[name] = draw.text().replace("\0", "")
        case 5:
            group[name] = h5py.SoftLink("/nowhere")
        case 6:
            dtype = draw.pick(("f2", "f4", "f8", "i1", "i4", "u8", "?", "c8", "S3"))
            group[name] = np.full(shape, draw.byte() - 128).astype(dtype)
        case 7:
            group[name] = np.full(shape, draw.pick((np.nan, np.inf, -1e300, 0.0)))
        case 8:
            group.create_dataset(name, (10**7, 10 ** draw.pick((2, 5, 9))), "f4", chunks=(1000, 10))
        case 9:
            group.create_dataset(name, dtype=draw.pick(("f4", "i8")), shape=None)
        case _:
            usual = np.array(usual)
            if usual.size and usual.dtype.kind in "fi":
                usual.flat[draw.byte() % usual.size] = draw.pick((-1, 0, 2**31 - 1, 100))
            group[name] = usual


def structured(write: Callable[[Path], None], read: Callable[[Path], object]) -> Callable[[bytes, Path], None]:
    """Of a good HDF5 file some data sets and attributes are replaced."""

    def run(data: bytes, folder: Path) -> None:
        path, draw = folder / "file.h5", Draw(data)
        write(path)
        with h5py.File(path, "r+") as file:
            usual: dict[str, Any] = {}
            file.visititems(lambda name, item: usual.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
            for _ in range(1 + draw.byte() % 3):
                name = draw.pick(sorted(usual))
                parent = file[name.rpartition("/")[0] or "/"]
                assert isinstance(parent, h5py.Group)
                odd_dataset(parent, name.rpartition("/")[2], draw, usual[name])
            for name in list(file.attrs) if draw.byte() % 4 == 0 else ():
                file.attrs[name] = draw.pick(("", "x", 3, -1.5, b"\xff", np.zeros((2, 2)), "[]", "{}", h5py.Empty("f")))
        read(path)

    return run


def bytes_of(write: Callable[[Path], object], name: str) -> Callable[[Path], list[bytes]]:
    """Seeds: the one file that `write` makes."""

    def run(folder: Path) -> list[bytes]:
        write(folder / name)
        return [(folder / name).read_bytes()]

    return run


def file_of(read: Callable[[Path], object], name: str) -> Callable[[bytes, Path], object]:
    """Reads a file of that name."""

    def run(data: bytes, folder: Path) -> object:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return run


def write_part(path: Path) -> None:
    with GrowingFile(path.parent / "out.h5", "{}") as growing, growing.part() as group:
        group("a.jpg")["keypoints"] = np.zeros((3, 2))
    (path.parent / "out.h5.parts" / "part-000000.h5").rename(path)


def read_part(data: bytes, folder: Path) -> None:
    (folder / "out.h5.parts").mkdir()
    (folder / "out.h5.parts" / "part-000000.h5").write_bytes(data)
    with GrowingFile(folder / "out.h5", "{}") as growing:
        growing.missing(["a.jpg"])
        growing.finish()


# --- text and JSON ------------------------------------------------------------------------------------------------------

PAIRS_TEXT = b"# two names a line\na.jpg b.jpg\n\nsub/c.jpg\td e.jpg\n"
POSE_LINE = " ".join(["a.png", "b.png", "0", "1", *map(str, np.eye(3).ravel()), *map(str, np.eye(3).ravel())])


def read_hpatches_of(data: bytes, folder: Path) -> None:
    (folder / "v_wall").mkdir()
    for name in ("1.ppm", "2.ppm"):
        (folder / "v_wall" / name).write_bytes(b"P5 1 1 255\n0")
    (folder / "v_wall" / "H_1_2").write_bytes(data)
    read_hpatches(folder)


def read_pose_pairs_of(data: bytes, folder: Path) -> None:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"P5 3 2 255\n000000")
    (folder / "pairs.txt").write_bytes(data)
    read_pose_pairs(folder / "pairs.txt", folder)


def read_strecha_of(data: bytes, folder: Path) -> None:
    for name in ("1.png", "2.png"):
        (folder / name).write_bytes(b"P5 1 1 255\n0")
        (folder / f"{name}.camera").write_bytes(data)
    read_strecha(folder)


CAMERA = b"5 0 2\n0 5 2\n0 0 1\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n1 2 3\n64 48\n"
PAIRS_JSON = {
    "images": {"a.png": {"size": [64, 48]}},
    "pairs": [
        {"type": "homography", "group": "g", "a": "a.png", "b": "b.png", "H": np.eye(3).tolist()},
        {
            "type": "pose", "group": "g", "a": "a.png", "b": "b.png", "K_a": np.eye(3).tolist(), "K_b": np.eye(3).tolist(),
            "R": np.eye(3).tolist(), "t": [1, 0, 0], "turns_a": 1,
        },
        {"type": "correspondences", "group": "g", "a": "a.png", "b": "b.png", "pts_a": [[1, 2]], "pts_b": [[3, 4]]},
    ],
}  # fmt: skip


class _NoPoints:
    """Finds nothing in any image, so that what is wrong with a pair itself comes to light."""

    name, descriptor_dim = "none", 8

    def config(self) -> dict[str, Any]:
        return {}

    def __call__(self, image: np.ndarray) -> Features:
        return small_features(12, 1)


def read_pairs_json(path: Path) -> None:
    pairs = evaluation_pairs.read_pairs(path.parent)
    for name in ("a.png", "b.png"):
        (path.parent / name).write_bytes(b"P5 9 9 255\n" + bytes(81))
    pairs = [replace(pair, a="a.png", b="b.png") for pair in pairs[:3]]

    def same(a: Features, b: Features) -> Any:
        from lumiglue import Matches

        rows = torch.arange(12)
        return Matches(torch.stack([rows, rows], 1), torch.ones(12))

    list(score_pairs(path.parent, pairs, _NoPoints(), {"same": same}))


def odd_json(value: Any, draw: Draw) -> Any:
    """A copy with one or two nodes replaced or removed."""
    content = copy.deepcopy(value)
    for _ in range(1 + draw.byte() % 2):
        node = content
        while isinstance(node, dict | list) and node:
            key = draw.pick(sorted(node)) if isinstance(node, dict) else draw.byte() % len(node)
            if not isinstance(node[key], dict | list) or not node[key] or draw.byte() % 4 == 0:
                odd = (
                    None,
                    True,
                    -1,
                    0,
                    1e400,
                    float("nan"),
                    "",
                    "x",
                    "\0",
                    [],
                    {},
                    [[]],
                    10**30,
                    [1, 2, 3],
                    {"a": 1},
                    1e300,
                )
                if (choice := draw.byte() % (len(odd) + 1)) == len(odd):
                    del node[key]
                else:
                    node[key] = odd[choice]
                break
            node = node[key]
    return content


def structured_json(value: Any, read: Callable[[bytes, Path], object]) -> Callable[[bytes, Path], object]:
    return lambda data, folder: read(json.dumps(odd_json(value, Draw(data))).encode(), folder)


SCORE = PairScore("m", "pose", "g", "a", "b", 1, 2, 3, 4.5, 5, 6.5, 0.5, 0.25)


def write_scores(path: Path) -> None:
    ScoresFile(path, {"a": 1}, 1).append([SCORE])


def read_record_of(data: bytes, folder: Path) -> None:
    (folder / "scores.json").write_bytes(data)
    read_record(folder / "scores.csv")


# --- weights and checkpoints --------------------------------------------------------------------------------------------


def small_models() -> list[LightGlue | SuperGlue]:
    torch.manual_seed(0)
    return [LightGlue(SMALL), SuperGlue(SuperGlueConfig(descriptor_dim=8, d=8, heads=2, n_layers=1, encoder_widths=(4,)))]


def weights_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for model in small_models():
        save_weights(model, folder / "w.safetensors", {"hours": 1.5})
        seeds.append((folder / "w.safetensors").read_bytes())
    return seeds


def read_weights(path: Path) -> None:
    read_metadata(path)
    load_weights(path)


def weights_structure(data: bytes, folder: Path) -> None:
    draw = Draw(data)
    model = draw.pick(small_models())
    tensors = odd_tensors({name: t.clone() for name, t in model.state_dict().items()}, draw)
    config = asdict(model.config)
    if draw.byte() % 2:
        config = odd_json(config, draw)
    config_text = draw.pick((json.dumps(config), "[]", "{", "null", "3", "[" * 20000))
    name = draw.pick(("lumiglue-lightglue", "lumiglue-superglue", "x"))
    metadata = draw.pick(("{}", "[]", "[" * 20000, "null", "{"))
    header = {"format": name, "config": config_text, "metadata": metadata}
    (folder / "w.safetensors").write_bytes(save(tensors, metadata=header))
    read_weights(folder / "w.safetensors")


def odd_tensors(tensors: dict[str, torch.Tensor], draw: Draw) -> dict[str, torch.Tensor]:
    for _ in range(draw.byte() % 4):
        name = draw.pick(sorted(tensors))
        match draw.byte() % 8:
            case 0:
                del tensors[name]
            case 1:
                tensors[name] = torch.zeros([draw.byte() % 20 for _ in range(draw.byte() % 4)])
            case 2:
                tensors[name] = torch.full_like(tensors[name], draw.pick((torch.nan, torch.inf)))
            case 3:
                tensors[name] = tensors[name].to(draw.pick((torch.int64, torch.bool, torch.complex64, torch.float16)))
            case 4:
                tensors[name.replace(draw.pick("0123."), draw.pick(("7", "x", ".", "", "99999")))] = tensors.pop(name)
            case 5:
                tensors[name] = torch.zeros(draw.pick((20000, 3)), 1)
            case 6:
                tensors[draw.text() or "x"] = torch.zeros(1)
            case _:
                tensors[name] = tensors[name].flatten()[: draw.byte()]
        if not tensors:
            break
    return tensors


def small_released() -> dict[str, torch.Tensor]:
    """A small LightGlue under the released names."""
    model = small_models()[0]
    assert isinstance(model, LightGlue)
    return {name: t.detach().contiguous() for name, t in released_names(model).items()}


def released_seeds(suffix: str) -> Callable[[Path], list[bytes]]:
    def run(folder: Path) -> list[bytes]:
        tensors = small_released()
        if suffix == ".safetensors":
            return [save(tensors)]
        buffers = []
        for modern in (True, False):
            buffer = io.BytesIO()
            torch.save(tensors, buffer, _use_new_zipfile_serialization=modern)
            buffers.append(buffer.getvalue())
        return buffers

    return run


SUPERGLUE_NAMES = {
    "bin_score": (), "final_proj.weight": (8, 8, 1), "final_proj.bias": (8,), "kenc.encoder.0.weight": (4, 3, 1),
    "kenc.encoder.0.bias": (4,), "kenc.encoder.1.weight": (4,), "kenc.encoder.1.bias": (4,),
    "kenc.encoder.1.running_mean": (4,), "kenc.encoder.1.running_var": (4,), "kenc.encoder.1.num_batches_tracked": (),
    "kenc.encoder.3.weight": (8, 4, 1), "kenc.encoder.3.bias": (8,),
    **{
        f"gnn.layers.{i}.{part}": shape for i in (0, 1) for part, shape in {
            "attn.merge.weight": (8, 8, 1), "attn.merge.bias": (8,),
            **{f"attn.proj.{k}.{leaf}": s for k in (0, 1, 2) for leaf, s in (("weight", (8, 8, 1)), ("bias", (8,)))},
            "mlp.0.weight": (16, 16, 1), "mlp.0.bias": (16,), "mlp.1.weight": (16,), "mlp.1.bias": (16,),
            "mlp.1.running_mean": (16,), "mlp.1.running_var": (16,), "mlp.1.num_batches_tracked": (),
            "mlp.3.weight": (8, 16, 1), "mlp.3.bias": (8,),
        }.items()
    },
}  # fmt: skip


def released_structure(data: bytes, folder: Path) -> None:
    draw = Draw(data)
    if draw.byte() % 2:
        tensors = {name: torch.ones(shape) for name, shape in SUPERGLUE_NAMES.items()}
    else:
        tensors = small_released()
    tensors = odd_tensors(tensors, draw)
    if tensors and draw.byte() % 4 == 0:  # a view of one number, in a file of a few bytes
        name = draw.pick(sorted(tensors))
        tensors[name] = torch.zeros(1).expand([10 ** draw.pick((2, 5, 6))] * max(tensors[name].ndim, 1))
    torch.save(draw.pick((tensors, {"state_dict": tensors}, {"model": tensors, "x": 1}, list(tensors), 3)), folder / "r.pth")
    import_released(folder / "r.pth", "")


def _learner() -> Learner:
    settings = TrainSettings(precision="fp32", optimizer="muon")
    return Learner(LightGlue(SMALL), settings, torch.device("cpu"))


def checkpoint_seeds(folder: Path) -> list[bytes]:
    buffer = io.BytesIO()
    torch.save(_learner().state(), buffer)
    return [buffer.getvalue()]


def read_checkpoint_of(data: bytes, folder: Path) -> None:
    (folder / "checkpoint.pt").write_bytes(data)
    _learner().load(read_checkpoint(folder, torch.device("cpu")), folder)


def checkpoint_structure(data: bytes, folder: Path) -> None:
    draw, learner = Draw(data), _learner()
    for parameter in learner.parameters[0]:
        parameter.grad = torch.ones_like(parameter)
    learner.update(1, 1e-3)
    state: Any = learner.state()
    for _ in range(1 + draw.byte() % 3):
        node = state
        while isinstance(node, dict | list) and node:
            keys = sorted(node, key=str) if isinstance(node, dict) else range(len(node))
            key = draw.pick(keys)
            if not isinstance(node[key], dict | list) or not node[key] or draw.byte() % 5 == 0:
                node[key] = draw.pick((None, "x", -1, 10**9, [], {}, torch.zeros(3), torch.tensor(float("nan")), 1.5, True))
                break
            node = node[key]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    read_checkpoint_of(buffer.getvalue(), folder)
    learner = _learner()
    learner.load(read_checkpoint(folder, torch.device("cpu")), folder)
    for parameter in [*learner.parameters[0], *learner.parameters[1]]:
        parameter.grad = torch.ones_like(parameter)
    stage = learner.settings.stage_at(learner.step)
    learner.update(stage, learner.settings.learning_rate_at(learner.step))


def read_run_record(data: bytes, folder: Path) -> None:
    (folder / "settings.json").write_bytes(data)
    RunFolder(folder, {"a": 1}).close()


# --- datasets --------------------------------------------------------------------------------------------------------------


def write_dataset(path: Path) -> None:
    keypoints, views = 6, 2
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["version"], file.attrs["kind"] = datasets.FORMAT, datasets.VERSION, "plane"
        file.attrs["plan"] = json.dumps({"extractor": {"name": "x", "descriptor_dim": 8}, "settings": {}, "items": ["a"]})
        file.attrs["has_orientation"] = True
        for name in ("scales", "orientations", "scores", "descriptor_steps", "depths"):
            file[name] = np.ones(keypoints, np.float32)
        file["keypoints"], file["descriptors"] = np.ones((keypoints, 2), np.float32), np.ones((keypoints, 8), np.int8)
        file["offsets"], file["view_scenes"] = np.array([0, 3, 6]), np.zeros(views, np.int64)
        file["view_sizes"] = np.full((views, 2), 64)
        file["homographies"] = file["intrinsics"] = np.tile(np.eye(3), (views, 1, 1))
        file["cameras"] = np.tile(np.eye(4), (views, 1, 1))
        file["pairs"], file["overlaps"] = np.array([[0, 1]]), np.array([0.5])
        for name, values in (("scenes", ["a"]), ("skipped", [])):
            file.create_dataset(name, data=np.array(values, dtype=object), dtype=h5py.string_dtype())


def read_dataset(path: Path) -> None:
    dataset = datasets.FeatureDataset(path)
    for view in range(min(len(dataset), 4)):
        dataset.view(view)
    for a, b in dataset.pairs[:4]:
        for view in (int(a), int(b)):
            dataset.view(view)
            assert isinstance(dataset.scenes[int(dataset.view_scenes[view])], str)
            assert np.shape(dataset.homographies[view]) == (3, 3)
    assert dataset.descriptor_dim > 0 or not dataset.counts.sum()
    assert isinstance(dataset.extractor["name"], str)


# --- posed images -------------------------------------------------------------------------------------------------------

CAMERAS = {
    "format": "lumiglue-posed", "version": 1, "scene": "s",
    "frames": [
        {
            "image": f"{k}.png", "depth": f"{k}.npy", "K": np.eye(3).tolist(), "depth_scale": 2.0,
            "camera_from_world": np.eye(4).tolist(), "depth_K": np.eye(3).tolist(),
        }
        for k in (0, 1)
    ],
}  # fmt: skip


def read_plain_of(data: bytes, folder: Path) -> None:
    for name in ("0.png", "1.png"):
        (folder / name).write_bytes(b"P5 1 1 255\n0")
    (folder / "cameras.json").write_bytes(data)
    read_posed(folder)


def write_scene_info(path: Path) -> None:
    np.savez(
        path, image_paths=np.array(["0.png", None], object), depth_paths=np.array(["0.npy", None], object),
        intrinsics=np.array([np.eye(3), None], object), poses=np.array([np.eye(4), None], object),
        overlap_matrix=np.eye(2),
    )  # fmt: skip


def read_scene_info(data: bytes, folder: Path) -> None:
    (folder / "0.png").write_bytes(b"P5 1 1 255\n0")
    (folder / "scene_info").mkdir()
    (folder / "scene_info" / "0.npz").write_bytes(data)
    read_posed(folder)


def read_tum_of(data: bytes, folder: Path) -> None:
    """Four files in one, apart by form feeds."""
    parts = [*data.split(b"\f"), b"", b"", b"", b""]
    (folder / "0.png").write_bytes(b"P5 1 1 255\n0")
    for name, part in zip(("rgb.txt", "depth.txt", "groundtruth.txt", "calibration.txt"), parts, strict=False):
        (folder / name).write_bytes(part)
    read_posed(folder)


TUM = b"1.0 0.png\n\f1.0 0.npy\n\f# comment\n1.01 0 0 0 0 0 0 1\n\f500 500 3 2\n"


def depth_seeds(folder: Path) -> list[bytes]:
    depth = np.arange(12, dtype=np.uint16).reshape(3, 4)
    np.save(folder / "d.npy", depth.astype(np.float32))
    with h5py.File(folder / "d.h5", "w") as file:
        file["depth"] = depth.astype(np.float32)
    coded, png = cv2.imencode(".png", depth)
    assert coded
    files = (b"n" + (folder / "d.npy").read_bytes(), b"h" + (folder / "d.h5").read_bytes(), b"p" + png.tobytes())
    return list(files)


def read_depth(data: bytes, folder: Path) -> None:
    path = folder / {b"n": "d.npy", b"h": "d.h5"}.get(data[:1], "d.png")
    path.write_bytes(data[1:])
    stored_error = None
    try:
        DepthSource(path=path).read()
    except Exception as error:
        stored_error = error
    if path.suffix == ".png":
        stored_size(path)
    if stored_error is not None:
        raise stored_error


def write_depth_h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["depth"] = np.ones((3, 4), np.float32)


def write_colmap(folder: Path) -> list[bytes]:
    """cameras.txt, images.txt and points3D.txt in one, apart by form feeds."""
    cameras = b"1 PINHOLE 64 48 50 50 32 24\n"
    images = b"".join(b"%d 1 0 0 0 0.%d 0 0 1 %d.png\n10 10 1 20 20 2\n" % (k, k, k) for k in (1, 2))
    points = b"1 0 0 5 1 2 3 0.5 1 0 2 0\n2 1 0 5 1 2 3 0.5 1 1 2 1\n"
    return [b"\f".join([cameras, images, points])]


def read_colmap(data: bytes, folder: Path) -> None:
    from lumiglue.training.data.from_colmap import SfmSettings, read_model, trusted_points

    for name, part in zip(("cameras.txt", "images.txt", "points3D.txt"), [*data.split(b"\f"), b"", b""], strict=False):
        (folder / name).write_bytes(part)
    trusted_points(read_model(folder), SfmSettings())


# --- ONNX ---------------------------------------------------------------------------------------------------------------


def write_onnx(path: Path) -> None:
    from lumiglue.onnx.export import export_onnx

    torch.manual_seed(0)
    export_onnx(LightGlue(LightGlueConfig(descriptor_dim=8, d=8, heads=1, n_layers=1)), path)


def read_onnx(path: Path) -> None:
    from lumiglue.onnx.runtime import OnnxMatcher

    OnnxMatcher(path).match_features([(small_features(4), small_features(5, 1))])


TARGETS: dict[str, Target] = {
    "image": Target(image_seeds, read_as_image),
    "features": Target(bytes_of(write_features, "f.h5"), file_of(read_features, "f.h5")),
    "features-structure": Target(lambda _: [bytes(range(32))], structured(write_features, read_features)),
    "matches": Target(bytes_of(write_matches, "m.h5"), file_of(read_matches, "m.h5")),
    "matches-structure": Target(lambda _: [bytes(range(32))], structured(write_matches, read_matches)),
    "part": Target(bytes_of(write_part, "part.h5"), read_part),
    "pairs": Target(lambda _: [PAIRS_TEXT], file_of(read_pairs, "pairs.txt")),
    "list": Target(lambda _: [PAIRS_TEXT], file_of(_read_list, "pairs.txt")),
    "hpatches": Target(lambda _: [b"1 0 0\n0 1 0\n0 0 1\n"], read_hpatches_of),
    "pose-pairs": Target(lambda _: [(POSE_LINE + " " + " ".join(map(str, np.eye(4).ravel()))).encode()], read_pose_pairs_of),
    "strecha": Target(lambda _: [CAMERA], read_strecha_of),
    "pairs-json": Target(lambda _: [json.dumps(PAIRS_JSON).encode()], file_of(read_pairs_json, "pairs.json")),
    "pairs-json-structure": Target(
        lambda _: [bytes(range(32))], structured_json(PAIRS_JSON, file_of(read_pairs_json, "pairs.json"))
    ),
    "scores": Target(bytes_of(write_scores, "s.csv"), file_of(read_scores, "s.csv")),
    "scores-record": Target(lambda _: [b'{"a": 1}'], read_record_of),
    "weights": Target(weights_seeds, file_of(read_weights, "w.safetensors")),
    "weights-structure": Target(lambda _: [bytes(range(64))], weights_structure),
    "released-pth": Target(released_seeds(".pth"), file_of(lambda path: import_released(path, ""), "r.pth")),
    "released-safetensors": Target(
        released_seeds(".safetensors"), file_of(lambda path: import_released(path, ""), "r.safetensors")
    ),
    "released-structure": Target(lambda _: [bytes(range(64))], released_structure),
    "checkpoint": Target(checkpoint_seeds, read_checkpoint_of),
    "checkpoint-structure": Target(lambda _: [bytes(range(64))], checkpoint_structure),
    "run-record": Target(lambda _: [b'{"a": 1}'], read_run_record),
    "dataset": Target(bytes_of(write_dataset, "b.h5"), file_of(read_dataset, "b.h5")),
    "dataset-structure": Target(lambda _: [bytes(range(32))], structured(write_dataset, read_dataset)),
    "posed-plain": Target(lambda _: [json.dumps(CAMERAS).encode()], read_plain_of),
    "posed-plain-structure": Target(lambda _: [bytes(range(32))], structured_json(CAMERAS, read_plain_of)),
    "posed-megadepth": Target(bytes_of(write_scene_info, "0.npz"), read_scene_info),
    "posed-tum": Target(lambda _: [TUM], read_tum_of),
    "depth": Target(depth_seeds, read_depth),
    "depth-structure": Target(
        lambda _: [bytes(range(32))], structured(write_depth_h5, lambda path: DepthSource(path=path).read())
    ),
    "colmap": Target(write_colmap, read_colmap),
    "onnx": Target(bytes_of(write_onnx, "m.onnx"), file_of(read_onnx, "m.onnx")),
}
