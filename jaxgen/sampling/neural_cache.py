"""The neural cache: recent tokens become more probable where the model is in a similar state (Grave et al. 2017).

arXiv:1612.04426, section 3. With the outputs h_i of the last layer and the tokens x_{i+1} that followed them,

    p(w) = (1 - weight) p_model(w) + weight p_cache(w),
    p_cache(w) proportional to the sum of exp(sharpness h_t . h_i) over the last positions i < t with x_{i+1} = w.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxgen.types import Array, ArrayLike


class CacheState(NamedTuple):
    """The last N positions, the oldest first; the last ``filled`` of them are in use."""

    states: Float[Array, "N H"]
    tokens: Int[Array, "N"]  # the token that followed each state
    filled: Int[Array, ""]

    @classmethod
    def empty(cls, size: int, hidden: int) -> CacheState:
        """A cache of ``size`` positions without any."""
        return cls(jnp.zeros((size, hidden), jnp.float32), jnp.zeros(size, jnp.int32), jnp.zeros((), jnp.int32))


class CacheOptions(NamedTuple):
    """How much the cache counts, and how strongly it prefers similar states (lambda and theta of the paper)."""

    weight: Float[ArrayLike, ""] | float
    sharpness: Float[ArrayLike, ""] | float


def read_with_cache(
    cache: CacheState,
    options: CacheOptions,
    states: Float[Array, "T H"],
    targets: Int[Array, "T"],
    valid: Bool[Array, "T"],
    logp: Float[Array, "T V"],
) -> tuple[CacheState, Float[Array, "T V"]]:
    """Return the cache after these positions, and their log-probabilities with the cache.

    Args:
        cache: the positions before.
        options: weight and sharpness.
        states: the outputs of the model's last layer at each position.
        targets: the token after each position.
        valid: which positions exist; these come first.
        logp: the log-probabilities of the model. Where the cache is empty they are returned as they are.
    """
    size, steps = cache.tokens.size, targets.size
    keys = jnp.concatenate([cache.states, states.astype(jnp.float32)])
    tokens = jnp.concatenate([cache.tokens, targets])
    place, now = jnp.arange(size + steps)[None, :], jnp.arange(steps)[:, None]
    # Position t sees the N places before it: those of the cache that are filled, and earlier ones of this call.
    seen = (place < size + now) & (place >= now) & (place >= size - cache.filled)
    scores = jnp.where(seen, options.sharpness * (states.astype(jnp.float32) @ keys.T), -jnp.inf)
    some = seen.any(axis=1, keepdims=True)
    share = jax.nn.softmax(jnp.where(some, scores, 0.0), axis=1)
    recent = jnp.zeros_like(logp).at[now, tokens[None, :]].add(share)
    mixed = jnp.logaddexp(jnp.log1p(-options.weight) + logp, jnp.log(options.weight * recent))
    count = jnp.sum(valid, dtype=jnp.int32)
    keys, tokens = (jax.lax.dynamic_slice_in_dim(each, count, size) for each in (keys, tokens))
    return CacheState(keys, tokens, jnp.minimum(cache.filled + count, size)), jnp.where(some, mixed, logp)
