"""How to draw: settings of a sample, checked before JAX sees them, and as values that a file can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from jaxgen.errors import UsageError, choose
from jaxgen.sampling.decode import DECODE_ROWS, check_seed
from jaxgen.sampling.transforms import TRANSFORMS
from jaxgen.sampling.transforms.base import Chain, chain
from jaxgen.sampling.transforms.constraints import Forbid, Force
from jaxgen.sampling.transforms.temperature import Linear, Schedule, Temperature, table

MAX_LENGTH = 10_000_000
MAX_BLOCK = 4_096
MAX_STOPS = 64
MAX_STOP_LENGTH = 1_000


@dataclass(frozen=True)
class GenerationConfig:
    """How to draw. Raises ``UsageError`` for values out of range, before JAX sees them.

    ``temperature`` is a number, a tuple of one for each step (the last holding from there on), ``Linear`` or any
    function of the step; 0 always takes the likeliest token. ``transforms`` act in the order given; the temperature
    comes before the first of them that is not registered ahead of it in ``TRANSFORMS``. A text ends in front of the
    first of the strings ``stop`` that it comes to. ``max_seconds`` bounds one call of the sampler, compilation and
    all: what is unfinished then ends there, and what is not begun is left out. ``block`` samples decode together: many
    are made sooner in larger blocks, with other float bits.
    """

    length: int = 500
    temperature: Schedule = 0.8
    seed: int = 0
    transforms: tuple[Any, ...] = ()
    stop: tuple[str, ...] = ()
    max_seconds: float | None = None
    block: int = DECODE_ROWS

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if isinstance(self.block, bool) or not isinstance(self.block, int) or not 1 <= self.block <= MAX_BLOCK:
            raise UsageError(
                f"Blocks of {self.block!r} rows cannot be decoded: give a whole number from 1 to {MAX_BLOCK}."
            )
        if isinstance(self.length, bool) or not isinstance(self.length, int) or not 0 <= self.length <= MAX_LENGTH:
            raise UsageError(f"A length of {self.length!r} cannot be used: give a whole number from 0 to {MAX_LENGTH}.")
        if not self.greedy:
            check_temperature(self.temperature, self.length)
        check_stop(self.stop)
        if self.max_seconds is not None and not (_is_number(self.max_seconds) and 0 < self.max_seconds < math.inf):
            raise UsageError(f"A limit of {self.max_seconds} seconds cannot be used: give a number above 0.")
        if not isinstance(self.transforms, tuple) or not all(hasattr(each, "update") for each in self.transforms):
            raise UsageError(f"Transforms of {self.transforms!r} cannot be used: give a tuple of them.")
        given = chain(*self.transforms).transforms
        forbidden, forced = (
            {i for each in given if isinstance(each, kind) for i in each.ids} for kind in (Forbid, Force)
        )
        if forbidden & forced:
            raise UsageError(f"The tokens {sorted(forbidden & forced)} are both forbidden and forced: leave one out.")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken and nothing drawn."""
        return _is_number(self.temperature) and self.temperature == 0

    def chain(self, forbidden: tuple[int, ...] = ()) -> Chain:
        """All transforms in the order in which they act; behind all that is forbidden, the tokens ``forbidden`` too."""
        given = with_forbidden(forbidden, self.transforms)
        if self.greedy:
            return given
        names = list(TRANSFORMS)
        ahead = {TRANSFORMS[name] for name in names[: names.index("temperature")]}
        place = next((i for i, each in enumerate(given.transforms) if type(each) not in ahead), len(given.transforms))
        temperature = Temperature(self.temperature, max(self.length, 1))
        return chain(*given.transforms[:place], temperature, *given.transforms[place:])

    def to_json(self) -> dict[str, Any]:
        """As JSON values; a function of the step becomes the table of its values.

        Raises ``UsageError`` for a transform that is in no registry.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        schedule = self.temperature
        if isinstance(schedule, Linear):
            values["temperature"] = asdict(schedule)
        elif _is_number(schedule):
            values["temperature"] = float(schedule)  # type: ignore[arg-type]
        elif callable(schedule):
            values["temperature"] = [float(value) for value in table(schedule, max(self.length, 1))]
        values["transforms"] = [transform_to_json(each) for each in chain(*self.transforms).transforms]
        return _listed(values)

    @classmethod
    def from_json(cls, values: Any) -> GenerationConfig:
        """What ``to_json`` wrote; ``UsageError`` for anything else."""
        known = [f.name for f in fields(cls)]
        if not isinstance(values, Mapping) or set(values) != set(known):
            raise UsageError(f"Settings of a sample have the fields {', '.join(known)} and no others.")
        if not isinstance(values["transforms"], list):
            raise UsageError("The transforms of a sample's settings are a list.")
        given = {name: _tupled(value) for name, value in values.items()}
        given["transforms"] = tuple(transform_from_json(each) for each in values["transforms"])
        try:
            if isinstance(values["temperature"], Mapping):
                given["temperature"] = Linear(**values["temperature"])
            return cls(**given)
        except UsageError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"These settings of a sample cannot be used: {error}.") from None


def with_forbidden(forbidden: tuple[int, ...], transforms: tuple[Any, ...]) -> Chain:
    """The transforms behind one ``Forbid`` of all tokens that any of them or ``forbidden`` names.

    Only together can it be seen that nothing would be left to draw.
    """
    given = chain(*transforms).transforms
    every = dict.fromkeys([*forbidden, *(i for each in given if type(each) is Forbid for i in each.ids)])
    return chain(Forbid(tuple(every)), *(each for each in given if type(each) is not Forbid))  # type: ignore[arg-type]


def check_temperature(value: Any, length: int) -> None:
    """Raise ``UsageError`` for a temperature, or one at any of ``length`` steps, that cannot be used."""
    if not _is_number(value):
        table(value, max(length, 1))
    elif not 1e-6 <= value <= 1e6:
        raise UsageError(
            f"A temperature of {value} cannot be used: give 0 (always the likeliest token) or a "
            "number from 1e-6 to 1e6; 1 samples from the model as it is, lower is safer, higher is wilder."
        )


def check_stop(strings: Any) -> None:
    """Raise ``UsageError`` for stop strings that cannot be used."""
    if not isinstance(strings, (tuple, list)) or not all(isinstance(each, str) and each for each in strings):
        shown = ", ".join(map(repr, strings)) if isinstance(strings, (tuple, list)) else repr(strings)
        raise UsageError(f"Stop strings of {shown} cannot be used: give a list of texts, none of them empty.")
    if len(strings) > MAX_STOPS or any(len(each) > MAX_STOP_LENGTH for each in strings):
        raise UsageError(f"At most {MAX_STOPS} stop strings of at most {MAX_STOP_LENGTH} characters can be used.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def transform_to_json(transform: Any) -> dict[str, Any]:
    """``{"name", "options"}`` of a registered transform."""
    names = {kind: name for name, kind in TRANSFORMS.items()}
    if type(transform) not in names:
        raise UsageError(
            f"{type(transform).__name__} is in no registry, so that no file can name it: add it to jaxgen.TRANSFORMS."
        )
    return {"name": names[type(transform)], "options": _listed(asdict(transform))}


def transform_from_json(value: Any) -> Any:
    """The transform that ``transform_to_json`` described; ``UsageError`` for anything else."""
    if not isinstance(value, Mapping) or set(value) != {"name", "options"} or not isinstance(value["options"], Mapping):
        raise UsageError("A transform in a file has a name and options.")
    if not isinstance(value["name"], str):
        raise UsageError(f"A transform in a file has the name of one, not {value['name']!r}.")
    kind = TRANSFORMS[choose(value["name"], TRANSFORMS, "transform")]
    try:
        return kind(**{name: _tupled(option) for name, option in value["options"].items()})
    except UsageError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"The transform {value['name']!r} cannot be made: {error}.") from None


def _listed(value: Any) -> Any:
    """Tuples as lists, which is what JSON has."""
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, (tuple, list)) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(each) for each in value) if isinstance(value, list) else value
