"""Temperature, constant or scheduled by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen.errors import UsageError, check_int
from jaxgen.sampling.transforms.base import Context, Last, Logits, bounded, padded
from jaxgen.types import ArrayLike

#: Default number of steps for which a schedule function is tabulated.
TABLED = 4096
LEAST, MOST = 1e-6, 1e6


@dataclass(frozen=True)
class Linear:
    """A linear schedule from ``start`` at the first token to ``end`` after ``steps`` tokens, constant from there on.

    Example:
        >>> jaxgen.Linear(1.5, 0.5, steps=200)(100)
        1.0
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        check_int("The number of steps of a schedule", self.steps, 1, 10_000_000)

    def __call__(self, t: int) -> float:
        return self.start + (self.end - self.start) * min(t / self.steps, 1.0)


#: A number; one number per step, of which the last applies to all later steps; or a function of the step (``Linear``).
Schedule = float | tuple[float, ...] | Callable[[int], float]


@dataclass(frozen=True)
class Temperature:
    """Divide the logits by ``value`` > 0: below 1 sharpens the distribution, above 1 flattens it.

    ``value`` is a number or a ``Schedule`` over the generated tokens. Zero means greedy decoding, which is an argument
    of the decode loop (``greedy=True``) and not a transform. Raises ``UsageError`` if the temperature of any step is
    out of range.

    Example:
        >>> from jaxgen.sampling.transforms import Temperature
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = Temperature(0.5), jnp.array([[3.0, 2.0, 1.0]])
        >>> state, logits = transform.update(transform.init(Context(rows=1, vocab=3)), logits, Last.none(1))
        >>> logits.tolist()
        [[6.0, 4.0, 2.0]]
    """

    value: Schedule
    #: Number of steps for which a function is tabulated; its last value applies to all later steps.
    steps: int = TABLED

    def __post_init__(self) -> None:
        temperature_table(self.value, self.steps)

    def init(self, context: Context) -> np.ndarray:
        values = temperature_table(self.value, self.steps)
        return values if values.size == 1 else padded(values.tolist(), float(values[-1]), np.float32)

    @staticmethod
    def update(state: ArrayLike, logits: Logits, last: Last) -> tuple[ArrayLike, Logits]:
        size = state.shape[0]
        now = state if size == 1 else jnp.asarray(state)[jnp.minimum(last.t, size - 1)][None]
        return state, bounded(logits / now[:, None])


def temperature_table(value: Any, steps: int = TABLED) -> np.ndarray:
    """Return the temperatures of steps 0, 1, …, float32 [S]; the last one applies to all later steps."""
    if isinstance(value, Linear):
        check_temperature(value.start, " at step 0")  # all others lie between these two
        check_temperature(value.end, f" at step {value.steps}")
        part = np.minimum(np.arange(value.steps + 1) / value.steps, 1.0)
        return np.asarray(value.start + (value.end - value.start) * part, np.float32)
    if callable(value):
        values = [value(t) for t in range(steps)]
    else:
        values = list(value) if isinstance(value, (tuple, list)) else [value]
    if not values:
        raise UsageError("A temperature schedule without a value cannot be used: give one or more.")
    for t, each in enumerate(values):
        check_temperature(each, f" at step {t}" if len(values) > 1 else "")
    return np.asarray(values, np.float32)


def check_temperature(temperature: Any, where: str) -> None:
    """Raise ``UsageError`` unless this is a valid temperature; ``where`` names the step in the message."""
    # A temperature that is infinite in float32 would turn a forbidden token's -inf into NaN, which can be drawn.
    number = isinstance(temperature, (int, float, np.number)) and not isinstance(temperature, bool)
    if not (number or getattr(temperature, "shape", None) == ()) or not LEAST <= temperature <= MOST:
        raise UsageError(
            f"A temperature of {temperature}{where} cannot be used: give a number from 1e-6 to 1e6, or 0 for greedy"
            f"{', which takes no schedule' if where else ''}."
        )
