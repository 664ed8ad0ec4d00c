"""What a cell is: pure functions for one time step, and the Linen module that owns their parameters.

Most recurrent cells are one matrix product and a pointwise function. With ``z = project(x)`` (the input's
part, which does not depend on time and is computed for all steps at once) and ``u = hidden(carry) @ W + b``
(the state's part, the only product inside the loop), a cell is ``pointwise(carry, z, u) -> (carry, y)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells.precision import matmul
from jaxgen.types import Array, Carry

Initializer = Callable[..., Array]


class Weights(NamedTuple):
    """The arrays that a matrix-and-pointwise recurrence reads at every step."""

    kernel: Array  # [H, K]
    bias: Array | None = None  # [K]


def promote(a: Any, b: Any) -> Any:
    """The common dtype of two, also where the caller forbids implicit promotion: here it is explicit."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def promote_state(dtype: Any) -> Any:
    """The state's dtype for inputs of ``dtype``: never less than float32, so that long sums keep their digits."""
    return promote(dtype, jnp.float32)


def orthogonal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """An orthogonal matrix (Saxe et al. 2014, arXiv:1312.6120), factorised in at least float32 as QR requires."""
    return nn.initializers.orthogonal()(key, shape, promote_state(dtype)).astype(dtype)


def per_gate(init: Initializer, gates: int) -> Initializer:
    """Initialise a [.., gates * H] kernel one [.., H] block at a time, each with its own key."""

    def initialise(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        block = (*shape[:-1], shape[-1] // gates)
        return jnp.concatenate([init(k, block, dtype) for k in jax.random.split(key, gates)], axis=-1)

    return initialise


class Affine(nn.Module):
    """``x @ kernel + bias`` with an optional constant ``scale`` [K] folded into both.

    Folding costs one product over the weights and none over the activations. ``x=None`` returns the bias
    alone, [K]: the input's part of an unroll that has no input. ``precision`` is that of the product (``matmul``).
    """

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    param_dtype: Any = jnp.float32
    precision: str = "float32"

    @nn.compact
    def __call__(self, x: Array | None, scale: Array | None = None) -> Array:
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        if scale is not None:
            bias = bias * scale
        if x is None:
            return bias
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        if scale is not None:
            kernel = kernel * scale[None, :]
        dtype = promote(x.dtype, kernel.dtype)
        # One flat product: XLA's CPU backend is faster on [B*T, D] than on [B, T, D].
        flat = matmul(x.reshape(-1, x.shape[-1]).astype(dtype), kernel, self.precision) + bias.astype(dtype)[None, :]
        return flat.reshape(*x.shape[:-1], self.features)


class Cell(nn.RNNCellBase):
    """One time step of a recurrence over a state of ``features`` units.

    Subclasses declare their parameters in ``setup`` and give ``project``, ``weights`` and ``pointwise``; a cell
    that is not one matrix product and a pointwise function overrides ``step`` instead of ``pointwise``.

    ``pointwise``, ``step`` and ``hidden`` are pure: they may read the cell's fields and never its parameters,
    which reach them through ``weights`` and ``z``. The unrolling calls them on an unbound copy of the cell, so
    that reading a parameter there is an error and not a leaked tracer.

    ``precision`` (``PRECISIONS``) is that of the matrix products; a cell hands it to its ``Affine``.
    """

    features: int
    param_dtype: Any = jnp.float32
    precision: str = "float32"

    def project(self, x: Array | None) -> Array:
        """The input's part of the pre-activations: [..., D] -> [..., K], bias included; ``None`` -> [K]."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it projects its input.")

    def weights(self) -> Any:
        """The arrays that ``step`` reads at every time step, a pytree (``Weights`` for most cells)."""
        raise NotImplementedError(f"{type(self).__name__} does not name its recurrent weights.")

    @staticmethod
    def hidden(carry: Carry) -> Array:
        """The part of the carry that meets the recurrent matrix, [B, H]."""
        return carry

    @nn.nowrap
    def pointwise(self, carry: Carry, z: Array, u: Array) -> tuple[Carry, Array]:
        """The cell's equations: old carry, z [B, K] and u [B, K] -> new carry and output y [B, H]."""
        raise NotImplementedError(f"{type(self).__name__} gives neither `pointwise` nor `step`.")

    @nn.nowrap
    def clamp_state(self, values: Carry) -> Carry:
        """A state to begin from, made of any real numbers in its shape: squashed where the cell keeps its state
        bounded, as they are where it does not (which is the default)."""
        return values

    @nn.nowrap
    def product(self, weights: Weights, carry: Carry) -> Array:
        """The state's part of the pre-activations, [B, K]: the one matrix product of a step."""
        h = self.hidden(carry)
        u = matmul(h, weights.kernel, self.precision)
        if weights.bias is not None:
            u = u + jnp.broadcast_to(weights.bias.astype(h.dtype), u.shape)
        return u

    @nn.nowrap
    def step(self, weights: Any, carry: Carry, z: Array) -> tuple[Carry, Array]:
        """One time step as a pure function of its arguments; z is [B, K], or has the batch axes Flax gives it."""
        return self.pointwise(carry, z.astype(self.hidden(carry).dtype), self.product(weights, carry))

    # The next three are a faster way to the derivatives of ``pointwise``. A cell gives all of them or none.

    @nn.nowrap
    def forward_with_residuals(self, carry: Carry, z: Array, u: Array) -> tuple[Carry, Array, Any]:
        """``pointwise``, and what ``precompute_vjp`` needs of it: new carry, y, a pytree of [B, ...]."""
        raise NotImplementedError(f"{type(self).__name__} gives no derivatives of its own.")

    @nn.nowrap
    def precompute_vjp(self, before: Carry, after: Carry, saved: Any) -> Any:
        """What can be computed for every step at once: the arrays with which ``vjp_step`` multiplies, from the carries
        before and after each step and from what was saved, all [T, B, ...]. Padding may hold anything."""
        raise NotImplementedError(f"{type(self).__name__} gives no derivatives of its own.")

    @nn.nowrap
    def vjp_step(self, dcarry: Carry, dy: Array, factors: Any) -> tuple[Carry, Array, Array]:
        """One step backwards: the gradients of the new carry and y [B, ...] -> those of the old carry, z and u."""
        raise NotImplementedError(f"{type(self).__name__} gives no derivatives of its own.")

    def __call__(self, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """One step on raw input x [..., D]: what ``flax.linen.RNN`` and ``nn.Bidirectional`` call."""
        return self.step(self.weights(), carry, self.project(x))

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """The zero state for inputs of shape [..., D]; ``rng`` is there for Flax and is not used."""
        del rng
        return jnp.zeros((*input_shape[:-1], self.features), promote_state(self.param_dtype))

    @property
    def num_feature_axes(self) -> int:
        return 1
