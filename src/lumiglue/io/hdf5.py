"""HDF5 files that grow in parts, so that an interrupted job resumes and nothing written is lost.

FILE.parts/ has the finished parts, each written atomically. In the end they are joined to FILE, in hloc's layout.
"""

import hashlib
import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from filelock import FileLock, Timeout

from lumiglue.errors import InputError
from lumiglue.io.atomic import disk_is_full, has_room, replacing
from lumiglue.io.text import differences, read_text, reason

# What h5py and NumPy raise for a damaged HDF5 file.
HDF5_ERRORS = (OSError, LookupError, ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError, MemoryError)
# A file of a few kB may claim an array of any size.
LARGEST_ARRAY = 2**30  # bytes

NAMES = "names"


AnyReader = TypeVar("AnyReader", bound="Reader")


class Reader:
    """An HDF5 file, open for reading.

    Attributes:
        path: The file.
        record: What the file was made from, as text.
        made: Identifies the file: a file that is made again gets another value, one that grows keeps it.
        revised: Whether groups were removed after the file was first finished, to be made again.
        written_by: The command that writes such files, for messages.
    """

    written_by = "lumiglue"

    def __init__(self, path: str | Path) -> None:
        """Opens the file.

        Raises:
            InputError: It is missing or not an HDF5 file.
        """
        self.path = Path(path)
        if not self.path.is_file():
            wrong = "is a folder" if self.path.is_dir() else "does not exist"
            raise InputError(f"{self.path} {wrong}; give a file that `{self.written_by}` wrote")
        with _readable(self.path, self.written_by):
            self._file = h5py.File(self.path, "r")
            self.record = str(self._file.attrs.get("record", ""))
            self.made = str(self._file.attrs.get("made", ""))
            self.revised = bool(self._file.attrs.get("revised", False))

    def __enter__(self: "AnyReader") -> "AnyReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class GrowingFile:
    """Adds named groups to a file, which need not exist yet. One process at a time.

    Attributes:
        path: The file.
        record: What the file is made from, as text. A file with another record is not continued.
        folder: The folder of the parts.
    """

    def __init__(self, path: str | Path, record: str) -> None:
        """Opens the file and locks it.

        Raises:
            InputError: The file was started with another record, or another process is writing it.
        """
        self.path, self.record = Path(path), record
        self._agree(self.path, _record_of(self.path) if self.path.exists() else None)
        self.folder = self.path.with_name(self.path.name + ".parts")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(f"another process is writing {self.path}; wait for it, or choose another name") from None
        try:
            record_file = self.folder / "record.json"
            remedy = f"delete {self.folder} to start again"
            self._agree(self.folder, read_text(record_file, remedy) if record_file.exists() else None)
            record_file.write_text(record, encoding="utf-8")
            self._in_parts: set[str] = {name for part in self._parts() for name in _names(part)}
        except BaseException:
            self._lock.release()
            raise

    def _agree(self, where: Path, record: str | None) -> None:
        if record is not None and record != self.record:
            raise InputError(
                f"{where} was made with other settings{differences(record, self.record)}; delete it to start again, or "
                "choose another name"
            )

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of the names that are neither in the file nor in a part."""
        missing = [name for name in names if name not in self._in_parts]
        if not self.path.exists():
            return missing
        with _readable(self.path), h5py.File(self.path, "r") as file:
            return [name for name in missing if name not in file]

    def attributes(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The attributes of groups in the file and the parts, by name; a missing group is left out."""
        names, values = set(names), {}
        for path in self._files():
            here = names if path == self.path else names & set(_names(path))
            with _readable(path), h5py.File(path, "r") as file:
                values |= {name: dict(file[name].attrs) for name in here if name in file}
        return values

    def notes(self, attribute: str) -> dict[str, str]:
        """An attribute of every group in the file and the parts, by name; "" for a group without it."""
        values: dict[str, str] = {}

        def note(name: str, item: object) -> None:
            if isinstance(item, h5py.Group):
                values[name] = str(item.attrs.get(attribute, ""))

        for path in self._files():
            with _readable(path), h5py.File(path, "r") as file:
                file.visititems(note)
        return values

    def discard(self, names: Iterable[str]) -> None:
        """Removes groups from the file and the parts, so that they are missing again.

        Raises:
            InputError: The disk is full. The file and the parts are intact.
        """
        names = set(names)
        for path in self._files():
            with _readable(path), h5py.File(path, "r") as file:
                present = [name for name in names if name in file]
            if not present:
                continue
            if not has_room(path, path.stat().st_size):
                raise InputError(f"the disk of {path} is full; make room and run the same command again to continue")
            with replacing(path, durable=True) as unfinished:
                shutil.copyfile(path, unfinished)
                with _readable(path), h5py.File(unfinished, "a") as file:
                    for name in present:
                        del file[name]
                    if path == self.path:
                        file.attrs["revised"] = True
                    else:
                        rest = [name for name in _names(path) if name not in names]
                        del file[NAMES]
                        file.create_dataset(NAMES, data=rest, dtype=h5py.string_dtype())
        self._in_parts -= names

    def _files(self) -> list[Path]:
        return [*self._parts(), *([self.path] if self.path.exists() else [])]

    def __enter__(self) -> "GrowingFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.h5"))

    @contextmanager
    def part(self) -> Iterator[Callable[[str], h5py.Group]]:
        """Writes a part.

        Yields:
            A function that creates the group of a name. All groups are on the disk when the block ends.

        Raises:
            InputError: The disk is full. Earlier parts are intact.
        """
        names: list[str] = []
        content = io.BytesIO()
        try:
            with h5py.File(content, "w") as file:  # in memory, because HDF5 crashes on a full disk

                def group(name: str) -> h5py.Group:
                    names.append(name)
                    return file.create_group(name)

                yield group
                file.create_dataset(NAMES, data=names, dtype=h5py.string_dtype())
            # One more than the last, not the count: a damaged part may have been deleted.
            last = max((int(part.stem.removeprefix("part-")) for part in self._parts()), default=-1)
            with replacing(self.folder / f"part-{last + 1:06d}.h5", durable=True) as unfinished:
                unfinished.write_bytes(content.getbuffer())
        except (OSError, RuntimeError) as error:
            if disk_is_full(error):
                raise InputError(
                    f"the disk of {self.path} is full; make room and run the same command again to continue"
                ) from None
            raise
        self._in_parts |= set(names)

    def finish(self) -> None:
        """Joins the parts to the file and deletes them.

        Raises:
            InputError: The disk is full. The file and the parts are intact.
        """
        size = sum(path.stat().st_size for path in self._files())
        if self._in_parts and not has_room(self.path, size):
            raise InputError(f"the disk of {self.path} is full; make room and run the same command again to continue")
        if self._in_parts or not self.path.exists():
            with replacing(self.path, durable=True) as unfinished:
                self._join(unfinished)
        self._remove_parts()

    def _join(self, out: Path) -> None:
        """Writes the file's groups and those of the parts to `out`."""
        if self.path.exists():
            shutil.copyfile(self.path, out)
        with _readable(out), h5py.File(out, "a" if self.path.exists() else "w") as file:
            file.attrs["record"] = self.record
            if "made" not in file.attrs:
                file.attrs["made"] = _digest(self._parts())
            for part in self._parts():
                with _readable(part), h5py.File(part, "r") as source:
                    for name in _names(part):
                        if name in file:  # joined by an earlier run that was killed before it removed the parts
                            continue
                        parent = file.require_group(name.rpartition("/")[0]) if "/" in name else file
                        source.copy(source[name], parent, name.rpartition("/")[2])

    def _remove_parts(self) -> None:
        """Deletes the parts, then the lock, so that no other process starts in a folder that is being deleted."""
        lock = self.folder / "lock"
        for path in self.folder.iterdir():
            if path != lock:
                path.unlink()
        try:
            lock.unlink(missing_ok=True)
        except PermissionError:  # Windows does not delete open files
            self._lock.release()
            lock.unlink(missing_ok=True)
        with suppress(OSError):  # another process has just started
            self.folder.rmdir()
        self._lock.release()


def _record_of(path: Path) -> str:
    with Reader(path) as file:
        return file.record


def _names(part: Path) -> list[str]:
    with _readable(part), h5py.File(part, "r") as file:
        dataset: Any = file[NAMES]
        return [name.decode() for name in dataset[()].tolist()]


@contextmanager
def _readable(path: Path, written_by: str = "") -> Iterator[None]:
    """Turns errors of HDF5 into InputError; `written_by` is the command that writes such files."""
    try:
        yield
    except InputError:
        raise
    except HDF5_ERRORS as error:
        if disk_is_full(error):
            raise InputError(f"the disk of {path} is full; make room and run the same command again to continue") from None
        if written_by:
            raise InputError(f"{path} is not one of `{written_by}`, or is damaged ({reason(error)})") from None
        raise InputError(
            f"{path} cannot be read as HDF5 ({reason(error)}); copy it again, or delete it to start again"
        ) from None


def _digest(parts: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def read_numbers(group: h5py.Group, name: str) -> np.ndarray:
    """Reads a whole numeric dataset.

    Raises:
        KeyError: It is missing.
        ValueError: It is not numeric, or larger than `LARGEST_ARRAY`.
    """
    dataset: Any = group.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise KeyError(f"{name} is missing")
    if dataset.shape is None or dataset.dtype.kind not in "biuf":
        raise ValueError(f"{name} is not numeric")
    if dataset.size * dataset.dtype.itemsize > LARGEST_ARRAY:
        raise ValueError(f"{name} has shape {dataset.shape}, more than {LARGEST_ARRAY >> 20} MiB")
    return np.asarray(dataset[()])
