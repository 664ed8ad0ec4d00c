"""Truncation: transforms that leave out unlikely tokens (top-k, top-p and others), without a sort.

Probability masses are integers. Their sums are exact in any order, so neither the algorithm nor the number of rows can
change which tokens are kept. On a CPU they also add up several times as fast as floats.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxgen.errors import check_int
from jaxgen.sampling.transforms.base import Context, Last, Logits, check_number
from jaxgen.types import Array, ArrayLike

#: A probability of 1 as an integer mass.
PARTS = 2**30
#: Up to this many comparisons, every token of a row is compared with every other: one pass instead of a loop of 32.
PAIRS = 2**14


def parts(p: float) -> Int[np.ndarray, ""]:
    """A probability as a target for ``smallest_set``: at least 1, which the empty set does not reach."""
    return np.array(max(round(p * PARTS), 1), np.int32)


def masses(p: Float[Array, "B V"]) -> Int[Array, "B V"]:
    """Probabilities as masses for ``smallest_set``."""
    return jnp.round(p * PARTS).astype(jnp.int32)


def smallest_set(score: Float[Array, "B V"], mass: Int[Array, "B V"], target: Int[ArrayLike, ""]) -> Bool[Array, "B V"]:
    """The smallest set of highest ``score`` whose ``mass`` reaches ``target``.

    Tokens that tie with the lowest score of the set belong to it. A row whose total mass does not reach the target
    keeps every token.
    """
    rows, vocab = score.shape
    if rows * vocab * vocab <= PAIRS:
        higher = score[:, :, None] > score[:, None, :]
        return jnp.sum(jnp.where(higher, mass[:, :, None], 0), axis=1) < target
    # Transposed, so that the sums vectorise over the rows if there are many.
    threshold = _largest_threshold(score.T, mass.T, target).T
    return score >= threshold


def _largest_threshold(
    score: Float[ArrayLike, "V B"], mass: Int[Array, "V B"], target: Int[ArrayLike, ""]
) -> Float[Array, "1 B"]:
    """The largest threshold such that the scores of a column at or above it reach ``target``.

    The threshold is found bit by bit in the order-preserving integer representation of floats. This is exact and takes
    32 passes over the column. (A sort of 50,000 logits costs more than a whole recurrent step.)
    """

    def narrow(i: Array, low: Array) -> Array:
        trial = low | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        value = _from_ordered(trial)
        reached = jnp.sum(jnp.where(score >= value, mass, 0), axis=0, keepdims=True) >= target
        # Bit patterns above +inf are NaNs, which cannot be a threshold.
        return jnp.where(reached & (trial <= _ordered(jnp.float32(jnp.inf))), trial, low)

    start = jnp.zeros((1, score.shape[1]), jnp.uint32)
    low = lax.fori_loop(0, 32, narrow, start)
    # If even the threshold -inf does not reach the target, the column keeps everything.
    return jnp.where(low < _ordered(jnp.float32(-jnp.inf)), -jnp.inf, _from_ordered(low))


def _ordered(x: Array) -> Array:
    """Map float32 to uint32, preserving the order."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _from_ordered(u: Array) -> Array:
    bits = jnp.where(u >> 31 == 1, u & jnp.uint32((1 << 31) - 1), ~u)
    return lax.bitcast_convert_type(bits, jnp.float32)


@dataclass(frozen=True)
class TopK:
    """Draw only among this many of the most probable tokens; those that tie with the last of them are kept.

    Fan et al. 2018, arXiv:1805.04833, section 5.

    Example:
        >>> from jaxgen.sampling.transforms import TopK
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = TopK(2), jnp.array([[3.0, 2.0, 1.0]])
        >>> state, logits = transform.update(transform.init(Context(rows=1, vocab=3)), logits, Last.none(1))
        >>> logits.tolist()
        [[3.0, 2.0, -inf]]
    """

    k: int

    def __post_init__(self) -> None:
        check_int("top-k", self.k, 1)

    def init(self, context: Context) -> np.ndarray:
        return np.array(min(self.k, context.vocab), np.int32)

    @staticmethod
    def update(state: ArrayLike, logits: Logits, last: Last) -> tuple[ArrayLike, Logits]:
        kept = smallest_set(logits, jnp.ones_like(logits, jnp.int32), state)
        return state, jnp.where(kept, logits, -jnp.inf)


@dataclass(frozen=True)
class TopP:
    """Draw among the fewest most probable tokens that together reach this probability (nucleus sampling).

    Tokens that tie with the least probable of the set are kept, unlike in implementations that break ties by order.
    A value of 1 keeps everything. Holtzman et al. 2020, arXiv:1904.09751, section 3.1.

    Example:
        >>> from jaxgen.sampling.transforms import TopP
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = TopP(0.9), jnp.array([[3.0, 2.0, 1.0]])
        >>> state, logits = transform.update(transform.init(Context(rows=1, vocab=3)), logits, Last.none(1))
        >>> logits.tolist()
        [[3.0, 2.0, -inf]]
    """

    p: float

    def __post_init__(self) -> None:
        check_number("top-p", self.p, 5e-324, 1.0, "a number above 0 and up to 1")

    def init(self, context: Context) -> np.ndarray:
        return parts(self.p)

    @staticmethod
    def update(state: ArrayLike, logits: Logits, last: Last) -> tuple[ArrayLike, Logits]:
        kept = smallest_set(logits, masses(jax.nn.softmax(logits, axis=-1)), state)
        # p = 1 keeps everything, however the masses are rounded.
        return state, jnp.where(kept | (state >= PARTS), logits, -jnp.inf)


@dataclass(frozen=True)
class TypicalP:
    """Draw among the fewest tokens that reach this probability, those with surprisal nearest to the entropy first.

    Tokens that tie with the last of the set are kept. A value of 1 keeps everything. Meister et al. 2023,
    arXiv:2202.00666, section 3.

    Example:
        >>> from jaxgen.sampling.transforms import TypicalP
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = TypicalP(0.5), jnp.array([[3.0, 2.0, 1.0]])
        >>> state, logits = transform.update(transform.init(Context(rows=1, vocab=3)), logits, Last.none(1))
        >>> logits.tolist()
        [[3.0, -inf, -inf]]
    """

    p: float

    def __post_init__(self) -> None:
        check_number("typical-p", self.p, 5e-324, 1.0, "a number above 0 and up to 1")

    def init(self, context: Context) -> np.ndarray:
        return parts(self.p)

    @staticmethod
    def update(state: ArrayLike, logits: Logits, last: Last) -> tuple[ArrayLike, Logits]:
        logp = jax.nn.log_softmax(logits, axis=-1)
        away = jnp.abs(-logp - entropy(logp))  # infinite for a token that cannot be drawn
        kept = smallest_set(-away, masses(jnp.exp(logp)), state)
        return state, jnp.where(kept | (state >= PARTS), logits, -jnp.inf)


@dataclass(frozen=True)
class MinP:
    """Leave out tokens that are less probable than this times the highest probability.

    Nguyen et al. 2024, arXiv:2407.01082, section 3.

    Example:
        >>> from jaxgen.sampling.transforms import MinP
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = MinP(0.2), jnp.array([[3.0, 2.0, 1.0]])
        >>> state, logits = transform.update(transform.init(Context(rows=1, vocab=3)), logits, Last.none(1))
        >>> logits.tolist()
        [[3.0, 2.0, -inf]]
    """

    p: float

    def __post_init__(self) -> None:
        check_number("min-p", self.p, 0.0, 1.0, "a number from 0 to 1")

    def init(self, context: Context) -> np.ndarray:
        return np.array(self.p, np.float32)

    @staticmethod
    def update(state: ArrayLike, logits: Logits, last: Last) -> tuple[ArrayLike, Logits]:
        p = jax.nn.softmax(logits, axis=-1)
        return state, _drop(p < state * jnp.max(p, axis=-1, keepdims=True), logits)


@dataclass(frozen=True)
class EpsilonCutoff:
    """Leave out tokens less probable than this, but never the most probable (Hewitt et al. 2022, arXiv:2210.15191).

    Example:
        >>> from jaxgen.sampling.transforms import EpsilonCutoff
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = EpsilonCutoff(0.1), jnp.array([[3.0, 2.0, 1.0]])
        >>> state, logits = transform.update(transform.init(Context(rows=1, vocab=3)), logits, Last.none(1))
        >>> logits.tolist()
        [[3.0, 2.0, -inf]]
    """

    epsilon: float

    def __post_init__(self) -> None:
        check_number("An epsilon cut-off", self.epsilon, 0.0, 1.0, "a number from 0 to 1; 0.0003 to 0.001 is usual")

    def init(self, context: Context) -> np.ndarray:
        return np.array(self.epsilon, np.float32)

    @staticmethod
    def update(state: ArrayLike, logits: Logits, last: Last) -> tuple[ArrayLike, Logits]:
        return state, _drop(jax.nn.softmax(logits, axis=-1) < state, logits)


@dataclass(frozen=True)
class EtaCutoff:
    """Leave out tokens less probable than min(this, sqrt(this) * exp(-entropy)), but never the most probable.

    The higher the entropy, the lower the limit. Hewitt et al. 2022, arXiv:2210.15191, section 4.

    Example:
        >>> from jaxgen.sampling.transforms import EtaCutoff
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = EtaCutoff(0.3), jnp.array([[3.0, 2.0, 1.0]])
        >>> state, logits = transform.update(transform.init(Context(rows=1, vocab=3)), logits, Last.none(1))
        >>> logits.tolist()
        [[3.0, 2.0, -inf]]
    """

    epsilon: float

    def __post_init__(self) -> None:
        check_number("An eta cut-off", self.epsilon, 0.0, 1.0, "a number from 0 to 1; 0.0003 to 0.002 is usual")

    def init(self, context: Context) -> np.ndarray:
        return np.array(self.epsilon, np.float32)

    @staticmethod
    def update(state: ArrayLike, logits: Logits, last: Last) -> tuple[ArrayLike, Logits]:
        logp = jax.nn.log_softmax(logits, axis=-1)
        eta = jnp.minimum(state, jnp.sqrt(state) * jnp.exp(-entropy(logp)))
        return state, _drop(jnp.exp(logp) < eta, logits)


def entropy(logp: Float[Array, "B V"]) -> Float[Array, "B 1"]:
    """The entropy, in nats, of log-probabilities; tokens of probability 0 contribute 0."""
    return -jnp.sum(jnp.where(logp > -jnp.inf, jnp.exp(logp) * logp, 0.0), axis=-1, keepdims=True)


def _drop(unlikely: Bool[Array, "B V"], logits: Logits) -> Logits:
    """Set ``unlikely`` tokens to -inf, except the most probable of each row and those that tie with it."""
    best = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.where(unlikely & (logits < best), -jnp.inf, logits)
