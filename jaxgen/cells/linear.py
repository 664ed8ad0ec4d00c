"""Linear recurrences: cells whose state is ``h' = a * h + b``, with ``a`` and ``b`` from the input alone.

All coefficients are computed for all steps at once, outside the loop. The states follow step by step, or in parallel:
two steps are one step with the coefficients ``(a2 * a1, a2 * b1 + b2)``, and this operation is associative (Blelloch
1990, "Prefix sums and their applications"; Martin & Cundy 2018, arXiv:1709.04057). A reset is a step with a = 0, and
padding is a step with a = 1 and b = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Float, PyTree, Shaped

from jaxgen.cells.base import Cell, Form, name_arrays
from jaxgen.cells.precision import match_varying_axes
from jaxgen.cells.scan import Masks, expand_mask, mask_rows, select_rows
from jaxgen.types import Array, ArrayLike, Carry

#: The state of a linear recurrence: a pytree of real or complex arrays [*batch, ...].
State: TypeAlias = PyTree


class Solver(NamedTuple):
    """A way to solve the recurrence, for ``a`` and ``b`` [T, ...] in the shape of the states."""

    #: ``states(a, b, h, reverse)``: the states after all steps, for the state ``h`` before the first step.
    states: Callable[[Array, Array, Array, bool], Array]
    #: ``gradients(a, dstates, reverse)``: the gradients of ``b``, for ``dstates`` the gradients of the states.
    gradients: Callable[[Array, Array, bool], Array]


#: Steps of a chunk in the chunked form.
CHUNK = 32


class LinearCell(Cell):
    """One time step of ``h' = a * h + b`` and ``y = read(h, z)``.

    A subclass declares its parameters in ``setup`` and implements ``coefficients`` and ``read``, and ``weights`` if
    these two need parameters. ``coefficients`` and ``read`` are pure, work on any leading axes, and must
    not mix them: the forms call them once for all time steps.

    The state is an array [*batch, H], or any pytree with the structure of ``initialize_carry``. With ``complex_state``
    it is one complex array, and the carry is the pair of its real and imaginary parts: what is stored is always real.
    """

    complex_state: ClassVar[bool] = False

    def weights(self) -> PyTree:
        """The arrays that ``coefficients`` and ``read`` get."""
        return ()

    @nn.nowrap
    def coefficients(self, weights: PyTree, z: Float[Array, "*batch K"]) -> tuple[State, State]:
        """``a`` and ``b`` for any number of steps; the leaves of ``a`` may be of size 1 along some axes."""
        raise NotImplementedError(f"{type(self).__name__} does not implement `coefficients`.")

    @nn.nowrap
    def read(self, weights: PyTree, state: State, z: Float[Array, "*batch K"]) -> Float[Array, "*batch H"]:
        """The outputs from the states after the steps; the state itself by default."""
        return state

    @nn.nowrap
    def to_state(self, carry: Carry) -> State:
        """The state that a carry stores."""
        return lax.complex(*carry) if self.complex_state else carry

    @nn.nowrap
    def to_carry(self, state: State) -> Carry:
        """The inverse of ``to_state``."""
        return (state.real, state.imag) if self.complex_state else state

    @nn.nowrap
    def state_arrays(self, carry: Carry) -> dict[str, Array]:
        return {"real": carry[0], "imag": carry[1]} if self.complex_state else super().state_arrays(carry)

    @nn.nowrap
    def gates(self, weights: PyTree, carry: Carry, z: Float[Array, "*batch K"]) -> dict[str, Array]:
        """How much of each number of the state a step keeps, ``|a|``."""
        decays = name_arrays(self.coefficients(weights, z.astype(jax.tree.leaves(carry)[0].dtype))[0])
        lead = z.shape[:-1]
        names = ["decay"] if len(decays) == 1 else [f"decay {name}" for name in decays]
        kept = (jnp.broadcast_to(jnp.abs(a), (*lead, *a.shape[len(lead) :])) for a in decays.values())
        return dict(zip(names, kept))

    @staticmethod
    def hidden(carry: Carry) -> Float[Array, "*batch H"]:
        """What attention inside a decoder's recurrence compares: the state, or its real part."""
        return jax.tree.leaves(carry)[0]

    @nn.nowrap
    def step(
        self, weights: PyTree, carry: Carry, z: Float[Array, "*batch K"]
    ) -> tuple[Carry, Float[Array, "*batch H"]]:
        z = z.astype(jax.tree.leaves(carry)[0].dtype)
        a, b = self.coefficients(weights, z)
        state = jax.tree.map(lambda a, h, b: a * h + b, a, self.to_state(carry), b)
        return self.to_carry(state), self.read(weights, state, z)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        zeros = super().initialize_carry(rng, input_shape)
        return (zeros, jnp.zeros_like(zeros)) if self.complex_state else zeros


# --- three ways to solve the recurrence


def solve_sequential(a: Array, b: Array, h: Array, reverse: bool) -> Array:
    """One step after another: the least work."""

    def step(h: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        h = at[0] * h + at[1]
        return h, h

    return lax.scan(step, h, (a, b), reverse=reverse)[1]


def sequential_gradients(a: Array, dstates: Array, reverse: bool) -> Array:
    """One step after another from the last to the first."""

    def step(dh: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        db = dh + at[1]
        return at[0] * db, db

    return lax.scan(step, jnp.zeros_like(dstates[0]), (a, dstates), reverse=not reverse)[1]


def _then(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two steps as one."""
    return second[0] * first[0], second[0] * first[1] + second[1]


def solve_parallel(a: Array, b: Array, h: Array, reverse: bool) -> Array:
    """A parallel prefix sum: O(log T) operations in a row, and about twice the work."""
    first = -1 if reverse else 0
    b = b.at[first].add(a[first] * h)
    return lax.associative_scan(_then, (a, b), axis=0, reverse=reverse)[1]


def solve_chunked(a: Array, b: Array, h: Array, reverse: bool) -> Array:
    """Chunks of ``CHUNK`` steps in parallel, one chunk after another: the memory of few steps at a time."""
    steps = a.shape[0]
    if steps <= CHUNK:
        return solve_parallel(a, b, h, reverse)
    missing = -steps % CHUNK
    edge = ((missing, 0) if reverse else (0, missing), *[(0, 0)] * (a.ndim - 1))
    a, b = (jnp.pad(x, edge).reshape((steps + missing) // CHUNK, CHUNK, *x.shape[1:]) for x in (a, b))

    def chunk(h: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        states = solve_parallel(*at, h, reverse)
        return states[0 if reverse else -1], states

    states = lax.scan(chunk, h, (a, b), reverse=reverse)[1].reshape(steps + missing, *a.shape[2:])
    return states[missing:] if reverse else states[:steps]


def _shift(x: Array, edge: Array, forward: bool) -> Array:
    """``x`` one step later (``forward``) or earlier in time, with ``edge`` in the free place."""
    return jnp.concatenate([edge[None], x[:-1]] if forward else [x[1:], edge[None]])


def _shifted(solve: Callable[..., Array], a: Array, dstates: Array, reverse: bool) -> Array:
    """The gradients by ``solve``: their recurrence, ``db[t] = dstates[t] + a[t + 1] * db[t + 1]``, is linear, too."""
    zeros = jnp.zeros_like(dstates[0])
    return solve(_shift(a, zeros, reverse), dstates, zeros, not reverse)


def _solver(solve: Callable[..., Array]) -> Solver:
    return Solver(solve, partial(_shifted, solve))


# --- its derivative, for all of them


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _states(solver: Solver, reverse: bool, a: Array, b: Array, h: Array) -> Array:
    """The states after all steps."""
    return solver.states(jnp.broadcast_to(a, b.shape), b, h, reverse)


def _states_forward(solver: Solver, reverse: bool, a: Array, b: Array, h: Array) -> tuple[Array, PyTree]:
    states = _states(solver, reverse, a, b, h)
    return states, (a, h, states)


def _states_backward(solver: Solver, reverse: bool, kept: PyTree, dstates: Array) -> tuple[Array, Array, Array]:
    a, h, states = kept
    wide = jnp.broadcast_to(a, states.shape)
    db = solver.gradients(wide, dstates, reverse)
    da = db * _shift(states, h, not reverse)
    shared = tuple(axis for axis, size in enumerate(a.shape) if size != da.shape[axis])
    first = -1 if reverse else 0
    return jnp.sum(da, axis=shared, keepdims=True), db, wide[first] * db[first]


_states.defvjp(_states_forward, _states_backward)


def run_linear(
    solver: Solver,
    cell: LinearCell,
    weights: PyTree,
    carry: Carry,
    z: Shaped[Array, "T B K"],
    *,
    reset: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    initial: Carry | None = None,
    reverse: bool = False,
) -> tuple[Carry, Float[Array, "T B H"]]:
    """``run`` for an unbound ``cell``, with all coefficients computed at once and the states by ``solver``.

    Reverse-mode derivatives only: for ``jax.jvp`` use the plain scan.
    """
    z = z.astype(jax.tree.leaves(carry)[0].dtype)
    masks = Masks.create(carry, reset, valid, initial)
    state = cell.to_state(carry)
    a, b = _mask(cell, *cell.coefficients(weights, z), masks, given=initial is not None)
    if z.shape[0] == 0:
        return carry, cell.read(weights, b, z)
    states = jax.tree.map(lambda *each: _states(solver, reverse, *match_varying_axes(*each)), a, b, state)
    ys = cell.read(weights, states, z)
    last = jax.tree.map(lambda h: h[0 if reverse else -1], states)
    return cell.to_carry(last), ys if masks.valid is None else mask_rows(masks.valid, ys)


def _mask(cell: LinearCell, a: State, b: State, masks: Masks, given: bool) -> tuple[State, State]:
    """The coefficients with padding and resets; ``given``: resets go to ``masks.initial`` and not to zeros."""
    if masks.valid is not None:
        keep = masks.valid
        a = jax.tree.map(lambda a: jnp.where(expand_mask(keep, a), a, 1), a)
        b = mask_rows(keep, b)
    if masks.reset is not None:
        reset = masks.reset
        if given:
            start = jax.tree.map(
                lambda a, b, h: a * jnp.broadcast_to(h, b.shape) + b, a, b, cell.to_state(masks.initial)
            )
            b = select_rows(reset, start, b)
        a = mask_rows(~reset, a)
    return a, b


def is_linear(cell: nn.RNNCellBase, weights: PyTree = None) -> bool:
    """Whether ``cell`` is a ``LinearCell`` without a ``step`` of its own."""
    return isinstance(cell, LinearCell) and type(cell).step is LinearCell.step


def _form(solver: Solver, *platforms: str) -> Form:
    needs = "a `LinearCell` without a `step` of its own"
    return Form(partial(run_linear, solver), is_linear, needs, lambda cell, platform: platform in platforms)


SEQUENTIAL = _form(Solver(solve_sequential, sequential_gradients), "cpu")
CHUNKED = _form(_solver(solve_chunked))
PARALLEL = _form(_solver(solve_parallel), "gpu", "tpu")
