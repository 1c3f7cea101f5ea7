"""Taught datasets: overlapping photos without known geometry, which a teacher labels for any features.

In each scene (a folder) the teacher matches pairs of photos with its own features. `transfer` then labels the keypoints of
the features to train for. If these are the teacher's own, its assignments are stored as well. ALIKED can also describe the
keypoints of other features, and a teacher for ALIKED assign them.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from lumiglue.errors import ImageError, InputError
from lumiglue.extractors import Extractor
from lumiglue.extractors.networks import Aliked
from lumiglue.images import read_image, resize_long_side
from lumiglue.io.atomic import replacing
from lumiglue.training.data.build import strongest
from lumiglue.training.data.dataset import Kind, LabelledPair, View
from lumiglue.training.data.homographies import photo_names, photos_sha256
from lumiglue.training.data.taught import SparseAssignment
from lumiglue.training.data.teacher import Teacher
from lumiglue.training.data.transfer import Anchors, TransferSettings, consistent_matches, find_anchors, label_pair
from lumiglue.types import Features


@dataclass(frozen=True, eq=False)
class SceneMatches:
    """A teacher's results for a scene.

    Attributes:
        features: The teacher's features of each photo.
        pairs: Matches of each pair of photos, k x 2 rows.
        assignments: Assignment of each pair; None if they were not requested.
    """

    features: dict[str, Features]
    pairs: dict[tuple[str, str], np.ndarray]
    assignments: dict[tuple[str, str], SparseAssignment] | None


@dataclass(frozen=True, kw_only=True)
class TaughtPhotos:
    """The source of a taught dataset: folders of overlapping photos, each folder a scene.

    Attributes:
        root: Folder of the folders.
        scenes: Names of the photos by folder.
        teacher: The matcher that labels.
        neighbours: Each photo is paired with this many of the most similar photos of its scene.
        long_side: Photos are shrunk to this long side, in pixels.
        seed: Seed of RANSAC.
        transfer: When a transferred keypoint counts.
        poses: Whether scenes of three or more photos are reconstructed, which makes their labels surer; needs pycolmap.
        assignments: Whether the teacher also assigns the keypoints of other features, described by its own network.
        matches: Cache folder for the teacher's matches, which datasets of other features of the same photos reuse.
    """

    root: Path
    scenes: Mapping[str, tuple[str, ...]]
    teacher: Teacher
    neighbours: int = 6
    long_side: int = 640
    seed: int = 0
    transfer: TransferSettings = field(default_factory=TransferSettings)
    poses: bool = False
    assignments: bool = False
    matches: Path | None = None

    kind: Kind = field(default="taught", init=False)

    @classmethod
    def of_folder(cls, folder: str | Path, teacher: Teacher, **settings: Any) -> "TaughtPhotos":
        """A source of all photos of a folder and its subfolders. Raises InputError if no folder has two photos."""
        root = Path(folder).resolve()
        groups: dict[str, list[str]] = {}
        for name in photo_names(root):
            groups.setdefault(str(PurePosixPath(name).parent), []).append(name)
        scenes = {scene: tuple(names) for scene, names in sorted(groups.items()) if len(names) > 1}
        if not scenes:
            raise InputError(f"{folder} has no folder with two photos; put the photos of a scene into a folder")
        return cls(root=root, scenes=scenes, teacher=teacher, **settings)

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise InputError(f"neighbours is {self.neighbours}; give at least 1")
        if self.long_side < 64:
            raise InputError(f"long_side is {self.long_side}; give at least 64 pixels")
        if self.assignments and not isinstance(self.teacher.extractor(), Aliked):
            raise InputError(
                f"{self.teacher.features} cannot describe the keypoints of other features; use a teacher for ALIKED or "
                "leave out assignments"
            )
        if self.poses:
            import lumiglue.training.data.multiview  # noqa: F401  # says at once if pycolmap is missing

    @property
    def items(self) -> list[str]:
        """Names of the scenes."""
        return list(self.scenes)

    def plan(self) -> dict[str, Any]:
        """All that the labels depend on besides the scenes and the extractor, as JSON values."""
        photos = [name for names in self.scenes.values() for name in names]
        return {
            "source": "taught", "teacher": self.teacher.plan(), "neighbours": self.neighbours, "seed": self.seed,
            "long_side": self.long_side, "transfer": asdict(self.transfer), "poses": self.poses,
            "assignments": self.assignments, "photos_sha256": photos_sha256(self.root, photos),
        }  # fmt: skip

    def pairs(self) -> None:
        """None, because the pairs come with the labels."""

    def views(self, item: int, extractor: Extractor, max_keypoints: int) -> list[View]:
        """Makes the views of a scene: its photos that belong to a pair."""
        return self.labelled(item, extractor, max_keypoints)[0]

    def labelled(self, item: int, extractor: Extractor, max_keypoints: int) -> tuple[list[View], list[LabelledPair]]:
        """The views of a scene, and its labelled pairs. Raises ImageError if no two photos that can be read overlap."""
        return self.labelled_photos(item, extractor, max_keypoints)[1:]

    def labelled_photos(
        self, item: int, extractor: Extractor, max_keypoints: int
    ) -> tuple[list[str], list[View], list[LabelledPair]]:
        """The same, with the name of each view's photo."""
        scene = self.items[item]
        photos = dict(self._photos(self.scenes[scene]))
        own = extractor.name == self.teacher.features
        taught = self._match(scene, photos, assignments=own)
        anchors = scene_anchors(taught, self.transfer, poses=self.poses, seed=self.seed)
        if not anchors:
            raise ImageError(f"no two photos of {scene} overlap")
        features, rows = {}, {}
        for name in sorted({name for pair in anchors for name in pair}):
            detected = taught.features[name] if own else extractor(photos[name])
            rows[name] = strongest(detected, np.ones(len(detected), dtype=bool), max_keypoints)
            features[name] = detected[torch.from_numpy(rows[name])]
        anchors = {pair: usable for pair, usable in anchors.items() if all(len(features[name]) for name in pair)}
        if not anchors:
            raise ImageError(f"no two photos of {scene} that overlap have keypoints")
        names = sorted({name for pair in anchors for name in pair})
        redescribed = self._redescribe(photos, features) if self.assignments and not own else None
        pairs = []
        for (a, b), usable in anchors.items():
            first, second, assignment = features[a], features[b], None
            if own:
                assignment = _select_assignment(taught, (a, b), (rows[a], rows[b]))
            elif redescribed:
                _, assignment = self.teacher.assign(redescribed[a], redescribed[b])
            labels = label_pair(
                first.keypoints.numpy(), second.keypoints.numpy(), (first.image_size, second.image_size), usable,
                self.transfer, assignment,
            )  # fmt: skip
            overlap = min(float(labels.judged0.mean()), float(labels.judged1.mean()))
            pairs.append((names.index(a), names.index(b), overlap, labels))
        return names, [View(scene, features[name]) for name in names], pairs

    def _redescribe(self, photos: Mapping[str, np.ndarray], features: Mapping[str, Features]) -> dict[str, Features]:
        """The keypoints of other features with the teacher's descriptors."""
        extractor = self.teacher.extractor()
        assert isinstance(extractor, Aliked)
        return {
            name: Features(
                keypoints=detected.keypoints, descriptors=extractor.describe(photos[name], detected.keypoints),
                image_size=detected.image_size, extractor=extractor.name,
            )
            for name, detected in features.items()
        }  # fmt: skip

    def _photos(self, names: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
        """Those that can be read."""
        for name in names:
            try:
                yield name, resize_long_side(read_image(self.root / name), self.long_side)
            except ImageError:
                continue

    def _match(self, scene: str, photos: dict[str, np.ndarray], *, assignments: bool) -> SceneMatches:
        """The teacher's matches of a scene, from the cache folder if they are there."""
        file, cached = None, None
        if self.matches is not None:
            key = [self.teacher.plan(), self.long_side, self.neighbours, photos_sha256(self.root, self.scenes[scene])]
            digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
            file = self.matches / f"{scene.replace('/', '-')}-{digest}.npz"
            cached = _read(file)
            if cached is not None and (cached.assignments is not None or not assignments):
                return cached
        if cached is None:
            extract = self.teacher.extractor()
            features = {name: detected for name, image in photos.items() if len(detected := extract(image))}
            candidates = self._candidates(features)
        else:
            features, candidates = cached.features, list(cached.pairs)
        pairs, assigned = {}, {}
        for a, b in candidates:
            if assignments:
                matches, assigned[a, b] = self.teacher.assign(features[a], features[b])
            else:
                matches = self.teacher.match(features[a], features[b])
            if len(matches) >= self.transfer.least_anchors:
                pairs[a, b] = matches
        scene_matches = SceneMatches(features, pairs, {pair: assigned[pair] for pair in pairs} if assignments else None)
        if file is not None:
            _write(file, scene_matches)
        return scene_matches

    def _candidates(self, features: dict[str, Features]) -> list[tuple[str, str]]:
        """Pairs of similar photos."""
        names = list(features)
        if len(names) <= self.neighbours + 1:
            return list(combinations(names, 2))
        from lumiglue.collection.retrieval import by_retrieval

        return by_retrieval(lambda name: features[name].descriptors.numpy(), names, self.neighbours)


def scene_anchors(
    scene: SceneMatches, settings: TransferSettings, *, poses: bool, seed: int = 0
) -> dict[tuple[str, str], Anchors]:
    """The reliable matches of a scene's pairs of photos.

    Matches that the other photos contradict are left out. With `poses`, three or more photos that a reconstruction places
    also take its tracks, and its epipolar geometry in place of that of the two photos.

    Args:
        scene: The teacher's matches.
        settings: When a match counts.
        poses: Whether to reconstruct the scene; needs pycolmap.
        seed: Random seed.

    Returns:
        The anchors of each pair that has enough of them.
    """
    keypoints = {name: features.keypoints.numpy() for name, features in scene.features.items()}
    pairs = consistent_matches(keypoints, scene.pairs, settings)
    fundamentals = {}
    if poses:
        from lumiglue.training.data.multiview import map_matches

        sizes = {name: features.image_size for name, features in scene.features.items()}
        for model in reversed(map_matches(keypoints, sizes, pairs, seed)):  # the largest one has the last word
            for pair, matches in pairs.items():
                if model.projections.keys() >= set(pair):
                    pairs[pair], fundamentals[pair] = model.revise(*pair, matches), model.fundamental(*pair)
    anchors = {}
    for (a, b), matches in pairs.items():
        ends = keypoints[a][matches[:, 0]], keypoints[b][matches[:, 1]]
        usable = find_anchors(*ends, settings, seed, fundamentals.get((a, b)))
        if usable is not None:
            anchors[a, b] = usable
    return anchors


def _select_assignment(scene: SceneMatches, pair: tuple[str, str], rows: tuple[np.ndarray, np.ndarray]) -> SparseAssignment:
    """The teacher's assignment of those keypoints of a pair that the dataset has."""
    assert scene.assignments is not None
    positions = []
    for name, selected in zip(pair, rows, strict=True):
        position = np.full(len(scene.features[name]), -1)
        position[selected] = np.arange(len(selected))
        positions.append(position)
    return scene.assignments[pair].select(*positions)


_FEATURES = ("keypoints", "descriptors", "scores")
_PAIR = ("entries", "log_p", "matchability0", "matchability1")


def _write(file: Path, scene: SceneMatches) -> None:
    """Caches a teacher's results."""
    arrays: dict[str, np.ndarray] = {}
    names = list(scene.features)
    for number, features in enumerate(scene.features.values()):
        for name in _FEATURES:
            value = getattr(features, name)
            arrays[f"photo/{number}/{name}"] = np.zeros(0, np.float32) if value is None else value.numpy()
    for number, (pair, matches) in enumerate(scene.pairs.items()):
        arrays[f"pair/{number}/matches"] = matches
        if scene.assignments is not None:
            arrays |= {f"pair/{number}/{name}": getattr(scene.assignments[pair], name) for name in _PAIR}
    record = {
        "photos": [[name, features.image_size, features.extractor] for name, features in scene.features.items()],
        "pairs": [[names.index(a), names.index(b)] for a, b in scene.pairs],
        "assignments": scene.assignments is not None,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, shared=True) as unfinished, unfinished.open("wb") as stream:
        np.savez(stream, record=np.array(json.dumps(record)), **arrays)  # pyright: ignore[reportArgumentType]


def _read(file: Path) -> SceneMatches | None:
    """Cached results; None if there are none, or they are damaged and must be computed again."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            record = json.loads(str(arrays["record"]))
            features = {}
            for number, (name, size, extractor) in enumerate(record["photos"]):
                keypoints, descriptors, scores = (torch.from_numpy(arrays[f"photo/{number}/{key}"]) for key in _FEATURES)
                features[name] = Features(
                    keypoints=keypoints, descriptors=descriptors, image_size=tuple(size), extractor=extractor,
                    scores=scores if len(scores) == len(keypoints) else None,
                )  # fmt: skip
            names, pairs, assigned = list(features), {}, {}
            for number, (a, b) in enumerate(record["pairs"]):
                pairs[names[a], names[b]] = arrays[f"pair/{number}/matches"]
                if record["assignments"]:
                    assignment = SparseAssignment(*(arrays[f"pair/{number}/{name}"] for name in _PAIR))
                    assigned[names[a], names[b]] = assignment
    except (OSError, LookupError, ValueError, zipfile.BadZipFile, EOFError):
        return None
    return SceneMatches(features, pairs, assigned if record["assignments"] else None)
