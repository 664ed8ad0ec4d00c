"""The sLSTM, an LSTM with an exponential input gate (Beck et al. 2024, arXiv:2405.04517, section 2.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells.base import Cell, Weights, check_groups, orthogonal, per_gate
from jaxgen.cells.lstm import forget_bias_init
from jaxgen.types import Array, DType, Key

SLSTMCarry = tuple[Array, Array, Array]


class SLSTM(Cell):
    """Gates in the order i, f, g, o, of ``x W_x + b + h W_h``::

        i = exp(.)   f = sigmoid(.)   g = tanh(.)   o = sigmoid(.)
        c' = f * c + i * g        n' = f * n + i        h' = o * c' / n'

    The carry is ``(c / n, log n, h)``, each [B, H], so that nothing overflows and every state is valid: with the share
    of the past ``s = f n / (f n + i) = sigmoid(log f + log n - log i)``::

        c' / n' = s * (c / n) + (1 - s) * g        log n' = log(f n + i)

    This is what the paper's stabiliser state ``m`` is for: its ``log n`` is ours minus ``m``. In the zero state ``n``
    is 1.

    Args:
        forget_bias: the initial value of the forget gate's bias (see ``LSTM``).
        heads: the units form this many groups, and ``W_h`` connects only units of the same group.
    """

    forget_bias: float = 1.0
    heads: int = 1

    def setup(self) -> None:
        h, size = self.features, self.features // check_groups(self, "heads")

        def by_head(key: Key, shape: tuple[int, ...], dtype: DType) -> Array:
            init = per_gate(orthogonal, 4)
            return jnp.stack([init(k, shape[1:], dtype) for k in jax.random.split(key, self.heads)])

        self.input = self.affine(4 * h, bias_init=forget_bias_init(self.forget_bias))
        shape = (self.heads, size, 4 * size)
        self.recurrent_kernel = self.param("recurrent_kernel", by_head, shape, self.param_dtype)

    def weights(self) -> Weights:
        blocks = self.recurrent_kernel.reshape(self.heads, -1, 4, 1, self.features // self.heads)
        diagonal = jnp.eye(self.heads, dtype=blocks.dtype).reshape(self.heads, 1, 1, self.heads, 1)
        return Weights((blocks * diagonal).reshape(self.features, 4 * self.features))

    @staticmethod
    def hidden(carry: SLSTMCarry) -> Array:
        return carry[2]

    @nn.nowrap
    def state_arrays(self, carry: SLSTMCarry) -> dict[str, Array]:
        return {"c/n": carry[0], "log n": carry[1], "h": carry[2]}

    @nn.nowrap
    def gates(self, weights: Weights, carry: SLSTMCarry, z: Array) -> dict[str, Array]:
        *_, share, o = self._gates(*self.pointwise_args(weights, carry, z))
        return {"share": share, "o": o}

    @nn.nowrap
    def clamp_state(self, values: SLSTMCarry) -> SLSTMCarry:
        return jnp.tanh(values[0]), values[1], jnp.tanh(values[2])

    @nn.nowrap
    def pointwise(self, carry: SLSTMCarry, z: Array, u: Array) -> tuple[SLSTMCarry, Array]:
        past, i, g, share, o = self._gates(carry, z, u)
        ratio = share * carry[0] + (1 - share) * g
        h = o * ratio
        return (ratio, jnp.logaddexp(past, i), h), h

    @nn.nowrap
    def _gates(self, carry: SLSTMCarry, z: Array, u: Array) -> tuple[Array, ...]:
        """log(f n), log i, g, the share of the past and o."""
        i, f, g, o = jnp.split(z + u, 4, axis=-1)
        past = jax.nn.log_sigmoid(f) + carry[1]
        return past, i, jnp.tanh(g), jax.nn.sigmoid(past - i), jax.nn.sigmoid(o)

    @nn.nowrap
    def initialize_carry(self, rng: Key, input_shape: tuple[int, ...]) -> SLSTMCarry:
        zeros = super().initialize_carry
        return zeros(rng, input_shape), zeros(rng, input_shape), zeros(rng, input_shape)
