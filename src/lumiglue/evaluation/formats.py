"""Readers of common formats of pairs with ground truth.

Pixel convention of all of them: the centre of the top-left pixel is (0, 0).
"""

from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from lumiglue.errors import ImageError, InputError
from lumiglue.evaluation.pairs import (
    LARGEST_NUMBER,
    HomographyPair,
    PosePair,
    check_camera,
    check_homography,
    check_rotation,
)
from lumiglue.images import IMAGE_SUFFIXES, read_image
from lumiglue.io.text import read_text, reason


def read_hpatches(folder: str | Path) -> list[HomographyPair]:
    """Reads HPatches' sequences (Balntas et al., CVPR 2017): folders `v_NAME` (viewpoint) and `i_NAME` (illumination) with
    images 1, 2, ... and text files H_1_2, H_1_3, ..., each 3 x 3, from image 1 to image k.

    Groups are the folders' names, so `--groups v_` selects the viewpoint sequences. Raises InputError if there is no such
    folder, or a homography is damaged.
    """
    folder = Path(folder)
    sequences = sorted(path for path in folder.glob("[vi]_*") if path.is_dir())
    if not sequences:
        raise InputError(f"{folder} has no folders v_* or i_*; give the folder of HPatches' sequences")
    pairs = []
    for sequence in sequences:
        images = {path.stem: path for path in sequence.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
        files = [path for path in sequence.glob("H_1_*") if path.name.removeprefix("H_1_").isdecimal()]
        for file in sorted(files, key=lambda path: int(path.name.rpartition("_")[2])):
            target = file.name.rpartition("_")[2]
            if "1" not in images or target not in images:
                raise InputError(f"{sequence} has {file.name} but no image {target if '1' in images else 1}")
            matrix = _numbers(read_text(file, "copy it again"), 9, file).reshape(3, 3)
            a, b = (images[name].relative_to(folder).as_posix() for name in ("1", target))
            pairs.append(HomographyPair(group=sequence.name, a=a, b=b, b_from_a=check_homography(matrix, file)))
    if not pairs:
        raise InputError(f"{folder} has no file H_1_2; give the folder of HPatches' sequences")
    return pairs


def read_pose_pairs(file: str | Path, root: str | Path) -> list[PosePair]:
    """Reads SuperGlue's lists of pairs with ground truth, as for ScanNet-1500, YFCC and MegaDepth-1500. A line has

        path_A path_B rotation_A rotation_B K_A (9 numbers) K_B (9) T_AB (16)

    with counts of quarter turns counter-clockwise that make the images upright, camera matrices and the rigid T_AB with
    X_B = R X_A + t. Turned images are matched upright, and their cameras are turned with them.

    Args:
        file: The list.
        root: Folder that the paths are relative to.

    Returns:
        The pairs. Groups are the first folders of the paths.

    Raises:
        InputError: a line is not in this format.
    """
    file, root = Path(file), Path(root)
    pairs = []
    text = read_text(file, "give a text file of pairs with ground truth")
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 38:
            raise InputError(f"{file}, line {number} has {len(words)} words; a pair with ground truth has 38")
        values = _numbers(" ".join(words[2:]), 36, f"{file}, line {number}")
        turns = [round(value) % 4 for value in values[:2]]
        intrinsics = [values[2:11].reshape(3, 3), values[11:20].reshape(3, 3)]
        b_from_a = values[20:].reshape(4, 4)
        for matrix in intrinsics:
            check_camera(matrix, f"{file}, line {number}")
        check_rotation(b_from_a[:3, :3], f"{file}, line {number}")
        for side in (0, 1):
            if turns[side]:
                intrinsics[side] = turned_intrinsics(intrinsics[side], _size(root / words[side]), turns[side])
        upright = [_quarter_turn(k) for k in turns]
        b_from_a = upright[1] @ b_from_a @ np.linalg.inv(upright[0])
        pairs.append(
            PosePair(
                group=words[0].split("/")[0], a=words[0], b=words[1], turns_a=turns[0], turns_b=turns[1],
                intrinsics_a=intrinsics[0], intrinsics_b=intrinsics[1],
                rotation=b_from_a[:3, :3], translation=b_from_a[:3, 3],
            )
        )  # fmt: skip
    if not pairs:
        raise InputError(f"{file} has no pair; give a line of 38 words for each")
    return pairs


def read_strecha(folder: str | Path, *, largest_gap: int | None = None) -> list[PosePair]:
    """Reads a multi-view set of Strecha et al. (CVPR 2008), as one group: images with NAME.camera beside them or in the
    folder `camera`. Pairs are at most `largest_gap` images apart, in order of name; None takes all.

    A camera file has K (3 x 3), distortion (3, zeros), R (3 x 3, world from camera), the centre (3), width and height.
    Raises InputError if a camera is missing or damaged.
    """
    folder = Path(folder)
    files = sorted(folder.rglob("*.camera"))
    if len(files) < 2:
        raise InputError(f"{folder} has {len(files)} .camera files; give a set with two images or more")
    images = {path.name: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES}
    cameras = []
    for file in files:
        name = file.name.removesuffix(".camera")
        if name not in images:
            raise InputError(f"{file} has no image {name} below {folder}")
        values = _numbers(read_text(file, "copy it again"), 26, file)
        check_camera(values[:9].reshape(3, 3), file)
        check_rotation(values[12:21].reshape(3, 3), file)
        world_from_camera = np.eye(4)
        world_from_camera[:3, :3], world_from_camera[:3, 3] = values[12:21].reshape(3, 3), values[21:24]
        cameras.append((images[name].relative_to(folder).as_posix(), values[:9].reshape(3, 3), world_from_camera))
    pairs = []
    for i, j in combinations(range(len(cameras)), 2):
        if largest_gap is None or j - i <= largest_gap:
            (a, k_a, world_from_a), (b, k_b, world_from_b) = cameras[i], cameras[j]
            b_from_a = np.linalg.inv(world_from_b) @ world_from_a
            pairs.append(
                PosePair(
                    group=folder.name, a=a, b=b, intrinsics_a=k_a, intrinsics_b=k_b,
                    rotation=b_from_a[:3, :3], translation=b_from_a[:3, 3],
                )
            )  # fmt: skip
    return pairs


def turned_intrinsics(
    intrinsics: Float64[np.ndarray, "3 3"], size: tuple[int, int], turns: int
) -> Float64[np.ndarray, "3 3"]:
    """Turns a 3 x 3 camera matrix with its image of (width, height) `size`, by quarter turns counter-clockwise, as np.rot90
    does. One turn maps pixel (x, y) to (y, width - 1 - x)."""
    turned, (width, height) = intrinsics.astype(np.float64), size
    for _ in range(turns % 4):
        fx, fy, cx, cy = turned[0, 0], turned[1, 1], turned[0, 2], turned[1, 2]
        turned = np.array([[fy, 0, cy], [0, fx, width - 1 - cx], [0, 0, 1.0]])
        width, height = height, width
    return turned


def read_upright(path: Path, turns: int) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image as h x w x 3 RGB and applies quarter turns counter-clockwise."""
    return np.ascontiguousarray(np.rot90(read_image(path), turns))


def _quarter_turn(turns: int) -> Float64[np.ndarray, "4 4"]:
    """upright_from_camera for an image turned counter-clockwise `turns` times: (x, y, z) -> (y, -x, z) each."""
    once = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return np.linalg.matrix_power(once, turns % 4)


def _numbers(text: str, count: int, source: object) -> np.ndarray:
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError as error:
        raise InputError(f"{source}: {error}; give numbers") from None
    if len(values) != count or not np.isfinite(values).all() or np.abs(values).max() > LARGEST_NUMBER:
        raise InputError(f"{source} has {len(values)} numbers; give {count} finite ones, none beyond {LARGEST_NUMBER:g}")
    return values


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, struct.error and more on damaged files
        raise ImageError(f"{path} cannot be read as an image ({reason(error)}); copy it again") from None
