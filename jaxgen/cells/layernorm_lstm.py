"""The LSTM with layer normalisation (Ba, Kiros & Hinton 2016, arXiv:1607.06450, section 3.1 and supplement)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from jaxgen.cells.base import Affine, Weights, orthogonal, per_gate, promote_state
from jaxgen.cells.lstm import CellAndHidden, LSTMCarry, forget_bias_init
from jaxgen.types import Array, ArrayLike

#: Added to variances, so that equal numbers have a derivative.
EPSILON = 1e-5


def normalise(x: Float[Array, "*batch N"]) -> Float[Array, "*batch N"]:
    """``x`` with mean 0 and variance 1 over its last axis."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + EPSILON)


class LayerNormLSTM(CellAndHidden):
    """Gates in the order i, f, g, o; carry ``(c, h)``, each [B, H], with LN(a) = (a - mean) / deviation::

        i, f, o = sigmoid(...)    g = tanh(...)    of  gain_x * LN(x W_x) + b + gain_h * LN(h W_h)
        c' = f * c + i * g        h' = o * tanh(gain_c * LN(c') + b_c)

    LN is over all four gates. The two shifts of the paper and its bias are one ``b``, because they are only added.
    ``forget_bias`` is the initial value of the forget gate's bias (see ``LSTM``).
    """

    def setup(self) -> None:
        h, dtype = self.features, self.param_dtype

        self.input = Affine(4 * h, param_dtype=dtype, precision=self.precision, use_bias=False)
        self.input_gain = self.param("input_gain", nn.initializers.ones_init(), (4 * h,), dtype)
        self.bias = self.param("bias", forget_bias_init(self.forget_bias), (4 * h,), dtype)
        self.recurrent_kernel = self.param("recurrent_kernel", per_gate(orthogonal, 4), (h, 4 * h), dtype)
        self.recurrent_gain = self.param("recurrent_gain", nn.initializers.ones_init(), (4 * h,), dtype)
        self.cell_gain = self.param("cell_gain", nn.initializers.ones_init(), (h,), dtype)
        self.cell_bias = self.param("cell_bias", nn.initializers.zeros_init(), (h,), dtype)

    def project(self, x: ArrayLike | None) -> Array:
        a = self.input(x)
        a = normalise(a.astype(promote_state(a.dtype)))
        gain, bias = (jnp.broadcast_to(v.astype(a.dtype), a.shape) for v in (self.input_gain, self.bias))
        return gain * a + bias

    def weights(self) -> Weights:
        return Weights(self.recurrent_kernel, extra=(self.recurrent_gain, self.cell_gain, self.cell_bias))

    @nn.nowrap
    def pointwise(
        self, carry: LSTMCarry, z: Array, u: Array, recurrent_gain: Array, cell_gain: Array, cell_bias: Array
    ) -> tuple[LSTMCarry, Array]:
        i, f, g, o = jnp.split(z + jnp.broadcast_to(recurrent_gain, u.shape) * normalise(u), 4, axis=-1)
        c = jax.nn.sigmoid(f) * carry[0] + jax.nn.sigmoid(i) * jnp.tanh(g)
        gain, bias = (jnp.broadcast_to(v, c.shape) for v in (cell_gain, cell_bias))
        h = jax.nn.sigmoid(o) * jnp.tanh(gain * normalise(c) + bias)
        return (c, h), h
