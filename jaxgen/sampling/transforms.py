"""Logit transforms: what happens to the model's logits before a token is drawn.

A transform is a small frozen dataclass whose fields are its options. ``init(rows, vocab)`` returns its state, with
the options in it as arrays, so that other option values need no new compilation; ``update(state, logits)`` is a
pure function [R, V] -> [R, V]. The order of a chain is the order in which they are applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgen.errors import UsageError
from jaxgen.types import Array


class Transform(Protocol):
    """What the decode loop needs of a transform."""

    def init(self, rows: int, vocab: int) -> Any: ...

    @staticmethod
    def update(state: Any, logits: Array) -> tuple[Any, Array]: ...


@dataclass(frozen=True)
class Forbid:
    """Give the tokens ``ids`` no probability at all. ``<pad>`` and ``<unk>`` are always among them."""

    ids: tuple[int, ...]

    def init(self, rows: int, vocab: int) -> Array:
        wrong = [i for i in self.ids if not 0 <= i < vocab]
        if wrong:
            raise UsageError(f"Forbid got the token ids {wrong}: ids go from 0 to {vocab - 1}.")
        if len(set(self.ids)) >= vocab:
            raise UsageError("Forbid got every token of the vocabulary: leave at least one to draw.")
        forbidden = np.zeros(vocab, bool)  # by NumPy, which compiles nothing
        forbidden[list(self.ids)] = True
        return jnp.asarray(forbidden)

    @staticmethod
    def update(state: Array, logits: Array) -> tuple[Array, Array]:
        return state, jnp.where(state[None, :], -jnp.inf, logits)


@dataclass(frozen=True)
class Temperature:
    """Divide the logits by ``value`` > 0: below 1 sharpens the distribution, above 1 flattens it.

    Zero means greedy decoding, which is a path of its own (``greedy=True`` of the decode loop) and no transform.
    """

    value: float

    def __post_init__(self) -> None:
        # Beyond float32 the quotient of a forbidden token's -inf would be NaN, which can be drawn.
        if not 1e-6 <= self.value <= 1e6:
            raise UsageError(
                f"A temperature of {self.value} cannot be used: give a number from 1e-6 to 1e6, or 0 for greedy."
            )

    def init(self, rows: int, vocab: int) -> Array:
        return jnp.float32(self.value)

    @staticmethod
    def update(state: Array, logits: Array) -> tuple[Array, Array]:
        return state, logits / state


@dataclass(frozen=True)
class TopK:
    """Keep the ``k`` likeliest tokens; tokens level with the k-th stay too (Fan et al. 2018, arXiv:1805.04833)."""

    k: int

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise UsageError(f"top-k of {self.k} cannot be used: give a whole number of 1 or more.")

    def init(self, rows: int, vocab: int) -> Array:
        return jnp.int32(min(self.k, vocab))

    @staticmethod
    def update(state: Array, logits: Array) -> tuple[Array, Array]:
        def enough(threshold: Array) -> Array:
            return jnp.sum(logits >= threshold, axis=-1, keepdims=True) >= state

        return state, _keep_above_largest(logits, enough)


@dataclass(frozen=True)
class TopP:
    """Keep the smallest set of likeliest tokens that together reach probability ``p`` (nucleus sampling).

    Tokens level with the least likely of the set stay too. Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
    """

    p: float

    def __post_init__(self) -> None:
        if not 0.0 < self.p <= 1.0:
            raise UsageError(f"top-p of {self.p} cannot be used: give a number above 0 and up to 1.")

    def init(self, rows: int, vocab: int) -> Array:
        # A p that float32 rounds to 0 would be reached by the empty set.
        return jnp.float32(max(self.p, 1e-30))

    @staticmethod
    def update(state: Array, logits: Array) -> tuple[Array, Array]:
        probabilities = jax.nn.softmax(logits, axis=-1)

        def enough(threshold: Array) -> Array:
            kept = jnp.where(logits >= threshold, probabilities, 0.0)
            return jnp.sum(kept, axis=-1, keepdims=True) >= state

        # p = 1 keeps all, whatever the rounding of the sum.
        return state, jnp.where(state < 1.0, _keep_above_largest(logits, enough), logits)


TRANSFORMS: dict[str, type[Any]] = {"forbid": Forbid, "temperature": Temperature, "top-k": TopK, "top-p": TopP}


def _ordered(x: Array) -> Array:
    """float32 -> uint32 with the same order."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _from_ordered(u: Array) -> Array:
    bits = jnp.where(u >> 31 == 1, u & jnp.uint32((1 << 31) - 1), ~u)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _keep_above_largest(logits: Array, enough: Any) -> Array:
    """Mask what lies below the largest threshold for which ``enough(threshold)`` holds, row by row.

    ``enough`` is monotone: true for -inf, false for large thresholds. The threshold is found bit by bit on the
    ordered integers that stand for floats: 32 passes over the row, exact, and no sort (a sort of 50,000 logits
    costs more than a whole recurrent step).
    """

    def narrow(i: Array, low: Array) -> Array:
        trial = low | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        value = _from_ordered(trial)
        # Patterns beyond +inf are NaNs: never a threshold.
        return jnp.where(enough(value) & (trial <= _ordered(jnp.float32(jnp.inf))), trial, low)

    start = jnp.zeros((*logits.shape[:-1], 1), jnp.uint32)
    low = lax.fori_loop(0, 32, narrow, start)
    # A row in which not even -inf is enough keeps everything it has.
    threshold = jnp.where(low < _ordered(jnp.float32(-jnp.inf)), -jnp.inf, _from_ordered(low))
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def init_chain(transforms: Sequence[Transform], rows: int, vocab: int) -> tuple[Any, ...]:
    """The states of a chain, in order."""
    return tuple(transform.init(rows, vocab) for transform in transforms)


def update_chain(kinds: Sequence[type[Any]], states: Sequence[Any], logits: Array) -> tuple[tuple[Any, ...], Array]:
    """Apply a chain, given as the transforms' classes and their states, to logits [R, V]."""
    after = []
    for kind, state in zip(kinds, states):
        state, logits = kind.update(state, logits)
        after.append(state)
    return tuple(after), logits
