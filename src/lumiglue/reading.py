"""Files that others wrote, or that were damaged on the way: text, JSON and HDF5, checked before they are trusted."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lumiglue.errors import InputError

# Whatever a damaged HDF5 file makes h5py and NumPy raise.
HDF5_ERRORS = (OSError, LookupError, ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError, MemoryError)
# A file of a few kB may claim an array of any size.
LARGEST_ARRAY = 2**30  # bytes


def reason(error: BaseException) -> str:
    """What another library says of a failure, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def read_text(path: str | Path, remedy: str) -> str:
    """A text file in UTF-8, with or without a byte order mark. Raises InputError, which ends in the remedy."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise InputError(f"{path} is not a file; {remedy}")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {remedy}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}); {remedy}") from None


def read_json(path: str | Path, remedy: str) -> Any:
    """A JSON file. Raises InputError, which ends in the remedy."""
    try:
        return json.loads(read_text(path, remedy))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({reason(error)}); {remedy}") from None


def read_numbers(group: h5py.Group, name: str) -> np.ndarray:
    """A whole data set of numbers. KeyError where it is missing, ValueError where it is something else, or too large."""
    dataset: Any = group.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise KeyError(f"{name} is missing")
    if dataset.shape is None or dataset.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds no numbers")
    if dataset.size * dataset.dtype.itemsize > LARGEST_ARRAY:
        raise ValueError(f"{name} has shape {dataset.shape}, more than {LARGEST_ARRAY >> 20} MiB")
    return np.asarray(dataset[()])
