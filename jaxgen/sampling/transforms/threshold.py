"""The smallest set of tokens that is large enough, without a sort."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxgen.types import Array

#: Largest vocabulary in which every token is compared with every other: one vectorised pass instead of 32 in a loop.
PAIRWISE = 256


def smallest_set(score: Array, mass: Array, target: Array) -> Array:
    """Which tokens belong to the smallest set of highest ``score`` [R, V] whose ``mass`` [R, V] reaches ``target``.

    Returns bool [R, V]. Tokens level with the lowest score of the set belong to it: ties fall inside. A row whose whole
    mass does not reach the target keeps everything.
    """
    if score.shape[-1] <= PAIRWISE:
        higher = score[..., None, :] > score[..., :, None]
        return jnp.sum(jnp.where(higher, mass[..., None, :], 0), axis=-1) < target
    return score >= _largest_threshold(score, mass, target)


def _largest_threshold(score: Array, mass: Array, target: Array) -> Array:
    """The largest threshold [R, 1] at or above which there is enough mass.

    It is found bit by bit on the ordered integers that stand for floats: 32 passes over the row, exact, and no sort (a
    sort of 50,000 logits costs more than a whole recurrent step).
    """

    def narrow(i: Array, low: Array) -> Array:
        trial = low | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        value = _from_ordered(trial)
        reached = jnp.sum(jnp.where(score >= value, mass, 0), axis=-1, keepdims=True) >= target
        # Patterns beyond +inf are NaNs: never a threshold.
        return jnp.where(reached & (trial <= _ordered(jnp.float32(jnp.inf))), trial, low)

    start = jnp.zeros((*score.shape[:-1], 1), jnp.uint32)
    low = lax.fori_loop(0, 32, narrow, start)
    # A row in which not even -inf is enough keeps everything it has.
    return jnp.where(low < _ordered(jnp.float32(-jnp.inf)), -jnp.inf, _from_ordered(low))


def _ordered(x: Array) -> Array:
    """float32 -> uint32 with the same order."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _from_ordered(u: Array) -> Array:
    bits = jnp.where(u >> 31 == 1, u & jnp.uint32((1 << 31) - 1), ~u)
    return lax.bitcast_convert_type(bits, jnp.float32)
