"""Collections: jobs that go on after any kill, hloc's layouts, pair selection, and a reconstruction of a known scene."""

import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image

import lumiglue
from helpers import draw_photo
from lumiglue import InputError, Pipeline, Sift, collection
from lumiglue.cli import main
from lumiglue.collection import features as features_module
from lumiglue.collection.features import extract_in_parts
from lumiglue.collection.hloc import FeaturesFile, MatchesReader
from lumiglue.collection.matching import in_threads, match_in_parts
from lumiglue.collection.pairs import by_position, exhaustive, read_pairs, read_position, sequential, unique, write_pairs
from lumiglue.images import image_names, read_image
from lumiglue.io.hdf5 import GrowingFile
from lumiglue.io.text import differences
from lumiglue.training.data.homographies import ViewSettings, sample_view, warp

pytest.importorskip("pycolmap")
pytest.importorskip("faiss")

from lumiglue.collection.retrieval import by_retrieval

Save = Callable[[str, np.ndarray], Path]


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine photos: three views of three scenes, in two folders; and their features."""
    folder, rng = tmp_path_factory.mktemp("drawn") / "photos", np.random.default_rng(0)
    gentle = ViewSettings(any_roll=0, roll=5, tilt=20, zoom=(0.9, 1.1), shift=0.05)
    import torch

    for scene in range(3):
        photo = torch.from_numpy(draw_photo(scene))
        for view in range(3):
            image = photo if view == 0 else warp(photo, sample_view(rng, (320, 240), gentle))
            write(folder / ("east" if scene < 2 else "west") / f"{scene}{view}.png", image.numpy())
    list(extract_in_parts(folder, image_names(folder), Sift(max_keypoints=200), folder.parent / "features.h5"))
    return folder.parent


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn / "photos", tmp_path / "photos"))


@pytest.fixture
def described(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(drawn / "features.h5", tmp_path / "features.h5"))


def contents(path: Path) -> dict[str, np.ndarray]:
    """Every data set of an HDF5 file."""
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


# -- files that grow ---------------------------------------------------------------------------------------------------


def test_parts_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with GrowingFile(path, "record") as growing:
        with growing.part() as group:
            group("a/b").create_dataset("numbers", data=[1, 2])
        with contextlib.suppress(RuntimeError), growing.part() as group:
            group("c").create_dataset("numbers", data=[3])
            raise RuntimeError("killed")
        assert growing.missing(["a/b", "c"]) == ["c"]
    with GrowingFile(path, "record") as growing:
        assert growing.missing(["a/b", "c"]) == ["c"]
        with growing.part() as group:
            group("c").create_dataset("numbers", data=[3])
        growing.finish()
    assert {key: value.tolist() for key, value in contents(path).items()} == {"a/b/numbers": [1, 2], "c/numbers": [3]}
    with GrowingFile(path, "record") as growing:  # more, later
        assert growing.missing(["a/b", "c", "d"]) == ["d"]
        with growing.part() as group:
            group("d").create_dataset("numbers", data=[4])
        growing.finish()
    assert sorted(contents(path)) == ["a/b/numbers", "c/numbers", "d/numbers"]
    before = path.read_bytes()
    with GrowingFile(path, "record") as growing:  # nothing new
        growing.finish()
    assert path.read_bytes() == before
    assert not path.with_name("x.h5.parts").exists()
    with pytest.raises(InputError, match=r"x\.h5 was made with other settings"):
        GrowingFile(path, "another")


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({"a": 1, "b": {"c": [1, 2]}}, {"a": 2, "b": {"c": [1, 2]}}, "a 1, now 2"),
        ({"a": 1}, {"a": 1, "b": True}, "b none, now true"),
        ({"b": {"c": 1, "d": "x"}}, {"b": {"c": 3, "d": "y"}}, 'b.c 1, now 3; b.d "x", now "y"'),
        ({"datasets": [{"seed": 1}, {"seed": 2}]}, {"datasets": [{"seed": 1}, {"seed": 3}]}, "datasets 2.seed 2, now 3"),
        ({"items": list("abcdef")}, {"items": list("abcde")}, "items 6 of them, now 5 of them"),
        ({"items": list("abcdef")}, {"items": list("abcdeg")}, "items 6 of them, now others"),
        ('{"in": "{\\"text\\": 1}"}', '{"in": "{\\"text\\": 2}"}', "in.text 1, now 2"),
        (dict.fromkeys("abcde", 1), dict.fromkeys("abcde", 2), "a 1, now 2; b 1, now 2; c 1, now 2; and 2 more"),
        ("one", "two", ""),
        ({"a": 1}, {"a": 1}, ""),
    ],
)
def test_records_say_what_they_do_not_agree_in(before: Any, now: Any, message: str) -> None:
    assert differences(before, now) == (f" ({message})" if message else "")


def test_a_file_belongs_to_one_process_and_one_record(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with GrowingFile(path, "one"), pytest.raises(InputError, match="another process is writing"):
        GrowingFile(path, "one")
    with pytest.raises(InputError, match=r"x\.h5\.parts was made with other settings"):
        GrowingFile(path, "two")
    with GrowingFile(path, "one") as growing:  # the lock was let go
        assert growing.missing(["a"]) == ["a"]


# -- features ----------------------------------------------------------------------------------------------------------


def test_features_are_in_hlocs_layout(photos: Path, described: Path) -> None:
    """hloc reads keypoints, descriptors (channels first), scores, image_size from the group of the image's name."""
    names = image_names(photos)
    assert names == [f"{'east' if s < 2 else 'west'}/{s}{v}.png" for s in range(3) for v in range(3)]
    with h5py.File(described) as file:
        group = file["east/01.png"]
        assert isinstance(group, h5py.Group)
        n = len(group["keypoints"])  # pyright: ignore[reportArgumentType]
        shapes = {name: item.shape for name, item in group.items() if isinstance(item, h5py.Dataset)}
    assert 50 < n <= 200
    assert shapes == {
        "keypoints": (n, 2), "descriptors": (128, n), "scores": (n,), "image_size": (2,), "scales": (n,), "oris": (n,),
    }  # fmt: skip
    alone = Sift(max_keypoints=200)(read_image(photos / "east/01.png"))
    with FeaturesFile(described) as file:
        assert file.names() == names
        stored = file.read("east/01.png")
    assert np.array_equal(stored.keypoints, alone.keypoints)
    assert np.allclose(stored.descriptors, alone.descriptors, atol=1e-3)
    assert stored.image_size == (320, 240)
    assert stored.extractor == "sift"


def test_description_goes_on_and_leaves_out_broken_images(
    photos: Path, described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "IMAGES_IN_A_PART", 2)
    (photos / "east" / "00b.png").write_bytes(b"no image")
    names, out = image_names(photos), tmp_path / "again.h5"
    steps = extract_in_parts(photos, names, Sift(max_keypoints=200), out, workers=2)
    first = list(islice(steps, 3))  # nothing, then two parts
    assert [(step.done, step.total) for step in first] == [(0, 10), (2, 10), (4, 10)]
    assert [name for step in first for name, _ in step.failed] == ["east/00b.png"]
    steps.close()  # pyright: ignore[reportAttributeAccessIssue]  (a generator)
    read: list[str] = []
    monkeypatch.setattr(
        features_module, "read_image",
        lambda path, real=features_module.read_image, **how: read.append(path.name) or real(path, **how),
    )  # fmt: skip
    rest = list(extract_in_parts(photos, names, Sift(max_keypoints=200), out))
    assert rest[0].done == 3  # four were done, one of them broken
    assert sorted(read) == ["00b.png", *sorted(Path(name).name for name in names[4:])]
    assert [name for step in rest for name, _ in step.failed] == ["east/00b.png"]
    assert same(contents(out), contents(described))
    with pytest.raises(InputError, match="was made with other settings"):
        list(extract_in_parts(photos, names, Sift(max_keypoints=100), out, note="100 keypoints"))
    write(photos / "east" / "00b.png", draw_photo(7))  # mended
    read.clear()
    assert list(extract_in_parts(photos, names, Sift(max_keypoints=200), out))[-1].failed == ()
    assert read == ["00b.png"]
    with FeaturesFile(out) as file:
        assert file.names() == names


def test_folders_and_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        image_names(tmp_path / "none")
    with pytest.raises(InputError, match="has no images"):
        image_names(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        FeaturesFile(tmp_path / "none.h5")
    (tmp_path / "noise.h5").write_bytes(b"noise")
    for reader in (FeaturesFile, MatchesReader):
        with pytest.raises(InputError, match=r"is not one of `lumiglue (features|matches)`"):
            reader(tmp_path / "noise.h5")
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(InputError, match="none of the 1 images"):
        list(extract_in_parts(tmp_path, ["bad.png"], Sift(), tmp_path / "f.h5"))


# -- matches -----------------------------------------------------------------------------------------------------------


def test_matches_are_those_of_single_pairs(photos: Path, described: Path, tmp_path: Path) -> None:
    pipeline, out = Pipeline.pretrained("sift", max_keypoints=200), tmp_path / "matches.h5"
    pairs = exhaustive(image_names(photos))
    steps = list(match_in_parts(described, pairs, pipeline, out, in_threads(2, cached_images=3)))
    assert steps[-1].done == len(pairs) == 36
    with FeaturesFile(described) as file, MatchesReader(out) as reader:
        for a, b in pairs[::5]:
            (alone,) = pipeline.match_features([(file.read(a), file.read(b))])
            assert np.array_equal(reader.read(a, b), alone.pairs)
            assert np.array_equal(reader.read(b, a), alone.pairs.flip(1))
        with pytest.raises(InputError, match="has no matches of"):
            reader.read("east/00.png", "nowhere.png")
    with h5py.File(out) as file:  # as hloc's find_pair looks for it
        assert {"matches0", "matching_scores0"} <= set(file["east-00.png/east-01.png"])  # pyright: ignore[reportArgumentType]
    list(match_in_parts(described, pairs, pipeline, out))  # there already
    with pytest.raises(InputError, match="was made with other settings"):
        list(match_in_parts(described, pairs, Pipeline.pretrained("sift", weights="sift-clean"), out))


KILLED = """
import time
from lumiglue.collection import matching
from lumiglue.collection.pairs import read_pairs
from lumiglue.pipeline.pipeline import Pipeline
matching.PAIRS_IN_A_PART = 3
for step in matching.match_in_parts(features, read_pairs(pairs), Pipeline.pretrained("sift"), out, matching.in_threads(2)):
    sender.send(step.done)
    time.sleep(0.02)
"""


def test_kills_change_nothing(photos: Path, described: Path, tmp_path: Path) -> None:
    """kill -9 at any moment loses at most a part; what comes out is what an undisturbed run gives."""
    pairs, out, whole = tmp_path / "pairs.txt", tmp_path / "killed.h5", tmp_path / "whole.h5"
    write_pairs(pairs, exhaustive(image_names(photos)))
    list(match_in_parts(described, read_pairs(pairs), Pipeline.pretrained("sift"), whole, in_threads(2)))
    rng, kills, counts, exit_code = np.random.default_rng(0), 0, [], None
    server = multiprocessing.get_context("forkserver")  # which imports once for all the processes that are killed
    server.set_forkserver_preload(["lumiglue.collection.matching", "lumiglue.pipeline.pipeline"])
    while not out.exists():
        heard, sender = server.Pipe(duplex=False)
        names = {"features": described, "pairs": pairs, "out": out, "sender": sender}
        process = server.Process(target=exec, args=(KILLED, names))
        process.start()
        sender.close()
        counts.append(heard.recv())
        if kills < 3:  # somewhere in the next parts
            for _ in range(int(rng.integers(1, 4))):
                heard.recv()
            time.sleep(float(rng.uniform(0, 0.05)))
            process.kill()
            kills += 1
        process.join()
        exit_code = process.exitcode
        heard.close()
    assert exit_code == 0
    assert kills == 3
    assert counts == sorted(counts)
    assert counts[-1] > 0
    assert same(contents(out), contents(whole))


def test_a_pair_that_cannot_be_matched_stops_no_other(described: Path, tmp_path: Path) -> None:
    pairs = [("east/00.png", "east/01.png"), ("east/00.png", "gone.png"), ("west/20.png", "west/21.png")]
    steps = list(match_in_parts(described, pairs, Pipeline.pretrained("sift"), tmp_path / "m.h5"))
    assert [failure for step in steps for failure in step.failed] == [
        ("east/00.png gone.png", f"{described} has no features of 'gone.png'; write the file again with `lumiglue features`")
    ]
    with MatchesReader(tmp_path / "m.h5") as reader:
        assert len(reader.read("west/20.png", "west/21.png")) > 30


def test_a_full_disk_is_said_and_keeps_what_was_done(tmp_path: Path) -> None:
    with GrowingFile(tmp_path / "x.h5", "r") as growing:
        with growing.part() as group:
            group("a").create_dataset("n", data=[1])
        with pytest.raises(InputError, match=r"disk of .* is full"), growing.part():
            raise OSError(28, os.strerror(28))
        assert growing.missing(["a", "b"]) == ["b"]


ON_RAY = """
import functools, json, os, signal, subprocess, sys, time
import ray
from lumiglue import Pipeline
from lumiglue.collection import matching
from lumiglue.collection.ray import join, on_ray
from lumiglue.collection.pairs import read_pairs

matching.PAIRS_IN_A_PART = 4
features, pairs, out = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
make = functools.partial(Pipeline.pretrained, "sift")
killed, failed, cores = [], [], join()
for step in matching.match_in_parts(features, read_pairs(pairs), make(), out, on_ray(make, 2)):
    failed += step.failed
    if step.done and not killed:
        actors = []
        while len(actors) < 2:  # the second may still be starting
            time.sleep(0.2)
            listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
            listed = [line.split() for line in listed.splitlines()]
            actors = [int(words[0]) for words in listed if words[1].startswith("ray::_Matcher")]  # not this process
        os.kill(actors[0], signal.SIGKILL)
        killed.append(len(actors))
print(json.dumps({"cores": cores, "actors": killed, "failed": failed}))
"""


def test_a_cluster_that_loses_a_worker_gives_the_same_matches(photos: Path, described: Path, tmp_path: Path) -> None:
    """Two Ray workers, one of which is killed in the middle; what it had is done again."""
    pytest.importorskip("ray")
    pairs, whole, out = exhaustive(image_names(photos)), tmp_path / "whole.h5", tmp_path / "ray.h5"
    list(match_in_parts(described, pairs, Pipeline.pretrained("sift"), whole, in_threads(2)))
    write_pairs(tmp_path / "pairs.txt", [*pairs, ("east/00.png", "gone.png")])
    command = [sys.executable, "-c", ON_RAY, str(described), str(tmp_path / "pairs.txt"), str(out)]
    environment = {**os.environ, "RAY_worker_niceness": "0"}  # of 15 by itself: on a busy machine they would hardly run
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))  # Ray reports the restart
    assert report["cores"] == report["actors"][0] == 2
    reason = f"{described} has no features of 'gone.png'; write the file again with `lumiglue features`"
    assert report["failed"] == [["east/00.png gone.png", reason]]
    on_ray, in_threads_alone = contents(out), contents(whole)
    assert on_ray.keys() == in_threads_alone.keys()
    for key, values in in_threads_alone.items():
        if key.endswith("matches0"):
            assert np.array_equal(on_ray[key], values), key
        else:  # scores agree within 1e-5, and are stored as float16
            np.testing.assert_allclose(on_ray[key].astype(float), values.astype(float), rtol=1e-3, atol=1e-5, err_msg=key)


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_pairs_by_order_and_by_file(tmp_path: Path) -> None:
    assert exhaustive("abc") == [("a", "b"), ("a", "c"), ("b", "c")]
    assert sequential("abcd", 2) == [("a", "b"), ("a", "c"), ("b", "c"), ("b", "d"), ("c", "d")]
    assert unique([("a", "b"), ("b", "a"), ("a", "a"), ("b", "c")]) == [("a", "b"), ("b", "c")]
    file = tmp_path / "pairs.txt"
    file.write_text("a b  # first\n\n# nothing\nb a\nb c\n")
    assert read_pairs(file, "abc") == [("a", "b"), ("b", "c")]
    with pytest.raises(InputError, match="line 5: 'c' is not among the images"):
        read_pairs(file, "ab")
    file.write_text("a b\na b c\n")
    with pytest.raises(InputError, match="line 2: 3 words"):
        read_pairs(file)
    with pytest.raises(InputError, match="overlap is 0"):
        sequential("ab", 0)


def test_pairs_by_position_are_near_on_the_sphere() -> None:
    """Also across the meridian of 180 degrees, where longitudes jump."""
    degree = 1 / 111_195  # a metre of latitude
    positions = {"a": (0.0, 179.9999), "b": (0.0, -179.9999), "c": (30 * degree, 179.9999), "far": (1.0, 179.0)}
    assert by_position(positions, neighbours=5, metres=60) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert by_position(positions, neighbours=1, metres=60) == [("a", "b"), ("c", "a")]
    assert by_position(positions, metres=10) == []


def test_positions_come_from_exif(tmp_path: Path) -> None:
    photo = Image.fromarray(draw_photo(1))
    exif = Image.Exif()
    exif[0x8825] = {1: "S", 2: (33.0, 51.0, 36.0), 3: "E", 4: (151.0, 12.0, 54.0)}
    photo.save(tmp_path / "gps.jpg", exif=exif)
    photo.save(tmp_path / "plain.jpg")
    position = read_position(tmp_path / "gps.jpg")
    assert position is not None
    assert position == pytest.approx((-33.86, 151.215))
    assert read_position(tmp_path / "plain.jpg") is None
    assert read_position(tmp_path / "none.jpg") is None


def test_similar_images_are_views_of_one_scene(photos: Path, described: Path) -> None:
    names = image_names(photos)
    with FeaturesFile(described) as file:
        pairs = by_retrieval(lambda name: file.read(name).descriptors.numpy(), names, neighbours=2)
    scene = {name: Path(name).stem[0] for name in names}
    assert {frozenset(pair) for pair in pairs} == {
        frozenset(pair) for pair in exhaustive(names) if scene[pair[0]] == scene[pair[1]]
    }
    with pytest.raises(InputError, match="no image of the collection has features"):
        by_retrieval(lambda _: np.zeros((0, 128), np.float32), names)


def test_commands_from_photos_to_matches(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "broken.jpg").write_bytes(b"no")
    features, pairs, matches = (str(tmp_path / name) for name in ("f.h5", "p.txt", "m.h5"))
    assert main(["features", str(photos), "-o", features, "--max-keypoints", "200"]) == 2  # one was left out
    captured = capsys.readouterr()
    assert "9 images" in captured.out
    assert "left out: broken.jpg" in captured.err
    assert main(["pairs", features, "-o", pairs, "--neighbours", "2"]) == 0
    assert "9 images, 9 pairs (retrieval)" in capsys.readouterr().out.replace("\n", " ")
    assert main(["pairs", features, "-o", str(tmp_path / "s.txt"), "--by", "sequential", "--overlap", "1"]) == 0
    assert {("east/00.png", "east/01.png"), ("east/02.png", "east/10.png")} <= set(read_pairs(tmp_path / "s.txt"))
    assert main(["pairs", features, "-o", pairs, "--by", "position"]) == 2
    assert main(["pairs", features, "-o", pairs, "--by", "position", "--photos", str(photos)]) == 2
    assert "0 of 9 photos" in capsys.readouterr().err.replace("\n", " ")
    assert main(["matches", features, pairs, "-o", matches]) == 0
    with MatchesReader(matches) as reader:
        assert len(reader.read("west/20.png", "west/21.png")) > 30


# -- reconstruction ----------------------------------------------------------------------------------------------------


def test_a_known_scene_is_reconstructed(
    scene: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pycolmap

    folder, centres = scene
    out = tmp_path / "model"
    assert main(["sfm", str(folder), "-o", str(out), "--max-keypoints", "600", "--single-camera"]) == 0
    assert "8 of 8 images" in capsys.readouterr().out.replace("\n", " ")
    model = pycolmap.Reconstruction(str(out / "0"))
    assert model.num_reg_images() == 8
    assert model.compute_mean_reprojection_error() < 1.0
    estimated = np.array([image.projection_center() for _, image in sorted(model.images.items(), key=lambda i: i[1].name)])
    true = np.array([centres[name] for name in sorted(centres)])
    # the best similarity between the two (Umeyama 1991)
    a, b = estimated - estimated.mean(0), true - true.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    flip = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    aligned = (s * np.diag(flip)).sum() / (a**2).sum() * a @ (u @ flip @ vt).T
    assert np.linalg.norm(aligned - b, axis=1).max() < 0.08  # of an arc 6 across
    camera = next(iter(model.cameras.values()))
    assert camera.focal_length == pytest.approx(520, rel=0.1)
    assert (out / "model.png").stat().st_size > 10_000
    picture = cv2.imread(str(out / "model.png"))
    assert picture is not None
    assert picture.std() > 5


def test_python_resumes_what_the_commands_began(scene: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """`lumiglue.reconstruct` and `lumiglue.collection` write what the commands write, byte for byte where they resume."""
    out, pipeline = tmp_path / "model", Pipeline.pretrained("sift", max_keypoints=400, precision="fp32")
    steps: list[collection.Progress] = []
    made = lumiglue.reconstruct(scene[0], out, pipeline, single_camera=True, progress=steps.append)
    assert (made.images, made.pairs, made.left_out) == (8, 28, ())
    assert [model.images for model in made.models] == [8]
    assert list(dict.fromkeys(step.stage for step in steps)) == ["images", "pairs", "images placed"]
    assert {step.stage: (step.done, step.total) for step in steps} == {
        "images": (8, 8), "pairs": (28, 28), "images placed": (8, 8),
    }  # fmt: skip
    before = {name: (out / name).read_bytes() for name in ("features.h5", "matches.h5", "pairs.txt")}
    assert main(["sfm", str(scene[0]), "-o", str(out), "--max-keypoints", "400", "--single-camera"]) == 0
    assert before == {name: (out / name).read_bytes() for name in before}
    features, matches = tmp_path / "features.h5", tmp_path / "matches.h5"
    assert collection.extract_features(scene[0], features, pipeline.extractor) == ()
    pairs = collection.choose_pairs(features, "exhaustive")
    collection.write_pairs(tmp_path / "pairs.txt", pairs)
    assert (tmp_path / "pairs.txt").read_bytes() == before["pairs.txt"]
    assert collection.match_pairs(features, tmp_path / "pairs.txt", matches, pipeline) == ()
    assert same(contents(features), contents(out / "features.h5"))
    assert same(contents(matches), contents(out / "matches.h5"))
    with pytest.raises(InputError, match="was made with other settings"):
        lumiglue.reconstruct(scene[0], out, Pipeline.pretrained("sift", max_keypoints=300, precision="fp32"))


def test_keypoints_are_shifted_half_a_pixel_for_colmap(scene: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    import pycolmap

    folder, _ = scene
    names, features, matches = image_names(folder)[:3], tmp_path / "f.h5", tmp_path / "m.h5"
    list(extract_in_parts(folder, names, Sift(max_keypoints=300), features))
    list(match_in_parts(features, exhaustive(names), Pipeline.pretrained("sift"), matches))
    made = collection.export_colmap(folder, features, matches, tmp_path / "d.db", images=names)
    assert (made.images, made.pairs, made.verified) == (3, 3, 3)
    database = pycolmap.Database.open(tmp_path / "d.db")
    image = database.read_image_with_name(names[1])
    assert image is not None
    with FeaturesFile(features) as file:
        ours = file.read(names[1]).keypoints.numpy()
    assert np.allclose(np.asarray(database.read_keypoints(image.image_id))[:, :2], ours + 0.5)
    database.close()


def test_photos_of_different_places_are_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apart = tmp_path / "apart"
    for number in range(3):
        write(apart / f"{number}.png", draw_photo(50 + number, 200, 150))
    assert main(["sfm", str(apart), "-o", str(tmp_path / "m"), "--max-keypoints", "150"]) == 2
    printed = capsys.readouterr().err.replace("\n", " ")  # a pair of drawn shapes may agree by chance, three do not
    assert "do these photos show the same place?" in printed or "nothing could be reconstructed" in printed
    assert not (tmp_path / "m" / "0").exists()
    (tmp_path / "two").mkdir()
    write(tmp_path / "two" / "a.png", draw_photo(1))
    assert main(["sfm", str(tmp_path / "two"), "-o", str(tmp_path / "m2")]) == 2
    assert "needs at least 3" in capsys.readouterr().err.replace("\n", " ")


def numbered(folder: Path, source: Path, names: list[str]) -> Path:
    """A folder with the scene's photos under other names."""
    for name, photo in zip(names, sorted(source.glob("*.png")), strict=False):
        write(folder / name, read_image(photo))
    return folder


def test_a_reconstruction_removes_nothing_that_it_did_not_write(
    scene: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Photos by the year, a project with its photos inside, another program's database."""
    photos = numbered(tmp_path / "holiday", scene[0], [f"2024/{number}.png" for number in range(4)])
    command = ["sfm", str(photos), "--max-keypoints", "400", "--single-camera", "-o"]
    assert main([*command, str(photos)]) == 2
    assert "is the folder of the photos" in capsys.readouterr().err
    assert main([*command, str(photos / "2024")]) == 2  # all photos lie in what is to be written
    (tmp_path / "2023").mkdir()
    write(tmp_path / "2023" / "a.png", draw_photo(1))
    assert main([*command, str(tmp_path)]) == 2
    assert "has other files than a model" in capsys.readouterr().err
    assert len(image_names(tmp_path)) == 5
    project = tmp_path / "project"
    photos.rename(project.with_name("moved"))
    (tmp_path / "moved").rename(tmp_path / "images")
    project.mkdir()
    (tmp_path / "images").rename(project / "images")
    command = ["sfm", str(project / "images"), "--max-keypoints", "400", "--single-camera", "-o", str(project)]
    (project / "database.db").write_text("of another program")
    assert main(command) == 2
    assert "is not from an earlier run" in capsys.readouterr().err
    (project / "database.db").unlink()
    (project / "0").mkdir()
    (project / "0" / "cameras.txt").write_text("of another program")
    assert main(command) == 2
    assert (project / "0" / "cameras.txt").read_text() == "of another program"
    (project / "0" / "cameras.txt").unlink()
    (project / "0").rmdir()
    for _ in range(2):  # the second run replaces the first one's model
        assert main(command) == 0
        assert sorted(path.name for path in (project / "0").iterdir())[0] == "cameras.bin"
    assert [path.name for path in project.iterdir() if path.name.startswith("mapping-")] == []
    assert len(image_names(project / "images")) == 4


def test_names_with_spaces_reach_the_model(scene: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    import pycolmap

    photos = numbered(tmp_path / "photos", scene[0], [f"my photo {number}.png" for number in range(4)])
    out = tmp_path / "out"
    assert main(["sfm", str(photos), "-o", str(out), "--max-keypoints", "400", "--single-camera"]) == 0
    model = pycolmap.Reconstruction(str(out / "0"))
    assert sorted(image.name for image in model.images.values()) == [f"my photo {number}.png" for number in range(4)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_keypoints_lie_where_colmap_reads_the_photo(orientation: int, tmp_path: Path) -> None:
    """COLMAP does not turn photos by their EXIF orientation; a bright dot is found at its stored place again."""
    from lumiglue.images import as_stored

    stored = np.zeros((40, 60, 3), np.uint8)
    stored[7, 13] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")
    y, x = np.argwhere(upright[..., 0] > 128)[0]
    height, width = upright.shape[:2]
    assert (height, width) == ((40, 60) if orientation < 5 else (60, 40))
    assert as_stored(tmp_path / "a.png", np.array([[x, y]]), (width, height)).tolist() == [[13, 7]]


def test_a_turned_photo_has_colmaps_camera(scene: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """Photos stored on their side give the same cameras and poses as upright ones, in the pixels that COLMAP reads."""
    import pycolmap

    exif = Image.Exif()
    exif[0x0112] = 6
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(scene[0].glob("*.png"))[:5]:
        Image.fromarray(np.rot90(read_image(path)).copy()).save(photos / path.name, exif=exif)
    assert main(["sfm", str(photos), "-o", str(tmp_path / "out"), "--max-keypoints", "500", "--single-camera"]) == 0
    model = pycolmap.Reconstruction(str(tmp_path / "out" / "0"))
    camera = next(iter(model.cameras.values()))
    assert model.num_reg_images() == 5
    assert (camera.width, camera.height) == (360, 480)
    assert model.compute_mean_reprojection_error() < 1.0
    assert camera.focal_length == pytest.approx(520, rel=0.1)


def test_what_colmap_cannot_take_is_said_first(
    scene: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sfm", str(scene[0]), "-o", str(tmp_path / "out"), "--camera-model", "simple_radial"]) == 2
    assert "unknown camera model 'simple_radial'; choose from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(scene[0].glob("*.png"))[:3]:
        Image.fromarray(read_image(path)).save(photos / f"{path.stem}.webp", lossless=True)
    assert main(["sfm", str(photos), "-o", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err.replace("\n", " ")
    assert "left out: 0.webp: COLMAP cannot read it (WEBP); convert it" in printed
    assert "has 0 usable photos" in printed


def test_matches_of_other_features_are_not_used(
    scene: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, photos: Path
) -> None:
    """A photo was corrected and the features were written again: the matches are of rows that are gone."""
    names, features, matches = image_names(scene[0])[:3], tmp_path / "f.h5", tmp_path / "m.h5"
    list(extract_in_parts(scene[0], names, Sift(max_keypoints=300), features))
    list(match_in_parts(features, exhaustive(names), Pipeline.pretrained("sift"), matches))
    corrected = numbered(tmp_path / "corrected", scene[0], names)
    write(corrected / names[1], read_image(corrected / names[1])[:120, :160])
    features.unlink()
    list(extract_in_parts(corrected, names, Sift(max_keypoints=300), features))
    with pytest.raises(InputError, match=r"m\.h5 was made with other settings"):
        list(match_in_parts(features, exhaustive(names), Pipeline.pretrained("sift"), matches))
    with pytest.raises(InputError, match="belong to other features; delete the file"):
        collection.export_colmap(corrected, features, matches, tmp_path / "d.db")
    assert not (tmp_path / "d.db").exists()


# -- damage and mistakes -----------------------------------------------------------------------------------------------


def test_a_deleted_part_costs_that_part_alone(tmp_path: Path) -> None:
    """What the message on a damaged part advises."""
    path = tmp_path / "x.h5"

    def add(growing: GrowingFile, name: str) -> None:
        with growing.part() as group:
            group(name).create_dataset("numbers", data=[1])

    with GrowingFile(path, "record") as growing:
        for name in "abcd":
            add(growing, name)
    (path.with_name("x.h5.parts") / "part-000001.h5").unlink()
    with GrowingFile(path, "record") as growing:
        assert growing.missing(list("abcd")) == ["b"]
        add(growing, "b")
        growing.finish()
    assert sorted(contents(path)) == [f"{name}/numbers" for name in "abcd"]


def test_a_kill_after_joining_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5"
    with GrowingFile(path, "record") as growing:
        with growing.part() as group:
            group("a").create_dataset("numbers", data=[1])
        monkeypatch.setattr(growing, "_remove_parts", lambda: None)
        growing.finish()
    before = contents(path)
    with GrowingFile(path, "record") as growing:
        assert growing.missing(["a"]) == []
        growing.finish()
    assert same(contents(path), before)
    assert not path.with_name("x.h5.parts").exists()


def test_features_of_other_masks_are_refused(photos: Path, tmp_path: Path) -> None:
    names, out = image_names(photos)[:2], tmp_path / "f.h5"
    for folder, columns in (("left", slice(0, 160)), ("right", slice(160, None))):
        mask = np.zeros((240, 320, 3), np.uint8)
        mask[:, columns] = 255
        write(tmp_path / folder / f"{names[0]}.png", mask)
    for _ in range(2):  # the second run has nothing to do
        list(extract_in_parts(photos, names, Sift(max_keypoints=100), out, masks=tmp_path / "left"))
    with pytest.raises(InputError, match=r"made with another mask of east/00\.png"):
        list(extract_in_parts(photos, names, Sift(max_keypoints=100), out, masks=tmp_path / "right"))


def test_images_that_share_a_key_are_refused(tmp_path: Path, photos: Path) -> None:
    names = ["a/b.png", "a-b.png", "c.png"]
    for seed, name in enumerate(names):
        write(tmp_path / "p" / name, draw_photo(seed))
    features = tmp_path / "f.h5"
    list(extract_in_parts(tmp_path / "p", names, Sift(max_keypoints=100), features))
    with pytest.raises(InputError, match=r"'a/b\.png' and 'a-b\.png' share one place"):
        list(match_in_parts(features, exhaustive(names), Pipeline.pretrained("sift"), tmp_path / "m.h5"))
    list_file = tmp_path / "pairs.txt"
    list_file.write_text("a/b.png c.png\na-b.png c.png\n")
    assert main(["match", str(list_file), "--root", str(tmp_path / "p"), "-o", str(tmp_path / "m.h5")]) == 2
    assert not (tmp_path / "m.h5").exists()


def test_a_pair_both_ways_round_is_matched_once(described: Path, tmp_path: Path) -> None:
    out, a, b = tmp_path / "m.h5", "east/00.png", "east/01.png"
    list(match_in_parts(described, [(a, b), (a, b), (b, a)], Pipeline.pretrained("sift"), out))
    steps = list(match_in_parts(described, [(b, a)], Pipeline.pretrained("sift"), out))
    assert [(step.done, step.total) for step in steps] == [(1, 1)]
    with h5py.File(out) as file:
        assert list(file) == ["east-00.png"]


def test_matching_all_bad_pairs_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("gone.png lost.png\n")
    (tmp_path / "m.h5").write_bytes(b"kept")
    assert main(["match", str(tmp_path / "pairs.txt"), "-o", str(tmp_path / "m.h5")]) == 2
    assert (tmp_path / "m.h5").read_bytes() == b"kept"


def test_features_need_no_weights(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumiglue.pipeline.construction.load_weights", lambda *_: pytest.fail("weights were loaded"))
    assert main(["features", str(photos), "-o", str(tmp_path / "f.h5"), "--max-keypoints", "50"]) == 0
    assert main(["features", str(photos), "-o", str(tmp_path / "g.h5"), "--workers", "-2"]) == 2


def test_files_of_turned_photos_fit_tools_that_read_stored_pixels(
    scene: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """features.h5 and matches.h5 as another tool reads them, with h5py and pycolmap alone: phone portraits of both sides
    give the camera's size and focal length."""
    import pycolmap

    photos, features, matches = tmp_path / "photos", tmp_path / "f.h5", tmp_path / "m.h5"
    photos.mkdir()
    for number, path in enumerate(sorted(scene[0].glob("*.png"))[:5]):
        exif = Image.Exif()
        exif[0x0112], turns = (6, 1) if number % 2 else (8, 3)
        Image.fromarray(np.rot90(read_image(path), turns).copy()).save(photos / path.name, exif=exif)
    names = image_names(photos)
    list(extract_in_parts(photos, names, Sift(max_keypoints=500), features))
    list(match_in_parts(features, exhaustive(names), Pipeline.pretrained("sift"), matches))
    database = tmp_path / "database.db"
    pycolmap.Database.open(database).close()
    pycolmap.import_images(database, photos, pycolmap.CameraMode.SINGLE, names)
    opened = pycolmap.Database.open(database)
    ids = {image.name: image.image_id for image in opened.read_all_images()}
    camera = opened.read_all_cameras()[0]
    with h5py.File(features) as file, h5py.File(matches) as pairs:
        for name, number in ids.items():
            assert tuple(file[name]["image_size"][()]) == (camera.width, camera.height) == (360, 480)  # pyright: ignore
            opened.write_keypoints(number, file[name]["keypoints"][()] + 0.5)  # pyright: ignore
        for a, b in exhaustive(names):
            partner = np.asarray(pairs[f"{a}/{b}"]["matches0"])  # pyright: ignore
            rows = np.flatnonzero(partner >= 0)
            opened.write_matches(ids[a], ids[b], np.stack([rows, partner[rows]], axis=1).astype(np.uint32))
    opened.close()
    (tmp_path / "pairs.txt").write_text("".join(f"{a} {b}\n" for a, b in exhaustive(names)))
    geometry, mapping = pycolmap.TwoViewGeometryOptions(), pycolmap.IncrementalPipelineOptions()
    geometry.ransac.random_seed = mapping.random_seed = 0
    pycolmap.verify_matches(database, tmp_path / "pairs.txt", geometry)
    (tmp_path / "model").mkdir()
    models = pycolmap.incremental_mapping(database, photos, tmp_path / "model", mapping)
    model = max(models.values(), key=pycolmap.Reconstruction.num_reg_images)  # a start that fails is a model too
    assert model.num_reg_images() == 5
    assert model.compute_mean_reprojection_error() < 1.0
    assert next(iter(model.cameras.values())).focal_length == pytest.approx(520, rel=0.1)
