"""Gated linear attention: a linear recurrence whose state is a matrix for each head.

Yang et al. 2024, arXiv:2312.06635, sections 3 (chunks), 4.2 and 4.4 (gates, output).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Bool, Float

from jaxgen.cells.base import Form, check_groups, promote_state
from jaxgen.cells.linear import SEQUENTIAL, LinearCell
from jaxgen.cells.precision import match_varying_axes, matmul_each
from jaxgen.cells.scan import Masks, has_time_axis, mask_rows, run, select_rows
from jaxgen.types import Array, ArrayLike, Key

#: Steps of a chunk in the chunked form.
CHUNK = 16
#: The exponent of the gate, 1 / tau.
SHARPNESS = 1 / 16
#: Width of the vector from which the decay factors are computed.
RANK = 16


class GLA(LinearCell):
    """A matrix for each head, whose rows decay by gates of their own; carry ``S`` [B, heads, K, V]::

        q, k, v, r = x W + b    a = sigmoid((x W_1) W_2 + c)^(1/16)
        S' = diag(a) S + k^T v                      for each head
        y = silu(r) * gain * rms_norm(q S' / sqrt(K))

    Values are V = H / heads wide, keys half of that. The normalisation is over each head (Zhang & Sennrich 2019,
    arXiv:1910.07467; the paper's LayerNorm without the mean). There is no output map: the block around the cell, or the
    next layer, has one.

    Args:
        heads: number of heads, a divisor of ``features``. 0: one for 64 units, or 1 if that is no divisor.
    """

    heads: int = 0

    def __post_init__(self) -> None:
        check_groups(self, "heads", 0)
        super().__post_init__()

    @nn.nowrap
    def num_gates(self, shape: tuple[int, ...]) -> int:
        """Queries and keys are narrower than gates and values, so a kernel is one matrix."""
        return 1

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The number of heads, and the widths K of a key and V of a value."""
        heads = self.heads or math.gcd(self.features, max(1, self.features // 64))
        width = self.features // heads
        return heads, max(1, width // 2), width

    def setup(self) -> None:
        heads, key, _ = self.sizes
        self.input = self.affine(2 * heads * key + 2 * self.features)
        self.decay_input = self.affine(RANK, use_bias=False)
        self.decay = self.affine(heads * key)
        self.gain = self.param("gain", nn.initializers.ones_init(), (self.features,), self.param_dtype)

    def project(self, x: ArrayLike | None) -> Array:
        decay = self.decay(None if x is None else self.decay_input(x))
        return jnp.concatenate([self.input(x), decay], axis=-1)

    def weights(self) -> Float[Array, "H"]:
        return self.gain

    @staticmethod
    def hidden(carry: Float[Array, "*batch heads K V"]) -> Float[Array, "*batch H"]:
        """The answer of the state to a query of ones."""
        answer = jnp.sum(carry, axis=-2)
        return answer.reshape(*carry.shape[:-3], answer.shape[-2] * answer.shape[-1])

    @staticmethod
    def summary(carry: Float[Array, "*batch heads K V"]) -> Float[Array, "*batch H"]:
        return GLA.hidden(carry)

    @nn.nowrap
    def initialize_carry(self, rng: Key, input_shape: tuple[int, ...]) -> Float[Array, "*batch heads K V"]:
        del rng
        return jnp.zeros((*input_shape[:-1], *self.sizes), promote_state(self.param_dtype))

    @nn.nowrap
    def split(self, z: Float[Array, "*batch P"]) -> tuple[Array, Array, Array, Array, Array]:
        """q, k, v and the decay factors, each [*batch, heads, ...], and the gate of the output [*batch, H]."""
        heads, key, width = self.sizes
        keys, values = heads * key, heads * width
        ends = [keys, 2 * keys, 2 * keys + values, 2 * keys + 2 * values]
        q, k, v, r, decay = jnp.split(z, ends, axis=-1)
        parts = (q * key**-0.5, k, v, decay)
        q, k, v, decay = (a.reshape(*a.shape[:-1], heads, a.shape[-1] // heads) for a in parts)
        return q, k, v, jnp.exp(SHARPNESS * jax.nn.log_sigmoid(decay)), r

    @nn.nowrap
    def coefficients(self, weights: Array, z: Array) -> tuple[Array, Array]:
        _, k, v, a, _ = self.split(z)
        return a[..., None], k[..., :, None] * v[..., None, :]

    @nn.nowrap
    def read(self, weights: Array, state: Array, z: Array) -> Array:
        q, *_, r = self.split(z)
        return self.output(weights, matmul_each(q[..., None, :], state, self.precision)[..., 0, :], r)

    @nn.nowrap
    def output(self, gain: Array, o: Float[Array, "*batch heads V"], r: Float[Array, "*batch H"]) -> Array:
        """The output from what the queries found."""
        o = o * lax.rsqrt(jnp.mean(o * o, axis=-1, keepdims=True) + 1e-6)
        return jax.nn.silu(r) * o.reshape(r.shape) * jnp.broadcast_to(gain.astype(r.dtype), r.shape)


def run_chunked(
    cell: GLA,
    weights: Float[Array, "H"],
    carry: Float[Array, "B heads K V"],
    z: Float[Array, "T B P"],
    *,
    reset: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    initial: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Float[Array, "T B H"]]:
    """``run`` for an unbound ``cell``: the states between chunks of ``CHUNK`` steps, and never those within.

    One step takes the plain scan, and an ``initial`` for each step the sequential form.
    """
    steps = z.shape[0]
    options: dict[str, Any] = {"reset": reset, "valid": valid, "initial": initial, "reverse": reverse}
    if steps < 2:
        return run(cell.step, weights, carry, z, **options)
    if initial is not None and has_time_axis(initial, carry):
        return SEQUENTIAL.run(cell, weights, carry, z, **options)
    masks = Masks.create(carry, reset, valid, initial)
    q, k, v, a, r = cell.split(z.astype(carry.dtype))
    if masks.valid is not None:  # padding is a step with a = 1 and k = 0
        a, k = select_rows(masks.valid, a, jnp.ones_like(a)), mask_rows(masks.valid, k)
    length = min(steps, CHUNK)
    missing = -steps % length

    def chunks(x: Array, fill: float = 0) -> Array:
        """[T, B, heads, ...] -> [chunks, B, heads, length, ...], with padding behind the last step."""
        x = jnp.pad(jnp.flip(x, 0) if reverse else x, ((0, missing), *[(0, 0)] * 3), constant_values=fill)
        return jnp.moveaxis(x.reshape((steps + missing) // length, length, *x.shape[1:]), 1, 3)

    @jax.checkpoint
    def body(state: Array, at: tuple[Array, Array, Array, Array, Array | None]) -> tuple[Array, Array]:
        return _run_chunk(cell.precision, state, *at, masks.initial)

    again = None if masks.reset is None else chunks(masks.reset[:, :, None, None])
    xs = chunks(q), chunks(k), chunks(v), chunks(a, 1), again
    carry, found = lax.scan(body, *match_varying_axes(carry, xs))
    found = jnp.moveaxis(found, 3, 1).reshape(steps + missing, *v.shape[1:])[:steps]
    ys = cell.output(weights, jnp.flip(found, 0) if reverse else found, r)
    return carry, ys if masks.valid is None else mask_rows(masks.valid, ys)


def _run_chunk(
    precision: str,
    state: Float[Array, "B heads K V"],
    q: Float[Array, "B heads T K"],
    k: Float[Array, "B heads T K"],
    v: Float[Array, "B heads T V"],
    a: Float[Array, "B heads T K"],
    reset: Bool[Array, "B 1 T 1"] | None,
    initial: Float[Array, "B heads K V"] | None,
) -> tuple[Float[Array, "B heads K V"], Float[Array, "B heads T V"]]:
    """The state after T steps, and what their queries find.

    ``ratio[t, j]`` is what is left at step t of what step j added: the product of the factors in between. Nothing is
    divided, and no product grows, so it is as precise as the plain scan for decay factors of any size.
    """
    steps = q.shape[2]
    kept = a if reset is None else jnp.where(reset, 0, a)
    since = jnp.arange(steps)[:, None] - jnp.arange(steps)[None, :]
    factors = jnp.where((since > 0)[None, None, :, :, None], kept[:, :, :, None, :], 1)
    ratio = jnp.where((since >= 0)[None, None, :, :, None], jnp.cumprod(factors, axis=2), 0)
    found = matmul_each(jnp.sum(q[:, :, :, None] * ratio * k[:, :, None], axis=-1), v, precision)

    # What is left of the state before the first step, or of the initial one since the last reset.
    if reset is None or initial is None:
        left = jnp.cumprod(a, axis=2)
        found = found + matmul_each(q * left, state, precision)
    else:
        begins = reset.at[:, :, 0].set(True)
        left = jnp.sum(ratio * jnp.where(begins, a, 0)[:, :, None], axis=3)
        again = jnp.cumsum(reset.astype(jnp.int32), axis=2) > 0
        for start, there in ((state, ~again), (initial, again)):
            found = found + matmul_each(jnp.where(there, q * left, 0), start, precision)
        state = jnp.where(again[:, :, -1:], initial, state)
    added = matmul_each(jnp.swapaxes(ratio[:, :, -1] * k, -1, -2), v, precision)
    return left[:, :, -1, :, None] * state + added, found


def _is_gla(cell: nn.RNNCellBase, weights: Array | None) -> bool:
    methods = ("step", "coefficients", "read", "output", "split")
    return isinstance(cell, GLA) and all(getattr(type(cell), name) is getattr(GLA, name) for name in methods)


GLA.forms = {
    "chunked": Form(run_chunked, _is_gla, "the cell `GLA` without equations of its own", lambda cell, platform: True)
}
