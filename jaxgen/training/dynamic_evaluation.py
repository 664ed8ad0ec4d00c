"""Dynamic evaluation: the weights of a model adapt to the text that it reads (Krause et al. 2018, arXiv:1709.07432).

A text is read in segments. Each segment is first scored with the current weights, then changes them by one step of
gradient descent, so no token is scored by weights that have seen it. With the gradient g of a segment's mean negative
log-likelihood, its running mean square m and the trained weights p0 the step is

    m <- d m + (1 - d) g^2
    p <- p - rate g / (sqrt(m / (1 - d^step)) + eps) + decay (p0 - p)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, PyTree

from jaxgen.types import Array, ArrayLike, Carry

#: d and eps of the step.
MEAN_DECAY, EPSILON = 0.999, 1e-3

#: ``read(params, carry, segment) -> (loss, (carry, output))``: reads a segment after ``carry``. The loss is the mean
#: negative log-likelihood that the weights are to lower; the output is any pytree of arrays.
Read = Callable[[PyTree, Carry, PyTree], tuple[Float[Array, ""], tuple[Carry, PyTree]]]


class Rates(NamedTuple):
    """How fast the weights follow the text, and how fast they return to the trained weights."""

    rate: Float[ArrayLike, ""] | float
    decay: Float[ArrayLike, ""] | float


class AdaptedState(NamedTuple):
    """Everything that the next segment depends on."""

    params: PyTree
    mean_square: PyTree  # running mean of the squared gradient of each parameter
    carry: Carry
    step: Int[Array, ""]  # segments that changed the weights

    @classmethod
    def start(cls, params: PyTree, carry: Carry) -> AdaptedState:
        """The state before any text."""
        return cls(params, jax.tree.map(jnp.zeros_like, params), carry, jnp.zeros((), jnp.int32))


def adapt_step(
    read: Read, trained: PyTree, state: AdaptedState, segment: PyTree, rates: Rates | None
) -> tuple[AdaptedState, PyTree]:
    """Read one segment with the weights of ``state``, then change them.

    Args:
        read: reads a segment.
        trained: the weights to which ``rates.decay`` leads back.
        state: the state before the segment.
        segment: the segment.
        rates: the rates; ``None`` leaves the weights alone.

    Returns:
        The state after the segment, and the output of ``read``.
    """
    if rates is None:
        _, (carry, output) = read(state.params, state.carry, segment)
        return state._replace(carry=carry), output
    (_, (carry, output)), gradient = jax.value_and_grad(read, has_aux=True)(state.params, state.carry, segment)
    step = state.step + 1
    correction = 1 - MEAN_DECAY ** step.astype(jnp.float32)

    def mean(m: Array, g: Array) -> Array:
        return MEAN_DECAY * m + (1 - MEAN_DECAY) * g * g

    def move(p: Array, p0: Array, g: Array, m: Array) -> Array:
        return p - rates.rate * g / (jnp.sqrt(m / correction) + EPSILON) + rates.decay * (p0 - p)

    mean_square = jax.tree.map(mean, state.mean_square, gradient)
    params = jax.tree.map(move, state.params, trained, gradient, mean_square)
    return AdaptedState(params, mean_square, carry, step), output


def dynamic_evaluation(
    read: Read,
    trained: PyTree,
    state: AdaptedState,
    segments: PyTree,
    count: Int[ArrayLike, ""] | int,
    rates: Rates | None,
) -> tuple[AdaptedState, PyTree]:
    """Read segments in order, as ``adapt_step`` does.

    Args:
        read: reads a segment.
        trained: the trained weights.
        state: the state before the first segment.
        segments: the segments, stacked along the first axis of each array.
        count: how many of them are read. It does not affect the shapes, so that one compiled function reads any number.
        rates: the rates; ``None`` leaves the weights alone.

    Returns:
        The state after the last segment, and the stacked outputs; those of segments that are not read are zeros.

    Example:
        >>> from jaxgen.training.dynamic_evaluation import AdaptedState, Rates, dynamic_evaluation
        >>> def read(params, carry, value):  # a model that predicts the same number at every step
        ...     return (params["guess"] - value) ** 2, (carry, params["guess"])
        >>> params = {"guess": jnp.float32(0.0)}
        >>> state = AdaptedState.start(params, ())
        >>> state, guesses = dynamic_evaluation(read, params, state, jnp.ones(3), 3, Rates(0.1, 0.0))
        >>> [round(float(guess), 2) for guess in guesses]
        [0.0, 0.1, 0.2]
    """
    segments = jax.tree.map(jnp.asarray, segments)
    first = jax.tree.map(lambda a: a[0], segments)
    shapes = jax.eval_shape(lambda: read(state.params, state.carry, first)[1][1])
    number = jax.tree.leaves(segments)[0].shape[0]
    outputs = jax.tree.map(lambda a: jnp.zeros((number, *a.shape), a.dtype), shapes)

    def one(i: Array, held: tuple[AdaptedState, PyTree]) -> tuple[AdaptedState, PyTree]:
        state, outputs = held
        state, output = adapt_step(read, trained, state, jax.tree.map(lambda a: a[i], segments), rates)
        return state, jax.tree.map(lambda a, new: a.at[i].set(new), outputs, output)

    done: tuple[AdaptedState, PyTree] = jax.lax.fori_loop(0, count, one, (state, outputs))
    return done
