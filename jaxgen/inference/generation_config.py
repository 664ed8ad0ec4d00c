"""The settings of sampling, checked before anything is compiled, and their JSON form."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeGuard, TypeVar

import numpy as np

from jaxgen.errors import UsageError, check_int, choose
from jaxgen.sampling.decode import DECODE_ROWS, check_seed
from jaxgen.sampling.transforms import TRANSFORMS
from jaxgen.sampling.transforms.base import Chain, Transform, chain
from jaxgen.sampling.transforms.constraints import Forbid, Force
from jaxgen.sampling.transforms.temperature import Linear, Schedule, Temperature, temperature_table

Built = TypeVar("Built")

MAX_LENGTH = 10_000_000
MAX_BLOCK = 4_096
MAX_STOPS = 64
MAX_STOP_LENGTH = 1_000

_REPR = reprlib.Repr()
_REPR.maxother, _REPR.maxstring = 160, 60
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True)
class GenerationConfig:
    """How to draw samples.

    Args:
        length: Tokens to generate.
        temperature: A number, a tuple with one for each step (the last one holds for the rest), ``Linear``, or a
            function of the step. 0 always takes the most probable token.
        seed: Another seed gives other samples.
        transforms: Logit transforms, applied in this order. The temperature comes before the first of them that does
            not precede it in ``TRANSFORMS``.
        stop: A text ends before the first of these strings.
        max_seconds: Time limit of one call of the sampler, compilation included. Samples that are unfinished then end
            there; samples that have not begun are left out.
        block: Samples that decode together. Larger blocks draw many samples faster, with other float bits.

    Raises:
        UsageError: A value is out of range.

    Example:
        >>> settings = jaxgen.GenerationConfig(length=100, temperature=0.7, stop=("THE END",))
        >>> settings.greedy
        False
        >>> jaxgen.GenerationConfig(temperature=-1)
        Traceback (most recent call last):
        jaxgen.errors.UsageError: A temperature of -1 cannot be used: give a number from 1e-6 to 1e6, or 0 for greedy.
    """

    length: int = 500
    temperature: Schedule = 0.8
    seed: int = 0
    transforms: tuple[Transform, ...] = ()
    stop: tuple[str, ...] = ()
    max_seconds: float | None = None
    block: int = DECODE_ROWS

    def __repr__(self) -> str:
        return short_repr(self)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        for name in ("stop", "transforms", "temperature"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.temperature, np.ndarray) and self.temperature.ndim == 1:
            object.__setattr__(self, "temperature", tuple(self.temperature.tolist()))
        object.__setattr__(self, "block", check_int("The block size", self.block, 1, MAX_BLOCK))
        object.__setattr__(self, "length", check_int("The length", self.length, 0, MAX_LENGTH))
        if not self.greedy:
            temperature_table(self.temperature, max(self.length, 1))  # raises for a temperature out of range
        if not isinstance(self.stop, (tuple, list)) or not all(isinstance(each, str) and each for each in self.stop):
            raise UsageError(f"Stop strings of {self.stop!r} cannot be used: give a list of texts, none of them empty.")
        if len(self.stop) > MAX_STOPS or any(len(each) > MAX_STOP_LENGTH for each in self.stop):
            raise UsageError(f"At most {MAX_STOPS} stop strings of at most {MAX_STOP_LENGTH} characters can be used.")
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
        """Whether the most probable token is always taken."""
        return _is_number(self.temperature) and self.temperature == 0

    def chain(self, forbidden: tuple[int, ...] = ()) -> Chain:
        """All transforms in the order in which they are applied; the first also forbids the tokens ``forbidden``."""
        given = with_forbidden(forbidden, self.transforms)
        if self.greedy:
            return given
        names = list(TRANSFORMS)
        ahead = {TRANSFORMS[name] for name in names[: names.index("temperature")]}
        place = next((i for i, each in enumerate(given.transforms) if type(each) not in ahead), len(given.transforms))
        temperature = Temperature(self.temperature, max(self.length, 1))
        return chain(*given.transforms[:place], temperature, *given.transforms[place:])

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values; a function of the step becomes the table of its values.

        Raises:
            UsageError: A transform is not registered.
        """
        temperature: Any = self.temperature
        if isinstance(temperature, Linear):
            temperature = asdict(temperature)
        elif _is_number(temperature):
            temperature = float(temperature)
        elif callable(temperature):
            temperature = temperature_table(temperature, max(self.length, 1)).tolist()
        transforms = [transform_to_json(each) for each in chain(*self.transforms).transforms]
        return {**vars(self), "temperature": temperature, "transforms": transforms}

    @classmethod
    def from_json(cls, values: object) -> GenerationConfig:
        """The settings that ``to_json`` wrote. Raises ``UsageError`` for anything else."""
        known = [f.name for f in fields(cls)]
        if not isinstance(values, Mapping) or set(values) != set(known):
            raise UsageError(f"Settings of a sample have the fields {', '.join(known)} and no others.")
        temperature, transforms = values["temperature"], values["transforms"]
        if not isinstance(transforms, list):
            raise UsageError("The transforms of a sample's settings are a list.")
        if isinstance(temperature, Mapping):
            temperature = _build(Linear, temperature, "The temperature of a sample")
        chosen = {"temperature": temperature, "transforms": [transform_from_json(each) for each in transforms]}
        return _build(cls, {**values, **chosen}, "The settings of a sample")


def short_repr(settings: Any) -> str:
    """The class of a dataclass and the fields that differ from their defaults; long values are shortened."""
    values = [(field, getattr(settings, field.name)) for field in fields(settings)]
    changed = (f"{field.name}={_REPR.repr(value)}" for field, value in values if value != field.default)
    return _ADDRESS.sub("", f"{type(settings).__name__}({', '.join(changed)})")


def with_forbidden(forbidden: tuple[int, ...], transforms: tuple[Transform, ...]) -> Chain:
    """The transforms after one ``Forbid`` of all tokens that any of them or ``forbidden`` names.

    One ``Forbid`` for all of them can check that a token is left to draw.
    """
    given = chain(*transforms).transforms
    every = dict.fromkeys([*forbidden, *(i for each in given if type(each) is Forbid for i in each.ids)])
    return chain(Forbid(tuple(every)), *(each for each in given if type(each) is not Forbid))  # type: ignore[arg-type]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def transform_to_json(transform: Any) -> dict[str, Any]:
    """The name and the options of a registered transform as JSON values. Raises ``UsageError`` for another one."""
    names = {kind: name for name, kind in TRANSFORMS.items()}
    if type(transform) not in names:
        raise UsageError(
            f"{type(transform).__name__} is not registered, so that a file cannot name it: add it to jaxgen.TRANSFORMS."
        )
    return {"name": names[type(transform)], "options": asdict(transform)}


def transform_from_json(value: object) -> Transform:
    """The transform that ``transform_to_json`` described. Raises ``UsageError`` for anything else."""
    if not isinstance(value, Mapping) or set(value) != {"name", "options"} or not isinstance(value["options"], Mapping):
        raise UsageError("A transform in a file has a name and options.")
    if not isinstance(value["name"], str):
        raise UsageError(f"The name of a transform in a file is a string, not {value['name']!r}.")
    kind = TRANSFORMS[choose(value["name"], TRANSFORMS, "transform")]
    return _build(kind, value["options"], f"The transform {value['name']!r}")


def _build(kind: Callable[..., Built], values: Mapping[str, Any], what: str) -> Built:
    """``kind`` with these JSON values as its fields. Raises ``UsageError`` that begins with ``what``."""
    try:
        return kind(**{name: _to_tuples(value) for name, value in values.items()})
    except UsageError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{what} cannot be used: {error}.") from None


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(each) for each in value) if isinstance(value, list) else value
