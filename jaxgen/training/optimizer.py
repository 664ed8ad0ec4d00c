"""Optimizers by name. The fields of an optimizer are its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Protocol

import jax
import optax
from jaxtyping import PyTree

from jaxgen.errors import check_kind, check_options, choose
from jaxgen.training.muon import Muon
from jaxgen.training.param_kinds import Kinds
from jaxgen.training.schedules import Rates, Schedule, named_schedule


class OptimizerOptions(Protocol):
    """An entry of ``OPTIMIZERS``: a frozen dataclass whose fields are the options."""

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        """The update rule, before it is scaled by the learning rate.

        ``kinds`` are those of the parameters if the class says so by ``needs_kinds = True``, else empty.
        """
        ...


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay on matrices only (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        def matrices(params: PyTree) -> PyTree:
            return jax.tree.map(lambda p: p.ndim >= 2, params)

        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=matrices),
        )


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980)."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@dataclass(frozen=True)
class RMSProp:
    """RMSProp (Tieleman & Hinton 2012, lecture 6.5), with optional momentum."""

    decay: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.0

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        rms = optax.scale_by_rms(decay=self.decay, eps=self.eps)
        return optax.chain(rms, optax.trace(self.momentum)) if self.momentum else rms


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9
    nesterov: bool = False

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        return optax.trace(self.momentum, nesterov=self.nesterov) if self.momentum else optax.identity()


OPTIMIZERS: dict[str, type[OptimizerOptions]] = {
    "adam": Adam,
    "adamw": AdamW,
    "muon": Muon,
    "rmsprop": RMSProp,
    "sgd": SGD,
}


def scale_by_rates(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Scale updates by a learning rate that depends on the argument ``rates`` of each update."""

    def update(
        updates: PyTree, state: optax.ScaleByScheduleState, params: PyTree = None, *, rates: Rates, **_: object
    ) -> tuple[PyTree, optax.ScaleByScheduleState]:
        scaled: tuple[PyTree, optax.ScaleByScheduleState] = optax.scale_by_learning_rate(
            lambda step: schedule(step, rates)
        ).update(updates, state, params)
        return scaled

    return optax.GradientTransformationExtraArgs(optax.scale_by_learning_rate(lambda step: step).init, update)


def make_optimizer(
    name: str,
    schedule: optax.Schedule | str,
    *,
    clip: float = 1.0,
    options: dict[str, PyTree] | None = None,
    kinds: Kinds = (),
    schedule_options: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Clip the gradient to the global norm ``clip`` (0: never), apply the named rule, and scale by the schedule.

    ``schedule`` is a function of the step, or the name of a schedule with ``schedule_options``; each update then takes
    an argument ``rates``.
    ``kinds`` are those of ``param_kinds``; without them, parameters have their kinds by their names.

    Example:
        >>> optimizer, params = jaxgen.make_optimizer("adamw", 1e-3), {"w": jnp.zeros(2)}
        >>> updates, state = optimizer.update({"w": jnp.ones(2)}, optimizer.init(params), params)
        >>> round(float(updates["w"][0]), 6)
        -0.001
    """
    kind = OPTIMIZERS[choose(name, OPTIMIZERS, "optimizer")]
    options = {} if options is None else check_kind("make_optimizer", options, Mapping, "options as a dictionary")
    check_options(kind, options, f"optimizer {name!r}")
    check_kind("make_optimizer", clip, Real, "a number as clip; 0 never clips")
    first = [optax.clip_by_global_norm(clip)] if clip > 0 else []
    if isinstance(schedule, str):
        last: optax.GradientTransformation = scale_by_rates(named_schedule(schedule, schedule_options))
    else:
        check_kind("make_optimizer", schedule, Callable | Real | jax.Array, "a schedule: its name or a function")
        last = optax.scale_by_learning_rate(schedule)
    return optax.chain(*first, kind(**options).transform(kinds), last)
