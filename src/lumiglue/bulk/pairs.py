"""Which pairs of a collection to match: all, neighbours in a sequence, near ones by position, similar ones, or a file's."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from lumiglue.errors import InputError

Pair = tuple[str, str]
EARTH_RADIUS = 6_371_000.0


def exhaustive(names: Sequence[str]) -> list[Pair]:
    """Every image with every other."""
    return list(combinations(names, 2))


def sequential(names: Sequence[str], overlap: int = 10) -> list[Pair]:
    """Each image with the `overlap` next ones in order."""
    if overlap < 1:
        raise InputError(f"overlap is {overlap}; give at least 1")
    return [(names[i], names[j]) for i in range(len(names)) for j in range(i + 1, min(i + 1 + overlap, len(names)))]


def read_pairs(path: str | Path, names: Iterable[str] | None = None) -> list[Pair]:
    """Two names a line, as hloc writes them; # begins a comment. With `names`, raises InputError for one not among them."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a file with two image names on each line")
    known, pairs = None if names is None else set(names), []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise InputError(f"{path}, line {number}: {len(words)} words; give two image names")
        for word in words:
            if known is not None and word not in known:
                raise InputError(f"{path}, line {number}: {word!r} is not among the images")
        pairs.append((words[0], words[1]))
    return unique(pairs)


def write_pairs(path: str | Path, pairs: Sequence[Pair]) -> None:
    Path(path).write_text("".join(f"{a} {b}\n" for a, b in pairs))


def unique(pairs: Iterable[Pair]) -> list[Pair]:
    """Without repetitions, the other way round included, and without an image paired with itself."""
    seen: dict[frozenset[str], Pair] = {}
    for a, b in pairs:
        if a != b:
            seen.setdefault(frozenset((a, b)), (a, b))
    return list(seen.values())


def by_position(positions: Mapping[str, tuple[float, float]], neighbours: int = 20, metres: float = 100.0) -> list[Pair]:
    """Each image with its nearest ones, at most so many and so far; positions are (latitude, longitude) in degrees."""
    names = list(positions)
    points = np.array([_on_sphere(*positions[name]) for name in names])
    pairs = []
    for i, name in enumerate(names):
        distance = np.linalg.norm(points - points[i], axis=1)
        nearest = [int(j) for j in np.argsort(distance, kind="stable") if j != i and distance[j] <= metres]
        pairs += [(name, names[j]) for j in nearest[:neighbours]]
    return unique(pairs)


def read_position(path: str | Path) -> tuple[float, float] | None:
    """Latitude and longitude of a photo's EXIF, in degrees; None where it has none."""
    try:
        with Image.open(path) as image:
            gps = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    except OSError:
        return None
    try:
        found = []
        for value, reference, negative in ((2, 1, "S"), (4, 3, "W")):
            degrees, minutes, seconds = (float(part) for part in gps[value])
            sign = -1.0 if str(gps.get(reference, "")).upper() == negative else 1.0
            found.append(sign * (degrees + minutes / 60 + seconds / 3600))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not all(math.isfinite(value) for value in found):
        return None
    return found[0], found[1]


def _on_sphere(latitude: float, longitude: float) -> np.ndarray:
    lat, lon = math.radians(latitude), math.radians(longitude)
    return EARTH_RADIUS * np.array([math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)])
