"""How a cell runs over time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells.base import Cell, promote
from jaxgen.cells.fused import can_run, fits, run_fused
from jaxgen.cells.scan import Masks, mask_rows, per_step, run
from jaxgen.errors import UsageError, choose
from jaxgen.types import Array, ArrayLike, Carry

#: How a recurrence can be computed. All forms give the same values and gradients, up to rounding.
FORMS = ("auto", "scan", "fused")


def choose_form(form: str, cell: nn.RNNCellBase) -> str:
    """``scan`` or ``fused``. Raises ``UsageError`` for another name, and for ``fused`` with a cell that lacks it.

    The rule of ``auto``: on a CPU, fused for every cell that is one matrix product and a pointwise function. With
    derivatives of the cell's own it was faster at every size measured, without them between 4 % slower and 36 %
    faster (docs/performance.md). On accelerators the plain scan, until the other has been measured there.
    """
    choose(form, FORMS, "form")
    if form == "auto":
        return "fused" if fits(cell) and jax.default_backend() == "cpu" else "scan"
    if form == "fused" and not fits(cell):
        raise UsageError(
            f"{type(cell).__name__} has no fused form: that takes a jaxgen cell with `pointwise` and without a `step` "
            'of its own. Use form="scan" or "auto".'
        )
    return form


def unroll_projected(
    cell: Cell,
    carry: Carry,
    z: Array,
    *,
    reset: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    initial: Carry | None = None,
    reverse: bool = False,
    length: int | None = None,
    form: str = "auto",
) -> tuple[Carry, Array]:
    """Run a bound ``cell`` over an input it has already projected: z [T, B, K], or [K] with ``length``.

    The rest is as in ``run`` and ``unroll``. This is the part of ``unroll`` after the projection, for callers that
    have a cheaper way to get z (a language model projects its V embeddings once and looks z up).
    """
    pure = cell.clone(parent=None)  # unbound: its fields can be read, its parameters cannot
    weights = cell.weights()
    masks: dict[str, Any] = {"reset": reset, "valid": valid, "initial": initial, "reverse": reverse}
    chosen = choose_form(form, cell)
    if z.ndim == 1:  # one z for all steps; by the plain scan, which need not repeat it T times
        bias = jnp.broadcast_to(z[None, :], (jax.tree.leaves(carry)[0].shape[0], z.shape[0]))
        return run(lambda w, c, _: pure.step(w, c, bias), weights, carry, None, **masks, length=length)
    if chosen == "fused" and can_run(pure, weights):
        return run_fused(pure, weights, carry, z, **masks)
    return run(pure.step, weights, carry, z, **masks)


def _run_foreign(cell: nn.RNNCellBase, carry: Carry, x: Array, reset, valid, initial, reverse: bool):
    """A Linen cell that is not ours: ``nn.scan`` keeps its parameters where ``nn.RNN`` has them."""
    timed, masks_at = Masks.of(carry, reset, valid, initial).over_time(carry)

    def body(cell: nn.RNNCellBase, state: Carry, inputs: tuple) -> tuple[Carry, Array]:
        x_t, masks = inputs[0], masks_at(inputs[1])
        start = masks.before(state)
        return masks.after(start, *cell(start, x_t))

    scan = nn.scan(body, variable_broadcast="params", split_rngs={"params": False}, reverse=reverse)
    return scan(cell, carry, (x, timed))


def _swap(tree: Any) -> Any:
    """Exchange the first two axes of every leaf: batch-major to time-major and back."""
    return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), tree)


def _widen(state: Carry | None, like: Carry) -> Carry | None:
    """``state`` in a dtype that holds both its own and ``like``'s."""
    if state is None:
        return None
    return jax.tree.map(lambda a, b: jnp.asarray(a, promote(jnp.result_type(a), b.dtype)), state, like)


def _sizes(
    cell: nn.RNNCellBase,
    x: Array | None,
    carry: Carry,
    initial: Carry,
    masks: dict,
    length: int | None,
    time_major: bool,
) -> tuple[int, int]:
    """Validate the shapes, as they were given, before anything is traced; returns (T, B)."""
    axes = ["time", "batch"] if time_major else ["batch", "time"]
    time, rows = axes.index("time"), axes.index("batch")
    if x is None and length is None:
        raise UsageError("unroll got neither an input `x` nor a `length`: give one of the two.")
    if x is not None and x.ndim != 3:
        raise UsageError(f"unroll got an input of shape {x.shape}: it must have the axes {', '.join(axes)}, features.")
    if x is not None and length not in (None, x.shape[time]):
        raise UsageError(f"unroll got length={length} with an input of {x.shape[time]} steps: leave `length` out.")
    if length is not None and length < 0:
        raise UsageError(f"unroll got length={length}: it must be 0 or more.")
    steps = x.shape[time] if x is not None else length or 0

    single = cell.initialize_carry(jax.random.key(0), (1, 0 if x is None else x.shape[-1]))
    timed = initial is not None and per_step(initial, single)
    batches = [] if x is None else [x.shape[rows]]
    batches += [mask.shape[rows] for mask in masks.values() if mask is not None and mask.ndim == 2]
    batches += [leaf.shape[0] for leaf in jax.tree.leaves(carry) if leaf.ndim]
    batches += [leaf.shape[rows if timed else 0] for leaf in jax.tree.leaves(initial) if leaf.ndim]
    if not batches:
        raise UsageError("unroll cannot tell the batch size: with `x=None` give a `carry` or an `initial` state.")
    batch = batches[0]

    sizes = (steps, batch) if time_major else (batch, steps)
    for name, mask in masks.items():
        if mask is not None and mask.shape != sizes:
            raise UsageError(f"unroll got `{name}` of shape {mask.shape}: it must be [{', '.join(axes)}] = {sizes}.")
    for name, state, lead in (("carry", carry, (batch,)), ("initial", initial, sizes if timed else (batch,))):
        if state is None:
            continue
        got = jax.tree.map(jnp.shape, state)
        wanted = jax.tree.map(lambda leaf, lead=lead: (*lead, *leaf.shape[1:]), single)
        if got != wanted:
            raise UsageError(f"unroll got `{name}` of shape {got}: for {type(cell).__name__} it must be {wanted}.")
    return steps, batch


def unroll(
    cell: nn.RNNCellBase,
    x: Array | None,
    carry: Carry | None = None,
    *,
    reset: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    initial: Carry | None = None,
    reverse: bool = False,
    length: int | None = None,
    time_major: bool = False,
    form: str = "auto",
) -> tuple[Carry, Array]:
    """Run a bound ``cell`` over ``x`` [B, T, D]; returns the final carry and ys [B, T, H].

    The projection of the input is computed for all steps at once, outside the loop. ``carry`` defaults to
    ``initial`` or, without that, to zeros; ``reset`` and ``valid`` [B, T], ``initial`` and ``reverse`` as in ``run``
    (leaves of a per-step ``initial`` are [B, T, H]). ``x=None`` with ``length`` unrolls with no input: the cell
    sees its bias alone. With ``time_major`` every [B, T, ...] above is [T, B, ...].

    Any Linen ``RNNCellBase`` works. One that is no jaxgen ``Cell`` runs through ``flax.linen.scan`` with its
    parameters where ``nn.RNN`` has them, and needs an input.

    ``form`` is how the recurrence is computed (``FORMS``): ``scan``, the plain loop; ``fused``, which has a backward
    pass of its own and no forward-mode derivatives; ``auto``, the faster of the two by a fixed rule (``choose_form``).

    Raises ``UsageError`` when shapes do not fit.
    """
    steps, batch = _sizes(cell, x, carry, initial, {"reset": reset, "valid": valid}, length, time_major)
    if not time_major:
        x, reset, valid = _swap((x, reset, valid))
    zeros = cell.initialize_carry(jax.random.key(0), (batch, 0 if x is None else x.shape[-1]))
    # A state of fewer digits than the cell keeps (bfloat16, integers) is widened, never the other way round.
    carry, initial = (_widen(state, zeros) for state in (carry, initial))
    timed = initial is not None and per_step(initial, zeros)
    if timed and not time_major:
        initial = _swap(initial)
    if carry is None:
        carry = zeros
        if initial is not None:
            carry = jax.tree.map(lambda leaf: leaf[-1 if reverse else 0], initial) if timed else initial
    if reset is not None and initial is None:
        initial = zeros
    if x is not None and valid is not None:
        # What stands in padding must not reach any sum, not even as 0 * NaN in a gradient.
        x = mask_rows(jnp.asarray(valid, bool), x)

    if isinstance(cell, Cell):
        carry, ys = unroll_projected(
            cell,
            carry,
            cell.project(x),
            reset=reset,
            valid=valid,
            initial=initial,
            reverse=reverse,
            length=steps,
            form=form,
        )
    elif x is None:
        raise UsageError(
            f"unroll got x=None for {type(cell).__name__}, which has no form without an input: "
            "give it an input, or use a jaxgen cell."
        )
    else:
        choose_form(form, cell)
        carry, ys = _run_foreign(cell, carry, x, reset, valid, initial, reverse)
    return carry, ys if time_major else _swap(ys)
