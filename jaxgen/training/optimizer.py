"""Optimizers and learning-rate schedules by name. The fields of an optimizer are its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import optax
from jaxtyping import PyTree

from jaxgen.errors import check_options, choose


class OptimizerOptions(Protocol):
    """An entry of ``OPTIMIZERS``: a frozen dataclass whose fields are the options."""

    def transform(self) -> optax.GradientTransformation:
        """The update rule, before it is scaled by the learning rate."""
        ...


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay on matrices only (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0

    def transform(self) -> optax.GradientTransformation:
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

    def transform(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@dataclass(frozen=True)
class RMSProp:
    """RMSProp (Tieleman & Hinton 2012, lecture 6.5), with optional momentum."""

    decay: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.0

    def transform(self) -> optax.GradientTransformation:
        rms = optax.scale_by_rms(decay=self.decay, eps=self.eps)
        return optax.chain(rms, optax.trace(self.momentum)) if self.momentum else rms


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9
    nesterov: bool = False

    def transform(self) -> optax.GradientTransformation:
        return optax.trace(self.momentum, nesterov=self.nesterov) if self.momentum else optax.identity()


OPTIMIZERS: dict[str, type[OptimizerOptions]] = {"adam": Adam, "adamw": AdamW, "rmsprop": RMSProp, "sgd": SGD}


def cosine(peak: float, warmup: int, horizon: int, final: float) -> optax.Schedule:
    """Linear warm-up to ``peak``, then half a cosine down to ``final * peak`` at ``horizon`` (arXiv:1608.03983)."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(horizon, warmup + 1), peak * final)


def constant(peak: float, warmup: int, horizon: int, final: float) -> optax.Schedule:
    """Linear warm-up to ``peak``, then constant."""
    del horizon, final
    # optax's warm-up of zero steps stays at 0.
    return optax.warmup_constant_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)


def exponential(peak: float, warmup: int, horizon: int, final: float) -> optax.Schedule:
    """Linear warm-up to ``peak``, then an exponential decay that reaches ``final * peak`` at ``horizon``."""
    rate = max(final, 1e-6)  # an exponential never reaches zero
    return optax.warmup_exponential_decay_schedule(
        0.0, peak, warmup, max(horizon - warmup, 1), rate, end_value=peak * rate
    )


SCHEDULES: dict[str, Callable[[float, int, int, float], optax.Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "exponential": exponential,
}


def make_schedule(name: str, *, lr: float, warmup: int, horizon: int, final: float) -> optax.Schedule:
    """The learning rate as a function of the step; decay ends at step ``horizon``."""
    return SCHEDULES[choose(name, SCHEDULES, "schedule")](lr, min(warmup, max(horizon - 1, 0)), horizon, final)


def make_optimizer(
    name: str, schedule: optax.Schedule, *, clip: float = 1.0, options: dict[str, PyTree] | None = None
) -> optax.GradientTransformation:
    """Clip the gradient to the global norm ``clip`` (0: never), apply the named rule, and scale by the schedule."""
    kind = OPTIMIZERS[choose(name, OPTIMIZERS, "optimizer")]
    check_options(kind, options or {}, f"optimizer {name!r}")
    first = [optax.clip_by_global_norm(clip)] if clip > 0 else []
    return optax.chain(*first, kind(**(options or {})).transform(), optax.scale_by_learning_rate(schedule))
