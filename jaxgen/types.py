"""The dimension legend and the array aliases that every signature uses.

====  =============================================
B     batch: rows that never see each other
T     time: steps of the recurrence
D     input features of a layer
H     hidden features of a layer
K     width of a cell's pre-activations (4H for LSTM)
V     vocabulary size
====  =============================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NewType, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array
#: An array of any library that NumPy can read.
ArrayLike: TypeAlias = jax.Array | np.ndarray
#: A typed PRNG key (``jax.random.key``), or a stack of them.
Key: TypeAlias = jax.Array
#: A cell's state: a pytree of arrays whose leading axis is B.
Carry: TypeAlias = Any
#: The id of a token of the vocabulary: an option of this type is given as text on the command line.
TokenId = NewType("TokenId", int)
#: A nested mapping of parameter arrays.
Params: TypeAlias = Mapping[str, Any]


class Batch(NamedTuple):
    """One training or evaluation batch of token windows; every field is [B, T].

    ``reset[b, t]`` says that row b starts afresh before step t; ``mask[b, t]`` says that the target at
    t counts in the loss. All three layouts (stream, windows, documents) are this one structure.
    """

    tokens: ArrayLike  # int32, the input at each step
    targets: ArrayLike  # int32, the token to predict
    reset: ArrayLike  # bool
    mask: ArrayLike  # bool


class ConditionedBatch(NamedTuple):
    """A batch of documents of which something is known beside their text: a vector, from which a state begins."""

    batch: Batch
    condition: ArrayLike  # float32 [B, T, C], that of the document which a position belongs to


class TokenRows(NamedTuple):
    """B texts as token ids, padded to S tokens."""

    tokens: ArrayLike  # int32 [B, S]
    valid: ArrayLike  # bool [B, S], no padding


class Seq2SeqBatch(NamedTuple):
    """A batch of B inputs, each with a target text of at most T tokens."""

    inputs: Any  # what the encoder reads; every leaf has B in front
    tokens: ArrayLike  # int32 [B, T], the input at each step: <eos>, then the text
    targets: ArrayLike  # int32 [B, T]: the text, then <eos>
    mask: ArrayLike  # bool [B, T], the targets that count
    scheduled_sampling_prob: ArrayLike  # float32 [B], probability that the decoder reads its own prediction


class Objective(NamedTuple):
    """What training minimises over a batch, ``loss / weight``, where that is not the mean of ``nll``."""

    loss: Array  # a sum over the targets that count, each by its weight
    weight: Array  # the sum of weights


class ClassificationBatch(NamedTuple):
    """One batch of inputs to label: B rows."""

    inputs: Any  # what is labelled; every leaf has B in front
    labels: ArrayLike  # int32 [B]
    weights: ArrayLike  # float32 [B], how much a row counts in the loss; 0 for one that fills up a batch


class DecodeWeights(NamedTuple):
    """What decoding reads at every step, computed once from the parameters."""

    params: Params
    table: Array | None  # [V, K], the first layer's input projection of every token


class AttentionMap(NamedTuple):
    """The attention weights of one generated text, with labels."""

    source: list[str]  # [S] labels of the source positions
    written: list[str]  # [T] generated tokens
    weights: np.ndarray  # [T, S], each row sums to 1
    image: np.ndarray | None = None  # uint8 [Y, X, 3], if the source positions are a grid over it, row by row
