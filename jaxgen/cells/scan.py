"""The plain form of a recurrence: ``lax.scan`` over a pure step, with resets and padding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, PyTree, Shaped

from jaxgen.cells.precision import match_varying_axes
from jaxgen.types import Array, ArrayLike, Carry

#: ``step(weights, carry, z_t) -> (carry, y)``
Step = Callable[[PyTree, Carry, PyTree], tuple[Carry, PyTree]]


def expand_mask(mask: Bool[Array, "*rows"], like: Shaped[Array, "*rows ..."]) -> Bool[Array, "..."]:
    """``mask`` with axes of size 1 behind, so that it broadcasts over ``like``."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def select_rows(mask: Bool[Array, "*rows"], on_true: Carry, on_false: Carry) -> Carry:
    """``on_true`` in the rows of ``mask`` and ``on_false`` in the others."""
    return jax.tree.map(lambda a, b: jnp.where(expand_mask(mask, b), a, b), on_true, on_false)


def mask_rows(mask: Bool[Array, "*rows"], tree: PyTree) -> PyTree:
    """``tree`` in the rows of ``mask`` and zeros in the others."""
    return jax.tree.map(lambda a: jnp.where(expand_mask(mask, a), a, jnp.zeros_like(a)), tree)


def has_time_axis(initial: Carry, carry: Carry) -> bool:
    """Whether ``initial`` has a time axis in front of the carry's own shape."""
    return jax.tree.leaves(initial)[0].ndim == jax.tree.leaves(carry)[0].ndim + 1


class Masks(NamedTuple):
    """Which rows are reset, to what state, and which are padding: for all steps [T, B], or for one step [B]."""

    reset: Bool[Array, "*rows"] | None
    valid: Bool[Array, "*rows"] | None
    initial: Carry | None  # leaves [B, H], or [T, B, H] for a different state at each step

    @classmethod
    def create(cls, carry: Carry, reset: ArrayLike | None, valid: ArrayLike | None, initial: Carry | None) -> Masks:
        """The masks of an unroll; without ``initial``, resets go to zeros."""
        reset, valid = (None if mask is None else jnp.asarray(mask, bool) for mask in (reset, valid))
        if reset is None:
            return cls(None, valid, None)
        return cls(reset, valid, jax.tree.map(jnp.zeros_like, carry) if initial is None else initial)

    def over_time(self, carry: Carry) -> tuple[Masks, Callable[[Masks], Masks]]:
        """What ``lax.scan`` iterates over, and a function from one slice of it to the masks of that step."""
        if self.reset is None or has_time_axis(self.initial, carry):
            return self, lambda at: at
        return self._replace(initial=None), lambda at: at._replace(initial=self.initial)

    def before(self, carry: Carry) -> Carry:
        """The state from which a step starts, after resets; for masks over time, of all steps."""
        return carry if self.reset is None else select_rows(self.reset, self.initial, carry)

    def after(self, start: Carry, new: Carry, y: PyTree) -> tuple[Carry, PyTree]:
        """The carry and the output after a step: in padding the carry is kept and the output is zero."""
        return (new, y) if self.valid is None else (select_rows(self.valid, new, start), mask_rows(self.valid, y))


def with_masks(step: Step, masks_at: Callable[[Masks], Masks]) -> Step:
    """``step`` with resets and padding. Its input is a pair: the input of ``step`` and a slice of ``over_time``."""

    def masked(weights: PyTree, state: Carry, inputs: tuple[PyTree, Masks]) -> tuple[Carry, PyTree]:
        z_t, masks = inputs[0], masks_at(inputs[1])
        start = masks.before(state)
        return masks.after(start, *step(weights, start, z_t))

    return masked


def run(
    step: Step,
    weights: PyTree,
    carry: Carry,
    z: PyTree,
    *,
    reset: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    initial: Carry | None = None,
    reverse: bool = False,
    length: int | None = None,
) -> tuple[Carry, PyTree]:
    """Apply the pure ``step(weights, carry, z[t]) -> (carry, y)`` over time with ``lax.scan``.

    Everything is time-major.

    Args:
        step: the pure step.
        weights: its first argument at every step.
        carry: the initial carry.
        z: the input [T, B, K]; or ``None`` with ``length``, then ``step`` gets ``None``.
        reset: rows that take the state ``initial`` before this step, [T, B].
        valid: rows that are not padding at this step, [T, B]. The others keep their carry and output zeros.
            Resets come first.
        initial: the state after a reset, zeros by default: leaves [B, H], or [T, B, H] for one at each step.
        reverse: run from the last step to the first; the outputs keep their places.
        length: T, for ``z=None``.

    Returns:
        The final carry and the outputs [T, B, H].
    """
    timed, masks_at = Masks.create(carry, reset, valid, initial).over_time(carry)
    body = partial(with_masks(step, masks_at), weights)
    carry, *_ = match_varying_axes(carry, z, timed, weights)  # a state that all devices share, rows that are spread
    return lax.scan(body, carry, (z, timed), length=length, reverse=reverse)
