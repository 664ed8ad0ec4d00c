"""The kernel form: a recurrence over a whole sequence as one Pallas kernel, for TPUs.

A ``lax.scan`` reads the recurrent matrix from the device's main memory at every step. A kernel runs over all steps
itself: it copies the weights into the core's own memory (VMEM) once and keeps the state there, while the inputs and
outputs of each step come and go (Diamos et al., "Persistent RNNs", ICML 2016, did so on a GPU).

The equations are those of the cell: the kernel calls the ``pointwise`` that the other forms call, and its backward pass
differentiates it by ``jax.vjp``. A linear cell runs ``h' = a * h + b``. On other devices the same functions run in a
``lax.scan``; there is no kernel for GPUs (docs/scale.md says why). No accelerator was at hand: the speed is unknown,
and ``auto`` never takes this form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Float, PyTree, Shaped

from jaxgen.cells.base import Cell, Form, Weights
from jaxgen.cells.fused import before_steps, has_fused_form, has_traced_fields, rounded_once, weight_gradients
from jaxgen.cells.linear import LinearCell, Solver, is_linear, run_linear
from jaxgen.cells.precision import match_varying_axes
from jaxgen.cells.scan import Masks, has_time_axis, mask_rows, run, with_masks
from jaxgen.errors import UsageError
from jaxgen.types import Array, ArrayLike, Carry

#: Bytes of VMEM that a kernel may use: what a core of a TPU v5p or 7x has; v5e and v6e have twice as much.
VMEM = 64 * 2**20
#: Rows of the batch that a core computes at a time: the first number that fits.
BLOCKS = (128, 64, 32, 16, 8)
#: For tests: what runs the kernel where there is no TPU, ``True`` (JAX's interpreter) or ``pltpu.InterpretParams`` (a
#: simulated TPU). By default it is a ``lax.scan`` instead.
INTERPRETER: Any = None


# --- a scan inside a kernel

#: ``body(weights, rows, carry, x) -> (carry, y)`` for some rows of the batch at one step.
Body = Callable[[PyTree, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]


def kernel_scan(
    name: str, body: Body, weights: PyTree, rows: PyTree, carry: PyTree, xs: PyTree, reverse: bool
) -> tuple[PyTree, PyTree]:
    """``lax.scan`` with ``partial(body, weights, rows)``; on a TPU, as one kernel for all steps.

    Args:
        name: of the cell, for error messages.
        body: what a step computes. It must not mix rows.
        weights: arrays that all steps and rows read; they stay on the chip.
        rows: arrays [B, N] that all steps read.
        carry: arrays [B, N].
        xs: arrays [T, B, N], with T of at least 1.
        reverse: run from the last step to the first.

    Raises:
        UsageError: if the arrays of a step do not fit into the core's memory.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    steps, batch = jax.tree.leaves(xs)[0].shape[:2]
    y = jax.eval_shape(body, weights, rows, carry, jax.tree.map(lambda a: a[0], xs))[1]
    ys = jax.tree.map(lambda a: jax.ShapeDtypeStruct((steps, *a.shape), a.dtype), y)
    size = block_rows(name, batch, weights, (rows, carry, carry, jax.tree.map(lambda a: a[0], xs), y))

    def whole(a: Array) -> pl.BlockSpec:
        return pl.BlockSpec(memory_space=pltpu.VMEM)

    def of_rows(a: Array) -> pl.BlockSpec:
        return pl.BlockSpec((size, a.shape[1]), lambda i, t: (i, 0))

    def of_step(a: Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, size, a.shape[2]), lambda i, t: (steps - 1 - t if reverse else t, i, 0))

    def unrow(matrices: PyTree) -> PyTree:
        return jax.tree.map(lambda a, like: a.reshape(like.shape), matrices, weights)

    def kernel(weights: PyTree, rows: PyTree, first: PyTree, xs: PyTree, carry: PyTree, ys: PyTree) -> None:
        """The same arrays as references to VMEM. ``carry`` is written to main memory after the last step."""

        @pl.when(pl.program_id(1) == 0)
        def _start() -> None:
            _write(carry, _read(first))

        after, y = body(unrow(_read(weights)), _read(rows), _read(carry), _read(xs))
        _write((carry, ys), (after, y))

    def call(interpret: Any, *inputs: PyTree) -> tuple[PyTree, PyTree]:
        return pl.pallas_call(
            kernel,
            grid=(pl.cdiv(batch, size), steps),
            in_specs=tuple(jax.tree.map(spec, a) for spec, a in zip((whole, of_rows, of_rows, of_step), inputs)),
            out_specs=(jax.tree.map(of_rows, carry), jax.tree.map(of_step, ys)),
            out_shape=_typed((carry, ys), inputs),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM),
            interpret=interpret,
        )(*inputs)

    def scan(matrices: PyTree, rows: PyTree, carry: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        return lax.scan(partial(body, unrow(matrices), rows), carry, xs, reverse=reverse)

    # A TPU's memory is made of matrices: a vector gets there as a row.
    inputs = match_varying_axes(jax.tree.map(jnp.atleast_2d, weights), rows, carry, xs)
    elsewhere = scan if INTERPRETER is None else partial(call, INTERPRETER)
    return lax.platform_dependent(*inputs, tpu=partial(call, False), default=elsewhere)


def _read(references: PyTree) -> PyTree:
    return jax.tree.map(lambda each: each[...], references)


def _write(references: PyTree, values: PyTree) -> None:
    for each, value in zip(jax.tree.leaves(references), jax.tree.leaves(values), strict=True):
        each[...] = value


def _typed(like: PyTree, inputs: PyTree) -> PyTree:
    """The types of ``like``, varying over the mesh axes over which ``inputs`` do."""
    kind = jax.typeof(jax.tree.leaves(inputs)[0]).manual_axis_type
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, manual_axis_type=kind), like)


def block_rows(name: str, batch: int, weights: PyTree, streamed: PyTree) -> int:
    """How many rows of the batch are computed at a time.

    Args:
        name: of the cell.
        batch: all rows.
        weights: arrays that stay on the chip.
        streamed: arrays [B, N] that a step reads or writes.

    Raises:
        UsageError: if even the smallest block does not fit.
    """

    def tile(size: int, unit: int) -> int:
        return -(-size // unit) * unit

    def resident(a: Array) -> int:
        return tile(a.shape[-1], 128) * tile(math.prod(a.shape[:-1]), 8) * a.dtype.itemsize

    fixed = sum(map(resident, jax.tree.leaves(weights)))
    # Two buffers for each array, so that it is copied during the step before or after; and the values of a step itself.
    each = 3 * sum(tile(a.shape[1], 128) * a.dtype.itemsize for a in jax.tree.leaves(streamed))
    for size in BLOCKS:
        rows = min(size, tile(batch, 8))
        if fixed + rows * each <= VMEM:
            return min(rows, batch)
    raise UsageError(
        f"The kernel form of {name} needs {math.ceil((fixed + BLOCKS[-1] * each) / 2**20)} MiB of a TPU core's memory "
        f"for its weights and one step, and may use {VMEM >> 20}: use the form `scan`, fewer units, or the precision "
        "`bfloat16`."
    )


# --- any pointwise function


def without_barriers(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """``function`` without optimization barriers. They help XLA's CPU backend, and kernels do not know them."""

    def call(*args: PyTree) -> PyTree:
        program, out = jax.make_jaxpr(function, return_shape=True)(*args)
        same: dict[int, Any] = {}  # what to read in place of the result of a barrier
        kept = []
        for each in program.eqns:
            read = [same.get(id(a), a) for a in each.invars]
            if each.primitive is lax.optimization_barrier_p:
                same.update({id(a): b for a, b in zip(each.outvars, read)})
            else:
                kept.append(each.replace(invars=read))
        results = [same.get(id(a), a) for a in program.jaxpr.outvars]
        without = program.replace(jaxpr=program.jaxpr.replace(eqns=kept, outvars=results))
        return jax.tree.unflatten(jax.tree.structure(out), jaxpr_as_fun(without)(*jax.tree.leaves(args)))

    return call


def _dot(a: Float[Array, "B N"], b: Shaped[Array, "_ _"], contracted: int) -> Float[Array, "B K"]:
    """``a`` in the dtype of ``b`` times ``b`` or, with 1, its transpose; the sum in the dtype of ``a``."""
    return lax.dot_general(a.astype(b.dtype), b, (((1,), (contracted,)), ((), ())), preferred_element_type=a.dtype)


def _columns(masks: Masks) -> Masks:
    """Masks [T, B] as columns [T, B, 1] of numbers, which a kernel can read, without the initial state."""
    reset, valid = (None if a is None else a[..., None].astype(jnp.float32) for a in (masks.reset, masks.valid))
    return Masks(reset, valid, None)


def _flags(masks: Masks) -> Masks:
    """The inverse of ``_columns``, inside the kernel: flags [B, 1]."""
    reset, valid = (None if a is None else a > 0 for a in (masks.reset, masks.valid))
    return masks._replace(reset=reset, valid=valid)


def run_kernel(
    cell: Cell,
    weights: PyTree,
    carry: Carry,
    z: Array,
    *,
    reset: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    initial: Carry | None = None,
    reverse: bool = False,
) -> tuple[Carry, Array]:
    """``run`` for an unbound ``cell``, as one kernel for all steps. A single step is the plain scan.

    Reverse-mode derivatives only: for ``jax.jvp`` use the plain scan, which also runs if a field of the cell is traced.

    Raises:
        UsageError: for a cell that is too large.
    """
    masks: dict[str, Any] = {"reset": reset, "valid": valid, "initial": initial, "reverse": reverse}
    if z.shape[0] < 2 or z.size == 0 or has_traced_fields(cell):
        return run(cell.step, weights, carry, z, **masks)
    if isinstance(cell, LinearCell):
        return run_linear(solver(type(cell).__name__), cell, weights, carry, z, **masks)
    dtype = cell.hidden(carry).dtype
    weights = jax.tree.map(lambda a: a.astype(dtype), weights)
    timed = Masks.create(carry, reset, valid, initial)
    return _unrolled(cell, reverse, *match_varying_axes(weights, carry, z.astype(dtype), timed))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _unrolled(cell: Cell, reverse: bool, weights: Weights, carry: Carry, z: Array, masks: Masks) -> tuple[Carry, Array]:
    return _forward(cell, reverse, weights, carry, z, masks)[0]


def _forward(
    cell: Cell, reverse: bool, weights: Weights, carry: Carry, z: Array, masks: Masks
) -> tuple[tuple[Carry, Array], PyTree]:
    each_step = masks.reset is not None and has_time_axis(masks.initial, carry)

    def step(weights: Weights, state: Carry, z: Array) -> tuple[Carry, Array]:
        u = _dot(cell.hidden(state), weights.kernel, 0)
        if weights.bias is not None:
            u = u + jnp.broadcast_to(weights.bias, u.shape)
        return without_barriers(cell.pointwise)(state, z, u, *weights.extra)

    def body(weights: Weights, initial: Carry | None, state: Carry, x: PyTree) -> tuple[Carry, PyTree]:
        z, at, own = x
        at = _flags(at)._replace(initial=own if each_step else initial)
        state, y = with_masks(step, lambda at: at)(weights, state, (z, at))
        return state, (y, state)

    own, shared = (masks.initial, None) if each_step else (None, masks.initial)
    xs = (z, _columns(masks), own)
    constant = rounded_once(cell, weights)
    last, (ys, after) = kernel_scan(type(cell).__name__, body, constant, shared, carry, xs, reverse)
    return (last, ys), (weights, carry, z, masks, after)


def _backward(cell: Cell, reverse: bool, kept: PyTree, cotangents: PyTree) -> PyTree:
    weights, carry, z, masks, after = kept
    dlast, dys = cotangents
    before = before_steps(carry, after, masks, reverse)
    constant = rounded_once(cell, weights)
    u = cell.product(constant, before)  # of all steps at once

    def body(weights: Weights, rows: None, dcarry: Carry, x: PyTree) -> tuple[Carry, PyTree]:
        state, z, u, dy, at = x
        at = _flags(at)

        def real(tree: PyTree) -> PyTree:  # padding may have any value, even NaN
            return tree if at.valid is None else mask_rows(at.valid, tree)

        dout = real((dcarry, dy))
        equations = without_barriers(cell.pointwise)
        _, to_inputs = jax.vjp(lambda *inputs: equations(*inputs, *weights.extra), state, z, u)
        dstart, dz, du = real(to_inputs(dout))
        _, to_state = jax.vjp(cell.hidden, state)
        dstart = jax.tree.map(jnp.add, dstart, to_state(_dot(du, weights.kernel, 1))[0])
        if at.valid is not None:
            dstart = jax.tree.map(jnp.add, dstart, mask_rows(~at.valid, dcarry))
        dinitial = None
        if at.reset is not None:
            dinitial, dstart = mask_rows(at.reset, dstart), mask_rows(~at.reset, dstart)
        return dstart, (du, dz, dinitial, dout if weights.extra else None)

    xs = (before, z, u, dys, _columns(masks))
    name = type(cell).__name__
    dcarry, (du, dz, dinitial, dout) = kernel_scan(name, body, constant, None, dlast, xs, not reverse)
    if dinitial is not None and not has_time_axis(masks.initial, carry):
        dinitial = jax.tree.map(lambda a: jnp.sum(a, axis=0), dinitial)
    gradients = weight_gradients(cell, weights, cell.hidden(before), du)
    if weights.extra:
        real = z if masks.valid is None else mask_rows(masks.valid, z)
        _, to_extra = jax.vjp(lambda extra: cell.pointwise(before, real, u, *extra), weights.extra)
        gradients = gradients._replace(extra=to_extra(dout)[0])
    return gradients, dcarry, dz, Masks(None, None, dinitial)


_unrolled.defvjp(_forward, _backward)


# --- linear cells


def _parts(a: Array, axes: int) -> tuple[Array, ...]:
    """The real and, if there is one, the imaginary part of ``a``, with all axes behind the first ``axes`` as one."""
    parts = (a.real, a.imag) if jnp.iscomplexobj(a) else (a,)
    return tuple(part.reshape(*a.shape[:axes], -1) for part in parts)


def _joined(parts: tuple[Array, ...], like: Array) -> Array:
    """The inverse of ``_parts``."""
    return (lax.complex(*parts) if len(parts) > 1 else parts[0]).reshape(like.shape)


def _times(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
    """The product of numbers that are given as ``_parts``."""
    if len(a) == 1:
        return (a[0] * b[0],)
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _add(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(map(jnp.add, a, b))


def solver(name: str) -> Solver:
    """The recurrence ``h' = a * h + b`` of the cell ``name`` and its gradients, each as one kernel."""

    def step(_w: None, _r: None, h: tuple[Array, ...], x: PyTree) -> PyTree:
        a, b = x
        h = _add(_times(a, h), b)
        return h, h

    def backward(_w: None, _r: None, dh: tuple[Array, ...], x: PyTree) -> PyTree:
        a, dstate = x
        db = _add(dh, dstate)
        return _times(a, db), db

    def states(a: Array, b: Array, h: Array, reverse: bool) -> Array:
        xs = _parts(a, 2), _parts(b, 2)
        return _joined(kernel_scan(name, step, None, None, _parts(h, 1), xs, reverse)[1], b)

    def gradients(a: Array, dstates: Array, reverse: bool) -> Array:
        xs = _parts(a, 2), _parts(dstates, 2)
        zeros = _parts(jnp.zeros_like(dstates[0]), 1)
        return _joined(kernel_scan(name, backward, None, None, zeros, xs, not reverse)[1], dstates)

    return Solver(states, gradients)


# --- the form


def has_kernel_form(cell: nn.RNNCellBase, weights: PyTree = None) -> bool:
    """Whether a kernel can compute ``cell``: it is linear, or has the fused form and a carry of arrays [B, N]."""
    if is_linear(cell):
        return True
    if not has_fused_form(cell, weights):
        return False
    carry = jax.eval_shape(lambda: cell.initialize_carry(jax.random.key(0), (1, 1)))
    return all(leaf.ndim == 2 for leaf in jax.tree.leaves(carry))


KERNEL = Form(
    run_kernel,
    has_kernel_form,
    "a `LinearCell` without a `step` of its own, or a cell that has the fused form and a carry of arrays [B, N]",
    lambda cell, platform: False,
)
