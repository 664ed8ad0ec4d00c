"""The minimal long short-term memory (Feng et al. 2024, "Were RNNs all we needed?", arXiv:2410.01201, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells.linear import LinearCell
from jaxgen.cells.mingru import positive
from jaxgen.types import Array


class MinLSTM(LinearCell):
    """An LSTM whose gates and candidate depend on the input alone, its gates scaled to sum 1; carry ``h`` [B, H]::

        f, i = sigmoid(...)    n = positive(...)    of  x W + b
        h' = f / (f + i) * h + i / (f + i) * n

    The scaled gates are ``sigmoid(log f - log i)`` and ``sigmoid(log i - log f)``, which is exact where both gates are
    almost closed.
    """

    def setup(self) -> None:
        self.input = self.affine(3 * self.features)

    @nn.nowrap
    def coefficients(self, weights: tuple[()], z: Array) -> tuple[Array, Array]:
        f, i, candidate = jnp.split(z, 3, axis=-1)
        difference = jax.nn.softplus(-i) - jax.nn.softplus(-f)
        return jax.nn.sigmoid(difference), jax.nn.sigmoid(-difference) * positive(candidate)
