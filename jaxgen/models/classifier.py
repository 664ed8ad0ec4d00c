"""The text classifier: an encoder, pooling, and a linear layer to one logit per label."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, Int, Shaped

from jaxgen.cells.lstm import LSTM
from jaxgen.cells.precision import dot_general
from jaxgen.errors import choose
from jaxgen.models.encoder import Encoder
from jaxgen.models.layers import (
    CellFactory,
    check_rates,
    check_sizes,
    drop_tokens,
    dropout,
    fold_in_rows,
    shared_fields,
)
from jaxgen.types import Array, ArrayLike, RowKeys

Outputs: TypeAlias = Shaped[ArrayLike, "B S M"]
Valid: TypeAlias = Bool[ArrayLike, "B S"]
Pooled: TypeAlias = Shaped[Array, "B M"]


def last(outputs: Outputs, valid: Valid, directions: int) -> Pooled:
    """The final output of each direction: the forward one at the last token, the backward one at the first."""
    end = jnp.maximum(jnp.sum(valid, axis=1, dtype=jnp.int32) - 1, 0)
    at_end = jnp.take_along_axis(outputs, end[:, None, None], axis=1)[:, 0]
    if directions == 1:
        return at_end
    half = outputs.shape[-1] // 2
    return jnp.concatenate([at_end[:, :half], outputs[:, 0, half:]], axis=-1)


def mean(outputs: Outputs, valid: Valid, directions: int) -> Pooled:
    """The mean over the tokens."""
    count = jnp.maximum(jnp.sum(valid, axis=1, dtype=outputs.dtype), 1)
    return jnp.sum(jnp.where(valid[:, :, None], outputs, 0), axis=1) / count[:, None]


def largest(outputs: Outputs, valid: Valid, directions: int) -> Pooled:
    """The maximum of each unit over the tokens (Collobert & Weston, ICML 2008); 0 for a text without tokens."""
    most = jnp.max(jnp.where(valid[:, :, None], outputs, -jnp.inf), axis=1)
    return jnp.where(jnp.any(valid, axis=1)[:, None], most, 0)


#: Poolings by name: functions of outputs, ``valid`` and the number of directions (1 or 2) to one vector for each text.
POOLINGS: dict[str, Callable[[Outputs, Valid, int], Pooled]] = {"last": last, "max": largest, "mean": mean}


class Classifier(nn.Module):
    """An ``Encoder``, pooling to one vector per text, and a linear layer to the logits of ``classes`` labels.

    The other fields are those of ``Encoder``, with one difference: above the last layer, ``dropout`` acts on the pooled
    vector. (The maximum over outputs with dropout would be biased, because the outputs that remain are scaled up.) In
    training, a fraction ``token_dropout`` of the tokens is read as ``unknown`` (word dropout; Iyyer et al., ACL 2015,
    section 3.1, leave them out).

    Raises:
        UsageError: for invalid sizes.
    """

    vocab_size: int
    classes: int
    cell: CellFactory | tuple[CellFactory, ...] = LSTM
    hidden: int = 256
    layers: int = 1
    embed: int | None = None
    dropout: float = 0.0
    embed_dropout: float = 0.0
    embed_stddev: float = 1.0
    token_dropout: float = 0.0
    unknown: int = 1
    bidirectional: bool = False
    pooling: str = "max"
    form: str = "auto"
    precision: str = "float32"
    block: Callable[..., nn.Module] | None = None
    locked_dropout: bool = False
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    weight_dropout: float = 0.0

    def __post_init__(self) -> None:
        choose(self.pooling, POOLINGS, "pooling")
        check_sizes(self, ["classes"], least=2)
        check_rates(self, ["token_dropout"])
        Encoder(**shared_fields(self, Encoder), parent=None)  # checks the shared fields
        super().__post_init__()

    def setup(self) -> None:
        self.encoder = Encoder(**shared_fields(self, Encoder))
        self.output = nn.Dense(self.classes, dot_general=dot_general(self.precision))

    @property
    def has_dropout(self) -> bool:
        """Whether ``row_keys`` change anything."""
        return self.token_dropout > 0 or Encoder(**shared_fields(self, Encoder), parent=None).has_dropout

    @nn.nowrap
    def chosen_form(self) -> str:
        """The form that ``form`` resolves to on JAX's default device."""
        return Encoder(**shared_fields(self, Encoder), parent=None).chosen_form()

    def __call__(
        self, tokens: Int[ArrayLike, "B S"], valid: Bool[ArrayLike, "B S"], row_keys: RowKeys | None = None
    ) -> Float[Array, "B classes"]:
        """The logits of the labels in float32. ``valid`` is false in padding; ``row_keys`` switch dropout on."""
        valid = jnp.asarray(valid, bool)
        keys = fold_in_rows(row_keys, self.layers + 1)
        tokens = drop_tokens(jnp.asarray(tokens), self.token_dropout, self.unknown, keys)
        outputs = self.encoder(tokens, valid, row_keys, drop_outputs=False).outputs
        pooled = POOLINGS[self.pooling](outputs, valid, 2 if self.bidirectional else 1)
        pooled = dropout(pooled[None], self.dropout, fold_in_rows(row_keys, self.layers + 2))[0]
        return self.output(pooled).astype(jnp.float32)
