"""The recurrence of a matrix-and-pointwise cell with a backward pass of its own.

Differentiating a ``lax.scan`` accumulates the recurrent matrix's gradient step by step: T products with a batch of B
rows each, added into a matrix that does not fit the fastest cache. Here the backward loop carries the state's gradient
alone, and the matrix's gradient is one product over all T * B rows after it.

If the cell also defines ``forward_with_residuals``, ``precompute_vjp`` and ``vjp_step``, its elementwise derivatives
are computed for all steps at once before the backward loop. Otherwise ``jax.vjp`` differentiates its ``pointwise``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.cells.base import Cell, Weights
from jaxgen.cells.precision import match_varying_axes, matmul, rounded
from jaxgen.cells.scan import Masks, mask_rows, per_step, run
from jaxgen.types import Array, ArrayLike, Carry

#: The methods that are a cell's equations, and those by which it gives their derivatives.
EQUATIONS, DERIVATIVES = ("pointwise", "forward_with_residuals", "hidden"), ("precompute_vjp", "vjp_step")


def fits(cell: Any) -> bool:
    """Whether ``cell`` is one matrix product and a pointwise function, and so has a fused form."""
    return isinstance(cell, Cell) and type(cell).step is Cell.step and type(cell).product is Cell.product


def can_run(cell: Cell, weights: Any) -> bool:
    """Whether these weights and fields are such as the backward pass of a cell that ``fits`` can handle."""
    fields = [getattr(cell, field.name) for field in dataclasses.fields(cell)]
    return type(weights) is Weights and not any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(fields))


def _gives_derivatives(kind: type[Cell]) -> bool:
    """Whether ``precompute_vjp`` and ``vjp_step`` match the equations; a subclass may have overridden those alone."""
    place = {
        name: next(i for i, c in enumerate(kind.__mro__) if name in vars(c)) for name in (*EQUATIONS, *DERIVATIVES)
    }
    given = max(place[name] for name in DERIVATIVES)
    return kind.__mro__[given] is not Cell and all(given <= place[name] for name in EQUATIONS)


def run_fused(
    cell: Cell,
    weights: Weights,
    carry: Carry,
    z: Array,
    *,
    reset: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    initial: Carry | None = None,
    reverse: bool = False,
) -> tuple[Carry, Array]:
    """``run`` of an unbound ``cell`` over z [T, B, K]: the same values and the same gradients, sooner.

    Reverse-mode derivatives only: for ``jax.jvp`` use the plain form.
    """
    dtype = cell.hidden(carry).dtype
    weights = jax.tree.map(lambda a: a.astype(dtype), weights)
    rule = _by_hand if _gives_derivatives(type(cell)) else _by_vjp
    masks = Masks.of(carry, reset, valid, initial)
    return rule(cell, reverse, *match_varying_axes(weights, carry, z.astype(dtype), masks))


def _plain(cell: Cell, reverse: bool, weights: Weights, carry: Carry, z: Array, masks: Masks) -> tuple[Carry, Array]:
    """What is computed where nobody asks for a gradient: the plain scan."""
    return run(cell.step, _for_many(cell, weights), carry, z, reverse=reverse, **masks._asdict())


def _for_many(cell: Cell, weights: Weights) -> Weights:
    """The weights as a loop reads them at every step."""
    return weights._replace(kernel=rounded(weights.kernel, cell.precision))


def _weight_gradients(cell: Cell, weights: Weights, h: Array, du: Array) -> Weights:
    """From the states h [T, B, H] and the gradients du [T, B, K] of all steps."""
    flat = du.reshape(-1, du.shape[-1])
    kernel = matmul(h.reshape(-1, h.shape[-1]).T, flat, cell.precision)
    return Weights(kernel, None if weights.bias is None else jnp.sum(flat, axis=0))


# --- any pointwise function


def _vjp_forward(cell: Cell, reverse: bool, weights: Weights, carry: Carry, z: Array, masks: Masks) -> Any:
    constant = _for_many(cell, weights)

    def unrolled(carry: Carry, z: Array, shift: Array, initial: Carry | None) -> Any:
        """The weights are constants here; ``shift``, which is zero, reveals the gradient of ``u``."""

        def step(_: None, state: Carry, inputs: tuple[Array, Array]) -> tuple[Carry, tuple[Array, Array]]:
            z_t, shift_t = inputs
            new, y = cell.pointwise(state, z_t, cell.product(constant, state) + shift_t)
            return new, (y, cell.hidden(state))

        last, (ys, h) = run(step, None, carry, (z, shift), reverse=reverse, **masks._replace(initial=initial)._asdict())
        return (last, ys), h

    # On the devices of ``z``: were it the same zero on all of them, its gradient would be their sum.
    _, shift = match_varying_axes(z, jnp.zeros((*z.shape[:-1], weights.kernel.shape[-1]), z.dtype))
    out, backward, h = jax.vjp(unrolled, carry, z, shift, masks.initial, has_aux=True)
    return out, (backward, weights, h)


def _vjp_backward(cell: Cell, reverse: bool, kept: Any, cotangents: Any) -> Any:
    backward, weights, h = kept
    dcarry, dz, du, dinitial = backward(cotangents)
    return _weight_gradients(cell, weights, h, du), dcarry, dz, Masks(None, None, dinitial)


_by_vjp = jax.custom_vjp(_plain, nondiff_argnums=(0, 1))
_by_vjp.defvjp(_vjp_forward, _vjp_backward)


# --- a cell that gives its derivatives


def _hand_forward(cell: Cell, reverse: bool, weights: Weights, carry: Carry, z: Array, masks: Masks) -> Any:
    timed, masks_at = masks.over_time(carry)
    constant = _for_many(cell, weights)
    twice: list[int] = []  # the part of the carry that is also the output, which is then written once

    def body(state: Carry, inputs: tuple[Array, Masks]) -> tuple[Carry, Any]:
        z_t, at = inputs[0], masks_at(inputs[1])
        start = at.before(state)
        new, y, saved = cell.forward_with_residuals(start, z_t, cell.product(constant, start))
        new, y = at.after(start, new, y)
        twice[:] = [i for i, leaf in enumerate(jax.tree.leaves(new)) if leaf is y]
        return new, (None if twice else y, new, saved)

    last, (ys, after, saved) = lax.scan(body, carry, (z, timed), reverse=reverse)
    if twice:
        ys = jax.tree.leaves(after)[twice[0]]
    return (last, ys), (weights, carry, masks, after, saved)


def _before(carry: Carry, after: Carry, masks: Masks, reverse: bool) -> Carry:
    """The states from which the steps started: the first one, and what each step left to the next."""

    def shift(first: Array, states: Array) -> Array:
        parts = [states[1:], first[None]] if reverse else [first[None], states[:-1]]
        return jnp.concatenate(parts)[: states.shape[0]]

    return masks.before(jax.tree.map(shift, carry, after))


def _hand_backward(cell: Cell, reverse: bool, kept: Any, cotangents: Any) -> Any:
    weights, carry, masks, after, saved = kept
    dlast, dys = cotangents
    before = _before(carry, after, masks, reverse)
    transposed = rounded(weights.kernel, cell.precision).T
    to_carry = jax.linear_transpose(cell.hidden, carry)  # where the state's part of du belongs in the carry

    alike = False  # z and u meet in a sum: one gradient, written once

    def body(dcarry: Carry, inputs: tuple[Array, Any, Masks]) -> tuple[Carry, Any]:
        nonlocal alike
        dy, factors, at = inputs
        frozen = None if at.valid is None else mask_rows(~at.valid, dcarry)
        if at.valid is not None:
            dcarry, dy = mask_rows(at.valid, (dcarry, dy))
        dstart, dz, du = cell.vjp_step(dcarry, dy, factors)
        alike = dz is du
        grads: Any = (dstart, du, None if alike else dz)
        # What stands in padding may be anything, NaN too.
        dstart, du, dz = grads if at.valid is None else mask_rows(at.valid, grads)
        dstart = jax.tree.map(jnp.add, dstart, to_carry(matmul(du, transposed, cell.precision))[0])
        if frozen is not None:
            dstart = jax.tree.map(jnp.add, dstart, frozen)
        if at.reset is None:
            return dstart, (du, dz, None)
        return mask_rows(~at.reset, dstart), (du, dz, mask_rows(at.reset, dstart))

    inputs = (dys, cell.precompute_vjp(before, after, saved), masks._replace(initial=None))
    dcarry, (du, dz, dinitial) = lax.scan(body, dlast, inputs, reverse=not reverse)
    if alike:
        dz = du
    if dinitial is not None and not per_step(masks.initial, carry):
        dinitial = jax.tree.map(lambda a: jnp.sum(a, axis=0), dinitial)
    return _weight_gradients(cell, weights, cell.hidden(before), du), dcarry, dz, Masks(None, None, dinitial)


_by_hand = jax.custom_vjp(_plain, nondiff_argnums=(0, 1))
_by_hand.defvjp(_hand_forward, _hand_backward)
