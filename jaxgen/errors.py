"""The errors that a user can cause, each with the exit code of the command line.

Every message is a sentence in three parts: what was given, what is allowed, what to do.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any, TypeVar

T = TypeVar("T")

#: Values of flags that occur in messages: ``--level byte`` is ``level='byte'`` in Python.
_VALUES = (
    "accept|auto|bpe|byte|carried|char|cold|constant|documents|error|file|keep|line|no|none|refuse|rnn|rollback|row|skip"
    "|stream|windows|word|yes"
)
#: A command of training; quoted text, which is left as it is; or a flag, perhaps with a value.
_FLAGS = re.compile(
    r"""`python train\.py(?P<command>[^`\n]*)`"""
    r"""|(?<!\w)(?P<quoted>'[^'\n]*'|`(?!--)[^`\n]*`|"[^"\n]*")"""
    r"""|(?<![\w/.=-])--(?P<flag>[a-z][a-z0-9_-]*)"""
    rf"""(?: (?:(?P<number>[0-9][0-9.e-]*(?<!\.)\b|[A-Z]+\b)|(?P<word>(?:{_VALUES})\b|pretrained:\w+)))?"""
)
#: A word of a command as a shell reads it, and a quoted part of one.
_WORDS, _QUOTED = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+"""), re.compile("""'([^']*)'|"([^"]*)\"""")
_flags_are_shown = False


@contextmanager
def show_flags() -> Iterator[None]:
    """Messages name settings as flags (``--batch-size``), as commands need it, and not as in Python."""
    global _flags_are_shown
    before, _flags_are_shown = _flags_are_shown, True
    try:
        yield
    finally:
        _flags_are_shown = before


def flags_are_shown() -> bool:
    """Whether a command is running, so that messages name flags and commands instead of Python's settings and calls."""
    return _flags_are_shown


def for_caller(message: str) -> str:
    """``message`` for a command, or for Python with flags as arguments (``batch_size=16``) and calls for commands."""
    return message if _flags_are_shown else _FLAGS.sub(_for_python, message)


def _for_python(found: re.Match[str]) -> str:
    """What replaces a match of ``_FLAGS``."""
    if found["quoted"]:
        return found["quoted"]
    if not found["flag"]:
        return f"`{_call(found['command'])}`"
    value = found["number"] or (found["word"] and repr(found["word"]))
    return _argument(found["flag"], value) if value else found["flag"].replace("-", "_")


def _argument(flag: str, value: str) -> str:
    """A flag with a value as an argument in Python."""
    if flag == "plugin":
        return f"jaxgen.load_plugin({value})"
    return "resume=True" if flag == "resume" else f"{flag.replace('-', '_')}={value}"


def _call(arguments: str) -> str:
    """The call in Python for the command ``python train.py`` with these arguments, without its plugins."""
    words = [_QUOTED.sub(r"\1\2", word) for word in _WORDS.findall(arguments)]
    task = [repr(words.pop(0))] if len(words) % 2 else []
    pairs = [(flag.removeprefix("--"), value) for flag, value in zip(words[::2], words[1::2]) if flag != "--plugin"]
    values = [(flag, value if re.fullmatch("[0-9.]+|[A-Z]+", value) else repr(value)) for flag, value in pairs]
    given = [*(f"task={each}" for each in task), *(_argument(*pair) for pair in values)]
    return f"jaxgen.train({', '.join(given) or '...'})"


class JaxgenError(Exception):
    """Base of everything jaxgen raises on purpose. ``exit_code`` is what the commands exit with.

    Messages are written with the flags of the command line; outside of a command they are shown as arguments.

    Example:
        >>> try:
        ...     jaxgen.load("nowhere")
        ... except jaxgen.JaxgenError as error:
        ...     print(type(error).__name__, error.exit_code)
        CheckpointError 4
    """

    exit_code = 1

    def __str__(self) -> str:
        return for_caller(super().__str__())


class UsageError(JaxgenError, ValueError):
    """A flag, a configuration value or an argument that cannot be used (exit code 2).

    Example:
        >>> jaxgen.Linear(1.5, 0.5, steps=0)
        Traceback (most recent call last):
        jaxgen.errors.UsageError: The number of steps of a schedule is 0: give a whole number from 1 to 10,000,000.
    """

    exit_code = 2


class DataError(JaxgenError, ValueError):
    """Data that is missing, malformed or too small (exit code 3).

    Example:
        >>> jaxgen.prepare(["missing.txt"])
        Traceback (most recent call last):
        jaxgen.errors.DataError: ...
    """

    exit_code = 3


class CheckpointError(JaxgenError):
    """A run folder or checkpoint that is missing, damaged or of another shape (exit code 4).

    Example:
        >>> jaxgen.load("nowhere")
        Traceback (most recent call last):
        jaxgen.errors.CheckpointError: nowhere is not a run: it does not exist. ...
    """

    exit_code = 4


class DivergedError(JaxgenError):
    """Training produced a loss, gradient or weight that is not a finite number (exit code 5)."""

    exit_code = 5


class JaxgenWarning(UserWarning):
    """Something was left out or ignored. The commands print it on standard error."""

    def __str__(self) -> str:
        return for_caller(super().__str__())


def near_name(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that was probably meant.

    It begins with ``name``, has the same letters, or is spelt almost like it.
    """
    plain = {each.lstrip("-/").lower(): each for each in known}
    given = name.lstrip("-/").lower()
    longer = sorted((each for each in plain if len(given) > 2 and each.startswith(given)), key=len)
    swapped = [each for each in plain if sorted(each) == sorted(given)]
    found = longer or swapped or difflib.get_close_matches(given, plain, n=1, cutoff=0.7)
    return plain[found[0]] if found else None


def choose(name: str, options: Iterable[str], what: str) -> str:
    """Return ``name`` if it is one of ``options``, else raise ``UsageError`` that suggests the nearest.

    ``what`` names the kind of thing, for example ``"cell"``.
    """
    known = sorted(options)
    if isinstance(name, str) and name in known:
        return name
    nearest = near_name(str(name), known)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    plugin = f" No plugin that is loaded has a class of this name with all methods of a {what}." * (":" in str(name))
    raise UsageError(f"Unknown {what} {name!r}.{hint}{plugin} Choose one of: {', '.join(known)}.")


def flag_of(setting: str) -> str:
    """The flag of a setting: ``--batch-size`` for ``batch_size``."""
    return f"--{setting.replace('_', '-')}"


def listed(names: Iterable[str], most: int = 10) -> str:
    """Returns names in quotes for a message; of more than ``most``, the first ones and how many are left."""
    names = list(names)
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 step", "1,200 steps"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def to_python(value: Any) -> Any:
    """Returns an array without axes, of NumPy or JAX, as a Python number; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def is_iterable(value: object) -> bool:
    """Whether a loop over ``value`` works. Arrays without axes only look so."""
    return isinstance(value, Iterable) and getattr(value, "shape", None) != ()


def check_int(what: str, value: object, least: int, most: int | None = None) -> int:
    """Returns a Python or NumPy integer as an ``int``. Raises ``UsageError`` unless it lies in ``least``..``most``.

    ``what`` begins the message, for example ``"The batch size"``.
    """
    value = to_python(value)
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or number < least or (most is not None and number > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most:,}"
        raise UsageError(f"{what} is {value!r}: give a whole number {allowed}.")
    return number


def check_text(what: str, value: object) -> str:
    """Returns a text, and "" for None. Raises ``UsageError``, which begins with ``what``, for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    raise UsageError(f"{what} is of the type {type(value).__name__}: give one text (str).")


def check_kind(what: str, value: T, kind: Any, right: str) -> T:
    """Returns ``value`` if it is a ``kind``. Raises ``UsageError`` that names the ``right`` call for anything else."""
    if is_iterable(value) if kind is Iterable else isinstance(value, kind):
        return value
    shown = repr(value)
    raise UsageError(f"{what} got {shown if len(shown) <= 100 else f'{shown[:100]} …'}: give {right}.")


def check_options(kind: type, options: Mapping[str, object], what: str, reserved: Iterable[str] = ()) -> None:
    """Raise ``UsageError`` unless every key of ``options`` is a field of the dataclass ``kind`` not in ``reserved``."""
    own = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    fields = sorted(own - set(reserved))
    unknown = sorted(set(options) - set(fields))
    if unknown:
        known = f"Its options are: {', '.join(fields)}." if fields else "It has no options."
        raise UsageError(f"The {what} has no option {', '.join(map(repr, unknown))}. {known}")
