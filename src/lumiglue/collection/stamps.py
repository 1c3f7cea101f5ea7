"""Which content of a photo something was made from, to find photos that were replaced under the same name."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Stamp:
    """The content of a photo's file.

    Attributes:
        size: In bytes.
        mtime_ns: Time of the last modification, in nanoseconds.
        sha256: Hash of the content.
    """

    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Stamp | None":
        """The stamp of a file; None if it cannot be read."""
        try:
            state = path.stat()
            return cls(state.st_size, state.st_mtime_ns, _sha256(path))
        except (OSError, ValueError):
            return None

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], prefix: str = "photo") -> "Stamp | None":
        """Reads what `attributes` wrote; None if it is not there, as in files of hloc."""
        try:
            size, mtime_ns, sha256 = (attributes[f"{prefix}_{field}"] for field in ("size", "mtime_ns", "sha256"))
            return cls(int(size), int(mtime_ns), str(sha256))
        except (KeyError, TypeError, ValueError):
            return None

    def attributes(self, prefix: str = "photo") -> dict[str, int | str]:
        """The stamp as attributes of an HDF5 group."""
        return {f"{prefix}_size": self.size, f"{prefix}_mtime_ns": self.mtime_ns, f"{prefix}_sha256": self.sha256}

    def fits(self, path: Path) -> bool:
        """Whether the file has this content. It is read only if its size or time differ."""
        try:
            state = path.stat()
            return (state.st_size, state.st_mtime_ns) == (self.size, self.mtime_ns) or (
                state.st_size == self.size and _sha256(path) == self.sha256
            )
        except OSError:
            return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
