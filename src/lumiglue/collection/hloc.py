"""hloc's layout of features and matches in HDF5, written and read in one place.

Features: a group for each image, with keypoints, descriptors (channels first), scores and image_size, and with scales and
oris where the features have them. They are in pixels of the photo as stored, which is what COLMAP and hloc read; the
attribute exif_orientation turns them upright for the matcher. Matches: a group `name0/name1` for each pair (slashes inside a
name become dashes), with matches0 (for each keypoint of image 0 the row in image 1, or -1) and matching_scores0.
Without a file of features, a pair also has keypoints0 and keypoints1: the pixels of the matches in the upright photos.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import h5py
import numpy as np
import torch

from lumiglue.collection.orientation import stored_features, upright_features
from lumiglue.collection.stamps import Stamp
from lumiglue.errors import InputError
from lumiglue.io.hdf5 import HDF5_ERRORS, Reader, read_numbers
from lumiglue.io.listing import natural_key
from lumiglue.io.text import reason
from lumiglue.pipeline.prefetch import MatchedPair
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

    def stamp(self, name: str) -> Stamp | None:
        """Which content of the photo the features are of; None where the file does not say."""
        try:
            return Stamp.from_attributes(self._file[name].attrs)
        except HDF5_ERRORS:
            return None

    def is_current(self, name: str, stamp: Stamp | None) -> bool:
        """Whether the features are of this content of the photo."""
        now = self.stamp(name)
        return now is None or (stamp is not None and now.sha256 == stamp.sha256)

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
        points: k x 2 pixels of the matches in each image; empty where a file of features has them.
    """

    matches0: np.ndarray
    scores0: np.ndarray
    stop_layer: int
    points: tuple[np.ndarray, ...] = ()

    @classmethod
    def of(cls, matched: MatchedPair, *, with_points: bool = False) -> "PairMatches":
        """The matches of a matched pair."""
        count, matches = len(matched.features0), matched.matches
        ends = zip((matched.features0, matched.features1), matches.pairs.T, strict=True) if with_points else ()
        points = tuple(features.keypoints[rows].numpy() for features, rows in ends)
        matches0 = matches.matches0(count).numpy().astype(np.int32)
        return cls(matches0, matches.scores0(count).numpy().astype(np.float16), matches.stop_layer, points)


def write_matches(group: h5py.Group, matches: PairMatches) -> None:
    """Writes the matches of one pair to its group."""
    group.create_dataset("matches0", data=matches.matches0, compression="lzf")
    group.create_dataset("matching_scores0", data=matches.scores0, compression="lzf")
    for number, points in enumerate(matches.points):
        group.create_dataset(f"keypoints{number}", data=points)
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

    def pairs(self, names: Iterable[str]) -> list[Pair]:
        """Lists the pairs of these images that are in the file."""
        name_of = {_image_key(name): name for name in names}
        try:
            groups: dict[str, Any] = {a: group for a, group in self._file.items() if a in name_of}
            found = [(a, b) for a, group in groups.items() for b in group if b in name_of]
        except HDF5_ERRORS as error:
            raise InputError(f"{self.path} is damaged ({reason(error)}); match again with `lumiglue matches`") from None
        return [(name_of[a], name_of[b]) for a, b in found]

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
                raise ValueError(f"matches0 is {partner.dtype} of shape {partner.shape}, not a row of whole numbers")
        except HDF5_ERRORS as error:
            raise InputError(f"{self.path}, {key}: {reason(error)}; match them again with `lumiglue matches`") from None
        return partner.astype(np.int64)
