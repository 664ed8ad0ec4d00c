"""Recurrent layers one above the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells import Cell, recur, unroll
from jaxgen.errors import UsageError
from jaxgen.types import Array, Carry, Key


def dropout(x: Array, rate: float, row_keys: Key) -> Array:
    """Inverted dropout of ``x`` [T, B, D] with one key per row [B].

    A row's mask depends on its own key alone, never on the batch around it or on how rows are spread over
    devices (Srivastava et al., JMLR 15, 2014).
    """
    shape = (x.shape[0], *x.shape[2:])
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, shape), out_axes=1)(row_keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


class Stack(nn.Module):
    """``cells`` run one above the other, with dropout on what each passes upwards.

    Dropout acts on the non-recurrent connections only: between layers and above the last one
    (Zaremba, Sutskever & Vinyals 2014, arXiv:1409.2329, section 3.2). It is off unless ``row_keys`` are given.
    ``form`` is that of ``unroll``.
    """

    cells: Sequence[nn.RNNCellBase]
    dropout: float = 0.0
    form: str = "auto"

    def __call__(
        self,
        x: Array,
        carries: Sequence[Carry],
        *,
        projected: bool = False,
        reset: Array | None = None,
        valid: Array | None = None,
        initial: Sequence[Carry] | None = None,
        row_keys: Key | None = None,
    ) -> tuple[tuple[Carry, ...], Array]:
        """``x`` [T, B, D], one carry a layer -> the new carries and the last layer's outputs [T, B, H].

        With ``projected``, ``x`` [T, B, K] is already ``cells[0].project(...)`` of the input. ``reset``, ``valid``
        [T, B] and ``initial`` (one a layer) are as in ``jaxgen.cells.run``; ``row_keys`` [B] switches dropout on.
        """
        for name, states in {"carries": carries, "initial": initial}.items():
            if states is not None and len(states) != len(self.cells):
                raise UsageError(f"Got {len(states)} `{name}` for {len(self.cells)} layers: give one a layer.")
        masks: dict[str, Any] = {"reset": reset, "valid": valid}
        after = []
        for layer, (cell, carry) in enumerate(zip(self.cells, carries)):
            start = None if initial is None else initial[layer]
            if projected and layer == 0 and isinstance(cell, Cell):
                carry, x = recur(cell, carry, x, **masks, initial=start, form=self.form)
            else:
                carry, x = unroll(cell, x, carry, **masks, initial=start, time_major=True, form=self.form)
            after.append(carry)
            if row_keys is not None and self.dropout > 0:
                x = dropout(x, self.dropout, jax.vmap(lambda key, n=layer: jax.random.fold_in(key, n))(row_keys))
        return tuple(after), x
