"""The simple recurrent network (Elman, "Finding Structure in Time", Cognitive Science 14, 1990)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells.base import Cell, Weights, orthogonal
from jaxgen.errors import choose
from jaxgen.types import Array

#: Activations by name, each with its derivative as a function of its output.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (jnp.tanh, lambda h: 1 - h * h),
    "relu": (jax.nn.relu, lambda h: (h > 0).astype(h.dtype)),
}


class Elman(Cell):
    """``h' = act(x W_x + b + h W_h)`` with ``act`` tanh or relu.

    Example:
        >>> cell = jaxgen.Elman(features=4)
        >>> carry = cell.initialize_carry(jax.random.key(0), (2, 3))
        >>> (carry, y), params = cell.init_with_output(jax.random.key(0), carry, jnp.ones((2, 3)))
        >>> y.shape
        (2, 4)
    """

    activation: str = "tanh"

    def setup(self) -> None:
        choose(self.activation, ACTIVATIONS, "Elman activation")
        self.input = self.affine(self.features)
        shape = (self.features, self.features)
        self.recurrent_kernel = self.param("recurrent_kernel", orthogonal, shape, self.param_dtype)

    def weights(self) -> Weights:
        return Weights(self.recurrent_kernel)

    @nn.nowrap
    def clamp_state(self, values: Array) -> Array:
        return jnp.tanh(values) if self.activation == "tanh" else values

    @nn.nowrap
    def forward_with_residuals(self, carry: Array, z: Array, u: Array) -> tuple[Array, Array, None]:
        h = ACTIVATIONS[self.activation][0](z + u)
        return h, h, None

    @nn.nowrap
    def precompute_vjp(self, before: Array, after: Array, residuals: None) -> Array:
        """The derivative of the activation."""
        return ACTIVATIONS[self.activation][1](after)

    @nn.nowrap
    def vjp_step(self, dcarry: Array, dy: Array, factors: Array) -> tuple[Array, Array, Array]:
        dz = factors * (dcarry + dy)
        return jnp.zeros_like(dy), dz, dz


class ElmanReLU(Elman):
    """The Elman cell with relu (Le, Jaitly & Hinton 2015, arXiv:1504.00941).

    Example:
        >>> cell = jaxgen.ElmanReLU(features=4)
        >>> carry = cell.initialize_carry(jax.random.key(0), (2, 3))
        >>> (carry, y), params = cell.init_with_output(jax.random.key(0), carry, jnp.ones((2, 3)))
        >>> y.shape
        (2, 4)
    """

    activation: str = "relu"
