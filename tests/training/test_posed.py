"""Posed images: the three layouts, depth look-up, overlap, pairs, and COLMAP models."""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import torch

from helpers import draw_photo
from lumiglue import ImageError, InputError, Sift
from lumiglue.cli import main
from lumiglue.geometry.projective import transfer
from lumiglue.training.data.build import DatasetSettings, build_dataset
from lumiglue.training.data.dataset import FeatureDataset, View, ViewSource
from lumiglue.training.data.overlap import AGREE, DepthCamera, OverlapSettings, choose_pairs, overlap_matrix
from lumiglue.training.data.posed import (
    DepthSource,
    PosedFrame,
    PosedFrames,
    check_rigid,
    depth_at,
    scale_intrinsics,
    stored_size,
)
from lumiglue.training.data.posed_formats import read_posed

SIZE = (160, 120)
K = np.array([[150.0, 0, 78.5], [0, 155.0, 61.0], [0, 0, 1]])


# -- a scene with exact depth -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    photo: np.ndarray
    depth: np.ndarray
    camera_from_world: np.ndarray


def look(x: float, turn: float, tilt: float = 0.0) -> np.ndarray:
    """camera_from_world of a camera at (x, 0, 0), turned about its y axis by `turn` and its x axis by `tilt` radians."""
    rotation = cv2.Rodrigues(np.array([tilt, 0.0, 0.0]))[0] @ cv2.Rodrigues(np.array([0.0, turn, 0.0]))[0]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, rotation @ [-x, 0.0, 0.0]
    return pose


def shoot(camera_from_world: np.ndarray, size: tuple[int, int] = SIZE, intrinsics: np.ndarray = K) -> Shot:
    """A wall at z = 4 that leans, and a smaller board at z = 3 in front of it, both textured with pictures."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics).T @ camera_from_world[:3, :3]
    centre = -camera_from_world[:3, :3].T @ camera_from_world[:3, 3]
    photo, depth = np.zeros((*x.shape, 3), np.uint8), np.full(x.shape, np.inf)
    surfaces = [
        (np.array([0.0, 0.2, 1.0]), 4.0, 9.0, draw_photo(1, 1200, 1200)),
        (np.array([0.0, 0, 1.0]), 3.0, 0.6, draw_photo(2)),
    ]
    for normal, distance, half, picture in surfaces:
        along = (distance - centre @ normal) / (rays @ normal)  # also z in the camera, as rays have z = 1 there
        hit = centre + rays * along[..., None]
        on = (along > 0) & (along < depth) & (np.abs(hit[..., :2]).max(-1) < half)
        place = ((hit[..., :2] / half + 1) / 2 * (np.array(picture.shape[1::-1]) - 1)).clip(0).astype(np.float32)
        colours = cv2.remap(
            picture, np.ascontiguousarray(place[..., 0]), np.ascontiguousarray(place[..., 1]), cv2.INTER_LINEAR
        )
        photo[on], depth[on] = colours[on], along[on]
    return Shot(photo, depth, camera_from_world)


POSES = [look(0.0, 0.0), look(0.5, 0.1), look(1.0, 0.25, 0.1), look(-0.8, -0.2)]


@pytest.fixture(scope="module")
def shots() -> list[Shot]:
    return [shoot(pose) for pose in POSES]


def save(path: Path, photo: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), photo)


def write_plain(folder: Path, shots: list[Shot]) -> None:
    """Depth as 16-bit PNG, as .npy and as .h5 in turn; poses in either direction."""
    frames = []
    for number, shot in enumerate(shots):
        save(folder / f"images/{number}.png", shot.photo[..., ::-1])
        entry: dict[str, object] = {"image": f"images/{number}.png"}
        match number % 3:
            case 0:
                save(folder / f"depth/{number}.png", np.rint(shot.depth * 10000).astype(np.uint16))
                entry |= {"depth": f"depth/{number}.png", "depth_scale": 10000}
            case 1:
                np.save(folder / f"depth/{number}.npy", shot.depth.astype(np.float32))
                entry |= {"depth": f"depth/{number}.npy"}
            case _:
                with h5py.File(folder / f"depth/{number}.h5", "w") as file:
                    file["depth"] = shot.depth.astype(np.float32)
                entry |= {"depth": f"depth/{number}.h5"}
        if number % 2:
            entry["world_from_camera"] = np.linalg.inv(shot.camera_from_world).tolist()
        else:
            entry["camera_from_world"] = shot.camera_from_world.tolist()
        frames.append(entry)
    content = {"format": "lumiglue-posed", "version": 1, "scene": "room", "K": K.tolist(), "frames": frames}
    (folder / "cameras.json").write_text(json.dumps(content))


def write_megadepth(folder: Path, shots: list[Shot], overlap: np.ndarray | None = None) -> None:
    """As it is published, with one entry that was left out and is None."""
    images: list[str | None] = []
    depths: list[str | None] = []
    for number, shot in enumerate(shots):
        images.append(f"Undistorted_SfM/0007/images/{number}.png")
        depths.append(f"phoenix/0007/depths/{number}.h5")
        save(folder / str(images[-1]), shot.photo[..., ::-1])
        (folder / str(depths[-1])).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / str(depths[-1]), "w") as file:
            file["depth"] = shot.depth.astype(np.float32)
    more: dict[str, Any] = (
        {} if overlap is None else {"overlap_matrix": np.pad(overlap, ((0, 1), (0, 1)), constant_values=-1)}
    )
    (folder / "scene_info").mkdir()
    np.savez(
        folder / "scene_info" / "0007.npz",
        image_paths=np.array([*images, None], dtype=object),
        depth_paths=np.array([*depths, None], dtype=object),
        intrinsics=np.array([*[K] * len(shots), None], dtype=object),
        poses=np.array([*[shot.camera_from_world for shot in shots], None], dtype=object),
        **more,
    )


def write_tum(folder: Path, shots: list[Shot]) -> None:
    """Three clocks that are a few milliseconds apart, and a pose that belongs to no image."""
    lines: dict[str, list[str]] = {"rgb": [], "depth": [], "groundtruth": ["5.0 1 1 1 0 0 0 1"]}
    for number, shot in enumerate(shots):
        save(folder / f"rgb/{number}.png", shot.photo[..., ::-1])
        save(folder / f"depth/{number}.png", np.rint(shot.depth * 5000).astype(np.uint16))
        world_from_camera = np.linalg.inv(shot.camera_from_world)
        turn = cv2.Rodrigues(world_from_camera[:3, :3])[0].ravel()
        angle = np.linalg.norm(turn)
        axis = turn / angle * np.sin(angle / 2) if angle else turn
        lines["rgb"].append(f"{10 + number / 10} rgb/{number}.png")
        lines["depth"].append(f"{10.003 + number / 10} depth/{number}.png")
        pose = [*world_from_camera[:3, 3], *axis, np.cos(angle / 2)]
        lines["groundtruth"].append(" ".join(map(str, [9.993 + number / 10, *pose])))
    for name, rows in lines.items():
        (folder / f"{name}.txt").write_text("# time what\n" + "\n".join(rows) + "\n")
    (folder / "calibration.txt").write_text(f"{K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]}\n")


WRITERS: dict[str, Callable[[Path, list[Shot]], None]] = {
    "plain": write_plain,
    "megadepth": write_megadepth,
    "tum": write_tum,
}


@pytest.fixture
def plain(tmp_path: Path, shots: list[Shot]) -> Path:
    folder = tmp_path / "room"
    folder.mkdir()
    write_plain(folder, shots)
    return folder


def change(folder: Path, number: int | None = None, **entries: object) -> None:
    """Rewrites keys of cameras.json, or of one of its frames; None deletes."""
    content = json.loads((folder / "cameras.json").read_text())
    target = content if number is None else content["frames"][number]
    for key, value in entries.items():
        target.pop(key, None)
        if value is not None:
            target[key] = value
    (folder / "cameras.json").write_text(json.dumps(content))


# -- readers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", WRITERS)
def test_all_layouts_read_the_same(layout: str, tmp_path: Path, shots: list[Shot]) -> None:
    folder = tmp_path / layout
    folder.mkdir()
    WRITERS[layout](folder, shots)
    frames = read_posed(folder).frames
    assert len(frames) == len(shots)
    assert len({frame.scene for frame in frames}) == 1
    for frame, shot in zip(frames, shots, strict=True):
        assert np.allclose(frame.intrinsics, K)
        assert np.allclose(frame.camera_from_world, shot.camera_from_world, atol=1e-9)
        assert np.allclose(frame.depth.read(), shot.depth, atol=1.01e-4)
        assert cv2.imread(str(frame.image)) is not None


def test_an_own_root_of_images(tmp_path: Path, shots: list[Shot]) -> None:
    write_megadepth(tmp_path, shots)
    (tmp_path / "lists").mkdir()
    (tmp_path / "scene_info").rename(tmp_path / "lists" / "scene_info")
    with pytest.raises(InputError, match=r"none of the 4 images exists.*--images"):
        read_posed(tmp_path / "lists")
    assert all(frame.image.exists() for frame in read_posed(tmp_path / "lists", tmp_path).frames)


def test_subfolders_are_scenes(tmp_path: Path, shots: list[Shot]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_plain(tmp_path / name, shots)
    (tmp_path / "three").mkdir()
    write_megadepth(tmp_path / "three", shots, np.full((4, 4), 0.4))
    data = read_posed(tmp_path)
    assert {frame.scene for frame in data.frames} == {"one/room", "two/room", "three/0007"}
    assert len({frame.name for frame in data.frames}) == 12
    source = PosedFrames(frames=data.frames, overlaps=data.overlaps)
    of_megadepth = [pair for pair in source.pairs() if source.frames[pair[0]].scene == "three/0007"]
    assert [pair[2] for pair in of_megadepth] == [0.4] * 6
    assert all(source.frames[a].scene == source.frames[b].scene for a, b, _ in source.pairs())


def test_every_second_frame(tmp_path: Path, shots: list[Shot]) -> None:
    overlap = np.arange(16).reshape(4, 4) / 20
    write_megadepth(tmp_path, shots, overlap + overlap.T)
    data = read_posed(tmp_path).every(2)
    assert [frame.image.stem for frame in data.frames] == ["0", "2"]
    assert np.allclose(data.overlaps["0007"], (overlap + overlap.T)[::2, ::2].clip(0, 1))
    with pytest.raises(InputError, match="every is 0"):
        data.every(0)


def test_overlaps_of_megadepth_are_the_smaller_way(tmp_path: Path, shots: list[Shot]) -> None:
    one_way = np.random.default_rng(0).random((4, 4))
    write_megadepth(tmp_path, shots, one_way)
    data = read_posed(tmp_path)
    assert np.allclose(data.overlaps["0007"], np.minimum(one_way, one_way.T))


class Opens:
    """What a hostile list would do when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("opened", "w")


def test_a_list_of_megadepth_runs_nothing(tmp_path: Path, shots: list[Shot], monkeypatch: pytest.MonkeyPatch) -> None:
    write_megadepth(tmp_path, shots)
    path = tmp_path / "scene_info" / "0007.npz"
    monkeypatch.chdir(tmp_path)
    np.savez(path, image_paths=np.array([Opens()], dtype=object))
    with pytest.raises(InputError, match=r"0007.npz cannot be read.*open"):
        read_posed(tmp_path)
    assert not (tmp_path / "opened").exists()


def test_tum_cameras_by_name_or_by_hand(tmp_path: Path, shots: list[Shot]) -> None:
    folder = tmp_path / "rgbd_dataset_freiburg3_desk"
    folder.mkdir()
    write_tum(folder, shots)
    (folder / "calibration.txt").unlink()
    assert read_posed(folder).frames[0].intrinsics[0].tolist() == [535.4, 0, 320.1]
    assert read_posed(folder, intrinsics=(1, 2, 3, 4)).frames[0].intrinsics.tolist() == [[1, 0, 3], [0, 2, 4], [0, 0, 1]]
    unknown = folder.rename(tmp_path / "desk")
    with pytest.raises(InputError, match=r"intrinsics of .*desk are unknown.*--intrinsics"):
        read_posed(unknown)


def test_tum_leaves_out_images_without_a_pose(tmp_path: Path, shots: list[Shot]) -> None:
    write_tum(tmp_path, shots)
    lines = (tmp_path / "groundtruth.txt").read_text().splitlines()
    (tmp_path / "groundtruth.txt").write_text("\n".join(lines[:-1]))
    assert len(read_posed(tmp_path).frames) == 3
    (tmp_path / "groundtruth.txt").write_text(lines[1])
    with pytest.raises(InputError, match=r"within 0.02 s, the nearest is 5.\d+ s off"):
        read_posed(tmp_path)


def rotation(matrix: list[list[float]]) -> list[list[float]]:
    pose = np.eye(4)
    pose[:3, :3] = matrix
    return pose.tolist()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"K": [[100, 0, 50], [0, 100, 50]]}, r"K of images/0.png has shape \(2, 3\); give 3 x 3"),
        ({"K": [[-100, 0, 50], [0, 100, 50], [0, 0, 1]]}, r"K of room/images/0.png is .*give \[\[fx"),
        ({"K": "camera"}, "K of images/0.png is not a matrix"),
        ({"depth": None}, "frame images/0.png in .* has no 'depth'"),
        ({"depth_scale": 0}, r"depth_scale of .* is 0.0; give"),
        ({"camera_from_world": None}, "has 0 poses; give camera_from_world or world_from_camera"),
        ({"world_from_camera": np.eye(4).tolist()}, "has 2 poses"),
        ({"camera_from_world": np.eye(3).tolist()}, r"camera_from_world of images/0.png has shape \(3, 3\)"),
        (
            {"camera_from_world": rotation([[1, 0, 0], [0, 2, 0], [0, 0, 1]])},
            r"is not orthogonal \(error 3\); give a pose without scale",
        ),
        ({"camera_from_world": rotation([[-1, 0, 0], [0, 1, 0], [0, 0, 1]])}, r"mirrors \(determinant -1.000\)"),
        ({"camera_from_world": (2 * np.eye(4) - np.diag([1, 1, 1, 0])).tolist()}, "last row"),
        ({"camera_from_world": np.full((4, 4), np.nan).tolist()}, "has NaN"),
        ({"camera_from_world": None, "world_from_camera": np.zeros((4, 4)).tolist()}, "has no inverse"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_broken_frame_is_one_sentence(plain: Path, entries: dict[str, object], message: str) -> None:
    change(plain, 0, **entries)
    with pytest.raises(InputError, match=message) as error:
        read_posed(plain)
    assert "\n" not in str(error.value)


def test_broken_lists_are_one_sentence(tmp_path: Path, plain: Path) -> None:
    change(plain, version=2)
    with pytest.raises(InputError, match="version 2; this reads version 1"):
        read_posed(plain)
    change(plain, version=1, frames=[])
    with pytest.raises(InputError, match="no list 'frames'"):
        read_posed(plain)
    (plain / "cameras.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_posed(plain)
    with pytest.raises(InputError, match="is not a folder"):
        read_posed(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"needs cameras.json .* scene_info/\*.npz .* rgb.txt"):
        read_posed(tmp_path / "empty")
    for kind, message in (("plain", "cameras.json does not exist"), ("megadepth", "no scene_info"), ("tum", "unknown")):
        with pytest.raises(InputError, match=message):
            read_posed(tmp_path / "empty", format=kind)  # pyright: ignore[reportArgumentType]


def test_broken_megadepth_lists_are_one_sentence(tmp_path: Path, shots: list[Shot]) -> None:
    write_megadepth(tmp_path, shots, np.eye(4))
    path = tmp_path / "scene_info" / "0007.npz"
    with np.load(path, allow_pickle=True) as file:
        table = dict(file)
    for change_to, message in (
        ({"poses": table["poses"][:2]}, r"have \[5, 5, 5, 2\] entries"),
        ({"overlap_matrix": np.eye(3)}, r"overlap_matrix in .* has shape \(3, 3\)"),
    ):
        np.savez(path, **{**table, **change_to})
        with pytest.raises(InputError, match=message):
            read_posed(tmp_path)
    del table["poses"]
    np.savez(path, **table)
    with pytest.raises(InputError, match="has no 'poses'"):
        read_posed(tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"0007.npz cannot be read"):
        read_posed(tmp_path)


def test_broken_tum_lists_are_one_sentence(tmp_path: Path, shots: list[Shot]) -> None:
    write_tum(tmp_path, shots)
    truth = tmp_path / "groundtruth.txt"
    for text, message in (
        ("", "is empty; copy it again"),
        ("now 0 0 0 0 0 0 1", "line 1 of .* starts with 'now'"),
        ("10.0 0 0 0 0 0 1", "line 1 of .* has 7 words; it needs 8"),
        ("10.0 0 0 0 1 1 0 1", "quaternion in .* has length 1.732"),
        ("10.0 0 0 zero 0 0 0 1", "is not numbers"),
    ):
        truth.write_text(text)
        with pytest.raises(InputError, match=message):
            read_posed(tmp_path)
    truth.unlink()
    with pytest.raises(InputError, match=r"groundtruth.txt does not exist"):
        read_posed(tmp_path, format="tum")
    (tmp_path / "calibration.txt").write_text("500 500")
    with pytest.raises(InputError, match="give the four numbers"):
        read_posed(tmp_path, format="tum")


def test_small_errors_of_rounding_pass() -> None:
    check_rigid(POSES[2].round(3), "a pose of three digits")


# -- depth --------------------------------------------------------------------------------------------------------------


def test_depth_between_pixels_is_exact_on_a_plane() -> None:
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(40), np.arange(30))
    depth = (1 / (0.3 + 0.001 * x - 0.002 * y)).astype(np.float32)  # a plane is linear in 1 / depth
    points = rng.random((200, 2)) * [39, 29]
    assert depth_at(depth, points) == pytest.approx(1 / (0.3 + 0.001 * points[:, 0] - 0.002 * points[:, 1]), rel=1e-5)
    pixels = rng.integers(0, [40, 30], (50, 2))
    assert depth_at(depth, pixels.astype(np.float64)) == pytest.approx(depth[pixels[:, 1], pixels[:, 0]], rel=1e-6)


def test_depth_is_unknown_where_it_is_doubtful() -> None:
    depth = np.full((10, 12), 2.0, np.float32)
    depth[:, 6:] = 2.1  # a jump of 5 %
    depth[2, 2] = np.nan
    points = np.array([[5.5, 5.0], [4.9, 5.0], [6.0, 5.0], [1.5, 1.5], [3.0, 3.0], [-0.6, 3.0], [-0.5, 9.5], [11.6, 3.0]])
    depths = depth_at(depth, points)
    assert np.isnan(depths).tolist() == [True, False, False, True, False, True, False, True]
    assert depths[[1, 2, 4, 6]] == pytest.approx([2.0, 2.1, 2.0, 2.0], rel=1e-6)
    assert np.isfinite(depth_at(depth, points[:1], jump=0.06)).all()
    assert depth_at(np.full((1, 1), 3.0, np.float32), np.array([[0.2, -0.3]])) == pytest.approx([3.0])


def test_stored_zeros_and_infinities_are_unknown(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([[0.0, np.inf, np.nan, -1.0, 3.0]]))
    read = DepthSource(path=tmp_path / "d.npy", scale=2.0).read()
    assert np.isnan(read[0, :4]).all()
    assert read[0, 4] == 1.5


@pytest.mark.parametrize("name", ["none.png", "grey.png", "text.npy", "cube.npy", "text.h5", "other.h5", "depth.exr"])
def test_an_unreadable_depth_map_is_an_image_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "grey.png":
        save(path, np.zeros((4, 4), np.uint8))
    elif name == "cube.npy":
        np.save(path, np.ones((2, 2, 2)))
    elif name == "other.h5":
        with h5py.File(path, "w") as file:
            file["disparity"] = np.ones((2, 2))
    elif name != "none.png":
        path.write_text("not depth")
    with pytest.raises(ImageError, match=name):
        DepthSource(path=path).read()


def test_maps_of_another_size_give_the_same_depths(tmp_path: Path) -> None:
    """The same field of view at half the size, and a map with intrinsics of its own, against the full map."""
    pose = look(0.3, 0.15, 0.05)
    full = shoot(pose)
    half_k = scale_intrinsics(K, (0.5, 0.5))
    shifted = np.array([[70.0, 0, 50.0], [0, 70.0, 40.0], [0, 0, 1]])  # another camera at the same place
    save(tmp_path / "photo.png", full.photo)
    points = np.random.default_rng(0).random((300, 2)) * [150, 110] + 4
    expected = depth_at(full.depth, points)
    for intrinsics, size, own in ((K, SIZE, None), (half_k, (80, 60), None), (shifted, (100, 80), shifted)):
        np.save(tmp_path / "depth.npy", shoot(pose, size, intrinsics).depth)
        source = DepthSource(path=tmp_path / "depth.npy", intrinsics=own)
        frame = PosedFrame(
            name="a", scene="s", image=tmp_path / "photo.png", depth=source, intrinsics=K, camera_from_world=pose
        )
        depths = frame.depths_at(points, SIZE)
        both = np.isfinite(depths) & np.isfinite(expected)
        assert both.mean() > 0.85
        assert depths[both] == pytest.approx(expected[both], rel=1e-5)
        camera = frame.depth_camera()
        assert np.allclose(camera.intrinsics, intrinsics)


def test_shrunk_intrinsics_project_to_the_shrunk_pixels() -> None:
    point = np.array([0.3, -0.2, 2.0])
    pixel, shrunk = (matrix @ point / 2.0 for matrix in (K, scale_intrinsics(K, (0.5, 0.25))))
    assert shrunk[:2] == pytest.approx((pixel[:2] + 0.5) * [0.5, 0.25] - 0.5)


def test_a_photo_turned_by_exif_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.jpg", exif=exif)
    with pytest.raises(ImageError, match="EXIF orientation 6"):
        stored_size(tmp_path / "turned.jpg")
    Image.new("RGB", (8, 6)).save(tmp_path / "straight.jpg")
    assert stored_size(tmp_path / "straight.jpg") == (8, 6)


# -- overlap ------------------------------------------------------------------------------------------------------------


def brute_share(a: DepthCamera, b: DepthCamera) -> float:
    """Point by point, as the definition says."""
    inside = known = agree = total = 0
    for point in a.samples():
        if not np.isfinite(point).all():
            continue
        total += 1
        in_camera = b.camera_from_world[:3, :3] @ point + b.camera_from_world[:3, 3]
        if in_camera[2] <= 0:
            continue
        column, row = np.rint((b.intrinsics @ in_camera / in_camera[2])[:2]).astype(int)
        if 0 <= row < b.depth.shape[0] and 0 <= column < b.depth.shape[1]:
            inside += 1
            if np.isfinite(b.depth[row, column]):
                known += 1
                agree += abs(b.depth[row, column] - in_camera[2]) <= AGREE * in_camera[2]
    return inside / total * agree / known if known >= 10 else 0.0


def cameras_of(shots: list[Shot]) -> list[DepthCamera]:
    return [
        DepthCamera(depth=s.depth.astype(np.float32), intrinsics=K, camera_from_world=s.camera_from_world) for s in shots
    ]


def test_overlap_against_brute_force(shots: list[Shot]) -> None:
    behind = shoot(look(0.0, np.pi))
    cameras = cameras_of([*shots, replace(behind, depth=np.full_like(behind.depth, 2.0))])
    holes = cameras[1].depth.copy()
    holes[np.random.default_rng(0).random(holes.shape) < 0.7] = np.nan
    cameras[1] = replace(cameras[1], depth=holes)
    matrix = overlap_matrix([*cameras, None])
    for a in range(len(cameras)):
        for b in range(len(cameras)):
            expected = 1.0 if a == b else min(brute_share(cameras[a], cameras[b]), brute_share(cameras[b], cameras[a]))
            assert matrix[a, b] == pytest.approx(expected, abs=0.01)  # a point on the very edge may fall to either side
    assert matrix[0, 2] > 0.2
    assert not matrix[-1, :-1].any()
    assert not matrix[4, :4].any()


def test_holes_do_not_lower_the_overlap(shots: list[Shot]) -> None:
    whole = overlap_matrix(cameras_of(shots[:2]))[0, 1]
    cameras = cameras_of(shots[:2])
    rng = np.random.default_rng(0)
    torn = [replace(c, depth=np.where(rng.random(c.depth.shape) < 0.6, np.nan, c.depth).astype(np.float32)) for c in cameras]
    assert overlap_matrix(torn)[0, 1] == pytest.approx(whole, abs=0.06)


def test_a_wall_between_hides_what_is_behind(shots: list[Shot]) -> None:
    camera = cameras_of(shots)[0]
    wall = replace(camera, depth=np.full_like(camera.depth, 1.0))
    assert overlap_matrix([camera, wall])[0, 1] == 0.0


def test_reduced_maps_see_what_full_maps_see(shots: list[Shot]) -> None:
    full = cameras_of(shots)
    small = [camera.reduced(50) for camera in full]
    assert max(small[0].depth.shape) <= 50
    assert np.allclose(overlap_matrix(small), overlap_matrix(full), atol=0.05)
    x, y, z = 10, 7, small[1].depth[7, 10]
    ray = np.linalg.inv(small[1].intrinsics) @ [x, y, 1] * z
    column, row = np.rint((K @ ray / z)[:2]).astype(int)
    assert full[1].depth[row, column] == z


def test_pairs_are_capped_alike_over_overlaps() -> None:
    rng = np.random.default_rng(0)
    matrix = np.triu(rng.random((120, 120)) ** 3, 1)  # low overlaps are by far the most frequent
    everything = choose_pairs(matrix, OverlapSettings(max_pairs=10**6), "s")
    values = matrix[np.triu_indices(120, 1)]
    assert len(everything) == ((values >= 0.1) & (values <= 0.9)).sum()
    few = choose_pairs(matrix, OverlapSettings(max_pairs=400), "s")
    counts = np.histogram([pair[2] for pair in few], np.linspace(0.1, 0.9, 9))[0]
    assert counts.tolist() == [50] * 8
    assert few == choose_pairs(matrix, OverlapSettings(max_pairs=400), "s")
    assert few != choose_pairs(matrix, OverlapSettings(max_pairs=400, seed=1), "s")
    assert all(a < b and matrix[a, b] == overlap for a, b, overlap in few)
    scarce = choose_pairs(np.where(matrix > 0.5, 0, matrix), OverlapSettings(max_pairs=400), "s")
    assert len(scarce) == 400  # empty bins give their share to the others


def test_settings_that_hold_no_pair_are_refused() -> None:
    with pytest.raises(InputError, match=r"no pair has an overlap from 0.5 to 0.5"):
        OverlapSettings(min_overlap=0.5, max_overlap=0.5)
    with pytest.raises(InputError, match="max_pairs is 0"):
        OverlapSettings(max_pairs=0)


# -- the source of a dataset -----------------------------------------------------------------------------------------------


def test_views_carry_the_truth(plain: Path, shots: list[Shot]) -> None:
    source = PosedFrames(frames=read_posed(plain).frames, long_side=96, photometric=0.0)
    assert isinstance(source, PosedFrames)
    typed: ViewSource = source
    extractor = Sift(max_keypoints=200, resize=None)
    view = typed.views(1, extractor, 100)[0]
    assert view.features.image_size == (96, 72)
    assert view.scene == "room"
    assert view.intrinsics is not None
    assert view.depths is not None
    assert np.isfinite(view.depths).mean() > 0.7
    scores = view.features.scores
    assert scores is not None
    assert (scores[:-1] >= scores[1:]).all()
    # the world point of each keypoint lies on the wall or on the board
    rays = np.column_stack([view.features.keypoints.numpy(), np.ones(len(view.features))]) @ np.linalg.inv(view.intrinsics).T
    in_camera = rays * view.depths[:, None]
    world = (in_camera - shots[1].camera_from_world[:3, 3]) @ shots[1].camera_from_world[:3, :3]
    world = world[np.isfinite(world).all(1)]
    off = np.minimum(np.abs(world @ [0, 0.2, 1.0] - 4.0), np.abs(world[:, 2] - 3.0))
    assert off.max() < 1e-3


def test_light_depends_on_seed_and_name_only(plain: Path) -> None:
    frames = read_posed(plain).frames
    extractor = Sift(max_keypoints=200, resize=None)
    first, again, other, plainly = (
        PosedFrames(frames=chosen, long_side=96, seed=seed, photometric=light).views(item, extractor, 100)[0].features
        for chosen, item, seed, light in (
            (frames, 2, 0, 1.0),
            (frames[2:], 0, 0, 1.0),
            (frames, 2, 1, 1.0),
            (frames, 2, 0, 0.0),
        )
    )
    assert torch.equal(first.descriptors, again.descriptors)
    assert not torch.equal(first.descriptors[:5], other.descriptors[:5])
    assert not torch.equal(first.descriptors[:5], plainly.descriptors[:5])


def test_the_plan_knows_the_cameras(plain: Path) -> None:
    source = PosedFrames(frames=read_posed(plain).frames)
    assert json.loads(json.dumps(source.plan())) == PosedFrames(frames=read_posed(plain).frames).plan()
    assert pickle.loads(pickle.dumps(source)).plan() == source.plan()
    change(plain, 0, depth_scale=9999)
    assert PosedFrames(frames=read_posed(plain).frames).plan() != source.plan()


def test_frames_that_cannot_make_a_dataset_are_refused(plain: Path) -> None:
    frames = read_posed(plain).frames
    with pytest.raises(InputError, match="no posed frames"):
        PosedFrames(frames=[])
    with pytest.raises(InputError, match=r"two frames are called 'room/images/0.png'"):
        PosedFrames(frames=[*frames, frames[0]])
    with pytest.raises(InputError, match="long_side is 10"):
        PosedFrames(frames=frames, long_side=10)
    with pytest.raises(InputError, match="photometric is -1"):
        PosedFrames(frames=frames, photometric=-1)
    with pytest.raises(InputError, match=r"overlaps of room have shape \(2, 2\); give 4 x 4"):
        PosedFrames(frames=frames, overlaps={"room": np.eye(2)})


def test_a_dataset_skips_what_it_cannot_read(plain: Path, tmp_path: Path) -> None:
    (plain / "images/3.png").write_bytes(b"")
    source = PosedFrames(frames=read_posed(plain).frames, long_side=160, pairing=OverlapSettings(max_overlap=1.0))
    extractor = Sift(max_keypoints=200, resize=None)
    steps = list(build_dataset(source, tmp_path / "dataset.h5", extractor, DatasetSettings(max_keypoints=64), workers=1))
    assert steps[-1].skipped == ("room/images/3.png",)
    dataset = FeatureDataset(tmp_path / "dataset.h5")
    assert (dataset.kind, len(dataset)) == ("depth", 3)
    assert sorted(map(tuple, dataset.pairs.tolist())) == [(0, 1), (0, 2), (1, 2)]
    assert np.allclose(dataset.cameras, POSES[:3])


def test_the_commands_go_from_folder_to_dataset(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dataset.h5"
    flags = ["--max-keypoints", "64", "--workers", "1", "--max-overlap", "1"]
    assert main(["dataset", "posed", str(plain), "-o", str(out), *flags]) == 0
    assert "4 frames ->" in capsys.readouterr().out
    assert len(FeatureDataset(out)) == 4
    assert main(["dataset", "posed", str(tmp_path / "none"), "-o", str(out)]) == 2
    assert "is not a folder" in capsys.readouterr().err


# -- COLMAP models ------------------------------------------------------------------------------------------------------


def write_model(folder: Path, shots: list[Shot], distortion: float) -> None:
    """A model whose tracks are exact: world points on wall and board that at least three cameras see, and their photos
    seen through a lens with that distortion."""
    pycolmap = pytest.importorskip("pycolmap")
    params = [K[0, 0], K[0, 2] + 0.5, K[1, 2] + 0.5, distortion]
    camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=SIZE[0], height=SIZE[1], params=params, camera_id=1)
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    square = np.array([[K[0, 0], 0, K[0, 2]], [0, K[0, 0], K[1, 2]], [0, 0, 1]])
    x, y = np.meshgrid(np.arange(5.0, SIZE[0], 6), np.arange(5.0, SIZE[1], 6))
    base = shots[0]
    rays = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1) @ np.linalg.inv(square).T
    shot = shoot(base.camera_from_world, SIZE, square)
    world = (rays * shot.depth[y.astype(int), x.astype(int)].reshape(-1, 1)).astype(np.float64)
    world = (world - base.camera_from_world[:3, 3]) @ base.camera_from_world[:3, :3]
    seen: list[list[tuple[int, int]]] = [[] for _ in world]
    for number, shot in enumerate(shots, start=1):
        in_camera = world @ shot.camera_from_world[:3, :3].T + shot.camera_from_world[:3, 3]
        pixels = np.asarray(camera.img_from_cam(in_camera))
        exact = shoot(shot.camera_from_world, SIZE, square).depth
        place = np.rint(in_camera @ square.T / in_camera[:, 2:]).astype(int)[:, :2]
        visible = np.all((place >= 0) & (place < SIZE) & (pixels >= 0) & (pixels < SIZE), axis=1)
        visible[visible] &= np.abs(exact[place[visible, 1], place[visible, 0]] / in_camera[visible, 2] - 1) < 0.02
        rows = np.flatnonzero(visible)
        for index, row in enumerate(rows):
            seen[row].append((number, index))
        image = pycolmap.Image(name=f"sub/{number}.png", keypoints=pixels[rows], camera_id=1, image_id=number)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(shot.camera_from_world[:3, :3]), shot.camera_from_world[:3, 3])
        model.add_image_with_trivial_frame(image, pose)
        save(folder / f"photos/sub/{number}.png", photo_through(camera, shot.camera_from_world)[..., ::-1])
    for point, track in zip(world, seen, strict=True):
        if len(track) >= 2:
            elements = [pycolmap.TrackElement(*element) for element in track]
            model.add_point3D(point, pycolmap.Track(elements), np.zeros(3, np.uint8))
    (folder / "model").mkdir()
    model.write(folder / "model")


def photo_through(camera: object, pose: np.ndarray) -> np.ndarray:
    """What the distorted camera sees, rendered from a wider pinhole."""
    x, y = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    rays = np.asarray(camera.cam_from_img(np.stack([x.ravel(), y.ravel()], axis=1)))  # pyright: ignore[reportAttributeAccessIssue]
    wide = np.array([[300.0, 0, 250.0], [0, 300.0, 200.0], [0, 0, 1]])
    map_x, map_y = np.ascontiguousarray((rays @ wide[:2, :2].T + wide[:2, 2]).T, np.float32).reshape(2, SIZE[1], SIZE[0])
    return cv2.remap(shoot(pose, (501, 401), wide).photo, map_x, map_y, cv2.INTER_LINEAR)


@pytest.mark.parametrize("distortion", [0.0, -0.12])
def test_a_colmap_model_becomes_posed_images(tmp_path: Path, shots: list[Shot], distortion: float) -> None:
    write_model(tmp_path, shots, distortion)
    from lumiglue.training.data.from_colmap import SfmSettings, posed_from_sfm

    settings = SfmSettings(max_edge=0.08)  # points lie 6 pixels apart on each side, 8.5 across
    steps = list(posed_from_sfm(tmp_path / "model", tmp_path / "photos", tmp_path / "out", settings))
    assert [step.name for step in steps] == ["sub/1.png", "sub/2.png", "sub/3.png", "sub/4.png"]
    data = read_posed(tmp_path / "out")
    for frame, shot in zip(data.frames, shots, strict=True):
        assert np.allclose(frame.camera_from_world, shot.camera_from_world)
        depth = frame.depth.read()
        exact = shoot(shot.camera_from_world, depth.shape[::-1], frame.intrinsics)  # the undistorted camera
        known = np.isfinite(depth)
        assert known.mean() > 0.4
        error = np.abs(depth / exact.depth - 1)[known]
        assert np.median(error) < 5e-5  # 16 bits; interpolation itself is exact on planes
        assert np.mean(error < 0.03) > 0.93  # contours are a few pixels off where a point's square of pixels crosses them
        photo = cv2.imread(str(frame.image))
        assert photo is not None
        assert best_shift(photo[..., ::-1], exact.photo) == (0, 0)  # half a pixel would be COLMAP's convention


def best_shift(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Quarter pixels by which photo a must move to look like photo b."""
    greys = [cv2.GaussianBlur(photo.astype(np.float64).mean(2), (0, 0), 1.0) for photo in (a, b)]
    difference: dict[tuple[float, float], float] = {}
    for x in np.arange(-1, 1.1, 0.25):
        for y in np.arange(-1, 1.1, 0.25):
            moved = cv2.warpAffine(greys[0], np.array([[1, 0, x], [0, 1, y]]), a.shape[1::-1], flags=cv2.INTER_CUBIC)
            difference[float(x), float(y)] = float(((moved - greys[1])[4:-4, 4:-4] ** 2).mean())
    return min(difference, key=lambda shift: difference[shift])


def test_only_well_seen_points_count(tmp_path: Path, shots: list[Shot]) -> None:
    write_model(tmp_path, shots, 0.0)
    from lumiglue.training.data.from_colmap import SfmSettings, read_model, trusted_points

    model = read_model(tmp_path / "model")
    lengths = {number: len(point.track.elements) for number, point in model.points3D.items()}
    loose = trusted_points(model, SfmSettings(min_track=2, min_angle=0))
    assert set(loose) == set(lengths)
    assert set(trusted_points(model, SfmSettings(min_track=4, min_angle=0))) == {n for n, k in lengths.items() if k == 4}
    centres = {n: model.image(n).projection_center() for n in model.reg_image_ids()}
    for limit in (10.0, 20.0):
        wide = set()
        for number, point in model.points3D.items():
            rays = [centres[e.image_id] - point.xyz for e in point.track.elements]
            cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in rays for b in rays]
            if np.degrees(np.arccos(np.clip(min(cosines), -1, 1))) >= limit:
                wide.add(number)
        assert 0 < len(wide) < len(lengths)
        assert set(trusted_points(model, SfmSettings(min_track=2, min_angle=limit))) == wide
    moved = next(iter(lengths))
    model.point3D(moved).xyz = model.point3D(moved).xyz + np.array([0.5, 0, 0])
    assert moved not in trusted_points(model, SfmSettings(min_track=2, min_angle=0))


def test_depth_is_interpolated_over_small_flat_triangles_only() -> None:
    pytest.importorskip("pycolmap")
    from lumiglue.training.data.from_colmap import SfmSettings, interpolate_depth

    square = np.array([[100.0, 0, 50.0], [0, 100.0, 50.0], [0, 0, 1]])

    def at(*pixels: tuple[float, float, float]) -> np.ndarray:
        return np.array([[(x - 50) / 100 * z, (y - 50) / 100 * z, z] for x, y, z in pixels])

    settings = SfmSettings(max_edge=0.3)
    flat = interpolate_depth(at((20, 20, 2.0), (40, 20, 2.1), (20, 40, 2.1)), square, (100, 100), settings)
    barycentric = 1 / (0.6 / 2.0 + 0.4 / 2.1)
    assert flat[24, 24] == pytest.approx(barycentric, rel=1e-5)
    assert flat[35, 35] == 0  # outside
    step = interpolate_depth(at((20, 20, 2.0), (40, 20, 2.5), (20, 40, 2.1)), square, (100, 100), settings)
    assert step[28, 28] == 0
    assert step[20, 40] == pytest.approx(2.5)  # the points themselves stay
    large = interpolate_depth(at((20, 20, 2.0), (80, 20, 2.1), (20, 40, 2.1)), square, (100, 100), settings)
    assert large[28, 28] == 0
    behind = np.vstack([at((20, 20, 2.0)), [[0.0, 0.0, -1.0]]])
    assert (interpolate_depth(behind, square, (100, 100), settings) > 0).sum() == 25
    line = interpolate_depth(at((20, 20, 2.0), (30, 30, 2.0), (40, 40, 2.0)), square, (100, 100), settings)
    assert (line > 0).sum() == 75
    near = interpolate_depth(at((20, 20, 2.0), (21, 20, 1.0)), square, (100, 100), settings)
    assert near[20, 20] == pytest.approx(1.0)  # of two surfaces the nearer is seen


def test_a_model_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, shots: list[Shot], capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path, shots, 0.0)
    from lumiglue.training.data.from_colmap import SfmSettings, posed_from_sfm

    with pytest.raises(InputError, match="has no COLMAP model"):
        list(posed_from_sfm(tmp_path / "photos", tmp_path / "photos", tmp_path / "out"))
    with pytest.raises(InputError, match=r"none of the model's 4 photos can be read in .*sub/1.png"):
        list(posed_from_sfm(tmp_path / "model", tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out" / "cameras.json").exists()
    (tmp_path / "photos/sub/2.png").unlink()
    (tmp_path / "photos/sub/3.png").write_bytes(b"nothing")
    assert (
        main(["dataset", "from-colmap", str(tmp_path / "model"), str(tmp_path / "photos"), "-o", str(tmp_path / "out")]) == 0
    )
    printed = capsys.readouterr()
    assert "2 photos, depth at" in printed.out
    assert "2 photos could not be read" in printed.err
    assert len(read_posed(tmp_path / "out").frames) == 2
    save(tmp_path / "photos/sub/1.png", np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(InputError, match=r"sub/1.png is 10 x 10 but its camera in the model 160 x 120"):
        list(posed_from_sfm(tmp_path / "model", tmp_path / "photos", tmp_path / "out"))
    for name in ("cameras", "images", "points3D"):
        (tmp_path / f"model/{name}.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be read as a COLMAP model"):
        list(posed_from_sfm(tmp_path / "model", tmp_path / "photos", tmp_path / "out"))
    with pytest.raises(InputError, match="min_track is 1"):
        SfmSettings(min_track=1)
    with pytest.raises(InputError, match="max_error above 0"):
        SfmSettings(max_error=0)


# -- real data ----------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("name", ["hololens", "tartan"])
def test_real_depth_and_poses_agree_to_a_pixel(shared: Path, name: str) -> None:
    """SIFT matches of pairs that see half of each other, against where depth and pose put them."""
    folder = shared / "rgbd" / name
    meta = json.loads((folder / "meta.json").read_text())
    half = np.array([*(np.array(meta["K"][:2]) / 2), [0, 0, 1]])
    frames = [
        PosedFrame(
            name=frame["id"],
            scene=name,
            image=folder / "rgb" / f"{frame['id']}.jpg",
            depth=DepthSource(path=folder / "depth" / f"{frame['id']}.png", scale=1000, intrinsics=half),
            intrinsics=np.array(meta["K"], dtype=np.float64),
            camera_from_world=np.linalg.inv(np.array(frame["T_wc"])),
        )
        for frame in meta["frames"][:60]
    ]
    source = PosedFrames(
        frames=frames, photometric=0.0, pairing=OverlapSettings(min_overlap=0.4, max_overlap=0.8, max_pairs=8)
    )
    errors = []
    for a, b, _ in source.pairs():
        views = [source.views(item, Sift(max_keypoints=512, resize=None), 512)[0] for item in (a, b)]
        errors.append(match_errors(*views))
    distances = np.concatenate(errors)
    assert len(distances) > 50
    assert np.median(distances) < 1.6
    assert np.mean(distances < 3) > 0.7


def match_errors(a: View, b: View) -> np.ndarray:
    """Pixels between mutual matches that pass the ratio test and the place that depth gives them, hidden ones left out."""
    similarity = (a.features.descriptors @ b.features.descriptors.mT).numpy()
    best = similarity.argmax(1)
    distance = np.sqrt(np.maximum(2 - 2 * np.sort(similarity, axis=1)[:, -2:], 0))
    rows = np.flatnonzero((similarity.argmax(0)[best] == np.arange(len(best))) & (distance[:, 1] < 0.8 * distance[:, 0]))
    assert a.depths is not None
    assert b.depths is not None
    assert a.camera_from_world is not None
    assert b.camera_from_world is not None
    b_from_a = b.camera_from_world @ np.linalg.inv(a.camera_from_world)
    arrays = (a.features.keypoints.numpy()[rows], a.depths[rows], a.intrinsics, b.intrinsics, b_from_a)
    seen, z = transfer(*(torch.from_numpy(np.asarray(array, dtype=np.float64)) for array in arrays))
    error = (seen - b.features.keypoints[best[rows]]).norm(dim=1).numpy()
    return error[np.abs(b.depths[best[rows]] / z.numpy() - 1) < 0.05]
