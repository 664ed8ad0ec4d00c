"""The LSTM with a capped input gate: what is kept of the old state and what is taken of the new add up to 1 at most."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells.lstm import LSTM, LSTMCarry
from jaxgen.types import Array


class CappedLSTM(LSTM):
    """An LSTM whose input gate is at most 1 minus its forget gate (Melis, Dyer & Blunsom 2018, arXiv:1707.05589)::

        c' = f * c + min(i, 1 - f) * g

    The cell state then stays between -1 and 1.
    """

    @nn.nowrap
    def input_gate(self, i: Array, f: Array) -> Array:
        return jnp.minimum(i, -f)  # 1 minus a gate is its tanh with the other sign

    @nn.nowrap
    def precompute_vjp(self, before: LSTMCarry, after: LSTMCarry, residuals: Array) -> tuple[Array, Array, Array]:
        """As that of ``LSTM``; where the input gate is capped, its part of the derivative is that of -f."""
        i, f, g, o = jnp.split(residuals, 4, axis=-1)
        capped = jnp.concatenate([self.input_gate(i, f), f, g, o], axis=-1)
        factors, through_h, forget = super().precompute_vjp(before, after, capped)
        of_i, of_f, others = jnp.split(factors, [self.features, 2 * self.features], axis=-1)
        own = jnp.where(i < -f, of_i, 0)
        return jnp.concatenate([own, of_f - (of_i - own), others], axis=-1), through_h, forget

    @nn.nowrap
    def clamp_state(self, values: LSTMCarry) -> LSTMCarry:
        return jnp.tanh(values[0]), jnp.tanh(values[1])
