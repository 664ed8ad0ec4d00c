"""Causal self-attention over the last steps, as a cell: a baseline for recurrences on the same commands.

Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2) over a window of steps, with a bias by
distance in place of positions (ALiBi: Press, Smith & Lewis 2022, arXiv:2108.12409, section 3). Only distances matter,
so a text of any length may be read in parts of any length.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxgen.cells.base import Cell, Form, check_groups, promote_state
from jaxgen.cells.precision import match_varying_axes, matmul_each
from jaxgen.cells.scan import Masks, has_time_axis, mask_rows, run, select_rows
from jaxgen.errors import check_int
from jaxgen.types import Array, ArrayLike, Key

#: Steps of a chunk, at least.
CHUNK = 64


class Cache(NamedTuple):
    """Steps that later ones see, the latest last."""

    keys: Float[Array, "*batch S H"]
    values: Float[Array, "*batch S H"]
    used: Float[Array, "*batch S 1"]  # 1 if there was such a step, else 0


def _join(*caches: Cache) -> Cache:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-2), *caches)


class Attention(Cell):
    """Attention of each step to itself and to the steps before it; the carry is the ``Cache`` of the last ``window``::

        q, k, v = x W + b
        y = sum_j softmax_j(q . k_j / sqrt(d) - slope * distance_j) v_j    for each head of width d

    The slopes of n heads are 2^(-8/n), 2^(-16/n), ..., 2^-8. Distances count steps that are not padding. There is no
    output map: the block around the cell, or the next layer, has one.

    Args:
        window: how many steps a step sees, itself included.
        heads: number of heads, a divisor of ``features``. 0: 4, or 2 or 1 if 4 is no divisor.
    """

    starts_from_vectors = False

    window: int = 256
    heads: int = 0

    def __post_init__(self) -> None:
        check_int("The option `window` of the cell Attention", self.window, 1)
        check_groups(self, "heads", 0)
        super().__post_init__()

    def setup(self) -> None:
        self.input = self.affine(3 * self.features)

    def weights(self) -> tuple[()]:
        return ()

    @staticmethod
    def hidden(carry: Cache) -> Float[Array, "*batch H"]:
        """The value of the last step."""
        return carry.values[..., -1, :]

    @staticmethod
    def summary(carry: Cache) -> Float[Array, "*batch H"]:
        return Attention.hidden(carry)

    @nn.nowrap
    def state_arrays(self, carry: Cache) -> dict[str, Array]:
        """The key and the value of the last step."""
        return {"key": carry.keys[..., -1, :], "value": carry.values[..., -1, :]}

    @nn.nowrap
    def clamp_state(self, values: Cache) -> Cache:
        return values._replace(used=(values.used > 0.5).astype(values.used.dtype))

    @nn.nowrap
    def initialize_carry(self, rng: Key, input_shape: tuple[int, ...]) -> Cache:
        del rng
        widths, dtype = (self.features, self.features, 1), promote_state(self.param_dtype)
        return Cache(*(jnp.zeros((*input_shape[:-1], self.window, width), dtype) for width in widths))

    @nn.nowrap
    def step(self, weights: tuple[()], carry: Cache, z: Array) -> tuple[Cache, Array]:
        q, new = self._split(z[..., None, :].astype(carry.keys.dtype))
        cache = _join(jax.tree.map(lambda a: a[..., 1:, :], carry), new)
        distance = jnp.arange(self.window - 1, -1, -1, dtype=q.dtype)
        y = self._attend(
            q, cache, jnp.broadcast_to(distance, (*q.shape[:-1], self.window)), cache.used[..., None, :, 0] > 0.5
        )
        return cache, y[..., 0, :]

    @nn.nowrap
    def _split(self, z: Float[Array, "*batch T K"]) -> tuple[Float[Array, "*batch T H"], Cache]:
        """The queries, and the steps as a cache."""
        q, k, v = jnp.split(z, 3, axis=-1)
        return q, Cache(k, v, jnp.ones_like(z[..., :1]))

    @nn.nowrap
    def _attend(
        self,
        q: Float[Array, "*batch T H"],
        cache: Cache,
        distance: Float[Array, "*batch T S"],
        seen: Bool[Array, "*batch T S"],
    ) -> Float[Array, "*batch T H"]:
        """The outputs of T steps, each of which sees one or more of S steps."""
        heads = self.heads or math.gcd(4, self.features)
        q, k, v = (
            jnp.swapaxes(a.reshape(*a.shape[:-1], heads, self.features // heads), -2, -3)
            for a in (q, cache.keys, cache.values)
        )
        slopes = jnp.asarray([2 ** (-8 * (n + 1) / heads) for n in range(heads)], q.dtype)
        scores = matmul_each(q * q.shape[-1] ** -0.5, jnp.swapaxes(k, -1, -2), self.precision)
        scores = scores - distance[..., None, :, :] * slopes.reshape(*[1] * (q.ndim - 3), heads, 1, 1)
        seen = jnp.broadcast_to(seen[..., None, :, :], scores.shape)
        y = matmul_each(jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1), v, self.precision)
        return jnp.swapaxes(y, -2, -3).reshape(*y.shape[:-3], y.shape[-2], self.features)


def run_parallel(
    cell: Attention,
    weights: tuple[()],
    carry: Cache,
    z: Float[Array, "T B K"],
    *,
    reset: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    initial: Cache | None = None,
    reverse: bool = False,
) -> tuple[Cache, Float[Array, "T B H"]]:
    """``run`` for an unbound ``cell``: all steps of a chunk at once, one chunk after another.

    A chunk is as long as the window, or ``CHUNK``. One step, and an ``initial`` for each step, take the plain scan.
    """
    steps = z.shape[0]
    if steps < 2 or (initial is not None and has_time_axis(initial, carry)):
        return run(cell.step, weights, carry, z, reset=reset, valid=valid, initial=initial, reverse=reverse)
    masks = Masks.create(carry, reset, valid, initial)
    shown = jnp.ones(z.shape[:2], bool) if masks.valid is None else masks.valid
    over_time = (z.astype(carry.keys.dtype), shown, masks.reset)
    length = min(steps, max(cell.window, CHUNK))
    missing = -steps % length

    def chunks(a: Array) -> Array:
        """[T, B, ...] -> [chunks, B, length, ...], with padding behind the last step."""
        a = jnp.pad(jnp.flip(a, 0) if reverse else a, ((0, missing), *[(0, 0)] * (a.ndim - 1)))
        return jnp.swapaxes(a.reshape((steps + missing) // length, length, *a.shape[1:]), 1, 2)

    @jax.checkpoint
    def body(carry: Cache, at: tuple[Array, Array, Array | None]) -> tuple[Cache, Array]:
        return _run_chunk(cell, carry, *at, masks.initial)

    carry, ys = lax.scan(body, *match_varying_axes(carry, jax.tree.map(chunks, over_time)))
    ys = jnp.swapaxes(ys, 1, 2).reshape(steps + missing, *ys.shape[1::2])[:steps]
    ys = jnp.flip(ys, 0) if reverse else ys
    return carry, ys if masks.valid is None else mask_rows(masks.valid, ys)


def _run_chunk(
    cell: Attention,
    carry: Cache,
    z: Float[Array, "B T K"],
    valid: Bool[Array, "B T"],
    reset: Bool[Array, "B T"] | None,
    initial: Cache | None,
) -> tuple[Cache, Float[Array, "B T H"]]:
    """The cache after T steps and their outputs, with any values in padding.

    A step sees the cache of the carry or, after a reset, the ``initial`` cache, and the steps from there on.
    """
    q, new = cell._split(z)
    steps, window = z.shape[1], cell.window
    count = jnp.cumsum(valid.astype(jnp.int32), axis=1)  # a step's place among those that are no padding
    resets = jnp.zeros_like(count) if reset is None else jnp.cumsum(reset.astype(jnp.int32), axis=1)

    def among(
        places: Int[Array, "B S"], first: Int[Array, "B T"], segment: Bool[Array, "B T S"]
    ) -> tuple[Array, Array]:
        """Distances from all steps, and which of them are in the window."""
        distance = (count - first)[:, :, None] - places[:, None, :]
        return distance, segment & (distance < window)

    itself = jnp.broadcast_to(jnp.eye(steps, dtype=bool), (*count.shape, steps))
    earlier = jnp.tril(jnp.ones_like(itself)) & valid[:, None, :] & (resets[:, :, None] == resets[:, None, :])
    distance, seen = among(count, jnp.zeros_like(count), earlier)
    groups = [(new, distance, seen | itself)]  # padding sees itself, so that nothing is undefined
    begun = jnp.zeros_like(count)
    if reset is not None:
        begun = lax.cummax(jnp.where(reset, count - valid.astype(jnp.int32), 0), axis=1)
    slots = jnp.broadcast_to(jnp.arange(1 - window, 1, dtype=jnp.int32), (z.shape[0], window))
    for cache, at in [(carry, resets == 0)] + ([] if initial is None else [(initial, resets > 0)]):
        distance, seen = among(slots, begun, at[:, :, None] & (cache.used[:, None, :, 0] > 0.5))
        groups.append((cache, distance, seen))
    caches, distances, masks = zip(*groups)
    distance = jnp.concatenate(distances, axis=-1).astype(q.dtype)
    ys = cell._attend(q, _join(*caches), distance, jnp.concatenate(masks, axis=-1))

    # The last steps that are neither padding nor before a reset.
    start = carry if initial is None else select_rows(resets[:, -1] > 0, initial, carry)
    kept = jnp.pad(valid & (resets == resets[:, -1:]), ((0, 0), (window, 0)), constant_values=True)
    place = jnp.cumsum(kept.astype(jnp.int32), axis=1)
    source = jnp.sum(place[:, :, None] < (slots + place[:, -1:])[:, None, :], axis=1, dtype=jnp.int32)
    gather = lambda a: jnp.take_along_axis(a, source[:, :, None], axis=1, mode="promise_in_bounds")  # noqa: E731
    return jax.tree.map(gather, _join(start, new)), ys


Attention.forms = {
    "parallel": Form(
        run_parallel,
        lambda cell, weights: type(cell).step is Attention.step,
        "the cell `Attention` without a `step` of its own",
        lambda cell, platform: True,
    )
}
