"""The linear recurrent unit (Orvieto et al. 2023, arXiv:2303.06349, section 3): a complex state, decays without gates.

S5 (Smith et al. 2022, arXiv:2208.04933) is the same recurrence with other initial values and a learnt step size.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Complex, Float

from jaxgen.cells.base import Initializer, per_gate, promote_state
from jaxgen.cells.linear import LinearCell
from jaxgen.cells.precision import matmul
from jaxgen.errors import UsageError
from jaxgen.types import Array, DType, Key


def normal(scale: float) -> Initializer:
    """Normal numbers with the variance ``scale`` / the number of rows."""
    return nn.initializers.variance_scaling(scale, "fan_in", "normal")


def input_init(key: Key, shape: tuple[int, ...], dtype: DType) -> Float[Array, "D 3*H"]:
    """Initial values of Re B, Im B and D: complex numbers and real ones of the variance 1 / D."""
    complex_key, real_key = jax.random.split(key)
    size = shape[-1] // 3
    pair = per_gate(normal(0.5), 2)(complex_key, (shape[0], 2 * size), dtype)
    return jnp.concatenate([pair, normal(1.0)(real_key, (shape[0], size), dtype)], axis=-1)


class LRUWeights(NamedTuple):
    """What ``coefficients`` and ``read`` get."""

    decay: Complex[Array, "H"]
    gain: Float[Array, "H"]
    output: Float[Array, "2*H H"]


class LRU(LinearCell):
    """A state turned by a constant angle and shrunk by a constant factor; carry ``(real, imag)`` of h, each [B, H]::

        decay = exp(-exp(log_rate) + i exp(log_angle))
        h' = decay * h + exp(log_gain) * (x B + b_B)
        y = Re(h' C) + x D + b_D

    Complex matrices are stored as pairs of real ones: ``input`` has the columns Re B, Im B, D, and ``output_kernel``
    the rows Re C, Im C. The biases are not in the paper; they let the cell run without an input. The initial decays
    are uniform on the ring ``r_min <= |decay| <= r_max`` with angles of at most ``max_angle`` (section 3.3). The
    initial gain is ``sqrt(1 - |decay|^2)``, for states of unit variance (section 3.4).
    """

    complex_state: ClassVar[bool] = True

    r_min: float = 0.0
    r_max: float = 1.0
    max_angle: float = 2 * math.pi

    def setup(self) -> None:
        if not (0 <= self.r_min < self.r_max <= 1 and self.max_angle > 0):
            raise UsageError(
                f"The LRU got r_min={self.r_min}, r_max={self.r_max} and max_angle={self.max_angle}: "
                "give 0 <= r_min < r_max <= 1 and max_angle > 0."
            )
        dtype, h = promote_state(self.param_dtype), self.features
        eps = jnp.finfo(dtype).eps

        def log_rate(key: Key) -> Float[Array, "H"]:
            squared = jax.random.uniform(key, (h,), dtype, self.r_min**2, self.r_max**2)
            return jnp.log(-0.5 * jnp.log(jnp.clip(squared, eps, 1 - eps))).astype(self.param_dtype)

        def log_angle(key: Key) -> Float[Array, "H"]:
            return jnp.log(self.max_angle * jax.random.uniform(key, (h,), dtype, eps)).astype(self.param_dtype)

        def log_gain(_: Key) -> Float[Array, "H"]:
            rate = jnp.exp(self.log_rate.astype(dtype))
            return (0.5 * jnp.log(-jnp.expm1(-2 * rate))).astype(self.param_dtype)

        self.input = self.affine(3 * h, kernel_init=input_init)
        self.log_rate = self.param("log_rate", log_rate)
        self.log_angle = self.param("log_angle", log_angle)
        self.log_gain = self.param("log_gain", log_gain)
        self.output_kernel = self.param("output_kernel", normal(2.0), (2 * h, h), self.param_dtype)

    def weights(self) -> LRUWeights:
        dtype = promote_state(self.param_dtype)
        radius = jnp.exp(-jnp.exp(self.log_rate.astype(dtype)))
        angle = jnp.exp(self.log_angle.astype(dtype))
        decay = lax.complex(radius * jnp.cos(angle), radius * jnp.sin(angle))
        return LRUWeights(decay, jnp.exp(self.log_gain.astype(dtype)), self.output_kernel)

    @nn.nowrap
    def coefficients(self, weights: LRUWeights, z: Array) -> tuple[Array, Array]:
        real, imag, _ = jnp.split(z, 3, axis=-1)
        lead = (1,) * (z.ndim - 1)
        gain = weights.gain.reshape(*lead, -1)
        return weights.decay.reshape(*lead, -1), lax.complex(gain * real, gain * imag)

    @nn.nowrap
    def read(self, weights: LRUWeights, state: Array, z: Array) -> Array:
        pair = jnp.concatenate([state.real, -state.imag], axis=-1)
        return matmul(pair, weights.output, self.precision) + z[..., 2 * self.features :]
