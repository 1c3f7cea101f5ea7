"""Costs of a collection, projected from a sample of it; and the search of similar images."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers import draw_photo
from lumiglue import InputError, Pipeline, collection
from lumiglue.cli import main

pytest.importorskip("pycolmap")
pytest.importorskip("faiss")

from lumiglue.collection.retrieval import SimilarImages


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        cv2.imwrite(str(folder / f"{number}.png"), draw_photo(number, 160, 120))
    return folder


def test_costs_of_a_small_collection_are_those_that_it_has(photos: Path, tmp_path: Path) -> None:
    """All photos are in the sample: files of features and matches have about the projected size."""
    pipeline = Pipeline.pretrained("sift", max_keypoints=128, precision="fp32")
    costs = collection.project_costs(photos, pipeline, by="exhaustive")
    assert (costs.images, costs.measured, costs.pairs) == (5, 5, 10)
    collection.extract_features(photos, tmp_path / "f.h5", pipeline.extractor)
    pairs = collection.choose_pairs(tmp_path / "f.h5", "exhaustive")
    collection.match_pairs(tmp_path / "f.h5", pairs, tmp_path / "m.h5", pipeline)
    real = sum((tmp_path / name).stat().st_size for name in ("f.h5", "m.h5"))
    assert costs.disk == pytest.approx(real, rel=0.2)
    assert costs.seconds["features"] > 0
    assert costs.seconds["pairs"] == 0
    assert costs.seconds["matches"] > 0


def test_costs_grow_as_the_numbers_of_images_and_pairs(photos: Path) -> None:
    pipeline = Pipeline.pretrained("sift", max_keypoints=64, precision="fp32")
    many = collection.project_costs(photos, pipeline, by="retrieval", neighbours=20, images=10_000)
    assert (many.images, many.measured, many.pairs) == (10_000, 5, 140_000)
    assert many.memory > 10_000 * 64 * 128 * 4  # a VLAD vector for each image
    assert many.seconds["pairs"] > 0
    line = collection.project_costs(photos, pipeline, by="sequential", neighbours=20, overlap=10, images=10_000)
    assert line.pairs == 10_000 * 10 + round(0.7 * 5 * 10_000)
    assert collection.project_costs(photos, pipeline, by="retrieval").pairs == 10  # no more than all


def test_a_dry_run_writes_nothing(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sfm", str(photos), "-o", str(tmp_path / "model"), "--max-keypoints", "64", "--dry-run"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "5 photos, about 10 pairs (exhaustive); costs of 5 of the photos" in output
    assert "COLMAP's mapping is not included" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    assert main([*command, "--by", "position"]) == 2
    assert "a dry run cannot project the pairs by position" in capsys.readouterr().err
    for number in range(1, 5):
        (photos / f"{number}.png").write_bytes(b"no")
    with pytest.raises(InputError, match="has 1 usable photos"):
        collection.project_costs(photos)


def test_similar_images_are_the_nearest_vectors() -> None:
    """Against a plain product of all vectors."""
    rng = np.random.default_rng(0)
    bank = rng.random((40, 30, 16), np.float32)
    descriptors = {f"{i}": bank[i] for i in range(40)}
    images = SimilarImages(descriptors.__getitem__, list(descriptors))
    nearest = images.nearest(images.vectors, 5)
    assert nearest == [[f"{j}" for j in row] for row in np.argsort(-images.vectors @ images.vectors.T, axis=1)[:, :5]]
    assert images.nearest(images.vlad(bank[7])[None], 100)[0][0] == "7"
    assert len(images.nearest(images.vectors[:1], 100)[0]) == 40
