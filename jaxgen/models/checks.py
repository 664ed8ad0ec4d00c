"""Sizes and rates of a model, checked when it is made: before anything is traced, with a sentence for the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxgen.cells import FORMS, PRECISIONS, Cell
from jaxgen.errors import UsageError, choose


def check_sizes(what: str, sizes: Mapping[str, tuple[Any, int]]) -> None:
    """Raise ``UsageError`` unless every ``name: (size, least)`` is a whole number of at least ``least``.

    ``what`` names the thing that has them, for example ``"encoder"``.
    """
    for name, (size, least) in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < least:
            raise UsageError(f"The {what}'s `{name}` is {size!r}: it must be a whole number of {least} or more.")


def check_rates(what: str, rates: Mapping[str, float]) -> None:
    """Raise ``UsageError`` unless every rate of dropout is at least 0 and less than 1."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UsageError(f"The {what}'s `{name}` is {rate!r}: it must be at least 0 and less than 1.")


def is_own_cell(cell: Callable[..., Any]) -> bool:
    """Whether ``cell``, a class or a ``functools.partial`` of one, makes jaxgen cells."""
    kind = getattr(cell, "func", cell)
    return isinstance(kind, type) and issubclass(kind, Cell)


def cell_name(cell: Callable[..., Any]) -> str:
    """What ``cell``, a class or a ``functools.partial`` of one, is called in messages."""
    kind = getattr(cell, "func", cell)
    return getattr(kind, "__name__", str(kind))


def check_computation(cell: Callable[..., Any], form: str, precision: str) -> None:
    """Raise ``UsageError`` unless ``form`` and ``precision`` exist and ``cell`` knows the precision."""
    choose(str(form), FORMS, "form")
    choose(str(precision), PRECISIONS, "precision")
    if precision != "float32" and not is_own_cell(cell):
        raise UsageError(
            f"The precision {precision!r} takes a jaxgen cell, and {cell_name(cell)} is none: "
            'leave it at "float32", or use a cell of CELLS or one of your own.'
        )
