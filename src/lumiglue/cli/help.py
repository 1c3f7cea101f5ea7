"""The help of a command's flags: their documentation as running text, without `None` as a type or a default."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import docstring_parser
from tyro.conf import arg

_METAVARS = {Path: "PATH", str: "STR", int: "INT", float: "FLOAT"}


def explained(command: Callable[..., int]) -> Callable[..., int]:
    """A command that tyro describes in the words of its docstring, each flag's in one paragraph."""

    @functools.wraps(command)
    def run(*arguments: Any, **named: Any) -> int:
        return command(*arguments, **named)

    del run.__wrapped__  # else tyro reads the annotations of the command
    run.__annotations__ = _explained(command)
    run.__signature__ = inspect.signature(command)  # pyright: ignore[reportAttributeAccessIssue]
    return run


@functools.cache
def explained_fields(flags: type) -> type:
    """A dataclass of flags, changed in place: the same for its fields."""
    flags.__annotations__ = _explained(flags)
    return flags


def _explained(described: Any) -> dict[str, Any]:
    """The annotations of a command's arguments, or of the fields of a dataclass, with their help."""
    entries = {p.arg_name: p.description for p in docstring_parser.parse_from_object(described).params}
    annotations = typing.get_type_hints(described, include_extras=True)
    for name, annotation in annotations.items():
        bare = typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation
        if isinstance(bare, type) and is_dataclass(bare):
            explained_fields(bare)
        elif name != "return":
            text = " ".join((entries.get(name) or "").split())
            shown = arg(help=text or None, metavar=_metavar(bare), help_behavior_hint=_default)
            annotations[name] = Annotated[annotation, shown]
    return annotations


def _metavar(annotation: Any) -> str | None:
    """How values are shown where tyro would show None among them, or brackets in brackets; None leaves it to tyro."""
    if annotation == tuple[Path, ...]:
        return "PATH [PATH ...]"
    if typing.get_origin(annotation) not in (Union, types.UnionType):
        return None
    kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
    if len(kinds) != 1:
        return None
    if typing.get_origin(kinds[0]) is Literal:
        return "{" + ",".join(map(str, typing.get_args(kinds[0]))) + "}"
    parts = typing.get_args(kinds[0]) if typing.get_origin(kinds[0]) is tuple else kinds
    if len(parts) == 2 and parts[1] is Ellipsis:
        return f"{_METAVARS[parts[0]]} [{_METAVARS[parts[0]]} ...]" if parts[0] in _METAVARS else None
    names = [_METAVARS.get(part) for part in parts]
    return " ".join(filter(None, names)) if all(names) else None


def _default(shown: str) -> str:
    return "" if shown in ("", "None") else f"(default: {shown})"
