"""hloc's layout of features and matches in HDF5, written and read in one place.

Features: a group for each image, with keypoints, descriptors (channels first), scores and image_size, and with scales and
oris where the features have them. They are in pixels of the photo as stored, which is what COLMAP and hloc read; the
attribute exif_orientation turns them upright for the matcher. Matches: a group `name0/name1` for each pair (slashes inside a
name become dashes), with matches0 (for each keypoint of image 0 the row in image 1, or -1) and matching_scores0.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import torch

from lumiglue.collection.orientation import stored_features, upright_features
from lumiglue.errors import InputError
from lumiglue.io.atomic import disk_is_full, has_room
from lumiglue.io.hdf5 import HDF5_ERRORS, Reader, read_numbers
from lumiglue.io.listing import natural_key
from lumiglue.io.text import reason
from lumiglue.pipeline.prefetch import MatchedPair
from lumiglue.pipeline.result import MatchResult
from lumiglue.types import Features

Pair = tuple[str, str]
_REMEDY = "write the file again with `lumiglue features`"


def write_features(group: h5py.Group, features: Features, orientation: int = 1) -> None:
    """Writes the features of one upright image to its group, in pixels of the image as stored.

    Args:
        group: The group.
        features: The features in pixels of the upright image.
        orientation: The image's EXIF orientation.
    """
    features = stored_features(features, orientation)
    group.attrs["exif_orientation"] = orientation
    group.create_dataset("keypoints", data=features.keypoints.float().numpy())
    group.create_dataset("descriptors", data=features.descriptors.T.half().numpy())
    scores = torch.ones(len(features)) if features.scores is None else features.scores
    group.create_dataset("scores", data=scores.float().numpy())
    group.create_dataset("image_size", data=np.array(features.image_size))
    if features.scales is not None and features.orientations is not None:
        group.create_dataset("scales", data=features.scales.float().numpy())
        group.create_dataset("oris", data=features.orientations.float().numpy())
    group.attrs["extractor"] = features.extractor


class FeaturesFile(Reader):
    """Reads a file of features in hloc's layout, written by `lumiglue features` or by hloc.

    Use it as a context manager. `name in file` tells whether an image is in the file.
    """

    written_by = "lumiglue features"

    def __contains__(self, name: str) -> bool:
        try:
            return _is_image(self._file[name])
        except HDF5_ERRORS:
            return False

    def names(self) -> list[str]:
        """Lists the images.

        Returns:
            The names, in natural order (frame2 before frame10).

        Raises:
            InputError: the file is damaged.
        """
        names: list[str] = []
        try:
            self._file.visititems(lambda name, item: names.append(name) if _is_image(item) else None)
        except HDF5_ERRORS as error:
            raise InputError(f"{self.path} is damaged ({reason(error)}); {_REMEDY}") from None
        return sorted(names, key=natural_key)

    def read(self, name: str, *, stored: bool = False) -> Features:
        """Reads the features of an image.

        Args:
            name: The image's name.
            stored: Whether to return them in pixels of the image as stored, as COLMAP reads it, and not upright.

        Returns:
            The features, in pixels of the image.

        Raises:
            InputError: the image is not in the file, or its features are incomplete or damaged.
        """
        if name not in self:
            raise InputError(f"{self.path} has no features of {name!r}; {_REMEDY}")
        try:
            return self._read(name, stored)
        except InputError as error:
            raise InputError(f"{self.path}, {name}: {error}") from None
        except HDF5_ERRORS as error:
            raise InputError(f"{self.path}, {name}: {reason(error)}; {_REMEDY}") from None

    def orientation(self, name: str) -> int:
        """The EXIF orientation of an image."""
        return int(self._file[name].attrs.get("exif_orientation", 1))

    def numbers(self, name: str, what: str) -> np.ndarray:
        """Reads another dataset of an image. Raises InputError if it is missing or damaged."""
        try:
            group: Any = self._file[name]
            return read_numbers(group, what)
        except HDF5_ERRORS as error:
            raise InputError(f"{self.path}, {name}: {reason(error)}; {_REMEDY}") from None

    def _read(self, name: str, stored: bool) -> Features:
        group: Any = self._file[name]
        width, height = (int(size) for size in read_numbers(group, "image_size").tolist())
        datasets = {"keypoints": "keypoints", "descriptors": "descriptors", "scores": "scores"}
        datasets |= {"scales": "scales", "orientations": "oris"}
        with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused
            arrays = {
                ours: read_numbers(group, theirs).astype(np.float32)
                for ours, theirs in datasets.items()
                if theirs in group or ours in ("keypoints", "descriptors")
            }
        arrays["descriptors"] = arrays["descriptors"].T
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        features = Features(image_size=(width, height), extractor=str(group.attrs.get("extractor", "")), **tensors)
        return features if stored else upright_features(features, int(group.attrs.get("exif_orientation", 1)))


def _is_image(item: object) -> bool:
    return isinstance(item, h5py.Group) and "keypoints" in item


def pair_key(a: str, b: str) -> str:
    """The group of a pair."""
    return f"{_image_key(a)}/{_image_key(b)}"


def _image_key(name: str) -> str:
    return name.replace("/", "-")


def check_keys(pairs: Iterable[Pair]) -> None:
    """Raises InputError where two images share a key, as a/b.jpg and a-b.jpg do."""
    images: dict[str, str] = {}
    for name in chain.from_iterable(pairs):
        other = images.setdefault(_image_key(name), name)
        if other != name:
            raise InputError(
                f"{other!r} and {name!r} share one place in a file of matches (slashes become dashes); rename one"
            )


@dataclass(frozen=True, eq=False)
class PairMatches:
    """The matches of a pair as they are stored.

    Attributes:
        matches0: For each keypoint of the first image its row in the second, or -1.
        scores0: Their scores, 0 where there is no match.
        stop_layer: The last layer that ran.
    """

    matches0: np.ndarray
    scores0: np.ndarray
    stop_layer: int

    @classmethod
    def of(cls, matched: MatchedPair | MatchResult) -> "PairMatches":
        """The matches of a matched pair."""
        count = len(matched.features0)
        matches0 = matched.matches.matches0(count).numpy().astype(np.int32)
        return cls(matches0, matched.matches.scores0(count).numpy().astype(np.float16), matched.matches.stop_layer)


def write_matches(group: h5py.Group, matches: PairMatches) -> None:
    """Writes the matches of one pair to its group."""
    group.create_dataset("matches0", data=matches.matches0, compression="lzf")
    group.create_dataset("matching_scores0", data=matches.scores0, compression="lzf")
    group.attrs["stop_layer"] = matches.stop_layer


class MatchesReader(Reader):
    """Reads a file of matches in hloc's layout, written by `lumiglue matches` or by hloc.

    Use it as a context manager. `(a, b) in file` tells whether a pair is in the file, in this order.
    """

    written_by = "lumiglue matches"

    def __contains__(self, pair: Pair) -> bool:
        try:
            return pair_key(*pair) in self._file
        except HDF5_ERRORS:
            return False

    def read(self, a: str, b: str) -> np.ndarray:
        """Reads the matches of a pair, which may be stored in either order.

        Args:
            a: Name of the first image.
            b: Name of the second image.

        Returns:
            k x 2 rows of matching keypoints of a and b.

        Raises:
            InputError: the pair is not in the file, or its matches are damaged.
        """
        for names, turned in (((a, b), False), ((b, a), True)):
            if names in self:
                partner = self._partners(pair_key(*names))
                rows = np.flatnonzero(partner >= 0)
                ends = np.stack([rows, partner[rows]], axis=1)
                return ends[:, ::-1] if turned else ends
        raise InputError(f"{self.path} has no matches of {a!r} and {b!r}; match them with `lumiglue matches`")

    def _partners(self, key: str) -> np.ndarray:
        try:
            group: Any = self._file[key]
            partner = read_numbers(group, "matches0")
            if partner.ndim != 1 or partner.dtype.kind != "i":
                raise ValueError(f"matches0 is {partner.dtype} of shape {partner.shape}, not whole numbers in a row")
        except HDF5_ERRORS as error:
            raise InputError(f"{self.path}, {key}: {reason(error)}; match them again with `lumiglue matches`") from None
        return partner.astype(np.int64)


class MatchesFile:
    """Writes matches of many pairs to one HDF5 file, pair by pair, and replaces an existing file when it is closed.

    Beside hloc's layout each group has keypoints0 and keypoints1 of the matches in pixels and the attribute stop_layer, so
    that the file can be used without the features.

    Args:
        path: The file to write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._unfinished, self._written = self.path.with_name(self.path.name + ".unfinished"), False
        with self._writing():
            self._file = h5py.File(self._unfinished, "w")

    def __enter__(self) -> "MatchesFile":
        return self

    def write(self, name0: str, name1: str, result: MatchResult) -> None:
        """Adds a pair, or replaces it.

        Args:
            name0: Name of the first image.
            name1: Name of the second image.
            result: Their matches.

        Raises:
            InputError: the disk is full, or the file cannot be written.
        """
        if not has_room(self.path, 64 * len(result.features0)):
            raise self._full()
        with self._writing():
            self._write(name0, name1, result)

    def _write(self, name0: str, name1: str, result: MatchResult) -> None:
        self._written = True
        key = pair_key(name0, name1)
        if key in self._file:
            del self._file[key]
        group = self._file.create_group(key)
        write_matches(group, PairMatches.of(result))
        group.create_dataset("keypoints0", data=result.points0)
        group.create_dataset("keypoints1", data=result.points1)

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
