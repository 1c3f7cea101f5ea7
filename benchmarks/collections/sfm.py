"""`lumiglue sfm` beside COLMAP's own SIFT and matcher on the same photos, in turns: what is registered, how well, how long.

    python benchmarks/collections/sfm.py EVAL [--groups fox strecha] [--max-keypoints 2048] \\
        [--features sift] [--by exhaustive]

EVAL has the photos and a pairs.json whose relative poses are metric: chained, they give the true camera centres. Errors are
after the best similarity. Both verify with COLMAP and map with the same seed, on all cores, all pairs of a set.
"""

import argparse
import shutil
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
from localization import true_poses

from lumiglue import reconstruct
from lumiglue.cli.flags import PipelineFlags
from lumiglue.collection.colmap import draw_model, map_scene
from lumiglue.collection.database import Database
from lumiglue.collection.sfm import Model
from lumiglue.evaluation.pairs import PosePair, read_pairs
from lumiglue.visualization import save_figure


def true_centres(pairs: list[PosePair]) -> dict[str, np.ndarray]:
    """Camera centres in the frame of the first image."""
    return {Path(name).name: np.linalg.inv(pose)[:3, 3] for name, pose in true_poses(pairs).items()}


def centre_errors(model: Model, true: dict[str, np.ndarray]) -> np.ndarray:
    """Distances of the registered cameras to the truth after the best similarity (Umeyama 1991)."""
    images = {i.name: i.projection_center() for i in model.reconstruction.images.values() if i.has_pose and i.name in true}
    estimated, expected = np.array(list(images.values())), np.array([true[name] for name in images])
    a, b = estimated - estimated.mean(0), expected - expected.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    flip = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    return np.linalg.norm((s * flip).sum() / (a**2).sum() * a @ (u @ np.diag(flip) @ vt).T - b, axis=1)


def ours(photos: Path, out: Path, flags: PipelineFlags) -> Model:
    return reconstruct(photos, out, flags.pipeline(), by="exhaustive", single_camera=True).models[0]


def colmaps(photos: Path, out: Path, max_keypoints: int) -> Model:
    reader, extraction = pycolmap.ImageReaderOptions(), pycolmap.FeatureExtractionOptions()
    reader.camera_model, extraction.use_gpu = "SIMPLE_RADIAL", False
    extraction.sift.max_num_features = max_keypoints
    pycolmap.extract_features(
        out / "d.db",
        photos,
        [],
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
    )
    matching = pycolmap.FeatureMatchingOptions()
    matching.use_gpu = False
    pycolmap.match_exhaustive(out / "d.db", matching_options=matching)
    return map_scene(Database(out / "d.db", {}), photos, out)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--groups", nargs="+", default=["strecha", "fox", "kitti"])
    parser.add_argument("--max-keypoints", type=int, default=2048)
    parser.add_argument("--features", default="sift")
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    pycolmap.logging.minloglevel = 2
    flags = replace(PipelineFlags(), features=options.features, max_keypoints=options.max_keypoints, resize=0)
    by_group: dict[str, list[PosePair]] = defaultdict(list)
    for pair in read_pairs(options.folder):
        if isinstance(pair, PosePair) and pair.group.startswith(tuple(options.groups)):
            by_group[pair.group].append(pair)
    print(
        "| set | by | registered | points | track | reprojection px | camera centre, median (largest) | seconds |\n|"
        + "---|" * 8
    )
    for group, pairs in by_group.items():
        true = true_centres(pairs)
        extent = np.linalg.norm(np.ptp(np.array(list(true.values())), axis=0))
        for name in ("Lumiglue", "COLMAP"):
            with tempfile.TemporaryDirectory() as folder:
                photos, out = Path(folder) / "photos", Path(folder) / "out"
                photos.mkdir()
                out.mkdir()
                for file in {name for pair in pairs for name in (pair.a, pair.b)}:
                    shutil.copy(options.folder / file, photos / Path(file).name)
                start = time.perf_counter()
                try:
                    model = ours(photos, out, flags) if name == "Lumiglue" else colmaps(photos, out, options.max_keypoints)
                except Exception as error:
                    print(f"| {group} | {name} | failed: {error} |", flush=True)
                    continue
                seconds = time.perf_counter() - start
                errors = 100 * centre_errors(model, true) / extent
                print(
                    f"| {group} | {name} | {model.images} of {len(true)} | {model.points} | {model.track_length:.2f} | "
                    f"{model.reprojection_error:.2f} | {np.median(errors):.2f} % ({errors.max():.2f} %) of the extent | "
                    f"{seconds:.0f} |",
                    flush=True,
                )
                if options.pictures:
                    options.pictures.mkdir(parents=True, exist_ok=True)
                    save_figure(draw_model(model), options.pictures / f"{group}_{name}.png")


if __name__ == "__main__":
    main()
