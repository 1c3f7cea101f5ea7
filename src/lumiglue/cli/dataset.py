"""`lumiglue dataset teach`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from lumiglue.cli.terminal import ProgressBar, err, say


def teach(
    photos: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    teacher: str = "aliked-lightglue",
    teacher_features: str | None = None,
    teacher_keypoints: int = 2048,
    teacher_matches: Path | None = None,
    features: str = "sift",
    neighbours: int = 6,
    max_keypoints: int = 2048,
    long_side: int = 640,
    seed: int = 0,
    workers: int = 0,
    device: str | None = None,
) -> int:
    """Build a dataset of overlapping photos that a teacher matches and labels for any features. Resumable.

    Args:
        photos: Folder of folders, each with overlapping photos of one scene.
        out: The .h5 file to write.
        teacher: The matcher that labels: a name, a .safetensors file, or a released LightGlue checkpoint.
        teacher_features: Features of the teacher, where it does not say them (a released checkpoint does not).
        teacher_keypoints: Keypoints per photo for the teacher.
        teacher_matches: Folder that keeps the teacher's matches, so that datasets of other features reuse them.
        features: Features to label: sift, aliked, or your own as file.py:Class or module:Class.
        neighbours: Each photo is paired with so many photos of its scene, the most similar ones.
        max_keypoints: Keypoints kept per photo.
        long_side: Photos are shrunk to this many pixels.
        seed: Of RANSAC.
        workers: Processes; 0 takes one per core.
        device: Where the networks run: cpu or cuda; by default the GPU if there is one.
    """
    from lumiglue.extractors import create_extractor
    from lumiglue.system.device import usable_device
    from lumiglue.training.data.build import DatasetSettings, build_dataset
    from lumiglue.training.data.teacher import Teacher
    from lumiglue.training.data.teaching import TaughtPhotos

    where = str(usable_device(device))
    matcher = Teacher.named(teacher, teacher_features, max_keypoints=teacher_keypoints, device=where)
    source = TaughtPhotos.of_folder(
        photos, matcher, neighbours=neighbours, long_side=long_side, seed=seed, matches=teacher_matches
    )
    extractor = create_extractor(features, device=where, max_keypoints=max_keypoints, resize=None)
    settings = DatasetSettings(max_keypoints=max_keypoints, items_per_part=1)
    done, skipped = 0, ()
    with ProgressBar("scenes", None) as advance:
        for part in build_dataset(source, out, extractor, settings, workers=workers):
            advance(part.items_done - done, f"{len(part.skipped)} without a pair", part.items)
            done, skipped = part.items_done, part.skipped
    say(f"{done - len(skipped)} scenes -> {out}")
    if skipped:
        err.print(f"{len(skipped)} scenes have no pair that overlaps; the first: {skipped[0]}", markup=False)
    return 0
