"""Readers of folders of posed images: a plain format, MegaDepth as published, and TUM RGB-D sequences.

docs/posed-data.md describes them. A reader checks the folder's lists (shapes, poses, files that exist); pixels are read when
a dataset is built.
"""

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from lumiglue.errors import InputError
from lumiglue.io.text import read_json, read_text, reason
from lumiglue.training.data.posed import DepthSource, PosedFrame, check_intrinsics

FORMAT, VERSION = "lumiglue-posed", 1
PosedFormat = Literal["auto", "plain", "megadepth", "tum"]

# fx fy cx cy of the Kinects of the TUM RGB-D benchmark, from its documentation of file formats.
_TUM_CAMERAS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
_TUM_DEPTH_SCALE = 5000.0
_LARGEST_ARCHIVE = 2**31  # bytes of an unpacked scene_info; those of MegaDepth have a few hundred million
_TUM_LARGEST_GAP = 0.02  # seconds between two time stamps of one frame


@dataclass(frozen=True, eq=False, kw_only=True)
class PosedData:
    """The content of a folder of posed images.

    Attributes:
        frames: The photos with their cameras.
        overlaps: Published overlaps by scene (see `PosedFrames`).
    """

    frames: Sequence[PosedFrame]
    overlaps: Mapping[str, Float[np.ndarray, "f f"]] = field(default_factory=dict)

    def every(self, step: int) -> "PosedData":
        """Every N-th frame of each scene. Raises InputError if `step` is less than 1."""
        if step < 1:
            raise InputError(f"every is {step}; give 1 for all frames, 2 for every second one")
        scenes: dict[str, list[PosedFrame]] = {}
        for frame in self.frames:
            scenes.setdefault(frame.scene, []).append(frame)
        selected = [frame for frames in scenes.values() for frame in frames[::step]]
        return PosedData(frames=selected, overlaps={name: matrix[::step, ::step] for name, matrix in self.overlaps.items()})


def read_posed(
    folder: str | Path,
    images: str | Path | None = None,
    *,
    format: PosedFormat = "auto",
    intrinsics: Sequence[float] | None = None,
) -> PosedData:
    """Reads a folder of posed images, or its subfolders, each of which is a scene.

    Args:
        folder: Folder in one of the three formats, or of such folders.
        images: Root of the image and depth paths, if it is not the folder itself.
        format: Format of the folder; "auto" detects it.
        intrinsics: fx fy cx cy of a TUM folder without calibration.txt.

    Raises:
        InputError: If the format is unknown, a list is damaged, or no listed image exists. The message names the remedy.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder of posed images")
    kind = _recognise(folder) if format == "auto" else format
    if kind is None:
        return _read_subfolders(folder, images, intrinsics)
    root = Path(images) if images is not None else None
    readers: dict[str, Callable[[], PosedData]] = {
        "plain": lambda: read_plain(folder, root),
        "megadepth": lambda: read_megadepth(folder, root),
        "tum": lambda: read_tum(folder, root, intrinsics=intrinsics),
    }
    data = readers[kind]()
    if not any(frame.image.exists() for frame in data.frames):
        raise InputError(
            f"none of the {len(data.frames)} images exists, the first is {data.frames[0].image}; give --images ROOT"
        )
    return data


def read_plain(folder: Path, images: Path | None = None) -> PosedData:
    """Reads the plain format: `cameras.json`, where keys that all frames share may be at the top level."""
    path = folder / "cameras.json"
    content = read_json(path, "see docs/posed-data.md for the format")
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list) or not content["frames"]:
        raise InputError(f"{path} has no list 'frames'; see docs/posed-data.md for the format")
    if content.get("version") != VERSION:
        raise InputError(f"{path} has version {content.get('version')!r}; this reads version {VERSION}")
    shared = {key: value for key, value in content.items() if key not in ("format", "version", "frames")}
    root = images or folder
    if not all(isinstance(frame, dict) for frame in content["frames"]):
        raise InputError(f"{path} has a frame that is not an object; see docs/posed-data.md for the format")
    return PosedData(frames=[_plain_frame(root, folder, shared | frame, path) for frame in content["frames"]])


def _plain_frame(root: Path, folder: Path, entry: dict[str, Any], path: Path) -> PosedFrame:
    missing = [key for key in ("image", "depth", "K") if entry.get(key) is None]
    if missing:
        raise InputError(
            f"frame {entry.get('image', '?')} in {path} has no {missing[0]!r}; each frame needs image, depth and K"
        )
    name = str(entry["image"])
    poses = [key for key in ("camera_from_world", "world_from_camera") if key in entry]
    if len(poses) != 1:
        raise InputError(f"frame {name} in {path} has {len(poses)} poses; give camera_from_world or world_from_camera")
    pose = _array(entry[poses[0]], (4, 4), f"{poses[0]} of {name}")
    scene = str(entry.get("scene", folder.resolve().name))
    own = entry.get("depth_K")
    depth = root / str(entry["depth"])
    scale = entry.get("depth_scale", 1000.0 if depth.suffix.lower() == ".png" else 1.0)
    try:
        scale = float(scale)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"depth_scale of {name} in {path} is {scale!r}; give a number") from None
    return PosedFrame(
        name=f"{scene}/{name}",
        scene=scene,
        image=root / name,
        depth=DepthSource(
            path=depth,
            scale=scale,
            intrinsics=None if own is None else _array(own, (3, 3), f"depth_K of {name}"),
        ),
        intrinsics=_array(entry["K"], (3, 3), f"K of {name}"),
        camera_from_world=pose if poses[0] == "camera_from_world" else invert_pose(pose, name),
    )


def read_megadepth(folder: Path, images: Path | None = None) -> PosedData:
    """Reads MegaDepth with the published scene_info/*.npz.

    These have image_paths, depth_paths (an entry may be None), intrinsics, poses (camera from world) and overlap_matrix.
    Paths are relative to the folder, or to `images`.
    """
    lists = sorted((folder / "scene_info").glob("*.npz")) or sorted(folder.glob("*.npz"))
    if not lists:
        raise InputError(f"{folder} has no scene_info/*.npz; give the folder that contains scene_info")
    frames: list[PosedFrame] = []
    overlaps: dict[str, np.ndarray] = {}
    for path in lists:
        of_scene, overlap = _megadepth_scene(path, images or folder)
        frames += of_scene
        if overlap is not None and of_scene:
            overlaps[path.stem] = overlap
    if not frames:
        raise InputError(f"no entry of {lists[0].parent}/*.npz has an image, a depth map and a pose; download them again")
    return PosedData(frames=frames, overlaps=overlaps)


def _megadepth_scene(path: Path, root: Path) -> tuple[list[PosedFrame], np.ndarray | None]:
    table = _read_archive(path)
    missing = [key for key in ("image_paths", "depth_paths", "intrinsics", "poses") if key not in table]
    if missing:
        raise InputError(f"{path} has no {missing[0]!r}; it is not a scene_info of MegaDepth")
    columns = [table[key] for key in ("image_paths", "depth_paths", "intrinsics", "poses")]
    if len({len(column) for column in columns}) != 1:
        raise InputError(
            f"the lists in {path} have {[len(column) for column in columns]} entries; they must have the same length"
        )
    rows = [row for row in range(len(columns[0])) if all(column[row] is not None for column in columns)]
    frames = []
    for row in rows:
        image, depth, intrinsics, pose = (column[row] for column in columns)
        name = f"{path.stem}/{image}"
        frames.append(
            PosedFrame(
                name=name,
                scene=path.stem,
                image=root / str(image),
                depth=DepthSource(path=root / str(depth)),
                intrinsics=_array(intrinsics, (3, 3), f"intrinsics of {name}"),
                camera_from_world=_array(pose, (4, 4), f"pose of {name}"),
            )
        )
    if "overlap_matrix" not in table:
        return frames, None
    overlap = np.asarray(table["overlap_matrix"], dtype=np.float64)
    if overlap.shape != (len(columns[0]), len(columns[0])):
        raise InputError(f"overlap_matrix in {path} has shape {overlap.shape}; it needs one row and one column per image")
    overlap = np.clip(np.nan_to_num(overlap), 0, 1)[np.ix_(rows, rows)]
    return frames, np.minimum(overlap, overlap.T)


class _ArraysOnly(pickle.Unpickler):
    """Lists of paths that contain None are stored as pickles. This reads arrays, text and None, and executes nothing."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        package = module_name.split(".")[0]
        if package == "numpy" and global_name in ("_reconstruct", "ndarray", "dtype", "scalar", "str_", "_frombuffer"):
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"it contains a {module_name}.{global_name}, which no scene_info needs")


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, including object arrays, without executing code in pickles."""
    table: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > _LARGEST_ARCHIVE:
                raise ValueError(f"it unpacks to {size >> 20} MiB, more than {_LARGEST_ARCHIVE >> 20}")
            for member in archive.namelist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    header = (
                        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                    )
                    holds_objects = header(file)[2].hasobject
                    if holds_objects:
                        table[member.removesuffix(".npy")] = _ArraysOnly(file).load()
                if not holds_objects:
                    with archive.open(member) as file:
                        table[member.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # zipfile, NumPy and pickle raise many types for damaged files
        raise InputError(f"{path} cannot be read as a NumPy archive ({reason(error)}); download it again") from None
    return table


def read_tum(folder: Path, images: Path | None = None, *, intrinsics: Sequence[float] | None = None) -> PosedData:
    """Reads a TUM RGB-D sequence: rgb.txt, depth.txt and groundtruth.txt, associated by the nearest time stamps."""
    camera = _tum_camera(folder, intrinsics)
    rgb_times, rgb = _read_table(folder / "rgb.txt", 2)
    depth_times, depth = _read_table(folder / "depth.txt", 2)
    pose_times, poses = _read_table(folder / "groundtruth.txt", 8)
    depth_rows, depth_gaps = _nearest(rgb_times, depth_times)
    pose_rows, pose_gaps = _nearest(rgb_times, pose_times)
    gaps = np.maximum(depth_gaps, pose_gaps)
    if gaps.min() > _TUM_LARGEST_GAP:
        raise InputError(
            f"no image of {folder} has a depth map and a pose within {_TUM_LARGEST_GAP} s, the nearest is "
            f"{gaps.min():.3f} s off; the three lists must use one clock"
        )
    frames = [
        PosedFrame(
            name=f"{folder.resolve().name}/{rgb[row][0]}",
            scene=folder.resolve().name,
            image=(images or folder) / rgb[row][0],
            depth=DepthSource(path=(images or folder) / depth[depth_rows[row]][0], scale=_TUM_DEPTH_SCALE),
            intrinsics=camera,
            camera_from_world=_tum_pose(poses[pose_rows[row]], folder / "groundtruth.txt"),
        )
        for row in np.flatnonzero(gaps <= _TUM_LARGEST_GAP)
    ]
    return PosedData(frames=frames)


def invert_pose(pose: np.ndarray, name: str) -> np.ndarray:
    """Inverts a pose; whether it is rigid is checked elsewhere. Raises InputError if it has no inverse."""
    try:
        return np.linalg.inv(pose)
    except np.linalg.LinAlgError:
        raise InputError(f"the pose of {name} has no inverse; give a 4 x 4 rotation and translation") from None


def _recognise(folder: Path) -> PosedFormat | None:
    if (folder / "cameras.json").exists():
        return "plain"
    if any((folder / "scene_info").glob("*.npz")):
        return "megadepth"
    if all((folder / name).exists() for name in ("rgb.txt", "depth.txt", "groundtruth.txt")):
        return "tum"
    return None


def _read_subfolders(folder: Path, images: str | Path | None, intrinsics: Sequence[float] | None) -> PosedData:
    """The frames of all subfolders in a known format, whose names prefix the frames' names."""
    known = sorted(path for path in folder.iterdir() if path.is_dir() and _recognise(path) is not None)
    if not known:
        raise InputError(
            f"{folder} is not a folder of posed images; it needs cameras.json (docs/posed-data.md), scene_info/*.npz "
            "(MegaDepth) or rgb.txt, depth.txt and groundtruth.txt (TUM RGB-D)"
        )
    frames: list[PosedFrame] = []
    overlaps: dict[str, np.ndarray] = {}
    for path in known:
        data = read_posed(path, images, intrinsics=intrinsics)
        # a scene already has the name of its folder, unless the format names it
        prefix = {frame.scene: "" if frame.scene == path.name else f"{path.name}/" for frame in data.frames}
        frames += [
            replace(frame, name=prefix[frame.scene] + frame.name, scene=prefix[frame.scene] + frame.scene)
            for frame in data.frames
        ]
        overlaps |= {prefix[scene] + scene: matrix for scene, matrix in data.overlaps.items()}
    return PosedData(frames=frames, overlaps=overlaps)


def _tum_camera(folder: Path, intrinsics: Sequence[float] | None) -> np.ndarray:
    """The camera matrix, as given, from calibration.txt, or of a Kinect of the benchmark."""
    calibration = folder / "calibration.txt"
    if intrinsics is None and calibration.exists():
        text = read_text(calibration, "write fx fy cx cy")
        lines = [line.split("#")[0] for line in text.splitlines()]
        try:
            intrinsics = [float(word) for line in lines for word in line.split()]
        except ValueError as error:
            raise InputError(f"{calibration} is not numbers ({error}); write fx fy cx cy") from None
    if intrinsics is None:
        name = folder.resolve().name
        intrinsics = next((camera for key, camera in _TUM_CAMERAS.items() if key in name), None)
    if intrinsics is None:
        raise InputError(
            f"the intrinsics of {folder} are unknown; write fx fy cx cy into calibration.txt or give --intrinsics"
        )
    if len(intrinsics) < 4:
        raise InputError(f"the intrinsics of {folder} are {list(intrinsics)}; give the four numbers fx fy cx cy")
    fx, fy, cx, cy = map(float, intrinsics[:4])
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    check_intrinsics(matrix, str(folder))
    return matrix


def _tum_pose(words: Sequence[str], path: Path) -> np.ndarray:
    """camera_from_world from a line tx ty tz qx qy qz qw, which is world_from_camera."""
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError as error:
        raise InputError(f"{path} is not numbers ({error}); a line is: time tx ty tz qx qy qz qw") from None
    if not np.isfinite(numbers).all() or np.abs(numbers).max() > 1e12:
        raise InputError(f"{path} has the pose {list(words)}; give finite numbers")
    length = float(np.linalg.norm(numbers[3:]))
    if not abs(length - 1) < 1e-2:
        raise InputError(f"a quaternion in {path} has length {length:.4g}; give unit quaternions qx qy qz qw")
    x, y, z, w = numbers[3:] / length
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = numbers[:3]
    return np.linalg.inv(pose)


def _read_table(path: Path, columns: int) -> tuple[np.ndarray, list[list[str]]]:
    """Times and the other words of each line, sorted by time; # begins a comment."""
    text = read_text(path, "a TUM RGB-D folder has rgb.txt, depth.txt and groundtruth.txt")
    rows: list[tuple[float, list[str]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            time = float(words[0])
        except ValueError:
            raise InputError(f"line {number} of {path} starts with {words[0]!r}; it needs a time stamp in seconds") from None
        if not math.isfinite(time):
            raise InputError(f"line {number} of {path} has the time {time}; it needs a time stamp in seconds")
        if len(words) < columns:
            raise InputError(f"line {number} of {path} has {len(words)} words; it needs {columns}")
        rows.append((time, words[1:columns]))
    if not rows:
        raise InputError(f"{path} is empty; copy it again")
    rows.sort(key=lambda row: row[0])
    return np.array([time for time, _ in rows]), [words for _, words in rows]


def _nearest(times: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each time, the row of the nearest other time, and the difference in seconds."""
    after = np.clip(np.searchsorted(others, times), 0, len(others) - 1)
    before = np.maximum(after - 1, 0)
    rows = np.where(np.abs(others[before] - times) <= np.abs(others[after] - times), before, after)
    return rows, np.abs(others[rows] - times)


def _array(value: Any, shape: tuple[int, int], name: str) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{name} is not a matrix of numbers; give {shape[0]} x {shape[1]}") from None
    if array.shape != shape:
        raise InputError(f"{name} has shape {array.shape}; give {shape[0]} x {shape[1]}")
    return array
