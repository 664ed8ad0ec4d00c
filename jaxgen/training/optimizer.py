"""Optimizers by name. The fields of an optimizer are its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from numbers import Real
from typing import Annotated, ClassVar, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxgen.errors import UsageError, check_kind, choose
from jaxgen.training.averaging import named_average, schedule_free, with_average
from jaxgen.training.muon import Muon
from jaxgen.training.options import Allowed, CountOrZero, Decay, NotNegative, Share, read_values
from jaxgen.training.param_kinds import Kind, Kinds, depths, map_kinds
from jaxgen.training.schedules import Number, Rates, Schedule, named_schedule
from jaxgen.training.soap import SOAP
from jaxgen.types import Array


class OptimizerOptions(Protocol):
    """An entry of ``OPTIMIZERS``: a frozen dataclass whose fields are the options."""

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        """The update rule, before it is scaled by the learning rate.

        ``kinds`` are those of the parameters if the class says so by ``needs_kinds = True``, else empty.

        A class may have ``wrap(optimizer, rate)`` too. It gets the whole optimizer, with the learning rate, and the
        learning rate as a function of the step and the further arguments of an update, and returns another optimizer.
        With ``averages = True`` its state is ``Averaged``, and only the average is evaluated.
        """
        ...


@dataclass(frozen=True)
class SharedOptions:
    """The options that all optimizers have. Roles of parameters are those of ``param_kinds``.

    Args:
        weight_decay: decoupled weight decay of the parameters with two axes or more (Loshchilov & Hutter 2019,
            arXiv:1711.05101).
        decay_matrix, decay_embedding, decay_output, decay_other: the same of the parameters with this role, instead.
        layer_decay: factor on the learning rate of each layer relative to the one above it; the embedding is below the
            lowest layer (Howard & Ruder 2018, arXiv:1801.06146, section 3.2).
        l2: weight of half the squared norm of the parameters with two axes or more, in the loss.
    """

    weight_decay: NotNegative = 0.0
    decay_matrix: NotNegative | None = None
    decay_embedding: NotNegative | None = None
    decay_output: NotNegative | None = None
    decay_other: NotNegative | None = None
    layer_decay: Share = 1.0
    l2: NotNegative = 0.0

    def before(self) -> list[optax.GradientTransformation]:
        """What changes the gradient before the update rule reads it."""
        return [optax.add_decayed_weights(self.l2, mask=_matrices)] if self.l2 else []

    def after(self) -> list[optax.GradientTransformation]:
        """What changes the update before it is scaled by the learning rate."""
        role_decays = (self.decay_matrix, self.decay_embedding, self.decay_output, self.decay_other)
        changes = []
        if self.weight_decay or any(role_decays):
            changes.append(optax.stateless(self._decayed))
        if self.layer_decay != 1:
            changes.append(optax.stateless(self._by_layer))
        return changes

    def _decayed(self, updates: PyTree, params: PyTree) -> PyTree:
        def decayed(kind: Kind, update: Array, param: Array) -> Array:
            own = getattr(self, f"decay_{kind.role}")
            rate = own if own is not None else self.weight_decay if param.ndim >= 2 else 0.0
            return update + rate * param if rate else update

        return map_kinds(decayed, (), updates, params)

    def _by_layer(self, updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(lambda u, depth: self.layer_decay**depth * u, updates, depths(params))


def _matrices(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: p.ndim >= 2, params)


@dataclass(frozen=True)
class AdamW:
    """Adam for short runs: its second moments follow the last 100 steps. With ``weight_decay``, AdamW (Loshchilov &
    Hutter 2019, arXiv:1711.05101)."""

    nesterov: ClassVar[bool] = False

    b1: Decay = 0.9
    b2: Decay = 0.99
    eps: NotNegative = 1e-8

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps, nesterov=self.nesterov)


@dataclass(frozen=True)
class NAdamW(AdamW):
    """AdamW with Nesterov momentum (Dozat 2016)."""

    nesterov: ClassVar[bool] = True


@dataclass(frozen=True)
class Adam(AdamW):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980)."""

    b2: Decay = 0.999


@dataclass(frozen=True)
class AdEMAMix:
    """Adam with a second, slow mean of gradients, ``alpha`` times of which is added (Pagliardini et al. 2024,
    arXiv:2409.03137). In the first ``warmup`` steps, ``alpha`` rises from 0 and ``b3`` from ``b1``."""

    b1: Decay = 0.9
    b2: Decay = 0.999
    b3: Decay = 0.9999
    alpha: NotNegative = 5.0
    eps: NotNegative = 1e-8
    warmup: CountOrZero = 0

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        def done(step: Array) -> Array:
            return jnp.minimum(step / max(self.warmup, 1), 1.0)

        def slow(step: Array) -> Array:
            # Half-lives, and not decay rates, rise in a straight line (section 3.1).
            low, high = jnp.log(self.b1), jnp.log(self.b3)
            return jnp.exp(low * high / ((1 - done(step)) * high + done(step) * low))

        if not self.warmup:
            return optax.contrib.scale_by_ademamix(self.b1, self.b2, self.b3, self.alpha, self.eps)
        return optax.contrib.scale_by_ademamix(self.b1, self.b2, slow, lambda step: self.alpha * done(step), self.eps)


@dataclass(frozen=True)
class ADOPT:
    """Adam that converges for every ``b2``: each gradient is divided by the second moments before it (Taniguchi et al.
    2024, arXiv:2411.02853)."""

    b1: Decay = 0.9
    b2: Decay = 0.9999
    eps: NotNegative = 1e-6

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        return optax.contrib.scale_by_adopt(self.b1, self.b2, self.eps)


@dataclass(frozen=True)
class Adan:
    """Adaptive Nesterov momentum (Xie et al. 2022, arXiv:2208.06677)."""

    b1: Decay = 0.98
    b2: Decay = 0.92
    b3: Decay = 0.99
    eps: NotNegative = 1e-8

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        return optax.scale_by_adan(self.b1, self.b2, self.b3, self.eps)


@dataclass(frozen=True)
class Lion:
    """The sign of a momentum (Chen et al. 2023, arXiv:2302.06675). Its learning rate is 3 to 10 times smaller."""

    b1: Decay = 0.9
    b2: Decay = 0.99

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)


@dataclass(frozen=True)
class ScheduleFree:
    """AdamW whose average of the weights replaces a decay of the learning rate (Defazio et al. 2024, arXiv:2405.15682).
    Only the average is evaluated and saved as the best."""

    averages: ClassVar[bool] = True

    b1: Annotated[float, Allowed("a number above 0, below 1", lambda value: 0 < value < 1)] = 0.9
    b2: Decay = 0.99
    eps: NotNegative = 1e-8

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        return optax.scale_by_rms(self.b2, self.eps, eps_in_sqrt=False, bias_correction=True)

    def wrap(
        self, optimizer: optax.GradientTransformation, rate: Callable[..., Number]
    ) -> optax.GradientTransformation:
        return schedule_free(optimizer, rate, self.b1)


@dataclass(frozen=True)
class RMSProp:
    """RMSProp (Tieleman & Hinton 2012, lecture 6.5), with optional momentum."""

    decay: Decay = 0.95
    eps: NotNegative = 1e-8
    momentum: Decay = 0.0

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        rms = optax.scale_by_rms(decay=self.decay, eps=self.eps)
        return optax.chain(rms, optax.trace(self.momentum)) if self.momentum else rms


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    momentum: Decay = 0.9
    nesterov: bool = False

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        return optax.trace(self.momentum, nesterov=self.nesterov) if self.momentum else optax.identity()


#: Optimizers by name.
OPTIMIZERS: dict[str, type[OptimizerOptions]] = {
    "adam": Adam,
    "adamw": AdamW,
    "adan": Adan,
    "ademamix": AdEMAMix,
    "adopt": ADOPT,
    "lion": Lion,
    "muon": Muon,
    "nadamw": NAdamW,
    "rmsprop": RMSProp,
    "schedule-free": ScheduleFree,
    "sgd": SGD,
    "soap": SOAP,
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
    schedule: optax.ScalarOrSchedule | str,
    *,
    clip: float = 1.0,
    options: Mapping[str, float] | None = None,
    kinds: Kinds = (),
    schedule_options: Mapping[str, float] | None = None,
    average: str | None = None,
    average_options: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Clip the gradient to the global norm ``clip`` (0: never), apply the named rule, and scale by the schedule.

    Args:
        name: a name in ``OPTIMIZERS``.
        schedule: a function of the step, or the name of a schedule; each update then takes an argument ``rates``.
        clip: the largest norm.
        options: those of the optimizer, and those that all have (``SharedOptions``).
        kinds: those of ``param_kinds``; without them, parameters have their kinds by their names.
        schedule_options: those of a named schedule.
        average: a name in ``AVERAGES``: the state is then ``Averaged``. None: there is no average.
        average_options: those of the average.

    Example:
        >>> optimizer, params = jaxgen.make_optimizer("adamw", 1e-3), {"w": jnp.zeros(2)}
        >>> updates, state = optimizer.update({"w": jnp.ones(2)}, optimizer.init(params), params)
        >>> round(float(updates["w"][0]), 6)
        -0.001
    """
    kind = OPTIMIZERS[choose(name, OPTIMIZERS, "optimizer")]
    own, shared = _split_options(kind, name, options)
    rule, more = kind(**own), SharedOptions(**shared)
    check_kind("make_optimizer", clip, Real, "a number as clip; 0 never clips")
    first = [optax.clip_by_global_norm(clip)] if clip > 0 else []
    rate: Callable[..., Number]
    if isinstance(schedule, str):
        named = named_schedule(schedule, schedule_options)
        rate, last = (lambda step, rates, **_: named(step, rates)), scale_by_rates(named)
    else:
        check_kind("make_optimizer", schedule, Callable | Real | jax.Array, "a schedule: its name or a function")
        function = schedule if callable(schedule) else optax.constant_schedule(schedule)
        rate, last = (lambda step, **_: function(step)), optax.scale_by_learning_rate(schedule)
    optimizer = optax.chain(*first, *more.before(), rule.transform(kinds), *more.after(), last)
    averages = getattr(kind, "averages", False)
    if averages and isinstance(schedule, str) and schedule != "constant":
        raise UsageError(f"--schedule {schedule} does not fit {name}, which needs no decay: give --schedule constant.")
    if hasattr(rule, "wrap"):
        optimizer = rule.wrap(optimizer, rate)
    if average is None:
        return optimizer
    if averages:
        raise UsageError(f"The optimizer {name} averages the weights itself: leave out --average {average}.")
    return with_average(optimizer, named_average(average, average_options))


def _split_options(
    kind: type, name: str, options: Mapping[str, float] | None
) -> tuple[dict[str, float], dict[str, float]]:
    """The options of the optimizer ``kind`` itself, and those that all have. Raises ``UsageError`` for any others."""
    options = {} if options is None else check_kind("make_optimizer", options, Mapping, "options as a dictionary")
    mine = {field.name for field in fields(kind)} if is_dataclass(kind) else set()
    all_have = {field.name for field in fields(SharedOptions)}
    if unknown := sorted(set(options) - mine - all_have):
        raise UsageError(
            f"The optimizer {name!r} has no option {', '.join(map(repr, unknown))}. Its options are: "
            f"{', '.join(sorted(mine)) or 'none'}; those of every optimizer: {', '.join(sorted(all_have - mine))}."
        )
    own = {option: value for option, value in options.items() if option in mine}
    shared = {option: value for option, value in options.items() if option not in mine}
    what = f"the optimizer {name}"
    return read_values(what, kind, own), read_values(what, SharedOptions, shared)
