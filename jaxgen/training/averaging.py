"""Averages of the weights over training steps, which often predict better than the last weights.

An average is part of the optimizer's state, so that it is saved, sharded and donated like the rest of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int, PyTree

from jaxgen.errors import check_options, choose
from jaxgen.training.options import Count, Decay, read_values
from jaxgen.training.schedules import Number, Rates
from jaxgen.types import Array, Params

#: A step that no run reaches.
NEVER = 2**31 - 1


class Averaged(NamedTuple):
    """The state of an optimizer that averages weights."""

    inner: optax.OptState
    average: Params
    step: Int[Array, ""]  # number of updates
    # Of two tails only: a second, shorter average, and the first update of each.
    shorter: Params = {}
    begins: tuple[Int[Array, ""], ...] = ()


@runtime_checkable
class Average(Protocol):
    """An entry of ``AVERAGES``: a frozen dataclass whose fields are the options.

    With ``two_tails = True`` there is a second average, which begins later (``TwoTailed``).
    """

    def share(self, age: Int[Array, ""]) -> Float[Array, ""]:
        """The share of the newest weights in the average, of which ``age`` updates are part already."""
        ...

    def begin(self, horizon: int, costs: Sequence[Sequence[float]]) -> int:
        """The first update whose weights enter the average; ``NEVER`` while it is not known.

        Args:
            horizon: the number of steps of the run.
            costs: step and cost of each evaluation of the weights themselves so far; lower is better.
        """
        ...


@dataclass(frozen=True)
class EMA:
    """An exponential moving average: ``average <- d average + (1 - d) weights``, where d rises to ``decay`` as
    (1 + n) / (10 + n) in the first updates n."""

    decay: Decay = 0.999

    def share(self, age: Int[Array, ""]) -> Float[Array, ""]:
        return 1 - jnp.minimum(self.decay, (1.0 + age) / (10.0 + age))

    def begin(self, horizon: int, costs: Sequence[Sequence[float]]) -> int:
        return 0


class Mean:
    """An average in which all weights have the same share."""

    def share(self, age: Int[Array, ""]) -> Float[Array, ""]:
        return 1 / (1.0 + age)


@dataclass(frozen=True)
class Tail(Mean):
    """The mean of the weights of all steps after the share ``start`` of the run (Polyak & Juditsky 1992)."""

    start: Decay = 0.5

    def begin(self, horizon: int, costs: Sequence[Sequence[float]]) -> int:
        return round(self.start * horizon)


@dataclass(frozen=True)
class NTASGD(Mean):
    """The mean of the weights since an evaluation was worse than the best of those more than ``patience`` evaluations
    before it (NT-ASGD: Merity et al. 2018, arXiv:1708.02182, section 3)."""

    patience: Count = 5

    def begin(self, horizon: int, costs: Sequence[Sequence[float]]) -> int:
        for n, (step, cost) in enumerate(costs):
            if cost > min((before for _, before in costs[: max(n - self.patience, 0)]), default=math.inf):
                return int(step)
        return NEVER


@dataclass(frozen=True)
class TwoTailed(Mean):
    """The longer of two means of the weights. When an evaluation finds the shorter one at least as good, this becomes
    the longer one, and a new shorter one begins (Melis 2022, arXiv:2209.12581)."""

    two_tails: ClassVar[bool] = True

    def begin(self, horizon: int, costs: Sequence[Sequence[float]]) -> int:
        return 0


#: Averages by name.
AVERAGES: dict[str, type[Average]] = {"ema": EMA, "nt-asgd": NTASGD, "tail": Tail, "two-tailed": TwoTailed}


def named_average(name: str, options: Mapping[str, float] | None = None) -> Average:
    """The average ``name`` with these options. Raises ``UsageError`` for those that it cannot use."""
    kind, options = AVERAGES[choose(name, AVERAGES, "average")], options or {}
    check_options(kind, options, f"average {name!r}")
    return kind(**read_values(f"the average {name}", kind, options))


def with_average(optimizer: optax.GradientTransformation, average: Average) -> optax.GradientTransformationExtraArgs:
    """``optimizer`` with an average of the weights after its updates, from the update ``rates.average_from`` on.

    Before, and without ``rates``, the average is the weights themselves, or it begins with the first update.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    two_tails = getattr(average, "two_tails", False)

    def init(params: Params) -> Averaged:
        state = Averaged(optimizer.init(params), _copied(params), jnp.zeros((), jnp.int32))
        begins = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return state._replace(shorter=_copied(params), begins=begins) if two_tails else state

    def update(
        updates: PyTree, state: Averaged, params: Params, *, rates: Rates | None = None, **more: object
    ) -> tuple[PyTree, Averaged]:
        more |= {} if rates is None else {"rates": rates}
        updates, inner = optimizer.update(updates, state.inner, params, **more)
        new = optax.apply_updates(params, updates)
        first = jnp.asarray(0 if rates is None else rates.average_from, jnp.int32)

        def mean(old: Params, begin: Array) -> Params:
            age = state.step - begin
            share = jnp.where(age < 0, 1.0, average.share(jnp.maximum(age, 0)))
            return jax.tree.map(lambda a, p: ((1 - share) * a + share * p).astype(a.dtype), old, new)

        after = state._replace(inner=inner, step=state.step + 1)
        if not two_tails:
            return updates, after._replace(average=mean(state.average, first))
        longer, shorter = (jnp.maximum(first, begin) for begin in state.begins)
        return updates, after._replace(average=mean(state.average, longer), shorter=mean(state.shorter, shorter))

    return optax.GradientTransformationExtraArgs(init, update)


def schedule_free(
    optimizer: optax.GradientTransformation, rate: Callable[..., Number], b1: float
) -> optax.GradientTransformationExtraArgs:
    """``optax.contrib.schedule_free`` with its average in the state (Defazio et al. 2024, arXiv:2405.15682).

    The gradient is taken between the average and the weights that ``optimizer`` moves; only the average is evaluated.

    Args:
        optimizer: without momentum; its updates are scaled by the learning rate.
        rate: the learning rate of a step, called with the further arguments of the update; it weights the average.
        b1: the share of the average in the weights at which the gradient is taken.
    """

    def wrapped(**more: object) -> optax.GradientTransformationExtraArgs:
        return optax.contrib.schedule_free(optimizer, lambda step: rate(step, **more), b1)

    def init(params: Params) -> Averaged:
        return Averaged(wrapped().init(params), _copied(params), jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Averaged, params: Params, **more: object) -> tuple[PyTree, Averaged]:
        updates, inner = wrapped(**more).update(updates, state.inner, params, **more)
        mean = optax.contrib.schedule_free_eval_params(inner, optax.apply_updates(params, updates))
        return updates, Averaged(inner, mean, state.step + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _copied(params: Params) -> Params:
    """Arrays of their own: a state is donated, and may hold no array twice."""
    copied: Params = jax.tree.map(jnp.array, params)
    return copied


def drop_longer(state: Averaged) -> Averaged:
    """The state with the shorter of two tails as its average; a new shorter one begins with the next update."""
    begins = state.begins[1], state.step + 0  # an array of its own
    return state._replace(average=state.shorter, shorter=state.average, begins=begins)


def exchange(params: Params, state: Averaged) -> tuple[Params, Averaged]:
    """The average in place of ``params``, and these in place of the average. Twice, it changes nothing."""
    return state.average, state._replace(average=params)
