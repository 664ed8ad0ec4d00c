"""The Mogrifier LSTM (Melis, Kočiský & Blunsom 2020, arXiv:1909.01792, section 2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from jaxgen.cells.base import Weights, orthogonal, per_gate, promote
from jaxgen.cells.lstm import CellAndHidden, LSTMCarry, forget_bias_init
from jaxgen.cells.precision import matmul
from jaxgen.errors import check_int
from jaxgen.types import Array, ArrayLike, DType


class _Matrices(NamedTuple):
    rounds: tuple[tuple[Array, ...], ...]  # of each round, the factors of its matrix
    input_kernel: Float[Array, "D 4H"]
    recurrent_kernel: Float[Array, "H 4H"]
    bias: Float[Array, "4H"]


class _Parameters(nn.Module):
    """The parameters, created for inputs of width D by the first call."""

    features: int
    rounds: int
    rank: int
    forget_bias: float
    param_dtype: DType

    @nn.compact
    def __call__(self, width: int | None = None) -> _Matrices:
        h, dtype = self.features, self.param_dtype
        if width is None:  # that of an earlier call; there is no input if there was none
            known = self.has_variable("params", "input_kernel")
            width = self.get_variable("params", "input_kernel").shape[0] if known else 0

        def matrix(name: str, rows: int, columns: int) -> Array:
            normal = nn.initializers.normal(max(rows, 1) ** -0.5)
            return jnp.asarray(self.param(name, normal, (rows, columns), dtype))

        rounds: list[tuple[Array, ...]] = []
        for number in range(1, self.rounds + 1):
            name, rows, columns = (f"q{number}", h, width) if number % 2 else (f"r{number}", width, h)
            if self.rank:
                left, right = matrix(f"{name}_left", rows, self.rank), matrix(f"{name}_right", self.rank, columns)
                rounds.append((left, right))
            else:
                rounds.append((matrix(name, rows, columns),))
        return _Matrices(
            tuple(rounds),
            matrix("input_kernel", width, 4 * h),
            jnp.asarray(self.param("recurrent_kernel", per_gate(orthogonal, 4), (h, 4 * h), dtype)),
            jnp.asarray(self.param("bias", forget_bias_init(self.forget_bias), (4 * h,), dtype)),
        )


class Mogrifier(CellAndHidden):
    """An LSTM whose input and state gate each other in ``rounds`` before each step; carry ``(c, h)``, each [B, H]::

        x <- 2 sigmoid(h Q_n) * x    for n = 1, 3, ...      h <- 2 sigmoid(x R_n) * h    for n = 2, 4, ...
        i, f, o = sigmoid(...)       g = tanh(...)    of  x W_x + h W_h + b, in the order i, f, g, o
        c' = f * c + i * g           h' = o * tanh(c')

    The input enters the step unprojected. Without an input it is a vector of zeros.

    Args:
        rounds: their number, at least 1. The paper's best models have 5 or 6.
        rank: with a number above 0, every ``Q`` and ``R`` is the product of two matrices of this rank.
        forget_bias: the initial value of the forget gate's bias (see ``LSTM``).
    """

    rounds: int = 5
    rank: int = 0

    def setup(self) -> None:
        check_int("The Mogrifier's `rounds`", self.rounds, 1)
        check_int("The Mogrifier's `rank`", self.rank, 0)
        self.parameters = _Parameters(self.features, self.rounds, self.rank, self.forget_bias, self.param_dtype)
        nn.share_scope(self, self.parameters)

    def project(self, x: ArrayLike | None) -> Array:
        if x is None:
            return jnp.zeros(self.parameters().input_kernel.shape[0], self.param_dtype)
        self.parameters(x.shape[-1])
        return jnp.asarray(x).astype(promote(x.dtype, self.param_dtype))

    def weights(self) -> Weights:
        (first, *others), *rest = self.parameters()
        return Weights(first[0], extra=((first[1:], *others), *rest))

    @nn.nowrap
    def pointwise(
        self,
        carry: LSTMCarry,
        z: Array,
        u: Array,
        rounds: tuple[tuple[Array, ...], ...],
        input_kernel: Array,
        recurrent_kernel: Array,
        bias: Array,
    ) -> tuple[LSTMCarry, Array]:
        i, f, g, o = self._gates(carry, z, u, rounds, input_kernel, recurrent_kernel, bias)
        c = f * carry[0] + i * g
        h = o * jnp.tanh(c)
        return (c, h), h

    @nn.nowrap
    def gates(self, weights: Weights, carry: LSTMCarry, z: Array) -> dict[str, Array]:
        i, f, _, o = self._gates(*self.pointwise_args(weights, carry, z))
        return {"i": i, "f": f, "o": o}

    @nn.nowrap
    def _gates(
        self,
        carry: LSTMCarry,
        z: Array,
        u: Array,
        rounds: tuple[tuple[Array, ...], ...],
        input_kernel: Array,
        recurrent_kernel: Array,
        bias: Array,
    ) -> tuple[Array, ...]:
        """i, f, g and o."""
        h, x = carry[1], z
        for number, factors in enumerate(rounds):
            by_state = number % 2 == 0
            a = u if number == 0 else h if by_state else x  # ``u`` is h times the first factor of the first round
            for factor in factors:
                a = matmul(a, factor, self.precision)
            gate = 2 * jax.nn.sigmoid(a)
            x, h = (gate * x, h) if by_state else (x, gate * h)
        both = matmul(x, input_kernel, self.precision) + matmul(h, recurrent_kernel, self.precision)
        i, f, g, o = jnp.split(both + jnp.broadcast_to(bias, both.shape), 4, axis=-1)
        return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
