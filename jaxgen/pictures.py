"""Pictures as arrays: to one size, and mirrored or without colours at random; through ``jax.image``."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.errors import UsageError
from jaxgen.types import Array, ArrayLike, Key


def resize(images: ArrayLike, size: tuple[int, int], extents: ArrayLike | None = None) -> Array:
    """``images`` uint8 [B, Y, X, 3] -> uint8 [B, H, W, 3] for the ``size`` (H, W), stretched to fill it.

    Linear interpolation; where a side shrinks, the triangle is as wide as the step between new pixels (antialiasing).
    ``extents`` int [B, 2] says how many rows and columns of each image are picture, from the top left: what lies
    beyond has no influence, so pictures of all sizes share one compiled function. Rows do not see each other. Raises
    ``UsageError`` for a size below 1.
    """
    if min(size) < 1:
        raise UsageError(f"The size of the images is {size!r}: give a height and a width of at least 1.")
    parts = None if extents is None else jnp.asarray(extents)
    resized: Array = _resize(jnp.asarray(images), parts, (size[0], size[1]))
    return resized


@partial(jax.jit, static_argnames="size")
def _resize(images: Array, extents: Array | None, size: tuple[int, int]) -> Array:
    if extents is None:
        shape = (images.shape[0], *size, images.shape[3])
        return _to_bytes(jax.image.resize(images.astype(jnp.float32), shape, "linear", antialias=True))
    # One after the other: as floats, canvases are many times as large as what is made of them.
    part = lambda each: _resize_part(each[0].astype(jnp.float32), each[1], size)  # noqa: E731
    resized: Array = lax.map(part, (images, extents))
    return resized


def _resize_part(image: Array, extent: Array, size: tuple[int, int]) -> Array:
    """The top left ``extent`` of an image [Y, X, 3] at ``size``.

    What lies beyond is black, and a fourth channel says so: the weights that fell on the picture, by which the sum
    is divided. That is what ``jax.image.resize`` does at the edge of an array.
    """
    rows, columns = (jnp.arange(length) < part for length, part in zip(image.shape, extent))
    inside = (rows[:, None] & columns[None, :])[:, :, None]
    marked = jnp.concatenate([jnp.where(inside, image, 0), inside.astype(image.dtype)], axis=-1)
    scale = jnp.array(size, jnp.float32) / extent.astype(jnp.float32)
    mixed = jax.image.scale_and_translate(
        marked, (*size, marked.shape[-1]), (0, 1), scale, jnp.zeros(2), "linear", antialias=True
    )
    return _to_bytes(mixed[..., :-1] / mixed[..., -1:])


def _to_bytes(values: Array) -> Array:
    return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)


def flip(images: Array, row_keys: Key, probability: float = 0.5) -> Array:
    """Mirror each of ``images`` [B, H, W, C] left to right with this probability, by its own key ``row_keys`` [B].

    Not for captions that say left or right. A picture's own key decides, whatever stands beside it.
    """
    return jnp.where(_chosen(row_keys, probability), images[:, :, ::-1], images)


def grayscale(images: Array, row_keys: Key, probability: float) -> Array:
    """Take the colours out of each of ``images`` uint8 [B, H, W, 3] with this probability, by its own key.

    What is left is the luma of ITU-R BT.601 in all three channels. Shapes then have to be known without their colours.
    """
    luma = jnp.round(images.astype(jnp.float32) @ jnp.array([[0.299], [0.587], [0.114]], jnp.float32))
    return jnp.where(_chosen(row_keys, probability), luma.astype(images.dtype), images)


def _chosen(row_keys: Key, probability: float) -> Array:
    """Which pictures a change is for, bool [B, 1, 1, 1]."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, probability))(row_keys)[:, None, None, None]
