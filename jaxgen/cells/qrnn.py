"""The quasi-recurrent network (Bradbury et al. 2016, arXiv:1611.01576), with "fo-pooling" and a window of one step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells.linear import LinearCell
from jaxgen.types import Array


class QRNN(LinearCell):
    """Gates in the order z, f, o; carry ``c`` [B, H]::

        z = tanh(...)    f, o = sigmoid(...)    of  x W + b
        c' = f * c + (1 - f) * z    y = o * c'

    The paper computes z, f and o from the last steps by a convolution. Here they see one step.
    """

    def setup(self) -> None:
        self.input = self.affine(3 * self.features)

    @nn.nowrap
    def clamp_state(self, values: Array) -> Array:
        return jnp.tanh(values)

    @nn.nowrap
    def coefficients(self, weights: tuple[()], z: Array) -> tuple[Array, Array]:
        candidate, f, _ = jnp.split(z, 3, axis=-1)
        return jax.nn.sigmoid(f), jax.nn.sigmoid(-f) * jnp.tanh(candidate)

    @nn.nowrap
    def read(self, weights: tuple[()], state: Array, z: Array) -> Array:
        return jax.nn.sigmoid(z[..., 2 * self.features :]) * state
