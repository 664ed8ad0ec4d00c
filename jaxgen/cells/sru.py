"""The simple recurrent unit (Lei et al., arXiv:1709.02755v1, 2017, "Training RNNs as fast as CNNs", section 3).

Version 1 of the paper: its gates see the input alone. Those of the later versions (EMNLP 2018) also see the state, so
that they are not a linear recurrence.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells.linear import LinearCell
from jaxgen.types import Array, ArrayLike


class SRU(LinearCell):
    """A gated average of the past beside the input itself (a highway connection); carry ``c`` [B, H]::

        n = x W_n + b_n    f, r = sigmoid(...)  of  x W + b
        c' = f * c + (1 - f) * n
        y = r * tanh(c') + (1 - r) * x

    An ``x`` of another width than H gets there through a linear map ``skip`` without bias.
    """

    def setup(self) -> None:
        self.input = self.affine(3 * self.features)
        self.skip = self.affine(self.features, use_bias=False)

    def project(self, x: ArrayLike | None) -> Array:
        z = self.input(x)
        if x is None:
            skipped = jnp.zeros(self.features, z.dtype)
        else:
            skipped = jnp.asarray(x) if x.shape[-1] == self.features else self.skip(x)
        return jnp.concatenate([z, skipped.astype(z.dtype)], axis=-1)

    @nn.nowrap
    def coefficients(self, weights: tuple[()], z: Array) -> tuple[Array, Array]:
        candidate, f, _, _ = jnp.split(z, 4, axis=-1)
        return jax.nn.sigmoid(f), jax.nn.sigmoid(-f) * candidate

    @nn.nowrap
    def read(self, weights: tuple[()], state: Array, z: Array) -> Array:
        r, x = jnp.split(z[..., 2 * self.features :], 2, axis=-1)
        return x + jax.nn.sigmoid(r) * (jnp.tanh(state) - x)
