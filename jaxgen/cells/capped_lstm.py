"""The LSTM with a capped input gate: what is kept of the old state and what is taken of the new add up to 1 at most."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxgen.cells.base import Weights
from jaxgen.cells.lstm import LSTM, LSTMCarry
from jaxgen.types import Array


class CappedLSTM(LSTM):
    """An LSTM whose input gate is at most 1 minus its forget gate (Melis, Dyer & Blunsom 2018, arXiv:1707.05589)::

        c' = f * c + min(i, 1 - f) * g

    The cell state then stays between -1 and 1.
    """

    @nn.nowrap
    def gates(self, weights: Weights, carry: LSTMCarry, z: Array) -> dict[str, Array]:
        gates = super().gates(weights, carry, z)
        return gates | {"i": jnp.minimum(gates["i"], 1 - gates["f"])}

    @nn.nowrap
    def forward_with_residuals(self, carry: LSTMCarry, z: Array, u: Array) -> tuple[LSTMCarry, Array, Array]:
        gates = lax.optimization_barrier(jnp.tanh(z + u))  # as in ``LSTM``
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        # The gates are (tanh + 1) / 2, so min(i, 1 - f) is min(i, -f) of the tanh.
        c = 0.5 * ((f + 1) * carry[0] + (jnp.minimum(i, -f) + 1) * g)
        h = 0.5 * (o + 1) * jnp.tanh(c)
        return (c, h), h, gates

    @nn.nowrap
    def precompute_vjp(self, before: LSTMCarry, after: LSTMCarry, residuals: Array) -> tuple[Array, Array, Array]:
        """As that of ``LSTM``; where the input gate is capped, its part of the derivative is that of -f."""
        i, f, g, o = jnp.split(residuals, 4, axis=-1)
        tanh_c = jnp.tanh(after[0])
        free = (i < -f).astype(g.dtype)
        by_f = 0.5 * (before[0] - (1 - free) * g)
        others = (0.5 * free * g, by_f, 0.5 * (jnp.minimum(i, -f) + 1), 0.5 * tanh_c)
        gates = jnp.concatenate([(1 - a * a) * other for a, other in zip((i, f, g, o), others)], axis=-1)
        # c' depends on c through the forget gate alone.
        return gates, 0.5 * (o + 1) * (1 - tanh_c * tanh_c), 0.5 * (f + 1)

    @nn.nowrap
    def clamp_state(self, values: LSTMCarry) -> LSTMCarry:
        return jnp.tanh(values[0]), jnp.tanh(values[1])
