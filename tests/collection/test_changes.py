"""Photos that change under the same name, lists of pairs that are interrupted, and folders without a usable photo."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from helpers import draw_photo
from lumiglue import InputError, Pipeline, Sift
from lumiglue.cli import main
from lumiglue.collection import Progress, extract_features, match_pairs, match_photos
from lumiglue.collection.hloc import FeaturesFile, MatchesReader
from lumiglue.io.hdf5 import GrowingFile

NAMES = ["a/0.png", "a/1.png", "b/2.png"]
PAIRS = [("a/0.png", "a/1.png"), ("a/0.png", "b/2.png"), ("a/1.png", "b/2.png")]


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        write(tmp_path / "photos" / name, draw_photo(5)[4 * number :, 3 * number :])
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.pretrained("sift", max_keypoints=100, precision="fp32")


def contents(path: Path) -> dict[str, Any]:
    """Every data set of a file, as bytes."""
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()].tobytes()}) if isinstance(item, h5py.Dataset) else None
        )
    return found


def test_a_replaced_photo_is_described_and_matched_again(
    photos: Path, tmp_path: Path, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """In the end all is as if the new photo had been there from the start, and other pairs are not matched again."""
    features, matches = tmp_path / "f.h5", tmp_path / "m.h5"
    extract_features(photos, features, pipeline.extractor)
    match_pairs(features, PAIRS, matches, pipeline)
    before = contents(features)
    for name in NAMES:  # a copy, or a touched file, is no other photo
        os.utime(photos / name, (1, 1))
    assert extract_features(photos, features, pipeline.extractor) == ()
    assert contents(features) == before
    assert caplog.text == ""
    write(photos / "a/1.png", draw_photo(5)[::-1].copy())
    steps: list[Progress] = []
    extract_features(photos, features, pipeline.extractor, progress=steps.append)
    assert [step.done for step in steps] == [2, 3]
    assert "extracted again: a/1.png" in caplog.text
    steps.clear()
    match_pairs(features, PAIRS, matches, pipeline, progress=steps.append)
    assert [step.done for step in steps] == [1, 3]
    extract_features(photos, tmp_path / "f2.h5", pipeline.extractor)
    match_pairs(tmp_path / "f2.h5", PAIRS, tmp_path / "m2.h5", pipeline)
    assert contents(features) == contents(tmp_path / "f2.h5")
    assert contents(matches) == contents(tmp_path / "m2.h5")
    steps.clear()
    match_pairs(features, PAIRS, matches, pipeline, progress=steps.append)  # and that is the end of it
    assert [step.done for step in steps] == [3]


def test_a_photo_that_is_replaced_during_an_interruption_is_described_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lumiglue.collection.features.IMAGES_IN_A_PART", 1)
    out, extractor = tmp_path / "f.h5", Sift(max_keypoints=50)

    def stop(step: Progress) -> None:
        if step.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(photos, out, extractor, workers=1, progress=stop)
    assert not out.exists()
    write(photos / "a/0.png", draw_photo(9))
    extract_features(photos, out, extractor, workers=1)
    extract_features(photos, tmp_path / "f2.h5", extractor)
    assert contents(out) == contents(tmp_path / "f2.h5")


def test_stamps_do_not_disturb_readers_of_hloc(photos: Path, tmp_path: Path) -> None:
    """hloc lists the parents of all data sets, and reads sizes and keypoints from the groups."""
    extract_features(photos, tmp_path / "f.h5", Sift(max_keypoints=50))
    names: set[str] = set()
    with h5py.File(tmp_path / "f.h5") as file:
        file.visititems(lambda _, item: names.add(str(item.parent.name)[1:]) if isinstance(item, h5py.Dataset) else None)
        attributes: dict[str, Any] = dict(file[NAMES[0]].attrs)
    assert sorted(names) == NAMES
    path = photos / NAMES[0]
    assert (attributes["photo_size"], attributes["photo_mtime_ns"]) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert len(attributes["photo_sha256"]) == 64
    with FeaturesFile(tmp_path / "f.h5") as read:
        stamp = read.stamp(NAMES[0])
    assert stamp is not None
    assert stamp.fits(path)
    assert not stamp.fits(photos / NAMES[1])


def test_features_without_stamps_are_used_as_they_are(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.h5"
    extract_features(photos, out, Sift(max_keypoints=50))
    with h5py.File(out, "a") as file:
        for name in NAMES:
            for attribute in ("photo_size", "photo_mtime_ns", "photo_sha256"):
                del file[name].attrs[attribute]
    before = out.read_bytes()
    write(photos / NAMES[0], draw_photo(9))
    extract_features(photos, out, Sift(max_keypoints=50))
    assert out.read_bytes() == before


def test_what_is_discarded_is_missing(tmp_path: Path) -> None:
    """From the file and from a part, and the rest is as it was."""
    path = tmp_path / "x.h5"

    def add(growing: GrowingFile, *names: str) -> None:
        with growing.part() as group:
            for name in names:
                group(name).create_dataset("numbers", data=[len(name)])

    with GrowingFile(path, "record") as growing:
        add(growing, "a", "b/c")
        growing.finish()
    with GrowingFile(path, "record") as growing:
        add(growing, "d", "ee")
        add(growing, "f")
        growing.discard(["b/c", "d", "f", "nothing"])
        assert growing.missing(["a", "b/c", "d", "ee", "f"]) == ["b/c", "d", "f"]
        add(growing, "d")
        growing.finish()
    with h5py.File(path) as file:
        assert sorted(file) == ["a", "b", "d", "ee"]
        assert file["ee/numbers"][()].tolist() == [2]  # pyright: ignore


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the matches of a pair are waited for."""
    from lumiglue.collection.hloc import PairMatches

    real, calls = PairMatches.of, []

    def of(*arguments: Any, **options: Any) -> PairMatches:
        calls.append(1)
        if len(calls) > count:
            monkeypatch.setattr(PairMatches, "of", real)
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(PairMatches, "of", of)


def test_a_list_of_pairs_resumes(
    photos: Path, tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`match LIST` loses no finished pair on Ctrl-C, and gives what `match_photos` gives in one go."""
    (tmp_path / "list.txt").write_text("".join(f"{a} {b}\n" for a, b in PAIRS))
    whole, out = tmp_path / "whole.h5", tmp_path / "m.h5"
    assert match_photos(tmp_path / "list.txt", whole, pipeline, root=photos) == ()
    command = ["match", str(tmp_path / "list.txt"), "--root", str(photos), "-o", str(out)]
    command += ["--max-keypoints", "100", "--precision", "fp32"]
    interrupt_after(2, monkeypatch)
    assert main(command) == 130
    assert not out.exists()
    steps: list[Progress] = []
    match_photos(PAIRS, out, pipeline, root=photos, progress=steps.append)
    assert [step.done for step in steps] == [2, 3]
    assert contents(out) == contents(whole)
    with MatchesReader(out) as file, h5py.File(out) as raw:
        assert file.pairs(NAMES) == PAIRS
        assert len(raw["a-0.png/b-2.png/keypoints1"]) == len(file.read("a/0.png", "b/2.png")) > 20  # pyright: ignore
    write(photos / "a/1.png", draw_photo(5)[::-1].copy())  # two of the three pairs have it
    steps.clear()
    match_photos(PAIRS, out, pipeline, root=photos, progress=steps.append)
    assert [step.done for step in steps] == [1, 3]
    shutil.rmtree(photos / "b")  # what is matched needs no photo
    assert main(command) == 0
    assert "3 pairs ->" in capsys.readouterr().out
    assert main([*command, "--exit-ratio", "0"]) == 2
    assert "was made with other settings" in capsys.readouterr().err


def test_collections_lose_no_finished_pair_either(
    photos: Path, tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, out = tmp_path / "f.h5", tmp_path / "m.h5"
    extract_features(photos, features, pipeline.extractor)
    interrupt_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        match_pairs(features, PAIRS, out, pipeline)
    steps: list[Progress] = []
    match_pairs(features, PAIRS, out, pipeline, progress=steps.append)
    assert [step.done for step in steps] == [1, 3]


@pytest.mark.parametrize("command", ["features", "sfm"])
def test_the_reason_is_told_where_no_photo_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for number in range(4):
        write(tmp_path / "p" / f"{number}.jpg", draw_photo(number))
        data = (tmp_path / "p" / f"{number}.jpg").read_bytes()
        (tmp_path / "p" / f"{number}.jpg").write_bytes(data[:200] if number < 3 else b"")
    out = "f.h5" if command == "features" else "out"
    assert main([command, str(tmp_path / "p"), "-o", str(tmp_path / out)]) == 2
    error = capsys.readouterr().err.replace("\n", " ")
    assert "left out: 0.jpg: " in error
    assert "0.jpg is damaged (" in error
    if command == "features":
        assert "none of the 4 images in" in error
        assert "could be used; first reason (3 of 4): " in error


def test_nothing_but_text_is_no_photo(save_photo: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(InputError, match=r"none of the 1 images in .*first reason \(1 of 1\): .*text.jpg is not an image"):
        extract_features(tmp_path, tmp_path / "f.h5")
