"""The LSTM with layer normalisation (Ba, Kiros & Hinton 2016, arXiv:1607.06450, section 3.1 and supplement)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Float

from jaxgen.cells.base import Weights, orthogonal, per_gate, promote_state
from jaxgen.cells.lstm import CellAndHidden, LSTMCarry, forget_bias_init, gate_factors, half_but_g
from jaxgen.cells.precision import match_varying_axes
from jaxgen.types import Array, ArrayLike

#: Added to variances, so that equal numbers have a derivative.
EPSILON = 1e-5


def normalise(x: Float[Array, "*batch N"]) -> Float[Array, "*batch N"]:
    """``x`` with mean 0 and variance 1 over its last axis."""
    return _normalise(x)[0]


def _normalise(x: Float[Array, "*batch N"]) -> tuple[Float[Array, "*batch N"], Float[Array, "*batch 1"]]:
    """``x`` with mean 0 and variance 1, and the inverse of its deviation."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    scale = lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + EPSILON)
    return centred * scale, scale


def _normalise_vjp(
    dy: Float[Array, "*batch N"], y: Float[Array, "*batch N"], scale: Float[Array, "*batch 1"]
) -> Float[Array, "*batch N"]:
    """The gradient of x from that of ``y``, where ``(y, scale) = _normalise(x)``."""
    return scale * (dy - jnp.mean(dy, axis=-1, keepdims=True) - y * jnp.mean(dy * y, axis=-1, keepdims=True))


class Residuals(NamedTuple):
    """What the backward pass needs of a step, each [..., H] unless noted."""

    gates: Float[Array, "*batch 4H"]  # i, f, g, o as values of tanh
    normal_u: Float[Array, "*batch 4H"]
    scale_u: Float[Array, "*batch 1"]
    normal_c: Float[Array, "*batch H"]
    scale_c: Float[Array, "*batch 1"]
    tanh_c: Float[Array, "*batch H"]


def _like(weights: Float[Array, "N"], x: Float[Array, "*batch N"]) -> Float[Array, "*batch N"]:
    return jnp.broadcast_to(weights.astype(x.dtype), x.shape)


def sum_of_products(a: Float[Array, "T *batch N"], b: Float[Array, "T *batch N"]) -> Float[Array, "N"]:
    """The sum of ``a * b`` over all axes but the last, as a loop over T, which is one pass over both.

    ``jnp.sum(a * b)`` stores the products, and on a CPU its sum over rows takes five times as long.
    """
    total, a, b = match_varying_axes(jnp.zeros_like(a[0]), a, b)
    total, _ = lax.scan(lambda total, both: (total + both[0] * both[1], None), total, (a, b))
    return jnp.sum(total, tuple(range(total.ndim - 1)))


class LayerNormLSTM(CellAndHidden):
    """Gates in the order i, f, g, o; carry ``(c, h)``, each [B, H], with LN(a) = (a - mean) / deviation::

        i, f, o = sigmoid(...)    g = tanh(...)    of  gain_x * LN(x W_x) + b + gain_h * LN(h W_h)
        c' = f * c + i * g        h' = o * tanh(gain_c * LN(c') + b_c)

    LN is over all four gates. The two shifts of the paper and its bias are one ``b``, because they are only added.
    ``forget_bias`` is the initial value of the forget gate's bias (see ``LSTM``).
    """

    def setup(self) -> None:
        h, dtype = self.features, self.param_dtype

        self.input = self.affine(4 * h, use_bias=False)
        self.input_gain = self.param("input_gain", nn.initializers.ones_init(), (4 * h,), dtype)
        self.bias = self.param("bias", forget_bias_init(self.forget_bias), (4 * h,), dtype)
        self.recurrent_kernel = self.param("recurrent_kernel", per_gate(orthogonal, 4), (h, 4 * h), dtype)
        self.recurrent_gain = self.param("recurrent_gain", nn.initializers.ones_init(), (4 * h,), dtype)
        self.cell_gain = self.param("cell_gain", nn.initializers.ones_init(), (h,), dtype)
        self.cell_bias = self.param("cell_bias", nn.initializers.zeros_init(), (h,), dtype)

    def project(self, x: ArrayLike | None) -> Array:
        a = self.input(x)
        a = normalise(a.astype(promote_state(a.dtype)))
        scale = half_but_g(self.features, self.param_dtype)
        gain, bias = (_like(scale * v, a) for v in (self.input_gain, self.bias))
        return gain * a + bias

    def weights(self) -> Weights:
        gain = half_but_g(self.features, self.param_dtype) * self.recurrent_gain
        return Weights(self.recurrent_kernel, extra=(gain, self.cell_gain, self.cell_bias))

    @nn.nowrap
    def gates(self, weights: Weights, carry: LSTMCarry, z: Array) -> dict[str, Array]:
        residuals = self.forward_with_residuals(*self.pointwise_args(weights, carry, z))[2]
        i, f, _, o = jnp.split(0.5 * (residuals.gates + 1), 4, axis=-1)
        return {"i": i, "f": f, "o": o}

    @nn.nowrap
    def forward_with_residuals(
        self, carry: LSTMCarry, z: Array, u: Array, recurrent_gain: Array, cell_gain: Array, cell_bias: Array
    ) -> tuple[LSTMCarry, Array, Residuals]:
        normal_u, scale_u = _normalise(u)
        # Without the barrier XLA fuses the slices below into the tanh, and it is no longer vectorised.
        gates = lax.optimization_barrier(jnp.tanh(z + _like(recurrent_gain, u) * normal_u))
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = 0.5 * ((f + 1) * carry[0] + (i + 1) * g)
        normal_c, scale_c = _normalise(c)
        tanh_c = jnp.tanh(_like(cell_gain, c) * normal_c + _like(cell_bias, c))
        h = 0.5 * (o + 1) * tanh_c
        return (c, h), h, Residuals(gates, normal_u, scale_u, normal_c, scale_c, tanh_c)

    @nn.nowrap
    def precompute_vjp(
        self, before: LSTMCarry, after: LSTMCarry, residuals: Residuals
    ) -> tuple[Array, Array, Array, Residuals]:
        """Factors of the pre-activations [..., 4H], of LN(c') through h, and of c through c'."""
        return *gate_factors(residuals.gates, before[0], residuals.tanh_c), residuals

    @nn.nowrap
    def vjp_step(
        self,
        dcarry: LSTMCarry,
        dy: Array,
        factors: tuple[Array, Array, Array, Residuals],
        recurrent_gain: Array,
        cell_gain: Array,
        cell_bias: Array,
    ) -> tuple[LSTMCarry, Array, Array, Array]:
        gates, through_h, forget, kept = factors
        dh = dcarry[1] + dy
        dn = dh * through_h
        dc = dcarry[0] + _normalise_vjp(_like(cell_gain, dn) * dn, kept.normal_c, kept.scale_c)
        dz = gates * jnp.concatenate([dc, dc, dc, dh], axis=-1)
        du = _normalise_vjp(_like(recurrent_gain, dz) * dz, kept.normal_u, kept.scale_u)
        return (dc * forget, jnp.zeros_like(dh)), dz, du, dn

    @nn.nowrap
    def extra_vjp(self, residuals: Residuals, dz: Array, dn: Array) -> tuple[Array, Array, Array]:
        gain = sum_of_products(dz, residuals.normal_u), sum_of_products(dn, residuals.normal_c)
        return *gain, jnp.sum(dn, tuple(range(dn.ndim - 1)))
