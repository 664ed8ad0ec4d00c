"""What a text about a picture is written from: a small residual network, or features computed beforehand.

An encoder of pictures is any Linen module with

- ``__call__(inputs, row_keys=None) -> ImageFeatures``, where ``inputs`` have B in front and ``row_keys`` [B] are given
  in training only (dropout, flips, grays). The rows must be independent of each other, so no batch statistics;
- ``example() -> inputs`` of one row, by which parameters get their shapes;
- ``has_dropout``, whether ``row_keys`` change anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.errors import UsageError
from jaxgen.models.encoder import DecoderInput
from jaxgen.models.layers import dropout
from jaxgen.types import Array, ArrayLike, Key


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


#: Channels that are normalised together; the widths of layers are multiples of it, which is also what vectors want.
GROUP = 16
#: Channels a place has left where all places are laid side by side to be one vector.
NARROW = 16


class ImageFeatures(NamedTuple):
    """What an encoder makes of B pictures."""

    places: Array  # [B, P, M], what attention looks at, row by row from the top left
    pooled: Array  # [B, M], the whole picture


class Block(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), 3 x 3 (He et al. 2016, arXiv:1603.05027, figure 4e)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, Y, X, C] -> the same shape."""
        y = nn.Conv(x.shape[-1], (3, 3))(rectified(x))
        return x + nn.Conv(x.shape[-1], (3, 3))(rectified(y))


def rectified(x: Array) -> Array:
    """relu of group normalisation (Wu & He 2018, arXiv:1803.08494), whose statistics are one picture's own."""
    return nn.relu(nn.GroupNorm(num_groups=None, group_size=GROUP)(x))


class ImageEncoder(nn.Module):
    """Pictures uint8 [B, Y, X, 3] to a map of places and one vector, by a residual network without batch statistics.

    A first convolution sees squares of ``patch`` x ``patch`` pixels as one place; every later stage begins with a
    convolution of stride 2. ``widths`` are the channels of the stages and ``blocks`` their residual blocks, so a side
    of 64 pixels becomes 8 places with patches of 2 and three stages. (Processors compute many channels at few places
    much faster than few channels at many.) Each place gets a learned vector of its own, by which attention and
    the pooled vector know where it is. ``pooled`` is a product of all places side by side, NARROW channels of each:
    unlike a mean it keeps what is where.

    ``size`` is (Y, X), ``features`` is M. Training alone (``row_keys`` are given) drops places' features with the
    probability ``dropout``, mirrors pictures with the probability ``flips``, which is nothing for captions that say
    left and right, and takes the colours out of them with the probability ``grays``. Sizes and rates that cannot be
    used raise ``UsageError``.
    """

    size: tuple[int, int] = (64, 64)
    features: int = 128
    patch: int = 2
    widths: Sequence[int] = (32, 32, 64)
    blocks: Sequence[int] = (0, 1, 1)
    dropout: float = 0.0
    flips: float = 0.0
    grays: float = 0.0

    def __post_init__(self) -> None:
        sizes = {"size": self.size, "features": [self.features], "patch": [self.patch], "widths": self.widths}
        for name, values in sizes.items():
            if not values or not all(_whole(value, 1) for value in values):
                raise UsageError(
                    f"The image encoder's `{name}` is {getattr(self, name)!r}: give whole numbers of 1 or more."
                )
        if len(self.size) != 2:
            raise UsageError(f"The image encoder's `size` is {self.size!r}: it must be a height and a width.")
        odd = [width for width in self.widths if width % GROUP]
        if odd:
            raise UsageError(f"The image encoder has the width {odd[0]} among its `widths`: give multiples of {GROUP}.")
        if len(self.blocks) != len(self.widths) or not all(_whole(count, 0) for count in self.blocks):
            raise UsageError(
                f"The image encoder's `blocks` are {tuple(self.blocks)} for {len(self.widths)} `widths`: "
                "give a whole number of 0 or more for each."
            )
        _check_rates("image encoder", dropout=self.dropout, flips=self.flips, grays=self.grays)
        super().__post_init__()

    @property
    def has_dropout(self) -> bool:
        """Whether ``row_keys`` change anything."""
        return max(self.dropout, self.flips, self.grays) > 0

    @nn.nowrap
    def example(self) -> Array:
        """One black picture."""
        return jnp.zeros((1, *self.size, 3), jnp.uint8)

    @nn.compact
    def __call__(self, images: ArrayLike, row_keys: Key | None = None) -> ImageFeatures:
        """uint8 [B, Y, X, 3] -> places [B, P, M] and pooled [B, M]. Raises ``UsageError`` for another size or type."""
        images = jnp.asarray(images)
        if images.shape[1:] != (*self.size, 3) or images.dtype != jnp.uint8:
            raise UsageError(
                f"The image encoder got {images.dtype} {images.shape} and takes uint8 [B, {self.size[0]}, "
                f"{self.size[1]}, 3]: resize the images, or make it for another `size`."
            )
        if row_keys is not None and self.flips > 0:
            images = flip(images, _fold(row_keys, 0), self.flips)
        if row_keys is not None and self.grays > 0:
            images = grayscale(images, _fold(row_keys, 3), self.grays)
        x = patches(images.astype(jnp.float32) / 127.5 - 1.0, self.patch)
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks)):
            x = nn.Conv(width, (3, 3), strides=2)(rectified(x)) if stage else nn.Conv(width, (3, 3))(x)
            for _ in range(blocks):
                x = Block()(x)
        x = rectified(x)
        return _Places(self.features, self.dropout)(x.reshape(x.shape[0], -1, x.shape[-1]), row_keys)


class FeatureEncoder(nn.Module):
    """Features computed beforehand, float [B, F] or [B, P, F], in place of pictures: normalised, and projected.

    ``shape`` is (F,) or (P, F), ``features`` is M; each place gets a learned vector of its own. Features of any scale
    will do: each place's are normalised over F (Ba, Kiros & Hinton 2016, arXiv:1607.06450). ``dropout`` as in
    ``ImageEncoder``. A shape or a rate that cannot be used raises ``UsageError``.
    """

    shape: tuple[int, ...]
    features: int = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if len(self.shape) not in (1, 2) or not all(_whole(size, 1) for size in (*self.shape, self.features)):
            raise UsageError(
                f"The feature encoder's `shape` is {self.shape!r} and its `features` {self.features!r}: "
                "`shape` must be (F,) or (P, F), and all of them whole numbers of 1 or more."
            )
        _check_rates("feature encoder", dropout=self.dropout)
        super().__post_init__()

    @property
    def has_dropout(self) -> bool:
        """Whether ``row_keys`` change anything."""
        return self.dropout > 0

    @nn.nowrap
    def example(self) -> Array:
        """The features of one picture, zeros."""
        return jnp.zeros((1, *self.shape), jnp.float32)

    @nn.compact
    def __call__(self, features: ArrayLike, row_keys: Key | None = None) -> ImageFeatures:
        """[B, F] or [B, P, F] -> places [B, P, M] (P = 1 for the former) and pooled [B, M].

        Raises ``UsageError`` for features of another shape.
        """
        x = jnp.asarray(features)
        if x.shape[1:] != tuple(self.shape):
            raise UsageError(f"The feature encoder got {x.shape} and takes [B, {', '.join(map(str, self.shape))}].")
        x = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
        return _Places(self.features, self.dropout)(nn.LayerNorm()(x), row_keys)


def patches(images: Array, side: int) -> Array:
    """[B, Y, X, C] -> [B, Y / side, X / side, side² C]: each patch's pixels become channels of one place.

    Sides are rounded up, with zeros below and on the right.
    """
    rows, columns = (math.ceil(length / side) for length in images.shape[1:3])
    missing = [(0, 0), (0, rows * side - images.shape[1]), (0, columns * side - images.shape[2]), (0, 0)]
    cut = jnp.pad(images, missing).reshape(-1, rows, side, columns, side, images.shape[3])
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows, columns, side * side * images.shape[3])


class _Places(nn.Module):
    """The end of both encoders: features of P places [B, P, C] to ``ImageFeatures``."""

    features: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, row_keys: Key | None) -> ImageFeatures:
        where = self.param("where", nn.initializers.normal(1.0), (1, x.shape[1], self.features))
        places = nn.Dense(self.features)(x) + where
        narrow = nn.relu(nn.Dense(NARROW)(places)).reshape(x.shape[0], -1)
        seen = ImageFeatures(places, nn.Dense(self.features)(narrow))
        if row_keys is None or self.dropout == 0:
            return seen
        places = jnp.swapaxes(dropout(jnp.swapaxes(seen.places, 0, 1), self.dropout, _fold(row_keys, 1)), 0, 1)
        return ImageFeatures(places, dropout(seen.pooled[None], self.dropout, _fold(row_keys, 2))[0])


class ImageEncoderAdapter(nn.Module):
    """An encoder of pictures (this module says what it is) as ``EncoderDecoder`` takes it."""

    encoder: Any

    @property
    def has_dropout(self) -> bool:
        """Whether ``row_keys`` change anything."""
        return self.encoder.has_dropout

    @nn.nowrap
    def example(self) -> Any:
        """Inputs of one row."""
        return self.encoder.example()

    def encode(self, inputs: Any, row_keys: Key | None = None) -> DecoderInput:
        """What a decoder may begin from: the pooled vector, and the places."""
        seen = self.encoder(inputs, row_keys)
        return DecoderInput(((seen.pooled,),), seen.places)


def _fold(row_keys: Key, number: int) -> Key:
    """The keys [B] of the use ``number`` of a row's key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(row_keys)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_rates(what: str, **rates: float) -> None:
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UsageError(f"The {what}'s `{name}` is {rate!r}: it must be at least 0 and less than 1.")
