"""How right are the labels that a teacher gives? Measured where truth is known: synthetic scenes and posed RGB-D.

    python benchmarks/accuracy/taught_labels.py --teacher aliked-lightglue --scenes PHOTOS \\
        --rgbd ../shared/rgbd/tartan

Of the positives: pixels between the true place of a keypoint in the other photo and the keypoint that it was matched with,
where depth says that place is seen. Of the unmatchable keypoints: the share that truth matches within 3 pixels. Recall: of
the true matches (3 pixels, mutual) of the pairs with labels, the share that became positives. A line for each kind of data
and each variant; "poses" reconstructs the groups of --views photos first (pycolmap).
"""

import argparse
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from lumiglue.extractors import Extractor, create_extractor
from lumiglue.geometry.projective import transfer
from lumiglue.images import read_image
from lumiglue.training.data.overlap import OverlapSettings
from lumiglue.training.data.posed import DepthSource, PosedFrame, PosedFrames
from lumiglue.training.data.synthetic_scenes import (
    SceneSettings,
    SyntheticScenes,
    aim_camera,
    build_scene,
    depths_at,
    render,
)
from lumiglue.training.data.teacher import Teacher
from lumiglue.training.data.teaching import SceneMatches, scene_anchors
from lumiglue.training.data.transfer import TransferSettings, label_pair
from lumiglue.training.labels import labels_from_depths
from lumiglue.types import Features

View = tuple[Features, Features, np.ndarray, np.ndarray, np.ndarray]  # teacher's, labelled, depths of these, K, pose
Group = tuple[list[View], list[tuple[int, int]]]  # views of one scene, and the pairs of them


def synthetic(photos: Path, groups: int, count: int, teacher: Extractor, labelled: Extractor) -> list[Group]:
    """Views of synthetic scenes, in all pairs."""
    settings = SceneSettings(size=(640, 480))
    source, rows = SyntheticScenes.of_folder(photos, settings=settings, texture_side=480), []
    for number in range(groups):
        rng = np.random.default_rng(number)
        scene, views = build_scene(rng, source.textures(rng), settings), []
        for _ in range(count):
            camera = aim_camera(rng, settings)
            rendering = render(scene, camera)
            features = labelled(rendering.image)
            depths = depths_at(rendering, features.keypoints.numpy().astype(np.float64))
            views.append((teacher(rendering.image), features, depths, camera.intrinsics, camera.camera_from_world))
        rows.append((views, list(combinations(range(count), 2))))
    return rows


def measured(folder: Path, groups: int, count: int, teacher: Extractor, labelled: Extractor) -> list[Group]:
    """Posed RGB-D frames, in pairs that overlap by a quarter to three quarters. A group is a frame and those that overlap
    with it and were not used before."""
    meta = json.loads((folder / "meta.json").read_text())
    intrinsics = np.array(meta["K"], dtype=np.float64)
    half = np.array([*(intrinsics[:2] / 2), [0, 0, 1]])
    frames = [
        PosedFrame(
            name=frame["id"],
            scene=folder.name,
            image=folder / "rgb" / f"{frame['id']}.jpg",
            depth=DepthSource(path=folder / "depth" / f"{frame['id']}.png", scale=1000, intrinsics=half),
            intrinsics=intrinsics,
            camera_from_world=np.linalg.inv(np.array(frame["T_wc"])),
        )
        for frame in meta["frames"]
    ]
    overlapping = {
        frozenset(pair[:2])
        for pair in PosedFrames(frames=frames, pairing=OverlapSettings(min_overlap=0.25, max_overlap=0.75)).pairs()
    }

    def view(row: int) -> View:
        frame, image = frames[row], read_image(frames[row].image)
        features = labelled(image)
        depths = frame.depths_at(features.keypoints.numpy().astype(np.float64), features.image_size)
        return teacher(image), features, depths, intrinsics, frame.camera_from_world

    found: list[Group] = []
    free = list(range(len(frames)))
    while free and len(found) < groups:
        first = free.pop(0)
        rows = [first, *[row for row in free if {first, row} in overlapping][: count - 1]]
        if len(rows) == count:
            free = [row for row in free if row not in rows]
            pairs = [(a, b) for a, b in combinations(range(count), 2) if {rows[a], rows[b]} in overlapping]
            found.append(([view(row) for row in rows], pairs))
    return found


def figures(groups: list[Group], taught: list[SceneMatches], settings: TransferSettings, *, poses: bool) -> dict[str, float]:
    """Of all labels of all pairs together."""
    errors, wrong, lonely_count, recalled, true_count, labelled, used = [], 0, 0, 0, 0, 0, 0
    anchored = [scene_anchors(scene, settings, poses=poses) for scene in taught]
    pairs = [
        (views[int(a)], views[int(b)], anchors)
        for (views, _), usable in zip(groups, anchored, strict=True)
        for (a, b), anchors in usable.items()
    ]
    for (_, own0, depths0, k0, pose0), (_, own1, depths1, k1, pose1), anchors in pairs:
        used += 1
        points = (own0.keypoints.numpy(), own1.keypoints.numpy())
        labels = label_pair(*points, (own0.image_size, own1.image_size), anchors, settings)
        arrays = (*points, depths0, depths1, k0, k1, pose1 @ np.linalg.inv(pose0))
        exact = [torch.from_numpy(np.asarray(array, dtype=np.float64)) for array in arrays]
        seen, z = (x.numpy() for x in transfer(exact[0], exact[2], exact[4], exact[5], exact[6]))
        positives = labels.matches()
        i, j = positives.T
        known = np.abs(depths1[j] / z[i] - 1) < 0.05
        errors.append(np.linalg.norm(seen[i] - points[1][j], axis=1)[known])
        truth = labels_from_depths(*(tensor[None] for tensor in exact)).matches[:, 1:].numpy()
        lonely0, lonely1 = labels.unmatchable()
        # Truth is of keypoints with depth alone, so of these alone may an unmatchable one be called wrong or right.
        known0, known1 = np.isfinite(depths0), np.isfinite(depths1)
        lonely_count += int((lonely0 & known0).sum() + (lonely1 & known1).sum())
        wrong += int(lonely0[truth[:, 0]].sum() + lonely1[truth[:, 1]].sum())
        pairs_found = {(int(a), int(b)) for a, b in positives}
        recalled += sum((int(a), int(b)) in pairs_found for a, b in truth)
        true_count += len(truth)
        labelled += len(positives)
    every = np.concatenate(errors) if errors else np.zeros(1)
    return {
        "pairs": used, "positives": labelled, "median_px": float(np.median(every)),
        "over_3px": 100 * float((every > 3).mean()), "over_5px": 100 * float((every > 5).mean()),
        "unmatchable": lonely_count, "unmatchable_wrong": 100 * wrong / max(lonely_count, 1),
        "recall": 100 * recalled / max(true_count, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="aliked-lightglue")
    parser.add_argument("--teacher-features")
    parser.add_argument("--teacher-keypoints", type=int, default=1024)
    parser.add_argument("--features", default="sift")
    parser.add_argument("--scenes", type=Path, help="photos for synthetic scenes")
    parser.add_argument("--rgbd", type=Path, nargs="*", default=[])
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--views", type=int, default=4, help="views of a group")
    parser.add_argument("--settings", action="store_true", help="also with other values of each setting")
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher = Teacher.named(args.teacher, args.teacher_features, max_keypoints=args.teacher_keypoints)
    theirs, own = teacher.extractor(), create_extractor(args.features, max_keypoints=2048, resize=None)
    size = args.groups, args.views
    data = {"synthetic scenes": synthetic(args.scenes, *size, theirs, own)} if args.scenes else {}
    data |= {folder.name: measured(folder, *size, theirs, own) for folder in args.rgbd}
    usual = TransferSettings()
    variants = {"with poses": (usual, True), "without poses": (usual, False)}
    fields = {
        "neighbours": (5, 12), "reach": (16.0, 64.0), "residual": (0.75, 3.0), "spread": (0.5, 2.0), "cycle": (1.0, 4.0)
    }  # fmt: skip
    for name, values in fields.items() if args.settings else ():
        variants |= {f"{name} {value}": (replace(usual, **{name: value}), False) for value in values}
    for kind, groups in data.items():
        taught = [taught_scene(teacher, group) for group in groups]
        for variant, (settings, poses) in variants.items():
            line = {"data": kind, "variant": variant} | figures(groups, taught, settings, poses=poses)
            print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in line.items()}), flush=True)


def taught_scene(teacher: Teacher, group: Group) -> SceneMatches:
    """The teacher's matches of a group."""
    features = {str(number): view[0] for number, view in enumerate(group[0])}
    pairs = {(str(a), str(b)): teacher.match(features[str(a)], features[str(b)]) for a, b in group[1]}
    enough = {pair: matches for pair, matches in pairs.items() if len(matches) >= TransferSettings().least_anchors}
    return SceneMatches(features, enough, None)


if __name__ == "__main__":
    main()
