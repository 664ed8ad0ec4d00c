"""Randomness inside a cell: zoneout, and dropout on the recurrent state with one mask for all steps.

The masks enter a cell as any numbers do: those of each step stand behind ``z``, and the one for all steps in the carry.
So every form that computes the cell also computes it with noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Float, PyTree

from jaxgen.cells.base import Cell
from jaxgen.cells.fused import has_fused_form
from jaxgen.cells.linear import LinearCell, is_linear
from jaxgen.cells.scan import has_time_axis
from jaxgen.errors import UsageError
from jaxgen.types import Array, Carry, Key, RowKeys

#: The carry of a cell, and the mask [B, H] of its recurrent state, if there is one.
NoisyCarry = tuple[Carry, Float[Array, "*batch H"] | None]


def takes_zoneout(cell: nn.RNNCellBase) -> bool:
    """Whether zoneout is defined for ``cell``: there is a number for each unit in each array of its state."""
    if not (is_linear(cell) or has_fused_form(cell)):
        return False
    carry = jax.eval_shape(lambda key: cell.initialize_carry(key, (1, 1)), jax.random.key(0))
    return all(leaf.shape == (1, cell.features) for leaf in jax.tree.leaves(carry))


def takes_recurrent_dropout(cell: nn.RNNCellBase) -> bool:
    """Whether the state of ``cell`` meets a matrix in each step, so that dropout can stand between the two."""
    return has_fused_form(cell)


def takes_weight_dropout(cell: nn.RNNCellBase) -> bool:
    """Whether ``cell`` has a parameter ``recurrent_kernel``, whose weights the training step can drop."""
    x = jnp.zeros((1, cell.features), jnp.float32)
    start = cell.clone(parent=None)
    params = jax.eval_shape(lambda key: start.init(key, start.initialize_carry(key, x.shape), x), jax.random.key(0))
    return any(is_recurrent(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))


def is_recurrent(path: tuple[Any, ...]) -> bool:
    """Whether the parameter with this path in a tree is a recurrent matrix."""
    return getattr(path[-1], "key", None) == "recurrent_kernel"


class _Zoneout(Cell):
    """What the two kinds of cells with noise share. ``drawn``: ``z`` ends with the masks [..., H] of zoneout."""

    cell: Any = None
    drawn: bool = False

    @nn.nowrap
    def split(self, z: Float[Array, "*batch KH"]) -> tuple[Float[Array, "*batch K"], Array]:
        """The cell's own ``z``, and how much of its old state each unit keeps."""
        if self.drawn:
            return z[..., : -self.features], lax.stop_gradient(z[..., -self.features :])
        return z, jnp.full((1,) * z.ndim, self.cell.zoneout, z.dtype)


class _NoisyCell(_Zoneout):
    """A cell that is one matrix product and a pointwise function, with noise."""

    @nn.nowrap
    def hidden(self, carry: NoisyCarry) -> Array:  # type: ignore[override]
        h = self.cell.hidden(carry[0])
        return h if carry[1] is None else h * carry[1]

    @nn.nowrap
    def pointwise(self, carry: NoisyCarry, z: Array, u: Array, *extra: PyTree) -> tuple[NoisyCarry, Array]:
        before, mask = carry
        z, keep = self.split(z)
        after, y = self.cell.pointwise(before, z, u, *extra)
        if not self.cell.zoneout:
            return (after, mask), y
        output = [i for i, leaf in enumerate(jax.tree.leaves(after)) if leaf is y]
        if not output:
            raise UsageError(
                f"Zoneout needs a cell whose output is an array of its new state, which that of "
                f"{type(self.cell).__name__} is not: set `zoneout` to 0."
            )
        after = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, before, after)
        return (after, mask), jax.tree.leaves(after)[output[0]]


class _NoisyLinearCell(_Zoneout, LinearCell):
    """A linear cell with zoneout, which is a linear cell: a' = keep + (1 - keep) * a and b' = (1 - keep) * b."""

    @nn.nowrap
    def coefficients(self, weights: PyTree, z: Array) -> tuple[PyTree, PyTree]:
        z, keep = self.split(z)
        a, b = self.cell.coefficients(weights, z)
        a = jax.tree.map(lambda a: keep.astype(a.dtype) + (1 - keep).astype(a.dtype) * a, a)
        return a, jax.tree.map(lambda b: (1 - keep).astype(b.dtype) * b, b)

    @nn.nowrap
    def read(self, weights: PyTree, state: PyTree, z: Array) -> Array:
        return self.cell.read(weights, state, self.split(z)[0])

    @nn.nowrap
    def to_state(self, carry: NoisyCarry) -> PyTree:
        return self.cell.to_state(carry[0])

    @nn.nowrap
    def to_carry(self, state: PyTree) -> NoisyCarry:
        return self.cell.to_carry(state), None


def has_noise(cell: Cell, row_keys: RowKeys | None) -> bool:
    """Whether ``with_noise`` changes anything."""
    return cell.zoneout > 0 or (cell.recurrent_dropout > 0 and row_keys is not None)


def _draw(rate: float, row_keys: RowKeys, shape: tuple[int, ...], axis: int) -> Array:
    """True with probability ``rate``: an array of ``shape`` for each row, the rows along ``axis``."""

    def draw(key: Key) -> Array:
        return jax.random.bernoulli(key, rate, shape)

    return jax.vmap(draw, out_axes=axis)(row_keys)


def with_noise(
    cell: Cell,
    carry: Carry,
    z: Float[Array, "*steps K"],
    initial: Carry | None,
    row_keys: RowKeys | None,
) -> tuple[Cell, Carry, Float[Array, "*steps KH"], Carry | None, Callable[[Carry], Carry]]:
    """A cell that computes ``cell`` with its ``zoneout`` and ``recurrent_dropout``.

    Zoneout (Krueger et al. 2016, arXiv:1606.01305): at each step each unit keeps its old state with probability
    ``zoneout``, in all arrays of the state. Without ``row_keys`` the new state is the expectation over the masks.

    Dropout on the recurrent state (Gal & Ghahramani 2016, arXiv:1512.05287): what the recurrent matrix multiplies is
    multiplied by one mask for all steps. It is off without ``row_keys``.

    A row's masks depend on its own key only.

    Args:
        cell: unbound.
        carry: its carry.
        z: its projected input [T, B, K]; [K] if it is the same for all steps and there are no ``row_keys``.
        initial: its state after a reset, if it is given.
        row_keys: switch the noise on.

    Returns:
        That cell, its carry, input and initial state, and a function from its carry to that of ``cell``. Without any
        noise these are the arguments.

    Raises:
        UsageError: if the cell cannot have this noise.
    """
    name, dtype = type(cell).__name__, jax.tree.leaves(carry)[0].dtype
    for field in ("zoneout", "recurrent_dropout"):
        if not 0 <= getattr(cell, field) < 1:
            rate = getattr(cell, field)
            raise UsageError(f"The `{field}` of {name} is {rate!r}: it must be at least 0 and less than 1.")
    if not has_noise(cell, row_keys):
        return cell, carry, z, initial, lambda carry: carry
    if cell.zoneout and not takes_zoneout(cell):
        raise UsageError(
            f"{name} has no zoneout: that needs a `LinearCell` or a cell with `pointwise`, and a state of arrays with "
            "a number for each unit. Set `zoneout` to 0."
        )
    if cell.recurrent_dropout and not takes_recurrent_dropout(cell):
        raise UsageError(
            f"{name} has no dropout on its recurrent state: that needs a cell with `pointwise`. "
            "Set `recurrent_dropout` to 0."
        )
    mask, drawn, units = None, False, cell.features
    if row_keys is not None and cell.recurrent_dropout:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(row_keys)
        kept = 1.0 - cell.recurrent_dropout
        mask = _draw(kept, keys, (cell.hidden(carry).shape[-1],), axis=0).astype(dtype) / kept
    if row_keys is not None and cell.zoneout:
        drawn = True
        keep = _draw(cell.zoneout, row_keys, (z.shape[0], units), axis=1).astype(dtype)
        z = jnp.concatenate([z.astype(dtype), keep], axis=-1)
    kind = _NoisyLinearCell if is_linear(cell) else _NoisyCell
    noisy = kind(features=units, precision=cell.precision, cell=cell, drawn=drawn, parent=None)
    start: NoisyCarry | None = None if initial is None else (initial, None)
    if mask is not None:  # a reset of the carry does not reset the mask
        initial = jax.tree.map(jnp.zeros_like, carry) if initial is None else initial
        timed = has_time_axis(initial, carry)
        start = (initial, jnp.broadcast_to(mask, (z.shape[0], *mask.shape)) if timed else mask)
    return noisy, (carry, mask), z, start, lambda carry: carry[0]
