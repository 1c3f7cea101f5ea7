"""Which pairs of a collection to match: all, neighbours in a sequence, close positions, similar images, or a list."""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import ExifTags

from lumiglue.collection import By
from lumiglue.collection.hloc import FeaturesFile, Pair
from lumiglue.errors import InputError
from lumiglue.io.decoding import open_photo
from lumiglue.io.text import read_text, reason

EARTH_RADIUS = 6_371_000.0  # metres
_log = logging.getLogger(__name__)


def choose_pairs(
    features: str | Path,
    by: By = "retrieval",
    *,
    neighbours: int = 20,
    overlap: int = 10,
    photos: str | Path | None = None,
    metres: float = 100.0,
    names: Sequence[str] | None = None,
) -> list[Pair]:
    """Chooses which pairs of a collection to match.

    Args:
        features: HDF5 file of features in hloc's layout.
        by: "exhaustive", "sequential" (with retrieval to close loops), "retrieval" (VLAD of the features) or "position"
            (GPS).
        neighbours: Pairs per image, for retrieval and position.
        overlap: How many following images each image is paired with, for sequential.
        photos: Folder of the photos whose EXIF has the positions.
        metres: Largest distance, for position.
        names: Images to pair; None takes all of the file.

    Returns:
        Pairs of names, each once.

    Raises:
        InputError: an argument cannot be used, or positions are missing.
    """
    with FeaturesFile(features) as file:
        names = file.names() if names is None else names
        if by == "exhaustive":
            return exhaustive(names)
        if by == "position":
            return _by_exif(names, photos, neighbours, metres)
        from lumiglue.collection.retrieval import by_retrieval

        def descriptors(name: str) -> np.ndarray:
            return file.read(name).descriptors.numpy()

        if by == "retrieval":
            return by_retrieval(descriptors, names, neighbours)
        near = sequential(names, overlap)
        return unique([*near, *by_retrieval(descriptors, names, max(2, neighbours // 4))])


def _by_exif(names: Sequence[str], photos: str | Path | None, neighbours: int, metres: float) -> list[Pair]:
    if photos is None:
        raise InputError("pairs by position need the photos' EXIF; give --photos FOLDER")
    positions = {name: read_position(Path(photos) / name) for name in names}
    known = {name: position for name, position in positions.items() if position is not None}
    if len(known) < 2:
        raise InputError(f"{len(known)} of {len(names)} photos in {photos} have a GPS position; choose another --by")
    if len(known) < len(names):
        _log.warning("%d photos have no GPS position and are not paired", len(names) - len(known))
    return by_position(known, neighbours, metres)


def exhaustive(names: Sequence[str]) -> list[Pair]:
    """Pairs every image with every other."""
    return list(combinations(names, 2))


def sequential(names: Sequence[str], overlap: int = 10) -> list[Pair]:
    """Pairs each image with the following ones.

    Args:
        names: Images in order.
        overlap: How many following images.

    Returns:
        The pairs.

    Raises:
        InputError: `overlap` is less than 1.
    """
    if overlap < 1:
        raise InputError(f"overlap is {overlap}; give at least 1")
    return [(names[i], names[j]) for i in range(len(names)) for j in range(i + 1, min(i + 1 + overlap, len(names)))]


def read_pairs(path: str | Path, names: Iterable[str] | None = None) -> list[Pair]:
    """Reads a list of pairs: two names on each line, separated by a tab if a name has a space; # begins a comment.

    Args:
        path: Text file, as hloc or `write_pairs` writes it.
        names: Images that the pairs may use; None allows all.

    Returns:
        The pairs, each once.

    Raises:
        InputError: the file cannot be read, a line is not a pair, or a name is not among `names`.
    """
    path = Path(path)
    known, pairs = None if names is None else set(names), []
    text = read_text(path, "give a file with two image names on each line")
    for number, line in enumerate(text.split("\n"), start=1):
        words = names_in(line)
        if not words:
            continue
        if len(words) != 2:
            remedy = "give two image names, with a tab between them if a name has a space"
            raise InputError(f"{path}, line {number}: {len(words)} words; {remedy}")
        for word in words:
            if known is not None and word not in known:
                raise InputError(f"{path}, line {number}: {word!r} is not among the images")
        pairs.append((words[0], words[1]))
    return unique(pairs)


def read_names(path: str | Path, names: Iterable[str]) -> list[str]:
    """Reads a list of images: one name on each line; # begins a comment.

    Args:
        path: Text file.
        names: Images that the list may name.

    Returns:
        The names, each once.

    Raises:
        InputError: the file cannot be read, or a name is not among `names`.
    """
    known, listed = set(names), {}
    for number, line in enumerate(read_text(path, "give a file with an image name on each line").split("\n"), start=1):
        name = without_comment(line)
        if name and name not in known:
            raise InputError(f"{path}, line {number}: {name!r} is not among the images")
        listed |= {name: None} if name else {}
    return list(listed)


def write_pairs(path: str | Path, pairs: Sequence[Pair]) -> None:
    """Writes a list of pairs: two names on each line, separated by a tab if a name has a space.

    Args:
        path: Text file to write.
        pairs: Pairs of names.

    Raises:
        InputError: a name cannot be written, such as one with a line break.
    """
    lines = []
    for pair in pairs:
        line = ("\t" if any(re.search(r"\s", name) for name in pair) else " ").join(pair)
        if tuple(names_in(line)) != pair or "\n" in line:
            raise InputError(f"the names {pair} cannot be written on a line of a list; rename the file")
        lines.append(line + "\n")
    try:
        Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")
    except UnicodeEncodeError as error:
        raise InputError(f"a name is not in UTF-8 ({reason(error)}); rename the file") from None


def names_in(line: str) -> list[str]:
    """Splits a line of a list into names: at tabs if it has any, else at spaces; # begins a comment."""
    line = without_comment(line)
    return [word.strip() for word in line.split("\t")] if "\t" in line else line.split()


def without_comment(line: str) -> str:
    """Removes the comment of a line of a list: from a # at its start or after a space."""
    return re.split(r"(?:^|\s)#", line)[0].strip()


def unique(pairs: Iterable[Pair], *, with_itself: bool = False) -> list[Pair]:
    """Removes repeated pairs, in either order, and unless `with_itself` pairs of an image with itself."""
    seen: dict[frozenset[str], Pair] = {}
    for a, b in pairs:
        if a != b or with_itself:
            seen.setdefault(frozenset((a, b)), (a, b))
    return list(seen.values())


def by_position(positions: Mapping[str, tuple[float, float]], neighbours: int = 20, metres: float = 100.0) -> list[Pair]:
    """Pairs each image with the nearest ones.

    Args:
        positions: Latitude and longitude of each image, in degrees.
        neighbours: Largest number of pairs per image.
        metres: Largest distance.

    Returns:
        The pairs, each once.
    """
    names = list(positions)
    points = np.array([_on_sphere(*positions[name]) for name in names])
    pairs = []
    for i, name in enumerate(names):
        distance = np.linalg.norm(points - points[i], axis=1)
        nearest = [int(j) for j in np.argsort(distance, kind="stable") if j != i and distance[j] <= metres]
        pairs += [(name, names[j]) for j in nearest[:neighbours]]
    return unique(pairs)


def read_position(path: str | Path) -> tuple[float, float] | None:
    """Reads latitude and longitude from a photo's EXIF.

    Args:
        path: The photo.

    Returns:
        Both in degrees; None if the photo has no position.
    """
    try:
        with open_photo(Path(path).read_bytes(), str(path)) as image:
            gps = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    except Exception:  # Pillow's parsers raise OSError, SyntaxError, struct.error and more on damaged files
        return None
    try:
        position = []
        for value, reference, negative in ((2, 1, "S"), (4, 3, "W")):
            degrees, minutes, seconds = (float(part) for part in gps[value])
            sign = -1.0 if str(gps.get(reference, "")).upper() == negative else 1.0
            position.append(sign * (degrees + minutes / 60 + seconds / 3600))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not all(math.isfinite(value) for value in position):
        return None
    return position[0], position[1]


def _on_sphere(latitude: float, longitude: float) -> np.ndarray:
    lat, lon = math.radians(latitude), math.radians(longitude)
    return EARTH_RADIUS * np.array([math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)])
