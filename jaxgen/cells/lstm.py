"""Long short-term memory with a forget gate (Gers, Schmidhuber & Cummins, Neural Computation 12, 2000)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Float

from jaxgen.cells.base import Cell, Initializer, Weights, orthogonal, per_gate
from jaxgen.types import Array, ArrayLike, DType, Key

LSTMCarry = tuple[Array, Array]


def forget_bias_init(value: float) -> Initializer:
    """An initialiser of the bias [4H] of gates in the order i, f, g, o: ``value`` for f, else 0."""

    def initialise(key: Key, shape: tuple[int, ...], dtype: DType = jnp.float32) -> Array:
        units = shape[-1] // 4
        return jnp.zeros(shape, dtype).at[units : 2 * units].set(value)

    return initialise


def half_but_g(features: int, dtype: DType) -> Array:
    """Factors [4H] that make of a tanh the sigmoids of i, f and o: sigmoid(a) = (tanh(a / 2) + 1) / 2."""
    half, one = jnp.full(features, 0.5, dtype), jnp.ones(features, dtype)
    return jnp.concatenate([half, half, one, half])


def gate_factors(
    gates: Float[Array, "*batch 4H"], c: Float[Array, "*batch H"], tanh_c: Float[Array, "*batch H"]
) -> tuple[Array, Array, Array]:
    """Factors of the pre-activations [..., 4H], of what h is the tanh of through h, and of c through c'.

    ``gates`` are values of tanh, ``c`` is the cell state before the step, and h' = o * ``tanh_c``.
    """
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    others = (0.5 * g, 0.5 * c, 0.5 * (i + 1), 0.5 * tanh_c)
    factors = jnp.concatenate([(1 - a * a) * other for a, other in zip((i, f, g, o), others)], axis=-1)
    return factors, 0.5 * (o + 1) * (1 - tanh_c * tanh_c), 0.5 * (f + 1)


class CellAndHidden(Cell):
    """The state of an LSTM and its kin, ``(c, h)``, each [B, H]; a subclass adds parameters and the step."""

    forget_bias: float = 1.0

    @staticmethod
    def hidden(carry: LSTMCarry) -> Array:
        return carry[1]

    @nn.nowrap
    def state_arrays(self, carry: LSTMCarry) -> dict[str, Array]:
        return {"c": carry[0], "h": carry[1]}

    @nn.nowrap
    def clamp_state(self, values: LSTMCarry) -> LSTMCarry:
        return values[0], jnp.tanh(values[1])

    @nn.nowrap
    def initialize_carry(self, rng: Key, input_shape: tuple[int, ...]) -> LSTMCarry:
        # Two arrays, not one twice: a training step donates its state, and a buffer can be donated only once.
        return super().initialize_carry(rng, input_shape), super().initialize_carry(rng, input_shape)


class LSTM(CellAndHidden):
    """Gates in the order i, f, g, o; carry ``(c, h)``, each [B, H]::

        i, f, o = sigmoid(...)    g = tanh(...)    of  x W_x + b + h W_h
        c' = f * c + i * g        h' = o * tanh(c')

    ``forget_bias`` is the initial value of the forget gate's bias, a parameter (Jozefowicz et al., ICML 2015,
    section 2.2). The four gates are one ``tanh`` over [B, 4H], because XLA's CPU backend vectorises that but not four
    slices: sigmoid(a) = (tanh(a / 2) + 1) / 2, with the factor 1/2 folded into the weights, which is exact.

    Example:
        >>> cell = jaxgen.LSTM(features=4)
        >>> carry = cell.initialize_carry(jax.random.key(0), (2, 3))
        >>> (carry, y), params = cell.init_with_output(jax.random.key(0), carry, jnp.ones((2, 3)))
        >>> y.shape
        (2, 4)
    """

    def setup(self) -> None:
        self.input = self.affine(4 * self.features, bias_init=forget_bias_init(self.forget_bias))
        shape = (self.features, 4 * self.features)
        self.recurrent_kernel = self.param("recurrent_kernel", per_gate(orthogonal, 4), shape, self.param_dtype)

    def project(self, x: ArrayLike | None) -> Array:
        return self.input(x, half_but_g(self.features, self.param_dtype))

    def weights(self) -> Weights:
        return Weights(self.recurrent_kernel * half_but_g(self.features, self.param_dtype)[None, :])

    @nn.nowrap
    def gates(self, weights: Weights, carry: LSTMCarry, z: Array) -> dict[str, Array]:
        tanh = self.forward_with_residuals(*self.pointwise_args(weights, carry, z))[2]
        i, f, _, o = jnp.split(tanh, 4, axis=-1)
        return {name: 0.5 * (a + 1) for name, a in (("i", self.input_gate(i, f)), ("f", f), ("o", o))}

    @nn.nowrap
    def forward_with_residuals(self, carry: LSTMCarry, z: Array, u: Array) -> tuple[LSTMCarry, Array, Array]:
        # Without the barrier XLA fuses the slices below into the tanh, and it is no longer vectorised.
        gates = lax.optimization_barrier(jnp.tanh(z + u))
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = 0.5 * ((f + 1) * carry[0] + (self.input_gate(i, f) + 1) * g)
        h = 0.5 * (o + 1) * jnp.tanh(c)
        return (c, h), h, gates

    @nn.nowrap
    def input_gate(self, i: Array, f: Array) -> Array:
        """The input gate, from it and the forget gate, as values of tanh."""
        return i

    @nn.nowrap
    def precompute_vjp(self, before: LSTMCarry, after: LSTMCarry, residuals: Array) -> tuple[Array, Array, Array]:
        return gate_factors(residuals, before[0], jnp.tanh(after[0]))

    @nn.nowrap
    def vjp_step(
        self, dcarry: LSTMCarry, dy: Array, factors: tuple[Array, Array, Array]
    ) -> tuple[LSTMCarry, Array, Array]:
        gates, through_h, forget = factors
        dh = dcarry[1] + dy
        dc = dcarry[0] + dh * through_h
        dz = gates * jnp.concatenate([dc, dc, dc, dh], axis=-1)
        return (dc * forget, jnp.zeros_like(dh)), dz, dz
