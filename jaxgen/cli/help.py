"""The flags of a command, and its help text, laid out for the width of the terminal."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from jaxgen.cli.common import Answer, escape_controls
from jaxgen.errors import flag_of

#: Help is laid out for at least and at most this many columns.
NARROWEST, WIDEST = 50, 120
#: The longest list of choices that stands beside the flag; a longer one stands in the text.
MAX_CHOICES = 26
#: A command in an indented example, after a pipe or between backticks.
_COMMAND = re.compile(r"(?m)(?:(?<=`)|(?<=^    )|(?<=\| ))(?:python (train|sample)\.py|jaxgen ([a-z]+))\b")


class Flag(NamedTuple):
    """A flag of a command, or an argument without a name."""

    name: str
    kind: Any  # its type
    default: Any
    help: str
    metavar: str | None = None  # what the help calls its value. Default: see ``shown_metavar``
    positional: bool = False  # an argument without a name
    negatable: bool = True  # of type bool: ``--no-NAME`` takes it back
    group: str = "Output"  # its title in the help
    choices: Sequence[str] = ()

    @property
    def written(self) -> str:
        """The flag as it is written on the command line."""
        return flag_of(self.name)

    @property
    def is_switch(self) -> bool:
        """Whether it has no value."""
        parts = type_parts(self.kind)
        return bool in parts and dict not in parts

    @property
    def opposite(self) -> str | None:
        """The flag that takes a switch back."""
        return f"--no-{self.written[2:]}" if self.is_switch and self.negatable else None

    @property
    def names_run(self) -> bool:
        """Whether its value is the folder of a run."""
        return self.name in ("run", "runs", "init_from")

    @property
    def shown_metavar(self) -> str:
        """What the help calls its value: the choices if they are few, a number, or the last word of its name."""
        choices, parts = "{" + ",".join(self.choices) + "}", type_parts(self.kind)
        if self.metavar is not None or self.is_switch:
            return self.metavar or ""
        if dict in parts:
            return "NAME VALUE ..."
        if self.choices and len(choices) <= MAX_CHOICES:
            return choices
        if self.names_run:
            return "RUN"
        numbers = [name for kind, name in ((int, "N"), (float, "X")) if kind in parts and str not in parts]
        return (numbers or [self.name.rpartition("_")[2].upper()])[0] + " ..." * (tuple in parts)

    @property
    def text(self) -> str:
        """Its help with the choices and the default."""
        parts = [" ".join(self.help.split())]
        if self.choices and self.shown_metavar != "{" + ",".join(self.choices) + "}":
            parts.append(f"One of: {', '.join(self.choices)}.")
        if self.default is True:
            parts.append("Default: yes.")
        elif self.default is not None and self.default is not False and self.default not in ("", (), {}):
            parts.append(f"Default: {_shown(self.default)}.")
        return " ".join(filter(None, parts))


def type_parts(kind: Any) -> set[Any]:
    """The types that a type consists of: ``tuple`` and ``str`` of ``tuple[str, ...] | None``, for example."""
    return {get_origin(kind) or kind}.union(*map(type_parts, get_args(kind)))


def _shown(value: Any) -> str:
    """A default as the command line would give it."""
    if isinstance(value, dict):
        return " ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, (tuple, list)):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def terminal_width() -> int:
    """The columns that a help text may fill; 80 if there is no terminal."""
    return max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST))


def program(command: str) -> str:
    """How the user started jaxgen, for any of its commands: as a script, a module or the installed program."""
    started = Path(sys.argv[0])
    if command in ("train", "sample") and started.name in ("train.py", "sample.py"):
        return f"python {shlex.quote(str(started.with_name(f'{command}.py')))}"
    module = started.parts[-2:] == ("jaxgen", "__main__.py")
    return f"{'python -m ' if module else ''}jaxgen {command}"


def as_typed(text: str) -> str:
    """``text`` with all commands as the user starts them."""
    return _COMMAND.sub(lambda found: program(found[1] or found[2]), text)


class Help(Answer):
    """The help of a command, which ends it.

    Args:
        prog: The command, with the arguments that stand before its flags.
        description: What stands above the flags. Paragraphs are wrapped; indented lines have up to two columns.
        flags: All of its flags.
        common: The names of the commonest flags, which stand alone unless ``everything`` is asked for.
    """

    def __init__(self, prog: str, description: str, flags: Sequence[Flag], common: Sequence[str], everything: bool):
        super().__init__()
        self.prog, self.description, self.flags = prog, description, flags
        self._common = [] if everything else [flag for name in common for flag in flags if flag.name == name]

    @property
    def text(self) -> str:
        """The help for the terminal."""
        from rich.console import Console
        from rich.text import Text

        width = terminal_width()
        command = as_typed(f"`{self.prog}`").strip("`")
        arguments = [flag for flag in self.flags if flag.positional]
        usage = " ".join([command, *(flag.shown_metavar for flag in arguments), "[FLAGS]"])
        parts = [("", f"usage: {usage}\n\n"), *_describe(as_typed(self.description), width)]
        if arguments:
            parts += [("bold", "\nArguments\n"), *_rows(arguments, width)]
        groups: dict[str, list[Flag]] = {}
        for flag in self._common or self.flags:
            if not flag.positional:
                groups.setdefault("The commonest flags" if self._common else flag.group, []).append(flag)
        for title, members in groups.items():
            parts += [("bold", f"\n{title}\n"), *_rows(members, width)]
        if self._common:
            number = len(self.flags) - len(arguments)
            parts.append(("", f"\nAll {number} flags: {command.partition(' [')[0]} --help-all\n"))
        assembled = Text.assemble(*((escape_controls(text), style) for style, text in parts))
        # Not standard output itself, whose errors ``end_output`` expects.
        buffer = io.StringIO()
        console = Console(file=buffer, force_terminal=sys.stdout.isatty(), highlight=False)
        console.print(assembled, end="", soft_wrap=True)
        return buffer.getvalue()


def _rows(flags: Iterable[Flag], width: int) -> Iterator[tuple[str, str]]:
    return two_columns([(_left(flag), flag.text) for flag in flags], width, indent=2, limit=width * 3 // 10)


def _left(flag: Flag) -> str:
    """What stands on the left of the help of a flag; a switch that may be on has its opposite too."""
    if flag.positional:
        return flag.shown_metavar
    if flag.opposite is not None and flag.default is not False:
        return f"{flag.written}, {flag.opposite}"
    return f"{flag.written} {flag.shown_metavar}".strip()


def _describe(text: str, width: int) -> Iterator[tuple[str, str]]:
    """Wrapped paragraphs, and blocks of indented lines in two columns, as (style, text)."""
    for block in re.findall(r"(?:^    .*\n?)+|(?:^\S.*\n?)+|^\n", text, re.MULTILINE):
        if not block.startswith("    "):
            yield "", wrapped(block, width) + "\n"
            continue
        rows: list[tuple[str, str]] = []
        for line in block.splitlines():
            left, _, right = line.strip().partition("  ")
            if line.startswith("     ") and rows:  # it continues the right column
                rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}")
            else:
                rows.append((left, right.strip()))
        yield from two_columns(rows, width, indent=4, limit=width - 26)


def two_columns(rows: Sequence[tuple[str, str]], width: int, indent: int, limit: int) -> Iterator[tuple[str, str]]:
    """Lines of two columns, as (style, text). What is longer than ``limit`` on the left stands above its right."""
    start = indent + 2 + max((len(left) for left, _ in rows if len(left) <= limit), default=limit)
    for left, right in rows:
        yield "bold", " " * indent + left
        gap = start - indent - len(left)
        if right:
            yield "", (" " * gap if gap >= 2 else "\n" + " " * start) + wrapped(right, width, start)
        yield "", "\n"


def wrapped(text: str, width: int, start: int = 0) -> str:
    """``text`` in lines that end before ``width`` and whose words are whole; all but the first are indented."""
    lines = textwrap.wrap(text, width - start - 1, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * start).join(lines)
