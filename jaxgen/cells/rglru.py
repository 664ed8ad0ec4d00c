"""The real-gated linear recurrent unit (De et al. 2024, "Griffin", arXiv:2402.19427, section 2.4)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Shaped

from jaxgen.cells.base import check_groups, promote, promote_state
from jaxgen.cells.linear import LinearCell
from jaxgen.cells.precision import matmul
from jaxgen.types import Array, ArrayLike, DType, Key

#: The constant ``c``: a state decays by ``sigmoid(-decay) ** c`` where its gate is open.
SHARPNESS = 8.0


class BlockAffine(nn.Module):
    """``x @ kernel + bias`` with a block-diagonal matrix, stored as its blocks: kernel [blocks, N, N], bias [H]."""

    features: int
    blocks: int
    param_dtype: DType
    precision: str

    @nn.compact
    def __call__(self, x: Shaped[Array, "*batch H"]) -> Float[Array, "*batch H"]:
        size = self.features // self.blocks
        init = nn.initializers.lecun_normal(batch_axis=0)
        kernel = self.param("kernel", init, (self.blocks, size, size), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype)
        parts = x.reshape(-1, self.blocks, size).astype(promote(x.dtype, kernel.dtype))
        y = jax.vmap(partial(matmul, precision=self.precision), in_axes=(1, 0), out_axes=1)(parts, kernel)
        return (y.reshape(-1, self.features) + bias.astype(y.dtype)[None, :]).reshape(x.shape)


def decay_init(key: Key, shape: tuple[int, ...], dtype: DType) -> Float[Array, "H"]:
    """Values for which the smallest decay factor, that of an open gate, is uniform in [0.9, 0.999]."""
    smallest = jax.random.uniform(key, shape, promote_state(dtype), 0.9, 0.999)
    return jnp.log(jnp.expm1(-jnp.log(smallest) / SHARPNESS)).astype(dtype)


def sqrt(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The square root of ``x >= 0``, with the derivative 0 at 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


class RGLRU(LinearCell):
    """A state that decays at a rate of its own, faster where its gate opens; carry ``h`` [B, H]::

        r = sigmoid(x W_r + b_r)    i = sigmoid(x W_i + b_i)
        a = exp(-8 softplus(decay) * r)
        h' = a * h + sqrt(1 - a^2) * (i * x)

    ``W_r`` and ``W_i`` are block-diagonal with ``blocks`` blocks of equal size. The cell reads an input of H features
    as it is, as in the paper, and one of another width through a linear map ``input`` without bias.
    """

    blocks: int = 1

    def setup(self) -> None:
        check_groups(self, "blocks")
        dtype, precision = self.param_dtype, self.precision
        self.input = self.affine(self.features, use_bias=False)
        self.recurrence_gate = BlockAffine(self.features, self.blocks, dtype, precision)
        self.input_gate = BlockAffine(self.features, self.blocks, dtype, precision)
        self.decay = self.param("decay", decay_init, (self.features,), self.param_dtype)

    def project(self, x: ArrayLike | None) -> Array:
        x = jnp.zeros(self.features, self.param_dtype) if x is None else jnp.asarray(x)
        x = x if x.shape[-1] == self.features else self.input(x)
        r, i = self.recurrence_gate(x), self.input_gate(x)
        return jnp.concatenate([x.astype(r.dtype), r, i], axis=-1)

    def weights(self) -> Float[Array, "H"]:
        """The logarithm of the smallest decay factor."""
        return -SHARPNESS * jax.nn.softplus(self.decay.astype(promote_state(self.param_dtype)))

    @nn.nowrap
    def coefficients(self, weights: Float[Array, "H"], z: Array) -> tuple[Array, Array]:
        x, r, i = jnp.split(z, 3, axis=-1)
        log_a = jnp.broadcast_to(weights, r.shape) * jax.nn.sigmoid(r)
        # 1 - a^2 as it stands loses all digits where a is near 1.
        return jnp.exp(log_a), sqrt(-jnp.expm1(2 * log_a)) * jax.nn.sigmoid(i) * x
