"""Options of optimizers, averages and schedules: types that say which values are allowed, and a check of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

from jaxgen.errors import UsageError, to_python


class Allowed(NamedTuple):
    """Which values an option may have."""

    words: str
    test: Callable[[Any], bool]


#: The share of the old value in a running mean.
Decay = Annotated[float, Allowed("a number of at least 0, below 1", lambda value: 0 <= value < 1)]
Share = Annotated[float, Allowed("a number above 0, to 1", lambda value: 0 < value <= 1)]
NotNegative = Annotated[float, Allowed("a finite number of at least 0", lambda value: 0 <= value < float("inf"))]
#: Whole numbers; the command line has only floats.
Count = Annotated[int, Allowed("a whole number of at least 1", lambda value: 1 <= value < 2**31 and value % 1 == 0)]
CountOrZero = Annotated[
    int, Allowed("a whole number of at least 0", lambda value: 0 <= value < 2**31 and value % 1 == 0)
]


def read_values(what: str, owner: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` of a class or a function in the types that it declares: 3.0 as 3 for ``Count``.

    Raises ``UsageError`` for a value that is not allowed.

    Args:
        what: whose options they are, for messages.
        owner: the class or function. What it declares without ``Allowed`` is not checked.
        options: names and values.
    """
    try:
        hints = get_type_hints(owner, include_extras=True)
    except NameError:  # a plugin may import its types for type checkers only
        return dict(options)
    return {name: _read(f"The option `{name}` of {what}", value, hints.get(name)) for name, value in options.items()}


def _read(what: str, value: Any, hint: Any) -> Any:
    found = [each for each in (hint, *get_args(hint)) if hasattr(each, "__metadata__")]  # X, or the X of X | None
    if not found or (value is None and found[0] is not hint):
        return value
    number, allowed = to_python(value), found[0].__metadata__[0]
    if not isinstance(number, Real) or isinstance(number, bool) or not allowed.test(number):
        raise UsageError(f"{what} is {value!r}: give {allowed.words}.")
    return found[0].__origin__(number)
