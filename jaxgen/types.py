"""The dimension legend, the array types, and the structures that signatures share.

Shapes are written with jaxtyping: ``Float[Array, "B T H"]``. Each letter is one dimension:

====  =======================================================
B     batch: rows, which are independent of each other
T     time: steps of the recurrence
D     input features of a layer
H     hidden features of a layer
K     width of a cell's pre-activations (4H for LSTM)
V     vocabulary size
S     source positions, which attention looks at
M     features of a source position
W     beams of a beam search
N     hypotheses that a beam search returns
L     most tokens of a hypothesis
Y, X  rows and columns of an image
====  =======================================================

Rarer dimensions are words (``classes``, ``condition``, ``updates``). Tests check the shapes at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, NewType, TypeAlias

import jax
import jax.typing
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree
from jaxtyping import Key as KeyType

Array: TypeAlias = jax.Array
#: An array of JAX or NumPy.
ArrayLike: TypeAlias = jax.Array | np.ndarray
DType: TypeAlias = jax.typing.DTypeLike
#: A typed PRNG key (``jax.random.key``).
Key: TypeAlias = KeyType[Array, ""]
#: One PRNG key for each row of a batch; given in training only.
RowKeys: TypeAlias = KeyType[Array, "B"]
#: A cell's state: a pytree of arrays whose leading axis is B.
Carry: TypeAlias = PyTree
#: A nested mapping of parameter arrays.
Params: TypeAlias = Mapping[str, PyTree]
#: The id of a token of the vocabulary: an option of this type is given as text on the command line.
TokenId = NewType("TokenId", int)


class Batch(NamedTuple):
    """A batch of token windows for training or evaluation, the same structure for every layout."""

    tokens: Int[ArrayLike, "B T"]  # the input at each step
    targets: Int[ArrayLike, "B T"]  # the token to predict
    reset: Bool[ArrayLike, "B T"]  # the row's state is reset before this step
    mask: Bool[ArrayLike, "B T"]  # the target counts in the loss


class ConditionedBatch(NamedTuple):
    """A batch of documents whose initial states depend on a condition vector."""

    batch: Batch
    condition: Float[ArrayLike, "B T condition"]  # of the document that each position belongs to


class TokenRows(NamedTuple):
    """B texts as token ids, padded to S tokens."""

    tokens: Int[ArrayLike, "B S"]
    valid: Bool[ArrayLike, "B S"]  # false in padding


class Seq2SeqBatch(NamedTuple):
    """A batch of B inputs, each with a target text of at most T tokens."""

    inputs: PyTree  # what the encoder reads; every leaf has B in front
    tokens: Int[ArrayLike, "B T"]  # the input at each step: <eos>, then the text
    targets: Int[ArrayLike, "B T"]  # the text, then <eos>
    mask: Bool[ArrayLike, "B T"]  # the target counts in the loss
    scheduled_sampling_prob: Float[ArrayLike, "B"]  # probability that the decoder reads its own prediction


class ClassificationBatch(NamedTuple):
    """A batch of B inputs with a label each."""

    inputs: PyTree  # what the classifier reads; every leaf has B in front
    labels: Int[ArrayLike, "B"]
    weights: Float[ArrayLike, "B"]  # weight of the row in the loss; 0 for rows that only fill the batch


class Objective(NamedTuple):
    """What training minimises, ``loss / weight``, where that differs from the mean of ``nll``."""

    loss: Float[Array, ""]  # weighted sum over the targets that count
    weight: Float[Array, ""]  # sum of their weights


class DecodeWeights(NamedTuple):
    """What decoding reads at every step, computed once from the parameters."""

    params: Params
    table: Float[Array, "V K"] | None  # the first layer's input projection of every token
