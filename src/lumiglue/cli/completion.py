"""`lumiglue completion`."""

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from lumiglue.cli.terminal import say

_BASH = r"""# Completion of lumiglue for bash: eval "$(lumiglue completion bash)"
_lumiglue() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
  local command=${COMP_WORDS[1]} offered=""
  case "$command ${COMP_WORDS[2]}" in
    @pairs@) if [[ $COMP_CWORD -gt 2 ]]; then command="$command ${COMP_WORDS[2]}"; fi ;;
  esac
  if [[ $COMP_CWORD -eq 1 ]]; then
    offered="@first@ --help --version"
  elif [[ $COMP_CWORD -eq 2 && $current != -* ]]; then
    case "$command" in
@second@
    esac
  fi
  if [[ -z $offered ]]; then
    case "$command $previous" in
@choices@
    esac
  fi
  if [[ -z $offered && $current == -* ]]; then
    case "$command" in
@flags@
    esac
  fi
  COMPREPLY=()
  if [[ -n $offered ]]; then
    COMPREPLY=( $(compgen -W "$offered" -- "$current") )
  fi
}
complete -o default -F _lumiglue lumiglue
"""
_ZSH = """# Completion of lumiglue for zsh: eval "$(lumiglue completion zsh)"
autoload -Uz compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit
"""


def completion(shell: Positional[Literal["bash", "zsh"]]) -> int:
    """Print a script that completes commands, flags, choices and files: eval "$(lumiglue completion bash)".

    Put that line into ~/.bashrc (for zsh: into ~/.zshrc, with zsh).

    Args:
        shell: bash or zsh.
    """
    from lumiglue.cli import COMMANDS

    say(script(COMMANDS, shell))
    return 0


def script(commands: Mapping[str, Callable[..., int]], shell: Literal["bash", "zsh"]) -> str:
    """Makes the script from the commands' signatures. It starts no process, so that completion is instant."""
    pairs = [name for name in commands if " " in name]
    groups: dict[str, list[str]] = {}
    for name in pairs:
        first, second = name.split()
        groups.setdefault(first, []).append(second)
    choices, flags = [], []
    for name, command in commands.items():
        options = flags_of(command)
        flags.append(f'      "{name}") offered="{" ".join([*options, "--help"])}" ;;')
        choices += [f'      "{name} {flag}") offered="{" ".join(values)}" ;;' for flag, values in options.items() if values]
        choices += [f'      "{name} {name}") offered="{" ".join(values)}" ;;' for values in first_choices(command) if values]
    filled = {
        "pairs": "|".join(f'"{name}"' for name in pairs),
        "first": " ".join(dict.fromkeys(name.split()[0] for name in commands)),
        "second": "\n".join(f'      {first}) offered="{" ".join(second)}" ;;' for first, second in groups.items()),
        "choices": "\n".join(choices),
        "flags": "\n".join(flags),
    }
    text = _BASH
    for mark, value in filled.items():
        text = text.replace(f"@{mark}@", value)
    return text.rstrip() if shell == "bash" else _ZSH + text.split("\n", 1)[1].rstrip()


def flags_of(command: Callable[..., int]) -> dict[str, tuple[str, ...]]:
    """Returns the flags of a command with their choices, if they have any."""
    flags: dict[str, tuple[str, ...]] = {}
    for name, hint in _parameters(command).items():
        if _is_positional(hint):
            continue
        kind, aliases = _bare(hint)
        if dataclasses.is_dataclass(kind):
            flags |= flags_of(kind)  # pyright: ignore[reportArgumentType]
            continue
        flag = f"--{name.replace('_', '-')}"
        for spelling in (*aliases, flag):
            flags[spelling] = _choices(kind)
        if kind is bool:
            flags[f"--no-{name.replace('_', '-')}"] = ()
    return flags


def first_choices(command: Callable[..., int]) -> list[tuple[str, ...]]:
    """Returns the choices of the positional arguments."""
    return [_choices(_bare(hint)[0]) for hint in _parameters(command).values() if _is_positional(hint)]


def _parameters(command: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(command.__init__ if inspect.isclass(command) else command, include_extras=True)
    return {name: hint for name, hint in hints.items() if name not in ("return", "self")}


def _is_positional(hint: Any) -> bool:
    """tyro's Positional[...] is an annotation that carries one of its markers."""
    marks = get_args(Positional[Path])[1:]
    return get_origin(hint) is Annotated and any(mark in marks for mark in get_args(hint)[1:])


def _bare(hint: Any) -> tuple[Any, tuple[str, ...]]:
    """The type without its annotations, and the aliases in them."""
    aliases: tuple[str, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *marks = get_args(hint)
        aliases = tuple(alias for mark in marks for alias in getattr(mark, "aliases", None) or ())
        for mark in marks:  # tyro's arg(constructor=...): the dataclass that flags are read into
            if factory := getattr(mark, "constructor_factory", None):
                hint = factory()
    return hint, aliases


def _choices(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(dict.fromkeys(value for part in get_args(kind) for value in _choices(part)))
    if get_origin(kind) is Literal:
        return tuple(str(value) for value in get_args(kind))
    return ()
