"""Matches of one pair as .npz or .json, and of many pairs as .h5 in hloc's layout."""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from lumiglue.errors import InputError
from lumiglue.pipeline import MatchResult
from lumiglue.reading import reason
from lumiglue.types import PIXELS, Geometry
from lumiglue.writing import disk_is_full, has_room, write_whole

DATA_SUFFIXES = (".npz", ".json")


def result_arrays(result: MatchResult, geometry: Geometry | None = None) -> dict[str, np.ndarray]:
    """One pair by name: points0, points1, scores, matches (rows), keypoints0, keypoints1, image_size0, image_size1,
    stop_layer; with a geometry also inliers and, where it was found, the 3 x 3 matrix under its kind."""
    arrays: dict[str, np.ndarray] = {
        "points0": result.points0,
        "points1": result.points1,
        "scores": result.scores,
        "matches": result.matches.pairs.numpy(),
        "keypoints0": result.features0.keypoints.detach().float().cpu().numpy(),
        "keypoints1": result.features1.keypoints.detach().float().cpu().numpy(),
        "image_size0": np.array(result.features0.image_size),
        "image_size1": np.array(result.features1.image_size),
        "stop_layer": np.array(result.matches.stop_layer),
    }
    if geometry is not None:
        arrays["inliers"] = geometry.inliers.numpy()
        if geometry.matrix is not None:
            arrays[geometry.kind] = geometry.matrix.numpy()
    return arrays


def encode_result(suffix: str, result: MatchResult, geometry: Geometry | None = None) -> bytes:
    """`result_arrays` as the bytes of an .npz or .json file."""
    arrays = result_arrays(result, geometry)
    if suffix == ".npz":
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]  (its names are not allow_pickle)
        return file.getvalue()
    lists = {name: value.tolist() for name, value in arrays.items()}
    return json.dumps({"pixels": PIXELS, **lists}).encode()


def save_result(path: str | Path, result: MatchResult, geometry: Geometry | None = None) -> None:
    """Writes one pair as .npz or .json, by the suffix; see `result_arrays` for what is in it."""
    path = Path(path)
    if path.suffix.lower() not in DATA_SUFFIXES:
        raise InputError(f"{path} has no suffix that matches can be written to; choose from {list(DATA_SUFFIXES)}")
    write_whole(path, encode_result(path.suffix.lower(), result, geometry))


class MatchesFile:
    """Matches of many pairs in one HDF5 file, pair by pair.

    hloc's layout: group `name0/name1` (slashes inside a name become dashes) with matches0 (per keypoint of image 0 the
    row in image 1, or -1) and matching_scores0. Beside them, so that the file stands alone: keypoints0 and keypoints1
    of the matches in pixels, and the attribute stop_layer.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._unfinished, self._written = self.path.with_name(self.path.name + ".unfinished"), False
        with self._writing():
            self._file = h5py.File(self._unfinished, "w")

    def __enter__(self) -> "MatchesFile":
        return self

    def write(self, name0: str, name1: str, result: MatchResult) -> None:
        """Adds one pair; a pair that is there already is replaced. Raises InputError where the disk is full."""
        if not has_room(self.path, 64 * len(result.features0)):
            raise self._full()
        with self._writing():
            self._write(name0, name1, result)

    def _write(self, name0: str, name1: str, result: MatchResult) -> None:
        self._written = True
        key = "/".join(name.replace("/", "-") for name in (name0, name1))
        if key in self._file:
            del self._file[key]
        group = self._file.create_group(key)
        count = len(result.features0)
        group.create_dataset("matches0", data=result.matches.matches0(count).numpy().astype(np.int32))
        group.create_dataset("matching_scores0", data=result.matches.scores0(count).numpy().astype(np.float16))
        group.create_dataset("keypoints0", data=result.points0)
        group.create_dataset("keypoints1", data=result.points1)
        group.attrs["stop_layer"] = result.matches.stop_layer

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with self._writing():
                self._file.close()
                if kind is None and (self._written or not self.path.exists()):  # nothing does not replace something
                    self._unfinished.replace(self.path)
        finally:
            self._unfinished.unlink(missing_ok=True)

    def _full(self) -> InputError:
        return InputError(f"the disk of {self.path} is full; make room and run the same command again")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, UnicodeError) as error:
            if disk_is_full(error):
                raise self._full() from None
            raise InputError(f"{self.path} cannot be written ({_why(error)}); check the path and the names") from None


def _why(error: Exception) -> str:
    code = getattr(error, "errno", None)
    return os.strerror(code) if code else reason(error)
