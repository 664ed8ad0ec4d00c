"""Running a cell over time: the choice of the form, and ``unroll`` for any Linen cell."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, PyTree, Shaped

from jaxgen.cells.base import Cell, Form, promote
from jaxgen.cells.fused import FUSED
from jaxgen.cells.kernel import KERNEL
from jaxgen.cells.linear import CHUNKED, PARALLEL, SEQUENTIAL
from jaxgen.cells.noise import has_noise, with_noise
from jaxgen.cells.scan import Masks, has_time_axis, mask_rows, run, with_masks
from jaxgen.errors import UsageError, check_int, choose, counted
from jaxgen.types import Array, ArrayLike, Carry, RowKeys


def _run_scan(cell: Cell, weights: PyTree, carry: Carry, z: Array, **masks: Any) -> tuple[Carry, Array]:
    return run(cell.step, weights, carry, z, **masks)


#: Forms by name, the general ones first: ``auto`` takes the last one that applies to a cell and suits the device.
FORMS: dict[str, Form] = {
    "scan": Form(_run_scan, lambda cell, weights: True, "any cell", lambda cell, platform: True),
    "fused": FUSED,
    "sequential": SEQUENTIAL,
    "chunked": CHUNKED,
    "parallel": PARALLEL,
    "kernel": KERNEL,
}


def known_forms(cell: nn.RNNCellBase) -> dict[str, Form]:
    """``FORMS``, and behind them those of the class of ``cell``, which replace others of the same name."""
    own = type(cell).forms if isinstance(cell, Cell) else {}
    return {**{name: form for name, form in FORMS.items() if name not in own}, **own}


def forms_of(cell: nn.RNNCellBase, weights: PyTree = None) -> list[str]:
    """The names of the forms that apply to ``cell``.

    Args:
        cell: bound or not.
        weights: what ``cell.weights()`` returned, if the caller has it.
    """
    return [name for name, form in known_forms(cell).items() if form.applies(cell, weights)]


def choose_form(form: str, cell: nn.RNNCellBase, weights: PyTree = None) -> str:
    """The name of the form that runs.

    Args:
        form: a name in ``known_forms``, or ``auto``: the last form that applies to the cell and suits it on JAX's
            default device (``Form.suits``).
        cell: bound or not.
        weights: what ``cell.weights()`` returned, if the caller has it.

    Raises:
        UsageError: for another name, and for a form that does not apply to the cell.
    """
    known = known_forms(cell)
    if choose(form, ["auto", *known], "form") == "auto":
        return [name for name in forms_of(cell, weights) if known[name].suits(cell, jax.default_backend())][-1]
    if known[form].applies(cell, weights):
        return form
    raise UsageError(
        f"{type(cell).__name__} has no {form} form: that needs {known[form].needs}. "
        f"Use one of {', '.join(['auto', *forms_of(cell, weights)])}."
    )


def unroll_projected(
    cell: Cell,
    carry: Carry,
    z: Float[Array, "T B K"] | Float[Array, "K"],
    *,
    reset: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    initial: Carry | None = None,
    reverse: bool = False,
    length: int | None = None,
    form: str = "auto",
    row_keys: RowKeys | None = None,
) -> tuple[Carry, Float[Array, "T B H"]]:
    """Run a bound ``cell`` over an input that is already projected.

    This is ``unroll`` after ``cell.project``, for callers that have a cheaper way to get ``z``: a language model
    projects its V embeddings once and looks ``z`` up. Everything is time-major. ``z`` [K] is the input of every one of
    ``length`` steps. The other arguments are those of ``run`` and ``unroll``.
    """
    pure = cell.clone(parent=None)  # unbound: its fields can be read, its parameters cannot
    weights, rows = cell.weights(), jax.tree.leaves(carry)[0].shape[0]
    if z.ndim == 1 and has_noise(pure, row_keys):
        z = jnp.broadcast_to(z[None, None, :], (length, rows, z.shape[0]))
    pure, carry, z, initial, own_carry = with_noise(pure, carry, z, initial, row_keys)
    masks: dict[str, Any] = {"reset": reset, "valid": valid, "initial": initial, "reverse": reverse}
    chosen = choose_form(form, pure, weights)
    if z.ndim == 1:
        if chosen == "scan":  # which need not repeat the input T times
            bias = jnp.broadcast_to(z[None, :], (rows, z.shape[0]))
            return run(lambda w, c, _: pure.step(w, c, bias), weights, carry, None, **masks, length=length)
        z = jnp.broadcast_to(z[None, None, :], (length, rows, z.shape[0]))
    carry, ys = known_forms(pure)[chosen].run(pure, weights, carry, z, **masks)
    return own_carry(carry), ys


def _run_foreign(
    cell: nn.RNNCellBase,
    carry: Carry,
    x: Shaped[Array, "T B D"],
    reset: ArrayLike | None,
    valid: ArrayLike | None,
    initial: Carry | None,
    reverse: bool,
) -> tuple[Carry, Shaped[Array, "T B H"]]:
    """Run a Linen cell that is not a ``Cell`` with ``nn.scan``. Its parameter tree is that of ``nn.RNN``."""
    timed, masks_at = Masks.create(carry, reset, valid, initial).over_time(carry)
    body = with_masks(lambda cell, state, x_t: cell(state, x_t), masks_at)
    scan = nn.scan(body, variable_broadcast="params", split_rngs={"params": False}, reverse=reverse)
    return scan(cell, carry, (x, timed))


def _swap(tree: PyTree) -> PyTree:
    """Swap the first two axes of every leaf: batch-major to time-major and back."""
    return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), tree)


def _widen(state: Carry | None, like: Carry) -> Carry | None:
    """``state`` in the common dtype of its own and that of ``like``."""
    if state is None:
        return None
    return jax.tree.map(lambda a, b: jnp.asarray(a, promote(jnp.result_type(a), b.dtype)), state, like)


def _sizes(
    cell: nn.RNNCellBase,
    x: Array | None,
    carry: Carry,
    initial: Carry,
    masks: dict[str, ArrayLike | None],
    length: int | None,
    time_major: bool,
) -> tuple[int, int, bool]:
    """Check the shapes as given, before anything is traced; return T, B, and whether ``initial`` has a time axis."""
    axes = ["time", "batch"] if time_major else ["batch", "time"]
    time, rows = axes.index("time"), axes.index("batch")
    if x is None and length is None:
        raise UsageError("unroll got neither an input `x` nor a `length`: give one of the two.")
    if x is not None and x.ndim != 3:
        raise UsageError(f"unroll got an input of shape {x.shape}: it must be [{', '.join(axes)}, features].")
    if x is not None and length not in (None, x.shape[time]):
        raise UsageError(
            f"unroll got length={length} with an input of {counted(x.shape[time], 'step')}: leave `length` out."
        )
    steps = check_int("The length of an unroll", x.shape[time] if x is not None else length, 0)

    single = cell.initialize_carry(jax.random.key(0), (1, 0 if x is None else x.shape[-1]))
    timed = initial is not None and has_time_axis(initial, single)
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
    return steps, batch, timed


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
    row_keys: RowKeys | None = None,
) -> tuple[Carry, Array]:
    """Run a bound cell over a sequence.

    The input is projected for all steps at once, outside the loop. Any Linen ``RNNCellBase`` works: one that is not a
    jaxgen ``Cell`` runs through ``flax.linen.scan``, with the parameter tree of ``nn.RNN``, and needs an input.

    Args:
        cell: the bound cell.
        x: the input [B, T, D]. ``None`` with ``length``: there is no input, and the cell reads its bias only.
        carry: the initial carry; ``initial`` by default, or zeros.
        reset: rows that take the state ``initial`` before this step, [B, T].
        valid: rows that are not padding at this step, [B, T]. The others keep their carry and output zeros.
        initial: the state after a reset, zeros by default: leaves [B, H], or [B, T, H] for one at each step.
        reverse: run from the last step to the first; the outputs keep their places.
        length: T, if there is no input.
        time_major: every [B, T, ...] above, and the outputs, are [T, B, ...].
        form: how the recurrence is computed: a name in ``FORMS`` that applies to the cell (``scan`` is a plain
            ``lax.scan``; the others have a custom backward pass and no forward-mode derivatives), or ``auto``
            (``choose_form``).
        row_keys: a key for each row [B], given in training: they switch the noise of a cell with ``zoneout`` or
            ``recurrent_dropout`` on (``jaxgen.cells.noise``).

    Returns:
        The final carry and the outputs [B, T, H].

    Raises:
        UsageError: for shapes that do not fit.

    Example:
        >>> x = jnp.ones((2, 5, 3))  # batch, time, features
        >>> run = nn.init_with_output(lambda cell: jaxgen.unroll(cell, x), jaxgen.GRU(4))
        >>> (carry, y), params = run(jax.random.key(0))
        >>> y.shape
        (2, 5, 4)
    """
    steps, batch, timed = _sizes(cell, x, carry, initial, {"reset": reset, "valid": valid}, length, time_major)
    if not time_major:
        x, reset, valid = _swap((x, reset, valid))
    zeros = cell.initialize_carry(jax.random.key(0), (batch, 0 if x is None else x.shape[-1]))
    # A state of lower precision than the cell's (bfloat16, integers) is widened; none is narrowed.
    carry, initial = (_widen(state, zeros) for state in (carry, initial))
    if timed and not time_major:
        initial = _swap(initial)
    if carry is None:
        carry = zeros
        if initial is not None:
            carry = jax.tree.map(lambda leaf: leaf[-1 if reverse else 0], initial) if timed else initial
    if reset is not None and initial is None and not isinstance(cell, Cell):
        initial = zeros  # the zero state of another Linen cell may not be zeros
    if x is not None and valid is not None:
        # Padding must not reach any sum, not even as 0 * NaN in a gradient.
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
            row_keys=row_keys,
        )
    elif x is None:
        raise UsageError(
            f"unroll got x=None for {type(cell).__name__}, which cannot run without an input: "
            "give an input, or use a jaxgen cell."
        )
    else:
        choose_form(form, cell)
        carry, ys = _run_foreign(cell, carry, x, reset, valid, initial, reverse)
    return carry, ys if time_major else _swap(ys)
