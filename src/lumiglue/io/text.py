"""Text and JSON files from elsewhere, which may be missing, damaged or of another kind."""

import contextlib
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lumiglue.errors import InputError


def reason(error: BaseException) -> str:
    """The first line of another library's error message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def differences(before: Any, now: Any, most: int = 3) -> str:
    """Where two records differ, for a message.

    Args:
        before: A JSON value, or the text of one.
        now: Another.
        most: Number of differences to name.

    Returns:
        Text such as " (settings.seed 0, now 1)"; "" if there is nothing to name.
    """
    changes = list(_differing(before, now, ""))
    short = [(name, _short(a), _short(b)) for name, a, b in changes[:most]]
    texts = [f"{name} {a}, now {'others' if a == b else b}" for name, a, b in short]
    texts += [f"and {len(changes) - most} more"] if len(changes) > most else []
    return f" ({'; '.join(texts)})" if texts else ""


def _differing(before: Any, now: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    before, now = _unpacked(before), _unpacked(now)
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            yield from _differing(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif isinstance(before, list) and isinstance(now, list) and any(isinstance(x, dict) for x in (*before, *now)):
        for number, (a, b) in enumerate(zip_longest(before, now), start=1):
            yield from _differing(a, b, f"{name} {number}".strip())
    elif before != now and name:
        yield name, before, now


def _unpacked(value: Any) -> Any:
    """A record inside a record is stored as text."""
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} of them"
    text = json.dumps(value)
    return "none" if value is None else text if len(text) <= 80 else f"{text[:77]}..."


def read_text(path: str | Path, remedy: str) -> str:
    """Reads a text file in UTF-8, with or without a byte order mark.

    Args:
        path: The file.
        remedy: What to do if it cannot be read, the end of the error message.

    Raises:
        InputError: The file is missing, no regular file, or not UTF-8.
    """
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
    """Reads a JSON file.

    Args:
        path: The file.
        remedy: What to do if it cannot be read, the end of the error message.

    Raises:
        InputError: The file cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path, remedy))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({reason(error)}); {remedy}") from None
