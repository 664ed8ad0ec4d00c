"""The smallest set of tokens that is large enough, without a sort.

Masses are whole numbers: their sums are exact in any order, so that neither the form nor the number of rows can change
which tokens belong to a set, and they add up several times as fast as floats on a CPU.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxgen.types import Array

#: Into how many parts a probability of 1 is divided.
PARTS = 2**30
#: Up to so many comparisons every token of a row is compared with every other: one pass instead of 32 in a loop.
PAIRS = 2**14


def parts(p: float) -> Array:
    """A probability as a target for ``smallest_set``: at least 1, which the empty set does not reach."""
    return jnp.int32(max(round(p * PARTS), 1))


def masses(p: Array) -> Array:
    """Probabilities [R, V] as masses for ``smallest_set``."""
    return jnp.round(p * PARTS).astype(jnp.int32)


def smallest_set(score: Array, mass: Array, target: Array) -> Array:
    """Which tokens belong to the smallest set of highest ``score`` [R, V] whose ``mass`` [R, V] reaches ``target``.

    ``mass`` and ``target`` are int32. Returns bool [R, V]. Tokens level with the lowest score of the set belong to it:
    ties fall inside. A row whose whole mass does not reach the target keeps everything.
    """
    rows, vocab = score.shape
    if rows * vocab * vocab <= PAIRS:
        higher = score[:, :, None] > score[:, None, :]
        return jnp.sum(jnp.where(higher, mass[:, :, None], 0), axis=1) < target
    # Transposed: with many rows, the sums over a column of them vectorise.
    threshold = _largest_threshold(score.T, mass.T, target).T
    return score >= threshold


def _largest_threshold(score: Array, mass: Array, target: Array) -> Array:
    """The largest threshold [1, R] at or above which a column of [V, R] has enough mass.

    It is found bit by bit on the ordered integers that stand for floats: 32 passes over the column, exact, and no sort
    (a sort of 50,000 logits costs more than a whole recurrent step).
    """

    def narrow(i: Array, low: Array) -> Array:
        trial = low | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        value = _from_ordered(trial)
        reached = jnp.sum(jnp.where(score >= value, mass, 0), axis=0, keepdims=True) >= target
        # Patterns beyond +inf are NaNs: never a threshold.
        return jnp.where(reached & (trial <= _ordered(jnp.float32(jnp.inf))), trial, low)

    start = jnp.zeros((1, score.shape[1]), jnp.uint32)
    low = lax.fori_loop(0, 32, narrow, start)
    # A column in which not even -inf is enough keeps everything it has.
    return jnp.where(low < _ordered(jnp.float32(-jnp.inf)), -jnp.inf, _from_ordered(low))


def _ordered(x: Array) -> Array:
    """float32 -> uint32 with the same order."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _from_ordered(u: Array) -> Array:
    bits = jnp.where(u >> 31 == 1, u & jnp.uint32((1 << 31) - 1), ~u)
    return lax.bitcast_convert_type(bits, jnp.float32)
