"""The fused form of a matrix-and-pointwise cell: ``lax.scan`` with a custom backward pass.

Differentiating a ``lax.scan`` accumulates the gradient of the recurrent matrix step by step: T products of B rows each,
added into a matrix that does not fit the fastest cache. Here the backward loop carries only the state's gradient, and
the matrix's gradient is one product over all T * B rows after the loop. So are those of matrices in ``Weights.extra``.

If the cell also defines ``forward_with_residuals``, ``precompute_vjp`` and ``vjp_step``, its elementwise derivatives
are computed for all steps at once before the backward loop, and those of ``Weights.extra`` after it (``extra_vjp``).
Otherwise ``jax.vjp`` differentiates its ``pointwise``.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Float, PyTree

from jaxgen.cells.base import Cell, Form, Weights
from jaxgen.cells.precision import match_varying_axes, matmul, rounded
from jaxgen.cells.scan import Masks, has_time_axis, mask_rows, run
from jaxgen.types import Array, ArrayLike, Carry

#: The methods that define a cell's equations and their derivatives.
EQUATIONS, DERIVATIVES = ("pointwise", "forward_with_residuals", "hidden"), ("precompute_vjp", "vjp_step")


def has_fused_form(cell: nn.RNNCellBase, weights: PyTree = None) -> bool:
    """Whether ``cell`` is one matrix product and a pointwise function, which is what the fused form computes.

    Args:
        cell: bound or not.
        weights: what ``cell.weights()`` returned, if the caller has it. Default: found by abstract evaluation.
    """
    if not (isinstance(cell, Cell) and type(cell).step is Cell.step and type(cell).product is Cell.product):
        return False
    return type(_abstract_weights(cell) if weights is None else weights) is Weights


def _abstract_weights(cell: Cell) -> PyTree:
    """The shapes of ``cell.weights()``."""
    unbound = cell.clone(parent=None)

    def weights(bound: Cell, x: Array) -> PyTree:
        bound.project(x)  # some cells create their parameters here
        return bound.weights()

    def init(x: Array) -> PyTree:
        return unbound.init_with_output(jax.random.key(0), x, method=weights)[0]

    return jax.eval_shape(init, jax.ShapeDtypeStruct((1, cell.features), jnp.float32))


def has_traced_fields(cell: Cell) -> bool:
    """Whether a field of ``cell`` is a tracer, which a custom derivative cannot close over."""
    fields = [getattr(cell, field.name) for field in dataclasses.fields(cell)]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(fields))


def _gives_derivatives(kind: type[Cell]) -> bool:
    """Whether the hand-written derivatives match the equations: a subclass may override the equations alone."""
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
    """``run`` for an unbound ``cell``: faster, with the same values and gradients.

    Reverse-mode derivatives only: for ``jax.jvp`` use the plain scan, which also runs if a field of the cell is traced.
    """
    if has_traced_fields(cell):
        return run(cell.step, weights, carry, z, reset=reset, valid=valid, initial=initial, reverse=reverse)
    dtype = cell.hidden(carry).dtype
    weights = jax.tree.map(lambda a: a.astype(dtype), weights)
    rule = _with_cell_vjp if _gives_derivatives(type(cell)) else _with_jax_vjp
    masks = Masks.create(carry, reset, valid, initial)
    return rule(cell, reverse, *match_varying_axes(weights, carry, z.astype(dtype), masks))


def _plain(cell: Cell, reverse: bool, weights: Weights, carry: Carry, z: Array, masks: Masks) -> tuple[Carry, Array]:
    """The plain scan, for calls that are not differentiated."""
    return run(cell.step, rounded_once(cell, weights), carry, z, reverse=reverse, **masks._asdict())


def rounded_once(cell: Cell, weights: Weights) -> Weights:
    """The weights with the kernel rounded once for all steps."""
    return weights._replace(kernel=rounded(weights.kernel, cell.precision))


def weight_gradients(cell: Cell, weights: Weights, h: Float[Array, "T B H"], du: Float[Array, "T B K"]) -> Weights:
    """The gradients of the kernel and the bias from the states and the gradients of u at all steps."""
    flat = du.reshape(-1, du.shape[-1])
    kernel = matmul(h.reshape(-1, h.shape[-1]).T, flat, cell.precision)
    return Weights(kernel, None if weights.bias is None else jnp.sum(flat, axis=0))


# --- any pointwise function


def _vjp_forward(cell: Cell, reverse: bool, weights: Weights, carry: Carry, z: Array, masks: Masks) -> PyTree:
    constant = rounded_once(cell, weights)

    def unrolled(carry: Carry, z: Array, shifts: PyTree, initial: Carry | None) -> PyTree:
        """The weights are constants here. ``shifts`` are zeros, whose gradients are those of what they are added to:
        of ``u``, and, if there are extra weights, of the results of ``pointwise``.
        """

        def step(_: None, state: Carry, inputs: tuple[Array, PyTree]) -> tuple[Carry, PyTree]:
            z_t, (shift_u, shift_out) = inputs
            u = cell.product(constant, state) + shift_u
            out = cell.pointwise(state, z_t, u, *constant.extra)
            if constant.extra:
                out = jax.tree.map(jnp.add, out, shift_out)
            return out[0], (out[1], (cell.hidden(state), (state, u) if constant.extra else None))

        last, (ys, kept) = run(
            step, None, carry, (z, shifts), reverse=reverse, **masks._replace(initial=initial)._asdict()
        )
        return (last, ys), kept

    # The shifts must vary over devices as ``z`` does: the gradient of a replicated array is summed over devices.
    u = jnp.zeros((*z.shape[:-1], weights.kernel.shape[-1]), z.dtype)
    after = jax.tree.map(lambda a: jax.ShapeDtypeStruct((*z.shape[:1], *a.shape), a.dtype), carry)
    out = jax.eval_shape(cell.pointwise, after, z, u, *weights.extra) if weights.extra else None
    _, shifts = match_varying_axes(z, (u, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), out)))
    values, backward, kept = jax.vjp(unrolled, carry, z, shifts, masks.initial, has_aux=True)
    return values, (backward, weights, z, masks.valid, kept)


def _vjp_backward(cell: Cell, reverse: bool, residuals: PyTree, cotangents: PyTree) -> PyTree:
    backward, weights, z, valid, (h, inputs) = residuals
    dcarry, dz, (du, dout), dinitial = backward(cotangents)
    gradients = weight_gradients(cell, weights, h, du)
    if weights.extra:
        # All steps at once: a matrix gets one product over T * B rows. Padding may have any value, even NaN.
        state, u = inputs
        real = z if valid is None else mask_rows(valid, z)
        _, to_extra = jax.vjp(lambda extra: cell.pointwise(state, real, u, *extra), weights.extra)
        gradients = gradients._replace(extra=to_extra(dout)[0])
    return gradients, dcarry, dz, Masks(None, None, dinitial)


_with_jax_vjp = jax.custom_vjp(_plain, nondiff_argnums=(0, 1))
_with_jax_vjp.defvjp(_vjp_forward, _vjp_backward)


# --- a cell with hand-written derivatives


def _hand_forward(cell: Cell, reverse: bool, weights: Weights, carry: Carry, z: Array, masks: Masks) -> PyTree:
    timed, masks_at = masks.over_time(carry)
    constant = rounded_once(cell, weights)
    shared: list[int] = []  # leaves of the carry that are the output too: stored once

    def body(state: Carry, inputs: tuple[Array, Masks]) -> tuple[Carry, PyTree]:
        z_t, at = inputs[0], masks_at(inputs[1])
        start = at.before(state)
        new, y, residuals = cell.forward_with_residuals(start, z_t, cell.product(constant, start), *constant.extra)
        new, y = at.after(start, new, y)
        shared[:] = [i for i, leaf in enumerate(jax.tree.leaves(new)) if leaf is y]
        return new, (None if shared else y, new, residuals)

    last, (ys, after, residuals) = lax.scan(body, carry, (z, timed), reverse=reverse)
    if shared:
        ys = jax.tree.leaves(after)[shared[0]]
    return (last, ys), (weights, carry, masks, after, residuals)


def before_steps(carry: Carry, after: Carry, masks: Masks, reverse: bool) -> Carry:
    """The states from which the steps started, after resets."""

    def shift(first: Array, states: Array) -> Array:
        parts = [states[1:], first[None]] if reverse else [first[None], states[:-1]]
        return jnp.concatenate(parts)[: states.shape[0]]

    return masks.before(jax.tree.map(shift, carry, after))


def _hand_backward(cell: Cell, reverse: bool, kept: PyTree, cotangents: PyTree) -> PyTree:
    weights, carry, masks, after, residuals = kept
    dlast, dys = cotangents
    before = before_steps(carry, after, masks, reverse)
    transposed = rounded(weights.kernel, cell.precision).T
    to_carry = jax.linear_transpose(cell.hidden, carry)  # from the gradient of hidden(carry) to that of the carry

    alike = False  # whether z and u have the same gradient, which is then stored once

    def body(dcarry: Carry, inputs: tuple[Array, PyTree, Masks]) -> tuple[Carry, PyTree]:
        nonlocal alike
        dy, factors, at = inputs
        frozen = None if at.valid is None else mask_rows(~at.valid, dcarry)
        if at.valid is not None:
            dcarry, dy = mask_rows(at.valid, (dcarry, dy))
        dstart, dz, du, *kept = cell.vjp_step(dcarry, dy, factors, *weights.extra)
        alike = dz is du
        grads: PyTree = (dstart, du, None if alike else dz, kept)
        # Padding may have any value, even NaN.
        dstart, du, dz, kept = grads if at.valid is None else mask_rows(at.valid, grads)
        dstart = jax.tree.map(jnp.add, dstart, to_carry(matmul(du, transposed, cell.precision))[0])
        if frozen is not None:
            dstart = jax.tree.map(jnp.add, dstart, frozen)
        if at.reset is None:
            return dstart, (du, dz, kept, None)
        return mask_rows(~at.reset, dstart), (du, dz, kept, mask_rows(at.reset, dstart))

    inputs = (dys, cell.precompute_vjp(before, after, residuals), masks._replace(initial=None))
    dcarry, (du, dz, steps, dinitial) = lax.scan(body, dlast, inputs, reverse=not reverse)
    if alike:
        dz = du
    if dinitial is not None and not has_time_axis(masks.initial, carry):
        dinitial = jax.tree.map(lambda a: jnp.sum(a, axis=0), dinitial)
    gradients = weight_gradients(cell, weights, cell.hidden(before), du)
    if weights.extra:
        real = residuals if masks.valid is None else mask_rows(masks.valid, residuals)
        gradients = gradients._replace(extra=cell.extra_vjp(real, dz, *steps))
    return gradients, dcarry, dz, Masks(None, None, dinitial)


_with_cell_vjp = jax.custom_vjp(_plain, nondiff_argnums=(0, 1))
_with_cell_vjp.defvjp(_hand_forward, _hand_backward)


#: On CPUs it was faster at every size measured for cells with hand-written derivatives, and between 4 % slower and 36 %
#: faster for others (docs/performance.md). It has not been measured on accelerators.
FUSED = Form(
    run_fused,
    has_fused_form,
    "a jaxgen cell with `pointwise`, without a `step` of its own, and whose `weights()` are a `Weights`",
    lambda cell, platform: platform == "cpu",
)
