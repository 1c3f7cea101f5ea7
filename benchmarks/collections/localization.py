"""Localisation on sets with known cameras: each photo in turn is a query, and the model is made of the others.

    python benchmarks/collections/localization.py EVAL [--groups strecha fox] [--queries 11] \\
        [--max-keypoints 1024] [--neighbours 10] [--out docs/results/data/localization.json]

EVAL has the photos and a pairs.json with relative poses, which are chained. The model has the true poses and cameras of the
other photos, and points that COLMAP triangulates from matches of all pairs; the query takes no part. Each query is localised
with its true camera, and without knowing its focal length. Times are of the processor, of all threads. --out replaces the
rows of a table, and its date.
"""

import argparse
import datetime
import json
import shutil
import tempfile
import time
from collections import defaultdict, deque
from pathlib import Path

import cv2
import numpy as np
import pycolmap

import lumiglue
from lumiglue.collection import localizer
from lumiglue.collection.database import COLMAP_SHIFT
from lumiglue.collection.hloc import FeaturesFile
from lumiglue.collection.pairs import exhaustive
from lumiglue.collection.sparse_model import SparseModel
from lumiglue.evaluation.pairs import PosePair, read_pairs


def true_poses(pairs: list[PosePair]) -> dict[str, np.ndarray]:
    """Camera from world, the frame of the first image, by chaining X_b = R X_a + t."""
    steps: dict[str, list[tuple[str, np.ndarray]]] = defaultdict(list)
    for pair in pairs:
        b_from_a = np.eye(4)
        b_from_a[:3, :3], b_from_a[:3, 3] = pair.rotation, pair.translation
        steps[pair.a].append((pair.b, b_from_a))
        steps[pair.b].append((pair.a, np.linalg.inv(b_from_a)))
    poses, waiting = {pairs[0].a: np.eye(4)}, deque([pairs[0].a])
    while waiting:
        here = waiting.popleft()
        for there, step in steps[here]:
            if there not in poses:
                poses[there] = step @ poses[here]
                waiting.append(there)
    return poses


def true_camera(pairs: list[PosePair], size: tuple[int, int]) -> pycolmap.Camera:
    """The camera that all images of these sets share, in COLMAP's pixels."""
    k = pairs[0].intrinsics_a
    params = [k[0, 0], k[1, 1], k[0, 2] + COLMAP_SHIFT, k[1, 2] + COLMAP_SHIFT]
    return pycolmap.Camera(model="PINHOLE", width=size[0], height=size[1], params=params)


class Known:
    """A set of photos whose cameras are known: features and verified matches of all of them."""

    def __init__(self, root: Path, pairs: list[PosePair], out: Path, pipeline: lumiglue.Pipeline) -> None:
        self.out, self.photos, self.pipeline = out, out / "photos", pipeline
        self.poses = {Path(name).name: pose for name, pose in true_poses(pairs).items()}
        self.photos.mkdir()
        for name in {name for pair in pairs for name in (pair.a, pair.b)}:
            shutil.copy(root / name, self.photos / Path(name).name)
        self.names = sorted(self.poses)
        lumiglue.collection.extract_features(self.photos, out / "f.h5", pipeline.extractor)
        lumiglue.collection.match_pairs(out / "f.h5", exhaustive(self.names), out / "m.h5", pipeline)
        lumiglue.collection.export_colmap(
            self.photos, out / "f.h5", out / "m.h5", out / "d.db", single_camera=True, camera_model="PINHOLE"
        )
        with FeaturesFile(out / "f.h5") as file:
            self.keypoints = {name: file.read(name).keypoints.double().numpy() + COLMAP_SHIFT for name in self.names}
            self.camera = true_camera(pairs, file.read(self.names[0]).image_size)
        centres = np.array([-pose[:3, :3].T @ pose[:3, 3] for pose in self.poses.values()])
        self.extent = float(np.linalg.norm(np.ptp(centres, axis=0)))

    def model_without(self, query: str) -> Path:
        """Triangulates a model of the other photos."""
        scene, folder = SparseModel(pycolmap.Reconstruction(), self.out), self.out / "model"
        for name in self.names:
            pose, camera = pycolmap.Rigid3d(self.poses[name][:3]), pycolmap.Camera(self.camera.todict())
            scene.add(name, camera, pose, self.keypoints[name], np.zeros((0, 2), np.int64))
        scene.reconstruction.deregister_frame(scene.images[query].frame_id)
        folder.mkdir(exist_ok=True)
        made = pycolmap.triangulate_points(scene.reconstruction, self.out / "d.db", self.photos, folder)
        made.write(folder)
        return folder

    def error(self, pose: lumiglue.collection.QueryPose) -> tuple[float, float]:
        """Distance of the centres in percent of the extent, and degrees."""
        true = self.poses[pose.name]
        assert pose.qvec is not None
        assert pose.centre is not None
        w, *xyz = pose.qvec
        turn = pycolmap.Rotation3d(np.array([*xyz, w])).matrix() @ true[:3, :3].T
        distance = np.linalg.norm(np.array(pose.centre) + true[:3, :3].T @ true[:3, 3])
        return 100 * float(distance) / self.extent, float(np.degrees(np.linalg.norm(cv2.Rodrigues(turn)[0])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--groups", nargs="+", default=["strecha", "fox"])
    parser.add_argument("--queries", type=int, default=11, help="of a set, evenly spaced")
    parser.add_argument("--max-keypoints", type=int, default=1024)
    parser.add_argument("--neighbours", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    localizer.perf_counter = time.process_time
    pycolmap.logging.minloglevel = 2
    pipeline = lumiglue.Pipeline.pretrained("sift", max_keypoints=options.max_keypoints, resize=None, precision="fp32")
    by_group: dict[str, list[PosePair]] = defaultdict(list)
    for pair in read_pairs(options.folder):
        if isinstance(pair, PosePair) and pair.group.startswith(tuple(options.groups)):
            by_group[pair.group].append(pair)
    rows = []
    for group, pairs in by_group.items():
        with tempfile.TemporaryDirectory() as folder:
            known = Known(options.folder, pairs, Path(folder), pipeline)
            camera = ",".join(["PINHOLE", *map(str, known.camera.params)])
            chosen = [known.names[i] for i in np.unique(np.linspace(0, len(known.names) - 1, options.queries).astype(int))]
            errors_of = defaultdict(list)
            for query in chosen:
                model = known.model_without(query)
                for what, given in (("known", camera), ("estimated", None)):
                    poses = lumiglue.localize(
                        known.photos / query, model=model, features=known.out / "f.h5", pipeline=pipeline, camera=given,
                        neighbours=options.neighbours,
                    ).poses  # fmt: skip
                    errors_of[what] += [(*known.error(pose), pose.inliers, 1000 * pose.seconds) for pose in poses]
            for number, (what, errors) in enumerate(errors_of.items()):
                position, rotation, inliers, milliseconds = np.array(errors).T
                rows.append([
                    None if number else group.removeprefix("strecha_"), what, f"{len(errors)} of {len(chosen)}",
                    [float(np.median(position)), float(position.max())],
                    [float(np.median(rotation)), float(rotation.max())],
                    float(np.median(inliers)), float(np.median(milliseconds)),
                ])  # fmt: skip
                print(rows[-1], flush=True)
    if options.out:
        table = json.loads(options.out.read_text(encoding="utf-8"))
        table |= {"rows": rows, "date": datetime.date.today().isoformat()}
        options.out.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
