"""The gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), in its reset-after form.

Reset-after applies the reset gate to the product ``h W_hn + b_hn`` instead of ``h``, as cuDNN, PyTorch and Flax do, so
that the three recurrent products are one.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxgen.cells.base import Cell, Weights, orthogonal, per_gate
from jaxgen.types import Array, ArrayLike


class GRU(Cell):
    """Gates in the order r, z, n; carry ``h`` [B, H]::

        r, z = sigmoid(x W_x + b + h W_h)
        n = tanh(x W_xn + b_n + r * (h W_hn + b_hn))
        h' = (1 - z) * n + z * h

    The two sigmoids are one ``tanh`` over [B, 2H], with the factor 1/2 folded into the weights (see ``LSTM``).

    Example:
        >>> cell = jaxgen.GRU(features=4)
        >>> carry = cell.initialize_carry(jax.random.key(0), (2, 3))
        >>> (carry, y), params = cell.init_with_output(jax.random.key(0), carry, jnp.ones((2, 3)))
        >>> y.shape
        (2, 4)
    """

    def setup(self) -> None:
        self.input = self.affine(3 * self.features)
        shape = (self.features, 3 * self.features)
        self.recurrent_kernel = self.param("recurrent_kernel", per_gate(orthogonal, 3), shape, self.param_dtype)
        self.recurrent_bias = self.param(
            "recurrent_bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype
        )

    def _scale(self) -> Array:
        half, one = jnp.full(2 * self.features, 0.5, self.param_dtype), jnp.ones(self.features, self.param_dtype)
        return jnp.concatenate([half, one])

    def project(self, x: ArrayLike | None) -> Array:
        return self.input(x, self._scale())

    def weights(self) -> Weights:
        bias = jnp.concatenate([jnp.zeros(2 * self.features, self.param_dtype), self.recurrent_bias])
        return Weights(self.recurrent_kernel * self._scale()[None, :], bias)

    @nn.nowrap
    def clamp_state(self, values: Array) -> Array:
        return jnp.tanh(values)

    @nn.nowrap
    def gates(self, weights: Weights, carry: Array, z: Array) -> dict[str, Array]:
        tanh, _, _ = self.forward_with_residuals(*self.pointwise_args(weights, carry, z))[2]
        r, update = jnp.split(0.5 * (tanh + 1), 2, axis=-1)
        return {"r": r, "z": update}

    @nn.nowrap
    def forward_with_residuals(
        self, carry: Array, z: Array, u: Array
    ) -> tuple[Array, Array, tuple[Array, Array, Array]]:
        two = 2 * self.features
        gates = lax.optimization_barrier(jnp.tanh(z[..., :two] + u[..., :two]))
        r, update = jnp.split(0.5 * (gates + 1), 2, axis=-1)
        n = jnp.tanh(z[..., two:] + r * u[..., two:])
        h = n + update * (carry - n)
        return h, h, (gates, n, u[..., two:])

    @nn.nowrap
    def precompute_vjp(
        self, before: Array, after: Array, residuals: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        """Factors of u [..., 3H], of the last third of z [..., H], and of h [..., H]."""
        gates, n, u_n = residuals
        a, b = jnp.split(gates, 2, axis=-1)
        r, update = 0.5 * (a + 1), 0.5 * (b + 1)
        in_n = (1 - update) * (1 - n * n)
        in_u = [0.5 * (1 - a * a) * (in_n * u_n), 0.5 * (1 - b * b) * (before - n), in_n * r]
        return jnp.concatenate(in_u, axis=-1), in_n, update

    @nn.nowrap
    def vjp_step(self, dcarry: Array, dy: Array, factors: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        in_u, in_n, in_h = factors
        dh = dcarry + dy
        du = in_u * jnp.concatenate([dh, dh, dh], axis=-1)
        dz = jnp.concatenate([du[..., : 2 * self.features], in_n * dh], axis=-1)
        return in_h * dh, dz, du
