"""Docstrings name parameters inside sentences ("scores: n, larger is better. scales: ..."); the reference lists them."""

import re
from typing import Any

import griffe


class Parameters(griffe.Extension):
    """Turns such paragraphs into lists."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Those of a function."""
        self._list(func, {parameter.name for parameter in func.parameters})

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Fields of a dataclass, or what the constructor takes."""
        names = {name for name, member in cls.members.items() if member.is_attribute}
        constructor = cls.members.get("__init__")
        if isinstance(constructor, griffe.Function):
            names |= {parameter.name for parameter in constructor.parameters}
        self._list(cls, names)

    def _list(self, thing: griffe.Object, names: set[str]) -> None:
        if thing.docstring and names:
            name = "(?:" + "|".join(sorted(map(re.escape, names))) + ")"
            begins = re.compile(rf"(?:^|(?<=[.;)] ))({name}(?:, {name})*): ")
            paragraphs = thing.docstring.value.split("\n\n")
            thing.docstring.value = "\n\n".join(_as_list(paragraph, begins) for paragraph in paragraphs)


def _as_list(paragraph: str, begins: re.Pattern[str]) -> str:
    """The paragraph, or an item for each parameter where it begins with one."""
    text = re.sub(r"\s*\n\s*", " ", paragraph.strip())
    if not begins.match(text):
        return paragraph
    pieces = begins.split(text)[1:]
    return "\n".join(f"- **{names}**: {said.strip()}" for names, said in zip(pieces[::2], pieces[1::2], strict=True))
