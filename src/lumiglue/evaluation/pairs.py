"""Pairs of images with ground truth, and the file `pairs.json` that lists them.

`pairs.json` is {"images": {key: {"size": [w, h]}}, "pairs": [...]}. Each pair has a `group`, image files `a` and `b`, and a
`type`:

    "homography": H, 3 x 3, maps a to b;
    "pose": K_a, K_b, R, t with X_b = R X_a + t;
    "correspondences": pts_a, pts_b, annotated by hand.

`turns_a` and `turns_b` are optional: quarter turns counter-clockwise that are applied before matching. All other values then
refer to the turned images. Pixel convention: the centre of the top-left pixel is (0, 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64

from lumiglue.errors import InputError
from lumiglue.io.text import read_json

LARGEST_NUMBER = 1e12  # products of larger numbers of a ground truth overflow


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pair:
    group: str
    a: str
    b: str
    turns_a: int = 0
    turns_b: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class HomographyPair(_Pair):
    """Two images related by a known homography.

    Attributes:
        group: Sequence or scene, for tables and for `--groups`.
        a: File of the first image, relative to the folder of the pairs.
        b: File of the second image.
        turns_a: Quarter turns counter-clockwise that are applied to a before matching.
        turns_b: The same for b.
        b_from_a: 3 x 3, from pixels of a to pixels of b. Its sign is chosen such that depths in front are positive.
    """

    type: ClassVar[str] = "homography"
    b_from_a: Float64[np.ndarray, "3 3"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PosePair(_Pair):
    """Two images with known cameras: X_b = R X_a + t.

    Attributes:
        group: Sequence or scene, for tables and for `--groups`.
        a: File of the first image, relative to the folder of the pairs.
        b: File of the second image.
        turns_a: Quarter turns counter-clockwise that are applied to a before matching.
        turns_b: The same for b.
        intrinsics_a: 3 x 3 camera matrix of a, in pixels.
        intrinsics_b: 3 x 3 camera matrix of b.
        rotation: R, 3 x 3.
        translation: t, at any scale.
    """

    type: ClassVar[str] = "pose"
    intrinsics_a: Float64[np.ndarray, "3 3"]
    intrinsics_b: Float64[np.ndarray, "3 3"]
    rotation: Float64[np.ndarray, "3 3"]
    translation: Float64[np.ndarray, " 3"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CorrespondencePair(_Pair):
    """Two images with corresponding points that a person marked.

    Attributes:
        group: Sequence or scene, for tables and for `--groups`.
        a: File of the first image, relative to the folder of the pairs.
        b: File of the second image.
        turns_a: Quarter turns counter-clockwise that are applied to a before matching.
        turns_b: The same for b.
        points_a: n x 2, in pixels of a.
        points_b: n x 2, in pixels of b.
    """

    type: ClassVar[str] = "correspondences"
    points_a: Float64[np.ndarray, "n 2"]
    points_b: Float64[np.ndarray, "n 2"]


GroundTruthPair = HomographyPair | PosePair | CorrespondencePair

# Arrays of each type of pair in pairs.json.
_ARRAYS = {"homography": ("H",), "pose": ("K_a", "K_b", "R", "t"), "correspondences": ("pts_a", "pts_b")}


def read_pairs(folder: str | Path) -> list[GroundTruthPair]:
    """Reads the pairs of a folder with a `pairs.json`.

    Args:
        folder: Folder of the images and of `pairs.json`; the module's description has the format.

    Returns:
        The pairs, in the order of the file.

    Raises:
        InputError: the file is missing or not in the format.
    """
    file = Path(folder) / "pairs.json"
    content = read_json(file, "give a folder with a pairs.json (format: evaluation/pairs.py)")
    pairs = content.get("pairs") if isinstance(content, dict) else None
    if not isinstance(pairs, list):
        raise InputError(f"{file} is not in the pairs.json format, it has no list 'pairs'; see evaluation/pairs.py")
    return [_parse_pair(pair, f"{file}, pair {number}") for number, pair in enumerate(pairs)]


def _parse_pair(pair: Any, source: str) -> GroundTruthPair:
    if not isinstance(pair, dict) or not all(isinstance(pair.get(key), str) for key in ("type", "group", "a", "b")):
        raise InputError(f"{source} lacks a type, group, a or b; give each as text")
    if pair["type"] not in _ARRAYS:
        raise InputError(f"{source} is of unknown type {pair['type']!r}; choose from {sorted(_ARRAYS)}")
    turns = {key: pair.get(key, 0) for key in ("turns_a", "turns_b")}
    if not all(isinstance(count, int) for count in turns.values()):
        raise InputError(f"{source}: turns_a and turns_b are counts of quarter turns; give whole numbers")
    common = {key: pair[key] for key in ("group", "a", "b")} | turns
    arrays: dict[str, np.ndarray] = {}
    for key in _ARRAYS[pair["type"]]:
        try:
            arrays[key] = np.asarray(pair[key], np.float64)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(f"{source} has no numbers {key!r}; see evaluation/pairs.py") from None
    match pair["type"]:
        case "homography":
            return HomographyPair(**common, b_from_a=check_homography(arrays["H"], source))
        case "pose":
            check_camera(arrays["K_a"], f"{source}, K_a")
            check_camera(arrays["K_b"], f"{source}, K_b")
            check_rotation(arrays["R"], source)
            translation = arrays["t"].reshape(-1)
            if len(translation) != 3 or not np.isfinite(translation).all() or not translation.any():
                raise InputError(f"{source} has t {pair['t']}; give three finite numbers, not all zero")
            return PosePair(
                **common,
                intrinsics_a=arrays["K_a"],
                intrinsics_b=arrays["K_b"],
                rotation=arrays["R"],
                translation=translation,
            )
        case _:
            shapes = arrays["pts_a"].shape, arrays["pts_b"].shape
            finite = all(np.isfinite(points).all() for points in arrays.values())
            if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][1] != 2 or not shapes[0][0] or not finite:
                raise InputError(f"{source} has points of shapes {shapes}; give equally many finite x, y on both sides")
            return CorrespondencePair(**common, points_a=arrays["pts_a"], points_b=arrays["pts_b"])


def only_groups(pairs: Sequence[GroundTruthPair], groups: Sequence[str]) -> list[GroundTruthPair]:
    """Selects the pairs whose group starts with one of `groups`, or all if that is empty. Raises InputError if there is
    none."""
    selected = [pair for pair in pairs if not groups or pair.group.startswith(tuple(groups))]
    if not selected:
        raise InputError(f"no pair is in the groups {list(groups)}; choose from {sorted({pair.group for pair in pairs})}")
    return selected


def check_homography(matrix: np.ndarray, source: object) -> np.ndarray:
    """The homography with the sign by which depths in front are positive; files may have it with any factor. Raises
    InputError unless this is a 3 x 3 matrix of finite numbers that has an inverse."""
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or np.abs(matrix).max() > LARGEST_NUMBER:
        raise InputError(f"{source}: the homography is {matrix.tolist()}; give 3 x 3 finite numbers")
    if np.linalg.matrix_rank(matrix) < 3:
        raise InputError(f"{source}: the homography {matrix.tolist()} has no inverse; give an invertible one")
    # The other sign puts the first corner behind the camera and mirrors what it sees; neither alone would tell.
    return -matrix if matrix[2, 2] < 0 and np.linalg.det(matrix) < 0 else matrix


def check_camera(matrix: np.ndarray, source: object) -> None:
    """Raises InputError unless this is a 3 x 3 camera matrix."""
    usable = matrix.shape == (3, 3) and np.isfinite(matrix).all() and np.abs(matrix).max() <= LARGEST_NUMBER
    if not usable or min(matrix[0, 0], matrix[1, 1]) <= 0 or not np.allclose(matrix[2], [0, 0, 1]):
        raise InputError(f"{source}: the camera is {matrix.tolist()}; give [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels")


def check_rotation(matrix: np.ndarray, source: object) -> None:
    """Raises InputError unless this is a 3 x 3 rotation, nearly."""
    usable = matrix.shape == (3, 3) and np.isfinite(matrix).all() and np.abs(matrix).max() <= 2
    if not usable or np.abs(matrix @ matrix.T - np.eye(3)).max() > 0.05 or np.linalg.det(matrix) < 0:
        raise InputError(f"{source}: the rotation is {matrix.tolist()}; give 3 x 3 numbers, orthogonal and not mirroring")
