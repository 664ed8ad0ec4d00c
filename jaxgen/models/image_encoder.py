"""Image encoders: a small residual network, and a projection of precomputed features.

An image encoder is any Linen module with

- ``__call__(inputs, row_keys=None) -> ImageFeatures``. The first axis of ``inputs`` is B; ``row_keys`` [B] are given in
  training only (dropout, flips, grays). Rows must be independent of each other, so batch statistics are not allowed;
- ``example() -> inputs`` of one row, from which the shapes of the parameters follow;
- ``has_dropout``: whether ``row_keys`` have any effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, PyTree, Shaped, UInt8

from jaxgen.errors import UsageError, check_int
from jaxgen.models.encoder import DecoderInput
from jaxgen.models.layers import check_rates, check_sizes, dropout, fold_in_rows
from jaxgen.types import Array, ArrayLike, RowKeys


def flip(
    images: Shaped[Array, "B Y X channels"], row_keys: RowKeys | None, probability: float = 0.5
) -> Shaped[Array, "B Y X channels"]:
    """Mirror each of ``images`` left to right with this probability; none without ``row_keys``.

    Do not use it if captions say left or right.
    """
    if row_keys is None or probability == 0:
        return images
    return jnp.where(_chosen(row_keys, probability), images[:, :, ::-1], images)


def grayscale(images: UInt8[Array, "B Y X 3"], row_keys: RowKeys | None, probability: float) -> UInt8[Array, "B Y X 3"]:
    """Convert each of ``images`` to grey with this probability; none without ``row_keys``.

    All three channels become the luma of ITU-R BT.601. The model then has to recognise shapes without their colours.
    """
    if row_keys is None or probability == 0:
        return images
    luma = jnp.round(images.astype(jnp.float32) @ jnp.array([[0.299], [0.587], [0.114]], jnp.float32))
    return jnp.where(_chosen(row_keys, probability), luma.astype(images.dtype), images)


def _chosen(row_keys: RowKeys, probability: float) -> Bool[Array, "B 1 1 1"]:
    """Draw which images to change."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, probability))(row_keys)[:, None, None, None]


#: Channels per normalisation group. Layer widths are multiples of it, which also suits vector units.
GROUP = 16
#: Channels per position in the concatenation from which the pooled vector is computed.
NARROW = 16


class ImageFeatures(NamedTuple):
    """The outputs of an image encoder for B images."""

    places: Float[Array, "B S M"]  # the positions for attention, row by row from the top left
    pooled: Float[Array, "B M"]  # one vector for the whole image


class Block(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), 3 x 3 (He et al. 2016, arXiv:1603.05027, figure 4e)."""

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X channels"]) -> Float[Array, "B Y X channels"]:
        y = nn.Conv(x.shape[-1], (3, 3))(rectified(x))
        return x + nn.Conv(x.shape[-1], (3, 3))(rectified(y))


def rectified(x: Float[Array, "B *places channels"]) -> Float[Array, "B *places channels"]:
    """Group normalisation (Wu & He 2018, arXiv:1803.08494), with statistics per image, followed by relu."""
    return nn.relu(nn.GroupNorm(num_groups=None, group_size=GROUP)(x))


class ImageEncoder(nn.Module):
    """A residual network without batch statistics: images uint8 [B, Y, X, 3] to positions and one pooled vector.

    The first convolution treats each square of ``patch`` x ``patch`` pixels as one position. Every later stage begins
    with a convolution of stride 2, so with patches of 2 and three stages a side of 64 pixels becomes 8 positions. (Many
    channels at few positions are much faster than few channels at many.) Each position has a learned embedding,
    which tells attention and the pooled vector where it is. ``pooled`` is a linear map of the concatenation of all
    positions, reduced to NARROW channels each. Unlike a mean it keeps spatial information.

    Attributes:
        size: height and width (Y, X) of the images.
        features: the number of output features M.
        patch: side of a patch in pixels.
        widths: channels of each stage.
        blocks: residual blocks of each stage.
        dropout: dropout rate of the outputs; in training only (``row_keys`` given), like the next two.
        flips: probability of mirroring an image. Do not use it if captions say left and right.
        grays: probability of converting an image to grey.

    Raises:
        UsageError: for invalid sizes and rates.
    """

    size: tuple[int, ...] = (64, 64)
    features: int = 128
    patch: int = 2
    widths: Sequence[int] = (32, 32, 64)
    blocks: Sequence[int] = (0, 1, 1)
    dropout: float = 0.0
    flips: float = 0.0
    grays: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, ["features", "patch"])
        for name, least in {"size": 1, "widths": 1, "blocks": 0}.items():
            for value in getattr(self, name):
                check_int(f"A number in the ImageEncoder's `{name}`", value, least)
        if len(self.size) != 2:
            raise UsageError(f"The ImageEncoder's `size` is {self.size!r}: give a height and a width.")
        if not self.widths or any(width % GROUP for width in self.widths):
            raise UsageError(f"The ImageEncoder's `widths` are {tuple(self.widths)}: give multiples of {GROUP}.")
        if len(self.blocks) != len(self.widths):
            raise UsageError(f"The ImageEncoder's `blocks` are {tuple(self.blocks)}: give one for each width.")
        check_rates(self, ["dropout", "flips", "grays"])
        super().__post_init__()

    @property
    def has_dropout(self) -> bool:
        """Whether ``row_keys`` change anything."""
        return max(self.dropout, self.flips, self.grays) > 0

    @nn.nowrap
    def example(self) -> UInt8[Array, "1 Y X 3"]:
        """One black image."""
        return jnp.zeros((1, *self.size, 3), jnp.uint8)

    @nn.compact
    def __call__(self, images: Shaped[ArrayLike, "B ..."], row_keys: RowKeys | None = None) -> ImageFeatures:
        """Encode images uint8 [B, Y, X, 3]; raises ``UsageError`` for another size or type."""
        images = jnp.asarray(images)
        if images.shape[1:] != (*self.size, 3) or images.dtype != jnp.uint8:
            raise UsageError(
                f"The image encoder got {images.dtype} {images.shape} and takes uint8 [B, {self.size[0]}, "
                f"{self.size[1]}, 3]: resize the images, or create the encoder with another `size`."
            )
        images = flip(images, fold_in_rows(row_keys, 0), self.flips)
        images = grayscale(images, fold_in_rows(row_keys, 3), self.grays)
        x = patches(images.astype(jnp.float32) / 127.5 - 1.0, self.patch)
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks)):
            x = nn.Conv(width, (3, 3), strides=2)(rectified(x)) if stage else nn.Conv(width, (3, 3))(x)
            for _ in range(blocks):
                x = Block()(x)
        x = rectified(x)
        return _Places(self.features, self.dropout)(x.reshape(x.shape[0], -1, x.shape[-1]), row_keys)


class FeatureEncoder(nn.Module):
    """An encoder of precomputed features, [B, F] or [B, S, F], which it normalises and projects.

    Features may have any scale: layer normalisation (Ba, Kiros & Hinton 2016, arXiv:1607.06450) is applied at each
    position over F. Each position has a learned embedding.

    Attributes:
        shape: (F,), which is one position, or (S, F).
        features: the number of output features M.
        dropout: as in ``ImageEncoder``.

    Raises:
        UsageError: for an invalid shape or rate.
    """

    shape: tuple[int, ...]
    features: int = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, ["features"])
        for size in self.shape:
            check_int("A number in the FeatureEncoder's `shape`", size, 1)
        if len(self.shape) not in (1, 2):
            raise UsageError(f"The FeatureEncoder's `shape` is {self.shape!r}: give (F,) or (S, F).")
        check_rates(self, ["dropout"])
        super().__post_init__()

    @property
    def has_dropout(self) -> bool:
        """Whether ``row_keys`` change anything."""
        return self.dropout > 0

    @nn.nowrap
    def example(self) -> Float[Array, "1 *shape"]:
        """The features of one image, all zeros."""
        return jnp.zeros((1, *self.shape), jnp.float32)

    @nn.compact
    def __call__(self, features: Shaped[ArrayLike, "B ..."], row_keys: RowKeys | None = None) -> ImageFeatures:
        """Encode features [B, F] or [B, S, F]; raises ``UsageError`` for another shape."""
        x = jnp.asarray(features)
        if x.shape[1:] != tuple(self.shape):
            raise UsageError(f"The feature encoder got {x.shape} and takes [B, {', '.join(map(str, self.shape))}].")
        x = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
        return _Places(self.features, self.dropout)(nn.LayerNorm()(x), row_keys)


def patches(images: Float[Array, "B Y X channels"], side: int) -> Float[Array, "B rows columns pixels"]:
    """Split images into patches, [B, Y / side, X / side, side² C]: pixels become channels.

    Heights and widths are rounded up, with zeros at the bottom and on the right.
    """
    rows, columns = (math.ceil(length / side) for length in images.shape[1:3])
    missing = [(0, 0), (0, rows * side - images.shape[1]), (0, columns * side - images.shape[2]), (0, 0)]
    cut = jnp.pad(images, missing).reshape(-1, rows, side, columns, side, images.shape[3])
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows, columns, side * side * images.shape[3])


class _Places(nn.Module):
    """The last layers of both encoders: from features of S positions to ``ImageFeatures``."""

    features: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "B S channels"], row_keys: RowKeys | None) -> ImageFeatures:
        where = self.param("where", nn.initializers.normal(1.0), (1, x.shape[1], self.features))
        places = nn.Dense(self.features)(x) + where
        narrow = nn.relu(nn.Dense(NARROW)(places)).reshape(x.shape[0], -1)
        pooled = nn.Dense(self.features)(narrow)
        if row_keys is None or self.dropout == 0:
            return ImageFeatures(places, pooled)
        places = jnp.swapaxes(dropout(jnp.swapaxes(places, 0, 1), self.dropout, fold_in_rows(row_keys, 1)), 0, 1)
        return ImageFeatures(places, dropout(pooled[None], self.dropout, fold_in_rows(row_keys, 2))[0])


class ImageEncoderAdapter(nn.Module):
    """Adapts an image encoder (see the module docstring) to the interface that ``EncoderDecoder`` expects."""

    encoder: Any

    @property
    def has_dropout(self) -> bool:
        """Whether ``row_keys`` change anything."""
        return self.encoder.has_dropout

    @nn.nowrap
    def example(self) -> PyTree:
        """Inputs of one row."""
        return self.encoder.example()

    def encode(self, inputs: PyTree, row_keys: RowKeys | None = None) -> DecoderInput:
        """The pooled vector for the decoder's initial state, and the positions to attend to."""
        seen = self.encoder(inputs, row_keys)
        return DecoderInput(((seen.pooled,),), seen.places)
