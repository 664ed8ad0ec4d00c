"""The plain form of a recurrence: ``lax.scan`` over a pure step, with resets and padding around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.types import Array, ArrayLike, Carry

Step = Callable[[Any, Carry, Any], tuple[Carry, Any]]


def rows(mask: Array, like: Array) -> Array:
    """A mask [B] or [T, B] shaped to broadcast over the trailing axes of ``like`` [B, ...] or [T, B, ...]."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def select(mask: Array, on_true: Carry, on_false: Carry) -> Carry:
    return jax.tree.map(lambda a, b: jnp.where(rows(mask, b), a, b), on_true, on_false)


def mask_rows(mask: Array, tree: Any) -> Any:
    """``tree`` in the rows of ``mask`` and zero in the others."""
    return jax.tree.map(lambda a: jnp.where(rows(mask, a), a, jnp.zeros_like(a)), tree)


def per_step(initial: Carry, carry: Carry) -> bool:
    """Whether ``initial`` has a time axis in front of the carry's own shape."""
    return jax.tree.leaves(initial)[0].ndim == jax.tree.leaves(carry)[0].ndim + 1


class Masks(NamedTuple):
    """Which rows start afresh, and from where, and which are padding: of all steps [T, B], or of one [B]."""

    reset: Array | None
    valid: Array | None
    initial: Carry | None  # [B, H], or one for each step, [T, B, H]

    @classmethod
    def of(cls, carry: Carry, reset: ArrayLike | None, valid: ArrayLike | None, initial: Carry | None) -> Masks:
        """Zeros are the initial state where none is given; without resets there is no use for one."""
        reset, valid = (None if mask is None else jnp.asarray(mask, bool) for mask in (reset, valid))
        if reset is None:
            return cls(None, valid, None)
        return cls(reset, valid, jax.tree.map(jnp.zeros_like, carry) if initial is None else initial)

    def over_time(self, carry: Carry) -> tuple[Masks, Callable[[Masks], Masks]]:
        """What a scan walks over, and how its body gets the masks of a step from that."""
        if self.reset is None or per_step(self.initial, carry):
            return self, lambda at: at
        return self._replace(initial=None), lambda at: at._replace(initial=self.initial)

    def before(self, carry: Carry) -> Carry:
        """The state that a step starts from; or, of masks over time, those that all steps start from."""
        return carry if self.reset is None else select(self.reset, self.initial, carry)

    def after(self, start: Carry, new: Carry, y: Any) -> tuple[Carry, Any]:
        """The state and the output that a step leaves: padding keeps the one and gives zeros for the other."""
        return (new, y) if self.valid is None else (select(self.valid, new, start), mask_rows(self.valid, y))


def run(
    step: Step,
    weights: Any,
    carry: Carry,
    z: Any,
    *,
    reset: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    initial: Carry | None = None,
    reverse: bool = False,
    length: int | None = None,
) -> tuple[Carry, Any]:
    """Apply the pure ``step(weights, carry, z[t]) -> (carry, y)`` over time with ``lax.scan``.

    Everything is time-major: ``z`` [T, B, K] (or ``None`` with ``length``, then ``step`` gets ``None``),
    ``reset`` and ``valid`` [T, B] booleans, ``ys`` [T, B, H]. Before step t, rows with ``reset[t]`` take the state
    ``initial`` (zeros by default; leaves [B, H], or [T, B, H] for a state of its own at each step). Rows without
    ``valid[t]`` keep their carry and give y = 0; the reset acts first. ``reverse`` walks from the last step to
    the first and leaves the outputs in their places.

    Returns the final carry and ``ys``.
    """
    timed, masks_at = Masks.of(carry, reset, valid, initial).over_time(carry)

    def body(state: Carry, inputs: tuple[Any, Masks]) -> tuple[Carry, Any]:
        z_t, masks = inputs[0], masks_at(inputs[1])
        start = masks.before(state)
        return masks.after(start, *step(weights, start, z_t))

    return lax.scan(body, carry, (z, timed), length=length, reverse=reverse)
