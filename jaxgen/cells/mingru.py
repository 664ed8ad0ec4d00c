"""The minimal gated recurrent unit (Feng et al. 2024, "Were RNNs all we needed?", arXiv:2410.01201, section 3.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells.linear import LinearCell
from jaxgen.types import Array


def positive(x: Array) -> Array:
    """x + 1/2 for x >= 0, else sigmoid(x): positive, continuous and increasing (appendix B.1 of the paper)."""
    return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))


class MinGRU(LinearCell):
    """A GRU whose gate and candidate depend on the input alone.

    Carry ``h`` [B, H]::

        z = sigmoid(x W_z + b_z)    n = positive(x W_n + b_n)
        h' = (1 - z) * h + z * n
    """

    def setup(self) -> None:
        self.input = self.affine(2 * self.features)

    @nn.nowrap
    def coefficients(self, weights: tuple[()], z: Array) -> tuple[Array, Array]:
        gate, candidate = jnp.split(z, 2, axis=-1)
        update = jax.nn.sigmoid(gate)
        return jax.nn.sigmoid(-gate), update * positive(candidate)
