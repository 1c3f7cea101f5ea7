"""The yardstick: pairs of scenes that no training sees, by class, to choose weights on.

    export LUMIGLUE_ALIKED=RELEASED LUMIGLUE_DISK=RELEASED/disk.pth      # released weights, also the matchers
    python benchmarks/accuracy/yardstick.py build SHARED -o YARDSTICK --released RELEASED --cache CACHE
    python benchmarks/accuracy/yardstick.py look YARDSTICK -o PICTURES
    python benchmarks/accuracy/yardstick.py measure YARDSTICK -o SCORES --cache CACHE --features sift \\
        --methods nn ratio-0.85 lumiglue
    python benchmarks/accuracy/yardstick.py measure YARDSTICK -o SCORES --cache CACHE --features sift \\
        --weights NEW.safetensors --name new
    python benchmarks/accuracy/yardstick.py report SCORES --against nn

What is held out is listed in yardstick-scenes.json (`held_out()`); commands that make datasets must leave it out. Classes:
planar, outdoor (wide baselines), indoor, rotation-scale, low-light, repeats, little-overlap; a pair's group is CLASS/SCENE.
Outdoor and indoor pairs with poses are in rotation-scale a second time, image b turned and shrunk.

Ground truth:
    Homographies of photos are exact. RGB-D frames and five photo sets have poses; of the sets a pair counts as overlapping
    where nearest neighbours of SIFT and ALIKED, after a ratio test, are on its epipolar lines far more often than by chance.
    The other photos have correspondences on which two independent routes agree: the released LightGlue on ALIKED with
    LO-RANSAC, and SIFT with the ratio test and MAGSAC++, or where SIFT fails the released LightGlue on DISK. Each route's
    inliers must be within 2 px (median) of the other's epipolar lines. `REJECTED` are pairs that agreed and looked wrong.
Its bias: a pair that neither SIFT nor DISK confirms is missing, so the correspondences favour the released matcher. RGB-D
frames and homographies do not.
"""

import argparse
import itertools
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from lumiglue.collection.features import extract_in_parts
from lumiglue.collection.hloc import FeaturesFile
from lumiglue.evaluation.baselines import BASELINES, Matcher, mutual_nearest_neighbours
from lumiglue.evaluation.classes import FEWEST_SCENES, Figure, by_class, figures
from lumiglue.evaluation.pairs import read_pairs
from lumiglue.evaluation.run import matcher_of
from lumiglue.evaluation.scores import ScoresFile, read_record, read_scores
from lumiglue.evaluation.scoring import PairScore, Protocol, score_features, summarise
from lumiglue.evaluation.synthetic import shrunk, turned
from lumiglue.extractors import create_extractor
from lumiglue.geometry.projective import epipolar_error, fundamental_from_pose
from lumiglue.geometry.robust import estimate
from lumiglue.images import read_image
from lumiglue.matcher.settings import MatchSettings
from lumiglue.pipeline.pipeline import Pipeline
from lumiglue.training.data.homographies import ViewSettings, rng_for, sample_view
from lumiglue.training.data.overlap import DepthCamera, overlap_matrix
from lumiglue.types import Features
from lumiglue.weights.files import load_weights, pretrained_path
from lumiglue.weights.registry import resolve
from lumiglue.weights.released import import_released

CLASSES = ("planar", "outdoor", "indoor", "rotation-scale", "low-light", "repeats", "little-overlap")
QUOTA = dict(zip(CLASSES, (30, 35, 40, 36, 32, 26, 36), strict=True))
PER_SCENE = 6  # pairs of one scene in one class at most
KEYPOINTS = 2048  # features that are kept on disk; fewer are the strongest of them
NOTE = f"{KEYPOINTS} keypoints, full size"
LONG_SIDE = {"disk": 512}  # pixels that photos are shrunk to; DISK is only a witness, and slow

POSED = {"officetable": "indoor", "terrace": "outdoor", "clutter": "indoor", "lunddoor": "outdoor", "toysgrid": "indoor"}
UNPOSED = {
    "redkitchen": "indoor", "bonsai": "indoor", "sacrecoeur": "outdoor", "nletower": "outdoor", "gnomes": "low-light",
    "nightcampus": "low-light",
}  # fmt: skip
# Of the pairs of dut: those whose structure repeats, and those indoors; the others are outdoor.
REPEATING_PAIRS = (
    "dut_ANAP-building", "dut_Computers", "dut_DFW_four", "dut_DFW_shelf", "dut_REW_gym", "dut_building-3", "dut_school",
    "dut_APAP-conssite", "dut_REW_theater",
)  # fmt: skip
INDOOR_PAIRS = ("dut_DFW_desk", "dut_office")
REPEATING_PHOTOS = ("img_021", "img_027_c", "img_041", "img_048_c", "img_053.", "img_087", "img_092.")
DARK_PHOTOS = ("DICM_19", "DICM_22", "DICM_33", "img_085_c", "voc/JPEGImages_001198")
OTHER_CROPS = ("img_027.", "img_053_c", "img_077_c", "img_085.", "img_092_c")  # the same photos again, held out, unused

REACH = {"bonsai": 4, "redkitchen": 4}  # photos along the camera's way, beyond which hardly a pair overlaps
CANDIDATES = 16  # pairs of one scene that are tried at most
AGREE_PX = 2.0
FEWEST_FIRST, FEWEST_SECOND = 25, 12  # inliers of either route
ANNOTATED = 50
LITTLE = 0.2  # share of an image that what both see fills, under which a pair has little overlap
TURN, SCALE = 25.0, 1.6  # degrees and factor from which on a pair is one of rotation and scale

# Photos of pairs whose two routes agreed on something that looks wrong with `look`. The tower of nletower is round: from
# opposite sides its windows match, while the houses beside it change sides. The floor of bonsai gave a line of points.
REJECTED = {
    "nletower": {(0, 2), (0, 1), (0, 3), (0, 4), (1, 3), (1, 4), (1, 5), (1, 6), (2, 3), (2, 4), (2, 5), (2, 6), (3, 4)},
    "bonsai": {(7, 10)},
}


def held_out() -> dict[str, list[str]]:
    """What training must leave out: `scenes` and `dut_pairs` are scenes of photos.jsonl, `rgbd` folders of rgbd/ (all
    frames), `photos` files of photos/."""
    return json.loads((Path(__file__).parent / "yardstick-scenes.json").read_text())


# -- features and matches on disk -------------------------------------------------------------------------------------


def file_name(features: str) -> str:
    """Names of features as a part of a file's name; those of a class of one's own are PATH.py:CLASS."""
    return Path(features).name.replace(":", "-")


class FeatureCache:
    """Features of the images of a folder, extracted once and kept in CACHE/EXTRACTOR.h5."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self._known: dict[tuple[str, str], Features] = {}

    def extract(self, extractor: str, names: Iterable[str]) -> None:
        """Extracts what is missing, and keeps all of it in memory."""
        names = sorted(set(names))
        todo = [name for name in names if (extractor, name) not in self._known]
        if not todo:
            return
        self.cache.mkdir(parents=True, exist_ok=True)
        file = self.cache / f"{file_name(extractor)}.h5"
        made = create_extractor(extractor, max_keypoints=KEYPOINTS, resize=LONG_SIDE.get(extractor))
        for step in extract_in_parts(self.folder, todo, made, file, note=NOTE, workers=1):
            print(f"{extractor}: {step.done} of {step.total} images", flush=True)
        with FeaturesFile(file) as features:
            for name in todo:
                self._known[extractor, name] = features.read(name)

    def features(self, extractor: str, name: str, count: int = KEYPOINTS) -> Features:
        """The `count` strongest of an image."""
        return self._known[extractor, name][:count]


@dataclass(frozen=True, eq=False)
class Route:
    """A way from two images to matched points, and from them to inliers of a fundamental matrix."""

    name: str
    extractor: str
    keypoints: int
    match: Matcher
    magsac: bool = False

    def points(self, cache: FeatureCache, a: str, b: str) -> tuple[np.ndarray, np.ndarray]:
        """Matched points of both images, kept on disk."""
        file = cache.cache / "matches" / self.name / (f"{a}--{b}".replace("/", "_") + ".npy")
        if not file.exists():
            self.describe(cache, [a, b])
            features = [cache.features(self.extractor, name, self.keypoints) for name in (a, b)]
            pairs = self.match(*features).pairs
            ends = [side.keypoints[pairs[:, k]].double().numpy() for k, side in enumerate(features)]
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, np.stack(ends))
        stored = np.load(file)
        return stored[0], stored[1]

    def describe(self, cache: FeatureCache, names: Iterable[str]) -> None:
        cache.extract(self.extractor, names)

    def inliers(self, points: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, np.ndarray] | None:
        """The fundamental matrix and which points fit it."""
        if len(points[0]) < 8:
            return None
        if self.magsac:
            cv2.setRNGSeed(0)
            fundamental, mask = cv2.findFundamentalMat(*points, cv2.USAC_MAGSAC, 1.5, 0.9999, 20000)
            if fundamental is None or fundamental.shape != (3, 3):
                return None
            return torch.from_numpy(fundamental), mask.ravel() > 0
        geometry = estimate("fundamental", *points)
        return None if geometry.matrix is None else (geometry.matrix.double(), geometry.inliers.numpy())


def released_route(name: str, extractor: str, weights: Path) -> Route:
    """A released LightGlue, read when it is first needed."""
    pipeline: list[Pipeline] = []

    def match(a: Features, b: Features) -> Any:
        if not pipeline:
            pipeline.append(Pipeline(create_extractor(extractor), import_released(weights, extractor)))
        return pipeline[0].match_features([(a, b)])[0]

    return Route(name, extractor, 1024, match)


# -- two-view geometry by consensus -----------------------------------------------------------------------------------


def line_errors(fundamental: torch.Tensor, points: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Symmetric distance to the epipolar lines in pixels."""
    a, b = (torch.from_numpy(side).double() for side in points)
    return epipolar_error(fundamental.double(), a, b).numpy()


def chosen(points: tuple[np.ndarray, np.ndarray], mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return points[0][mask], points[1][mask]


def joined(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])


def consensus(
    first: Route, second: Route, of_first: tuple[np.ndarray, np.ndarray], of_second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Correspondences that both routes' geometry explains; None where the two disagree or found too little."""
    model_first, model_second = first.inliers(of_first), second.inliers(of_second)
    if model_first is None or model_second is None:
        return None
    (f_first, mask_first), (f_second, mask_second) = model_first, model_second
    inliers_first, inliers_second = chosen(of_first, mask_first), chosen(of_second, mask_second)
    if len(inliers_first[0]) < FEWEST_FIRST or len(inliers_second[0]) < FEWEST_SECOND:
        return None
    crossed = line_errors(f_second, inliers_first), line_errors(f_first, inliers_second)
    if max(map(np.median, crossed)) > AGREE_PX:
        return None
    union = joined(inliers_first, inliers_second)
    refined = estimate("fundamental", *union)
    if refined.matrix is None:
        return None
    errors = [line_errors(model, union) for model in (refined.matrix, f_first, f_second)]
    right = (errors[0] <= 1.5) & (errors[1] <= 2.5) & (errors[2] <= 2.5)
    return chosen(union, right) if right.sum() >= FEWEST_FIRST else None


def spread(points: tuple[np.ndarray, np.ndarray], count: int = ANNOTATED) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` of the correspondences, each farthest in image a from those before it."""
    a = points[0]
    rows = [int(np.linalg.norm(a - a.mean(0), axis=1).argmin())]
    distance = np.linalg.norm(a - a[rows[0]], axis=1)
    while len(rows) < min(count, len(a)) and distance.max() > 1:
        rows.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(a - a[rows[-1]], axis=1))
    return chosen(points, np.array(rows))


@dataclass(frozen=True)
class Change:
    """How the images of a pair differ. overlap: the smaller share of an image in the hull of the correspondences."""

    overlap: float
    turn: float
    scale: float

    @classmethod
    def of(cls, points: tuple[np.ndarray, np.ndarray], sizes: Sequence[tuple[int, int]]) -> "Change":
        hulls = [cv2.contourArea(cv2.convexHull(side.astype(np.float32))) for side in points]
        overlap = min(area / (width * height) for area, (width, height) in zip(hulls, sizes, strict=True))
        # the similarity b ~ s e^(i turn) a + shift by least squares: all of the points are inliers
        a, b = (side @ np.array([1, 1j]) - (side @ np.array([1, 1j])).mean() for side in points)
        similarity = np.vdot(a, b) / np.vdot(a, a).real
        scale = float(np.sqrt(np.vdot(b, b).real / np.vdot(a, a).real))
        return cls(overlap, abs(float(np.degrees(np.angle(similarity)))), max(scale, 1 / scale))

    def class_of(self, usual: str) -> str:
        """The class of a pair whose scene is of the class `usual`."""
        if self.turn >= TURN or self.scale >= SCALE:
            return "rotation-scale"
        return "little-overlap" if self.overlap <= LITTLE and usual != "low-light" else usual


# -- sources of pairs -------------------------------------------------------------------------------------------------

Pair = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Builder:
    """shared: the data beside the project. out: the yardstick's folder, which photos are copied to."""

    shared: Path
    out: Path
    cache: FeatureCache
    first: Route
    seconds: tuple[Route, ...]
    witnesses: tuple[Route, ...]  # that two posed photos overlap

    def copied(self, name: str) -> str:
        """`name` below `shared`, copied to the same place below `out`."""
        if not (self.out / name).exists():
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.shared / name, self.out / name)
        return name

    def size(self, name: str) -> tuple[int, int]:
        with Image.open(self.out / name) as image:
            return image.size

    def written(self, image: np.ndarray, name: str) -> str:
        """An image that was made, under made/."""
        file = self.out / "made" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file, quality=95)
        return f"made/{name}"

    # posed photos

    def posed(self, scene: str) -> list[Pair]:
        """Pairs of a set with poses, of overlap that matches show."""
        folder = f"photos/{scene}"
        poses = json.loads((self.shared / folder / "poses.json").read_text())
        frames = [
            (self.copied(f"{folder}/{frame['file']}"), np.array(frame.get("K", poses.get("K"))), np.array(frame["T_wc"]))
            for frame in poses["frames"]
        ]
        for route in self.witnesses:
            route.describe(self.cache, [name for name, _, _ in frames])
        posed_pairs = []
        for (a, k_a, world_from_a), (b, k_b, world_from_b) in few(itertools.combinations(frames, 2), scene, _look_alike):
            b_from_a = np.linalg.inv(world_from_b) @ world_from_a
            rotation, translation = torch.from_numpy(b_from_a[:3, :3]), torch.from_numpy(b_from_a[:3, 3])
            fundamental = fundamental_from_pose(torch.from_numpy(k_a), torch.from_numpy(k_b), rotation, translation)
            seen = [self._on_lines(route, fundamental, a, b) for route in self.witnesses]
            right = joined(*seen)
            if len(right[0]) < 20:
                continue
            change = Change.of(right, [self.size(a), self.size(b)])
            pair = pose_pair(change.class_of(POSED[scene]), scene, (a, b), (k_a, k_b), b_from_a)
            posed_pairs.append(pair | asdict(change))
        return posed_pairs

    def _on_lines(self, route: Route, fundamental: torch.Tensor, a: str, b: str) -> tuple[np.ndarray, np.ndarray]:
        """Matches of a route within 2 px of the epipolar lines; none where they are as few as chance would have it."""
        points = route.points(self.cache, a, b)
        right = line_errors(fundamental, points) <= AGREE_PX
        return chosen(points, right & bool(right.mean() > 0.15 if len(right) else False))

    # photos without poses

    def unposed(self, scene: str, pairs: Sequence[tuple[str, str]], usual: str) -> list[Pair]:
        """Pairs with correspondences on which two routes agree."""
        annotated_pairs, open_pairs = [], []
        for a, b in pairs:
            model = self.first.inliers(self.first.points(self.cache, a, b))
            if model is not None and model[1].sum() >= FEWEST_FIRST:
                open_pairs.append((a, b))
        for second in self.seconds:
            second.describe(self.cache, itertools.chain.from_iterable(open_pairs))
            solved = []
            for a, b in open_pairs:
                points = (route.points(self.cache, a, b) for route in (self.first, second))
                right = consensus(self.first, second, *points)
                if right is not None:
                    solved.append((a, b))
                    change = Change.of(right, [self.size(a), self.size(b)])
                    annotated = annotated_pair(change.class_of(usual), scene, (a, b), spread(right))
                    annotated_pairs.append(annotated | asdict(change) | {"second": second.name, "inliers": len(right[0])})
            open_pairs = [pair for pair in open_pairs if pair not in solved]
        return annotated_pairs

    # RGB-D frames

    def depth_frames(self, folder: str, lows: Mapping[str, tuple[float, float]], count: int) -> list[Pair]:
        """Pairs of posed depth frames by their overlap; `lows` has the range of each class."""
        root = self.shared / "rgbd" / folder
        meta = json.loads((root / "meta.json").read_text())
        k = np.array(meta["K"], dtype=np.float64)
        half = np.vstack([k[:2] / 2, k[2:]])  # depth[y, x] belongs to rgb[2y, 2x]
        cameras = []
        for frame in meta["frames"]:
            depth = np.array(Image.open(root / "depth" / f"{frame['id']}.png")).astype(np.float32) / 1000
            depth[depth <= 0] = np.nan
            camera = DepthCamera(
                depth=depth, intrinsics=half, camera_from_world=np.linalg.inv(np.array(frame["T_wc"], dtype=np.float64))
            )
            cameras.append(camera.reduced())
        overlap = overlap_matrix(cameras)
        all_pairs = []
        for label, (low, high) in lows.items():
            rows = np.argwhere(np.triu((overlap >= low) & (overlap < high), 1))
            order = rng_for(0, f"{folder}/{label}").permutation(len(rows))
            taken: list[Pair] = []
            places: dict[int, int] = defaultdict(int)
            used: set[int] = set()
            for i, j in rows[order].tolist():
                b_from_a = cameras[j].camera_from_world @ np.linalg.inv(cameras[i].camera_from_world)
                place = i * 6 // len(cameras)  # the camera walks through rooms: sixths of its way are places
                if np.linalg.norm(b_from_a[:3, 3]) < 0.25 or places[place] >= count // 4 or {i, j} & used:
                    continue
                used |= {i, j}
                places[place] += 1
                names = tuple(self.copied(f"rgbd/{folder}/rgb/{meta['frames'][n]['id']}.jpg") for n in (i, j))
                roll = abs(float(np.degrees(np.arctan2(b_from_a[1, 0], b_from_a[0, 0]))))
                change = asdict(Change(float(overlap[i, j]), roll, 1.0))
                taken.append(pose_pair(label, f"{folder}-{place}", names, (k, k), b_from_a) | change)
                if len(taken) == count:
                    break
            all_pairs += taken
        return all_pairs

    # homographies

    def planar(self, photo: str, label: str, settings: ViewSettings, views: int, light: "Light") -> list[Pair]:
        """A photo and random views of it, in front of another photo of those held out."""
        name = self.copied(f"photos/{photo}")
        pixels = read_image(self.out / name)
        size = (pixels.shape[1], pixels.shape[0])
        others = [
            other for other in held_out()["photos"] if not any(crop in other for crop in OTHER_CROPS) and other != photo
        ]
        pairs = []
        for number in range(views):
            rng = rng_for(number, f"{label}/{photo}")
            view_from_photo = sample_view(rng, size, settings)
            behind = read_image(self.shared / "photos" / others[int(rng.integers(len(others)))])
            view = light.photographed(rng, seen(pixels, view_from_photo, behind))
            made = self.written(view, f"{label}-{photo.replace('/', '-').removesuffix('.jpg')}-{number}.jpg")
            pair = {"type": "homography", "group": f"{label}/{Path(photo).stem}", "a": name, "b": made}
            pairs.append(pair | {"H": view_from_photo.tolist()})
        return pairs

    def turned(self, pair: Pair, degrees: float) -> Pair:
        """A pair with correspondences whose image b is turned, on a grey canvas."""
        image, turned_from_b = turned(read_image(self.out / pair["b"]), degrees)
        made = self.written(
            image, f"turned-{pair['a'].replace('/', '-').removesuffix('.jpg')}-{pair['b'].replace('/', '-')}"
        )
        points = cv2.perspectiveTransform(np.array(pair["pts_b"])[None], turned_from_b)[0]
        label = f"rotation-scale/{pair['group'].split('/')[1]}"
        return pair | {"group": label, "b": made, "pts_b": points.round(2).tolist(), "turn": degrees}

    def turned_pose(self, pair: Pair) -> Pair:
        """A pair with poses whose image b is turned and, every other time, shrunk up to 2.5 times."""
        rng = rng_for(0, f"turned/{pair['a']}/{pair['b']}")
        degrees, factor = float(rng.uniform(30, 330)), float(rng.choice([1.0, rng.uniform(1.2, 2.5)]))
        small, small_from_b = shrunk(read_image(self.out / pair["b"]), factor)
        image, turned_from_small = turned(small, degrees)
        made = self.written(
            image, f"turned-{pair['a'].replace('/', '-').removesuffix('.jpg')}-{pair['b'].replace('/', '-')}"
        )
        k_b, rotation = turned_camera(np.array(pair["K_b"]), turned_from_small @ small_from_b, degrees)
        changed = {"K_b": k_b.tolist(), "R": (rotation @ pair["R"]).tolist(), "t": (rotation @ pair["t"]).tolist()}
        label = f"rotation-scale/{pair['group'].split('/')[1]}"
        return pair | changed | {"group": label, "b": made, "turn": degrees, "scale": factor}


def turned_camera(k: np.ndarray, turned_from_image: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The camera matrix of an image that was scaled and turned clockwise, and the rotation of its camera.

    The pixels become square, of the mean of both focal lengths: exact where these are equal.
    """
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])
    new_k = turned_from_image @ k @ rotation.T
    focal = (new_k[0, 0] + new_k[1, 1]) / 2
    return np.array([[focal, 0, new_k[0, 2]], [0, focal, new_k[1, 2]], [0, 0, 1.0]]), rotation


def seen(photo: np.ndarray, view_from_photo: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """The view of a photo, of the same size, with four samples a pixel; beyond the photo's edge is another one."""
    height, width = photo.shape[:2]
    fine_from_view = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1.0]])
    fine, fine_from_photo = (2 * width, 2 * height), fine_from_view @ view_from_photo
    warped = cv2.warpPerspective(photo, fine_from_photo, fine, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpPerspective(np.ones((height, width), np.float32), fine_from_photo, fine, flags=cv2.INTER_NEAREST)
    whole = np.where(inside[:, :, None] > 0, warped, cv2.resize(behind, fine, interpolation=cv2.INTER_AREA))
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


@dataclass(frozen=True)
class Light:
    """Another exposure: range of the gain, and noise in grey values."""

    gain: tuple[float, float]
    noise: float

    def photographed(self, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        """Gain, gamma, colour and noise."""
        gain = rng.uniform(*self.gain) * rng.uniform(0.95, 1.05, 3)
        values = (image / 255.0) ** rng.uniform(0.85, 1.2) * gain * 255
        return np.clip(values + rng.normal(0, self.noise, image.shape), 0, 255).round().astype(np.uint8)


DAY, DUSK, NIGHT = Light((0.7, 1.2), 2.0), Light((0.4, 0.7), 4.0), Light((0.12, 0.35), 4.0)


def pose_pair(label: str, scene: str, names: Sequence[str], intrinsics: Sequence[np.ndarray], b_from_a: np.ndarray) -> Pair:
    return {
        "type": "pose", "group": f"{label}/{scene}", "a": names[0], "b": names[1], "K_a": intrinsics[0].tolist(),
        "K_b": intrinsics[1].tolist(), "R": b_from_a[:3, :3].tolist(), "t": b_from_a[:3, 3].tolist(),
    }  # fmt: skip


def annotated_pair(label: str, scene: str, names: Sequence[str], points: tuple[np.ndarray, np.ndarray]) -> Pair:
    return {
        "type": "correspondences", "group": f"{label}/{scene}", "a": names[0], "b": names[1],
        "pts_a": points[0].round(2).tolist(), "pts_b": points[1].round(2).tolist(),
    }  # fmt: skip


def few(pairs: Iterable[Any], scene: str, usable: Callable[[Any], bool] = lambda _: True) -> list[Any]:
    """At most CANDIDATES of the wanted pairs, the same each time."""
    pairs = [pair for pair in pairs if usable(pair)]
    rows = np.sort(rng_for(0, scene).permutation(len(pairs))[:CANDIDATES])
    return [pairs[row] for row in rows]


def _look_alike(pair: Any) -> bool:
    """Whether two cameras look into directions less than 80 degrees apart, and not from the same place."""
    (_, _, a), (_, _, b) = pair
    return bool(a[:3, 2] @ b[:3, 2] > np.cos(np.radians(80))) and bool(np.linalg.norm(a[:3, 3] - b[:3, 3]) > 1e-3)


def balanced(pairs: Sequence[Pair]) -> list[Pair]:
    """Of each class its quota, scenes in turns, at most PER_SCENE of a scene, the same each time."""
    taken = []
    for label in CLASSES:
        scenes: dict[str, list[Pair]] = defaultdict(list)
        of_class = [pair for pair in pairs if pair["group"].startswith(f"{label}/")]
        for row in rng_for(0, label).permutation(len(of_class)):
            scenes[of_class[row]["group"]].append(of_class[row])
        rounds = itertools.zip_longest(*(scenes[scene][:PER_SCENE] for scene in sorted(scenes)))
        in_turns = [pair for of_round in rounds for pair in of_round if pair is not None]
        taken += sorted(in_turns[: QUOTA[label]], key=lambda pair: (pair["group"], pair["a"], pair["b"]))
    return taken


def build(shared: Path, out: Path, released: Path, cache: Path) -> None:
    """Writes the folder."""
    held, first = held_out(), released_route("aliked-lightglue", "aliked-n16", released / "aliked_lightglue.pth")
    sift = Route("sift-magsac", "sift", KEYPOINTS, partial(mutual_nearest_neighbours, ratio=0.85), magsac=True)
    disk = released_route("disk-lightglue", "disk", released / "disk_lightglue.pth")
    nearest = Route("aliked-ratio", "aliked-n16", KEYPOINTS, partial(mutual_nearest_neighbours, ratio=0.95))
    builder = Builder(shared, out, FeatureCache(out, cache), first, (sift, disk), (sift, nearest))
    pairs = planar_pairs(builder, [photo for photo in held["photos"] if not any(crop in photo for crop in OTHER_CROPS)])
    say_count("homographies", pairs)
    for folder in held["rgbd"]:
        pairs += builder.depth_frames(folder, {"little-overlap": (0.1, 0.25), "indoor": (0.25, 0.4)}, 14)
    say_count("RGB-D", pairs)
    unposed = unposed_candidates(builder, held)
    first.describe(builder.cache, {name for _, of_scene, _ in unposed for pair in of_scene for name in pair})
    real: list[Pair] = []
    for scene, of_scene, usual in unposed:
        wrong = {tuple(f"photos/{scene}/{photo:03d}.jpg" for photo in pair) for pair in REJECTED.get(scene, ())}
        of_scene = [pair for pair in of_scene if pair not in wrong]
        real += builder.unposed(scene, of_scene, usual)
        say_count(scene, real)
    pairs += real
    for scene in POSED:
        pairs += builder.posed(scene)
        say_count(scene, pairs)
    upright = [pair for pair in real if not pair["group"].startswith(("rotation", "little")) and pair["overlap"] > 0.3]
    selected = balanced(pairs)
    spare = [pair for pair in upright if pair not in selected]
    spare = [spare[row] for row in rng_for(0, "turned").permutation(len(spare))]
    one_each = {pair["group"]: pair for pair in spare}
    extra = [builder.turned(pair, float(rng_for(0, pair["a"]).uniform(30, 330))) for pair in one_each.values()]
    selected = balanced(pairs + extra)
    selected += turned_poses(builder, selected)
    images = {name: {"size": builder.size(name)} for name in sorted({pair[side] for pair in selected for side in "ab"})}
    (out / "pairs.json").write_text(json.dumps({"images": images, "pairs": selected}))
    say_count("selected", selected)


def planar_pairs(builder: Builder, photos: Sequence[str]) -> list[Pair]:
    """Homographies of the held-out photos: dark ones, those that repeat, the others, and these turned and scaled."""
    wide = ViewSettings(any_roll=0.0, roll=12.0, largest_roll=30.0, tilt=70.0, zoom=(0.7, 1.8), shift=0.3)
    spun = ViewSettings(any_roll=1.0, tilt=35.0, zoom=(0.4, 2.8), shift=0.2)
    pairs: list[Pair] = []
    for photo in photos:
        if any(part in photo for part in DARK_PHOTOS):
            pairs += builder.planar(photo, "low-light", wide, 2, DUSK)
        elif any(part in photo for part in REPEATING_PHOTOS):
            pairs += builder.planar(photo, "repeats", wide, 2, DAY)
        else:
            pairs += builder.planar(photo, "planar", wide, 1, DAY)
    others = [photo for photo in photos if not any(part in photo for part in (*DARK_PHOTOS, *REPEATING_PHOTOS))]
    for photo in others[:14]:
        pairs += builder.planar(photo, "rotation-scale", spun, 1, DAY)
    for photo in others[14:20]:
        pairs += builder.planar(photo, "low-light", wide, 1, NIGHT)
    return pairs


def turned_poses(builder: Builder, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with poses that are neither turned nor of little overlap, turned: beside the quota of their class, whose
    own pairs with poses are of two scenes."""
    usual = [pair for pair in pairs if pair["type"] == "pose" and pair["group"].startswith(("outdoor/", "indoor/"))]
    return [builder.turned_pose(pair) for pair in usual]


def unposed_candidates(builder: Builder, held: Mapping[str, Sequence[str]]) -> list[tuple[str, list[tuple[str, str]], str]]:
    """(scene, pairs, class) of the photos without poses."""
    photos: dict[str, list[str]] = defaultdict(list)
    for line in (builder.shared / "photos" / "photos.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry.get("scene") in {*UNPOSED, *held["dut_pairs"]}:
            photos[entry["scene"]].append(f"photos/{entry['file']}")
    photos["redkitchen"] = photos["redkitchen"][::2]  # of a video
    candidates = []
    for scene in (*[s for s in UNPOSED if s not in ("redkitchen", "bonsai")], *held["dut_pairs"], "bonsai", "redkitchen"):
        names = [builder.copied(name) for name in photos[scene]]
        reach = REACH.get(scene, len(names))
        rows = few(itertools.combinations(range(len(names)), 2), scene, lambda pair, reach=reach: pair[1] - pair[0] <= reach)
        pairs = [(names[a], names[b]) for a, b in rows]
        usual = UNPOSED.get(scene) or (
            "repeats" if scene in REPEATING_PAIRS else "indoor" if scene in INDOOR_PAIRS else "outdoor"
        )
        candidates.append((scene, pairs, usual))
    return candidates


def say_count(what: str, pairs: Sequence[Pair]) -> None:
    counts = {label: sum(pair["group"].startswith(f"{label}/") for pair in pairs) for label in CLASSES}
    print(f"after {what}: " + ", ".join(f"{label} {count}" for label, count in counts.items()), flush=True)


# -- looking ----------------------------------------------------------------------------------------------------------


def look(folder: Path, out: Path, columns: int = 3, width: int = 560) -> None:
    """Sheets of all pairs: correspondences as numbered points, poses as epipolar lines in b of points in a, homographies as
    the frame of a in b."""
    out.mkdir(parents=True, exist_ok=True)
    pairs = json.loads((folder / "pairs.json").read_text())["pairs"]
    for label, of_class in groupby(pairs, key=lambda pair: pair["group"].split("/")[0]):
        tiles = [_tile(folder, pair, width) for pair in of_class]
        for start in range(0, len(tiles), 5 * columns):
            sheet = tiles[start : start + 5 * columns]
            height = max(tile.shape[0] for tile in sheet)
            sheet = [np.pad(tile, ((0, height - tile.shape[0]), (0, 0), (0, 0))) for tile in sheet]
            sheet += [np.zeros_like(sheet[0])] * (-len(sheet) % columns)
            rows = [np.hstack(sheet[k : k + columns]) for k in range(0, len(sheet), columns)]
            Image.fromarray(np.vstack(rows)).save(out / f"{label}-{start // (5 * columns)}.jpg", quality=88)


def _tile(folder: Path, pair: Pair, width: int) -> np.ndarray:
    images = [read_image(folder / pair[side]).copy() for side in ("a", "b")]
    if pair["type"] == "correspondences":
        ends = np.array(pair["pts_a"]), np.array(pair["pts_b"])
        for number in range(0, len(ends[0]), 3):
            colour = _colour(number, len(ends[0]))
            for image, side in zip(images, ends, strict=True):
                _mark(image, side[number], colour, str(number))
    elif pair["type"] == "pose":
        k_a, k_b, rotation, translation = (torch.tensor(pair[key], dtype=torch.float64) for key in ("K_a", "K_b", "R", "t"))
        fundamental = fundamental_from_pose(k_a, k_b, rotation, translation).numpy()
        height, wide = images[0].shape[:2]
        grid = [(x, y) for y in (0.2, 0.5, 0.8) for x in (0.15, 0.4, 0.6, 0.85)]
        for number, (x, y) in enumerate(grid):
            point, colour = np.array([x * wide, y * height]), _colour(number, len(grid))
            _mark(images[0], point, colour, str(number))
            a, b, c = fundamental @ [*point, 1]
            if abs(b) > 1e-9:
                ends = [(0, round(float(-c / b))), (images[1].shape[1], round(float(-(c + a * images[1].shape[1]) / b)))]
                if max(abs(end[1]) for end in ends) < 20000:
                    cv2.line(images[1], ends[0], ends[1], colour, 1, cv2.LINE_AA)
    else:
        height, wide = images[0].shape[:2]
        corners = np.array([[[0, 0], [wide, 0], [wide, height], [0, height]]], dtype=np.float64)
        frame = cv2.perspectiveTransform(corners, np.array(pair["H"]))[0]
        cv2.polylines(images[1], [frame.round().astype(np.int32)], True, (255, 60, 60), 2, cv2.LINE_AA)
    half = width // 2
    small = [cv2.resize(image, (half, round(image.shape[0] * half / image.shape[1]))) for image in images]
    tile = np.zeros((max(image.shape[0] for image in small) + 16, width, 3), np.uint8)
    for k, image in enumerate(small):
        tile[: image.shape[0], k * half : (k + 1) * half] = image
    text = f"{pair['group']} {Path(pair['a']).stem[-12:]} {Path(pair['b']).stem[-12:]} {pair.get('overlap', 1):.2f}"
    text, font = f"{text} {pair.get('second', '')[:4]}", cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(tile, text, (2, tile.shape[0] - 4), font, 0.36, (255, 255, 0), 1, cv2.LINE_AA)
    return tile


def _colour(number: int, count: int) -> tuple[int, ...]:
    hue = np.array([[[int(170 * number / max(count, 1)), 255, 255]]], dtype=np.uint8)
    return tuple(int(value) for value in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0])


def _mark(image: np.ndarray, point: np.ndarray, colour: tuple[int, ...], text: str) -> None:
    at = (round(float(point[0])), round(float(point[1])))
    cv2.circle(image, at, 5, colour, 2, cv2.LINE_AA)
    cv2.putText(image, text, (at[0] + 6, at[1] + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)


# -- measuring --------------------------------------------------------------------------------------------------------


def pipeline_of(features: str, weights: Path | None, settings: MatchSettings) -> Pipeline:
    """Weights of ours, the package's by default, or a released checkpoint (.pth, .pt)."""
    file = pretrained_path(features) if weights is None else weights
    extractor = create_extractor(features)
    model = import_released(file, extractor.name) if file.suffix in (".pth", ".pt") else load_weights(file)
    return Pipeline(extractor, model, settings)


def measure(args: argparse.Namespace) -> None:
    """One file of scores for each method and number of points. Run again to resume."""
    pairs = read_pairs(args.folder)
    pairs = [pairs[row] for row in rng_for(0, "order").permutation(len(pairs))]  # so that a part is a fair sample
    cache = FeatureCache(args.folder, args.cache)
    cache.extract(args.features, {name for pair in pairs for name in (pair.a, pair.b)})
    protocol = Protocol(seeds=tuple(args.seeds))
    for count, method in itertools.product(args.max_keypoints, args.methods):
        ours = method.startswith("lumiglue")
        name = (args.name or method) + ("-full" if args.name and method.endswith("-full") else "") if ours else method
        weights = args.weights if ours else None
        adaptive = MatchSettings(exit_ratio=args.exit_ratio, prune_below=args.prune_below)
        settings = MatchSettings(exit_ratio=0, prune_below=0) if method.endswith("-full") else adaptive
        pipeline = pipeline_of(args.features, weights and resolve(weights), settings) if ours else None
        match = BASELINES[method] if pipeline is None else matcher_of(pipeline)
        record = {"folder": str(args.folder), "features": args.features, "max_keypoints": count, "method": name}
        record |= {"weights": weights, "protocol": asdict(protocol)}
        if pipeline is not None:  # the file that `weights` names may be another one the next time
            record["matcher"] = {"settings": str(pipeline.settings), "fingerprint": pipeline.fingerprint()}
        file = ScoresFile(args.out / f"{file_name(args.features)}-{count}-{name}.csv", record, len(protocol.seeds))
        scored = score_features(
            file.missing(pairs), lambda image, _, n=count: cache.features(args.features, image, n), {name: match}, protocol
        )
        for _, of_pair in groupby(scored, key=lambda score: (score.a, score.b)):
            file.append(of_pair)
        print(f"{file.path}: {len(file.scores) // len(protocol.seeds)} pairs", flush=True)


def report(args: argparse.Namespace) -> None:
    """Tables by class as Markdown: figures with 95 % intervals, or gains over another method of the same features."""
    runs: dict[tuple[int, str, str], list[PairScore]] = {}
    for path in sorted(args.scores.glob("*.csv")):
        record = read_record(path)
        if record["max_keypoints"] in args.max_keypoints and (not args.features or record["features"] in args.features):
            groups = {(pair.a, pair.b): pair.group for pair in read_pairs(record["folder"])}
            runs[record["max_keypoints"], record["features"], record["method"]] = [
                replace(score, group=groups[score.a, score.b])
                for score in read_scores(path)
                if (score.a, score.b) in groups  # a pair may have been rejected since
            ]
    for count in args.max_keypoints:
        for label in ("all", *CLASSES):
            rows = []
            for (points, features, method), scores in runs.items():
                if points != count:
                    continue
                mine = scores if label == "all" else by_class(scores).get(label, [])
                other = runs.get((count, features, args.against)) if args.against else None
                if mine and not (args.against and (other is None or method == args.against)):
                    rows += filter(None, [_row(f"{features} {method}", mine, other, args.rounds)])
            if rows:
                _print_table(f"{label}, {count} points" + (f", gain over {args.against}" if args.against else ""), rows)


def _row(name: str, mine: list[PairScore], other: list[PairScore] | None, rounds: int) -> dict[str, Any] | None:
    if other is not None:
        both = {(s.a, s.b) for s in mine} & {(s.a, s.b) for s in other}
        mine, other = ([s for s in side if (s.a, s.b) in both] for side in (mine, other))
    if not mine:
        return None
    (summary,) = summarise(mine)
    return {
        "name": name, "figures": figures(mine, against=other, rounds=rounds), "pairs": summary.pairs,
        "scenes": len({s.group for s in mine}), "matches": summary.matches, "stop": summary.stop_layer,
        "layers": float(np.mean([s.layers_per_point for s in mine])) if summary.stop_layer else float("nan"),
    }  # fmt: skip


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    scenes = max(row["scenes"] for row in rows)
    over = "scenes" if scenes >= FEWEST_SCENES else "pairs"
    print(f"\n**{title}** ({scenes} scenes; intervals over {over} and seeds)\n")
    print("| matcher | pairs | " + " | ".join(names) + " | matches | stop layer | layers a point |")
    print("|---|---:|" + "---:|" * (len(names) + 3))
    for row in rows:
        cells = [_cell(row["figures"].get(name)) for name in names]
        learned = row["stop"] > 0
        depth = (f"{row['stop']:.2f}", f"{row['layers']:.2f}") if learned else ("", "")
        print(f"| {row['name']} | {row['pairs']} | {' | '.join(cells)} | {row['matches']:.0f} | {' | '.join(depth)} |")


def _cell(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.1f} ({figure.low:.1f} to {figure.high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("build", help="write the folder of pairs")
    made.add_argument("shared", type=Path)
    made.add_argument("-o", "--out", type=Path, required=True)
    made.add_argument("--released", type=Path, required=True, help="folder of aliked_lightglue.pth and disk_lightglue.pth")
    made.add_argument("--cache", type=Path, required=True, help="features and matches, which a later run takes from there")
    looked = commands.add_parser("look", help="draw all pairs with their ground truth")
    looked.add_argument("folder", type=Path)
    looked.add_argument("-o", "--out", type=Path, required=True)
    measured = commands.add_parser("measure", help="run methods over the pairs")
    measured.add_argument("folder", type=Path)
    measured.add_argument("-o", "--out", type=Path, required=True)
    measured.add_argument("--cache", type=Path, required=True, help="features, extracted once")
    measured.add_argument("--features", default="sift")
    measured.add_argument("--methods", nargs="+", default=["nn", "ratio-0.85", "lumiglue"], help="as in lumiglue eval")
    measured.add_argument("--weights", help="of lumiglue and lumiglue-full: a name, a file, or a released .pth or .pt")
    measured.add_argument("--name", help="what these weights are called in the tables")
    measured.add_argument("--max-keypoints", type=int, nargs="+", default=[1024, 2048])
    measured.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of RANSAC")
    measured.add_argument("--exit-ratio", type=float, help="of lumiglue, where it is not that of the weights")
    measured.add_argument("--prune-below", type=float, help="of lumiglue, where it is not that of the weights")
    measured.add_argument("--threads", type=int, default=1)
    reported = commands.add_parser("report", help="print tables by class")
    reported.add_argument("scores", type=Path)
    reported.add_argument("--features", nargs="+")
    reported.add_argument("--against", help="a method, such as nn: print gains over it on the same pairs")
    reported.add_argument("--max-keypoints", type=int, nargs="+", default=[1024, 2048])
    reported.add_argument("--rounds", type=int, default=500, help="bootstrap samples")
    args = parser.parse_args()
    torch.set_num_threads(getattr(args, "threads", 1))
    match args.command:
        case "build":
            build(args.shared, args.out, args.released, args.cache)
        case "look":
            look(args.folder, args.out)
        case "measure":
            measure(args)
        case _:
            report(args)


if __name__ == "__main__":
    main()
