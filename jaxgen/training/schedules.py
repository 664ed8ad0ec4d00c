"""Learning-rate schedules by name: functions of the step and the rates. Keyword-only arguments are their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from jaxgen.errors import UsageError, check_int, check_kind, choose
from jaxgen.training.options import Count, Share, read_values
from jaxgen.types import Array, ArrayLike

#: A scalar; an integer where it counts steps.
Number: TypeAlias = ArrayLike | float


class Rates(NamedTuple):
    """What a learning rate and an average of the weights depend on besides the step.

    They can be arguments of a compiled step (``make_optimizer``): other values then compile nothing again.
    """

    peak: Number
    warmup: Number  # steps in which the rate rises to the peak
    horizon: Number  # the step at which a decay ends
    final: Number  # the rate at the horizon, as a share of the peak
    average_from: Number = 0  # the first step whose weights enter an average


Schedule = Callable[[Number, Rates], Float[Array, ""]]


def constant(step: Number, rates: Rates) -> Float[Array, ""]:
    """Linear warm-up to the peak, then constant."""
    return _warmed_up(step, rates, rates.peak)


def cosine(step: Number, rates: Rates) -> Float[Array, ""]:
    """Linear warm-up to the peak, then half a cosine down to the final rate (arXiv:1608.03983)."""
    return _warmed_up(step, rates, rates.peak * _between(rates, 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, rates)))))


def exponential(step: Number, rates: Rates) -> Float[Array, ""]:
    """Linear warm-up to the peak, then an exponential decay to the final rate."""
    rate = jnp.maximum(rates.final, 1e-6)  # an exponential never reaches zero
    return _warmed_up(step, rates, rates.peak * jnp.power(rate, _progress(step, rates)))


def linear(step: Number, rates: Rates) -> Float[Array, ""]:
    """Linear warm-up to the peak, then a straight line to the final rate (``--final-lr 0``: to zero)."""
    return _warmed_up(step, rates, rates.peak * _between(rates, 1 - _progress(step, rates)))


def stepwise(step: Number, rates: Rates, *, drops: Count = 3) -> Float[Array, ""]:
    """Linear warm-up to the peak, then ``drops`` equal factors at equal distances, the last down to the final rate."""
    taken = jnp.minimum(jnp.floor(_progress(step, rates) * (drops + 1)), drops)
    return _warmed_up(step, rates, rates.peak * jnp.power(jnp.maximum(rates.final, 1e-6), taken / drops))


def wsd(step: Number, rates: Rates, *, decay: Share = 0.2) -> Float[Array, ""]:
    """Warm-up, stable, decay: the peak until the last share ``decay`` of the steps, then a straight line to the final
    rate (Hu et al. 2024, arXiv:2404.06395, section 4)."""
    left = jnp.minimum((1 - _progress(step, rates)) / decay, 1.0)
    return _warmed_up(step, rates, rates.peak * _between(rates, left))


def one_cycle(step: Number, rates: Rates, *, rise: Share = 0.3, start: Share = 0.04) -> Float[Array, ""]:
    """Half a cosine from the share ``start`` of the peak up to it in the first share ``rise`` of the steps, then half a
    cosine down to the final rate; without a warm-up (Smith & Topin 2018, arXiv:1708.07120)."""
    top = jnp.round(rise * rates.horizon)
    up = jnp.clip(step / jnp.maximum(top, 1), 0, 1)
    down = jnp.clip((step - top) / jnp.maximum(rates.horizon - top, 1), 0, 1)
    rising = 1 - (1 - start) * 0.5 * (1 + jnp.cos(jnp.pi * up))
    falling = _between(rates, 0.5 * (1 + jnp.cos(jnp.pi * down)))
    return jnp.asarray(rates.peak * jnp.where(step < top, rising, falling))


def _between(rates: Rates, share: Number) -> Number:
    """Between the final rate (``share`` 0) and the peak (1), as a share of the peak."""
    return (1 - rates.final) * share + rates.final


def _progress(step: Number, rates: Rates) -> Float[Array, ""]:
    """The share of the steps between warm-up and horizon that are done."""
    span = jnp.maximum(rates.horizon - rates.warmup, 1)
    return jnp.clip(step - rates.warmup, 0, span) / span


def _warmed_up(step: Number, rates: Rates, after: Number) -> Float[Array, ""]:
    """A straight line from 0 to the peak, then ``after``."""
    rising = rates.peak - rates.peak * (1 - step / jnp.maximum(rates.warmup, 1))
    return jnp.where(jnp.asarray(step) < rates.warmup, rising, after)


#: Schedules by name.
SCHEDULES: dict[str, Callable[..., Float[Array, ""]]] = {
    "constant": constant,
    "cosine": cosine,
    "exponential": exponential,
    "linear": linear,
    "one-cycle": one_cycle,
    "stepwise": stepwise,
    "wsd": wsd,
}


def named_schedule(name: str, options: Mapping[str, Any] | None = None) -> Schedule:
    """The schedule ``name`` with these options. Raises ``UsageError`` for those that it cannot use."""
    schedule, options = SCHEDULES[choose(name, SCHEDULES, "schedule")], options or {}
    check_kind("The options of a schedule", options, Mapping, "a dictionary")
    known: Mapping[str, Any] = getattr(schedule, "__kwdefaults__", None) or {}
    if unknown := sorted(set(options) - set(known)):
        has = f"Its options are: {', '.join(known)}." if known else "It has no options."
        raise UsageError(f"The schedule {name!r} has no option {', '.join(map(repr, unknown))}. {has}")
    return partial(schedule, **read_values(f"the schedule {name}", schedule, options)) if options else schedule


def make_schedule(
    name: str, *, lr: float, warmup: int, horizon: int, final: float, options: Mapping[str, Any] | None = None
) -> optax.Schedule:
    """The learning rate as a function of the step; decay ends at step ``horizon``.

    Example:
        >>> rate = jaxgen.make_schedule("cosine", lr=1e-3, warmup=10, horizon=100, final=0.1)
        >>> [round(float(rate(step)), 6) for step in (0, 10, 100)]
        [0.0, 0.001, 0.0001]
    """
    warmup, horizon = check_int("The warm-up", warmup, 0), check_int("The horizon", horizon, 0)
    for rate in (lr, final):
        check_kind("make_schedule", rate, Real | jax.Array | np.ndarray, "a number")
    rates = Rates(lr, min(warmup, max(horizon - 1, 0)), horizon, final)
    schedule = named_schedule(name, options)
    return lambda step: schedule(step, rates)
