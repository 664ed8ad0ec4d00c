"""Tokens below a probability are left out: min-p, epsilon and eta sampling."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxgen.sampling.transforms.base import Context, Last, check_number
from jaxgen.types import Array


@dataclass(frozen=True)
class MinP:
    """Leave out tokens that are less than this times as likely as the likeliest.

    Nguyen et al. 2024, arXiv:2407.01082, section 3.
    """

    p: float

    def __post_init__(self) -> None:
        check_number("min-p", self.p, 0.0, 1.0, "a number from 0 to 1")

    def init(self, context: Context) -> Array:
        return jnp.float32(self.p)

    @staticmethod
    def update(state: Array, logits: Array, last: Last) -> tuple[Array, Array]:
        p = jax.nn.softmax(logits, axis=-1)
        return state, _drop(p < state * jnp.max(p, axis=-1, keepdims=True), logits)


@dataclass(frozen=True)
class EpsilonCutoff:
    """Leave out tokens less likely than this, but never the likeliest (Hewitt et al. 2022, arXiv:2210.15191)."""

    epsilon: float

    def __post_init__(self) -> None:
        check_number("An epsilon cut-off", self.epsilon, 0.0, 1.0, "a number from 0 to 1; 0.0003 to 0.001 is usual")

    def init(self, context: Context) -> Array:
        return jnp.float32(self.epsilon)

    @staticmethod
    def update(state: Array, logits: Array, last: Last) -> tuple[Array, Array]:
        return state, _drop(jax.nn.softmax(logits, axis=-1) < state, logits)


@dataclass(frozen=True)
class EtaCutoff:
    """Leave out tokens less likely than the smaller of this and its root times exp(-entropy), but never the likeliest.

    Where many tokens are possible the limit is lower. Hewitt et al. 2022, arXiv:2210.15191, section 4.
    """

    epsilon: float

    def __post_init__(self) -> None:
        check_number("An eta cut-off", self.epsilon, 0.0, 1.0, "a number from 0 to 1; 0.0003 to 0.002 is usual")

    def init(self, context: Context) -> Array:
        return jnp.float32(self.epsilon)

    @staticmethod
    def update(state: Array, logits: Array, last: Last) -> tuple[Array, Array]:
        logp = jax.nn.log_softmax(logits, axis=-1)
        eta = jnp.minimum(state, jnp.sqrt(state) * jnp.exp(-entropy(logp)))
        return state, _drop(jnp.exp(logp) < eta, logits)


def entropy(logp: Array) -> Array:
    """The entropy of log-probabilities [R, V] in nats, [R, 1]; tokens without any probability add nothing."""
    return -jnp.sum(jnp.where(logp > -jnp.inf, jnp.exp(logp) * logp, 0.0), axis=-1, keepdims=True)


def _drop(unlikely: Array, logits: Array) -> Array:
    """The logits without the ``unlikely``, the likeliest of a row (and those level with it) excepted."""
    best = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.where(unlikely & (logits < best), -jnp.inf, logits)
