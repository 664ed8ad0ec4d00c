"""The errors that a user can cause, each with the exit code of the command line.

Every message is a sentence in three parts: what was given, what is allowed, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from numbers import Integral


class JaxgenError(Exception):
    """Base of everything jaxgen raises on purpose. ``exit_code`` is what the commands exit with."""

    exit_code = 1


class UsageError(JaxgenError, ValueError):
    """A flag, a configuration value or an argument that cannot be used (exit code 2)."""

    exit_code = 2


class DataError(JaxgenError, ValueError):
    """Data that is missing, malformed or too small (exit code 3)."""

    exit_code = 3


class CheckpointError(JaxgenError):
    """A run folder or checkpoint that is missing, damaged or of another shape (exit code 4)."""

    exit_code = 4


class DivergedError(JaxgenError):
    """Training produced a loss, gradient or weight that is not a finite number (exit code 5)."""

    exit_code = 5


class JaxgenWarning(UserWarning):
    """Something was left out or ignored. The commands print it on standard error."""


def choose(name: str, options: Iterable[str], what: str) -> str:
    """Return ``name`` if it is one of ``options``, else raise ``UsageError`` that suggests the nearest.

    ``what`` names the kind of thing, for example ``"cell"``.
    """
    known = sorted(options)
    if name in known:
        return name
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise UsageError(f"Unknown {what} {name!r}.{hint} Choose one of: {', '.join(known)}.")


def listed(names: Iterable[str], most: int = 10) -> str:
    """Returns names in quotes for a message; of more than ``most``, the first ones and how many are left."""
    names = list(names)
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 step", "1,200 steps"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def check_int(what: str, value: object, least: int, most: int | None = None) -> int:
    """Returns a Python or NumPy integer as an ``int``. Raises ``UsageError`` unless it lies in ``least``..``most``.

    ``what`` begins the message, for example ``"The batch size"``.
    """
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or number < least or (most is not None and number > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most:,}"
        raise UsageError(f"{what} is {value!r}: give a whole number {allowed}.")
    return number


def check_options(kind: type, options: Mapping[str, object], what: str, reserved: Iterable[str] = ()) -> None:
    """Raise ``UsageError`` unless every key of ``options`` is a field of the dataclass ``kind`` not in ``reserved``."""
    fields = sorted(set(getattr(kind, "__dataclass_fields__", {})) - set(reserved))
    unknown = sorted(set(options) - set(fields))
    if unknown:
        known = f"Its options are: {', '.join(fields)}." if fields else "It has no options."
        raise UsageError(f"The {what} has no option {', '.join(map(repr, unknown))}. {known}")
