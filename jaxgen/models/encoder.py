"""A recurrent encoder of token sequences, optionally bidirectional, and the input of a decoder."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Int, PyTree, Shaped

from jaxgen.models.layers import RecurrentModel, cell_state, dropout, fold_in_rows, unroll_layer
from jaxgen.types import Array, ArrayLike, RowKeys, TokenRows


class EncoderOutput(NamedTuple):
    """The outputs and final states of an ``Encoder``."""

    #: Of the last layer, both directions side by side; zero in padding.
    outputs: Shaped[Array, "B S M"]
    #: ``finals[layer][direction]`` is ``Cell.summary`` of the state after the last token read: the last of the text
    #: forwards, the first backwards.
    finals: tuple[tuple[PyTree, ...], ...]


class DecoderInput(NamedTuple):
    """What an encoder passes to a decoder (``jaxgen.models.EncoderDecoder``)."""

    finals: tuple[PyTree, ...]  # for each layer of the encoder, the lowest first, any pytree of [B, ...]
    values: Shaped[Array, "B S M"] | None = None  # the vectors to attend to
    valid: Bool[Array, "B S"] | None = None  # false in padding; ``None``: there is no padding


class Encoder(RecurrentModel):
    """Embedding and ``layers`` recurrent layers of ``hidden`` units in each direction.

    With ``bidirectional`` every layer reads the outputs of the one below in both directions and concatenates the
    results (Schuster & Paliwal 1997, IEEE Transactions on Signal Processing 45; stacked as in Graves, Jaitly & Mohamed
    2013). The backward direction of a padded row starts at its last token. With residual blocks, both directions of a
    layer read the same vectors and add to them; only the last layer's results are concatenated.

    Args:
        embed_stddev: standard deviation of the embedding's initial values. If it is small, rare tokens matter little.
        bidirectional: read in both directions.

    The other fields are those of ``RecurrentModel``. Dropout does not act on final states.
    """

    embed_stddev: float = 1.0
    bidirectional: bool = False

    def setup(self) -> None:
        self.embedding = self.make_embedding(self.embed_stddev)
        self.forwards = self.make_layers()
        if self.bidirectional:
            self.backwards = self.make_layers()

    def __call__(
        self,
        tokens: Int[ArrayLike, "B S"],
        valid: Bool[ArrayLike, "B S"] | None = None,
        row_keys: RowKeys | None = None,
        drop_outputs: bool = True,
    ) -> EncoderOutput:
        """The outputs and final states of a batch of texts.

        The result does not depend on the content of padding, bit for bit. A row without tokens ends in the zero state.

        Args:
            tokens: token ids.
            valid: false in padding; ``None``: there is no padding.
            row_keys: switch dropout on. What a row drops depends on its own key only.
            drop_outputs: whether dropout acts on the outputs of the last layer too.
        """
        tokens = jnp.asarray(tokens).T
        if valid is not None:
            valid = jnp.asarray(valid, bool).T
            tokens = jnp.where(valid, tokens, 0)
        layers = list(zip(self.forwards, *([self.backwards] if self.bidirectional else [])))
        inputs, projected = self.embedding.inputs(tokens, layers[0], fold_in_rows(row_keys, self.layers))
        finals: list[tuple[PyTree, ...]] = []
        forms = self.form.split(",")
        for layer, cells in enumerate(layers):
            keys, read = fold_in_rows(row_keys, layer), []
            for cell, x, reverse in zip(cells, inputs, (False, True)):
                start = cell.initialize_carry(jax.random.key(0), x.shape[1:])
                options = {"valid": valid, "reverse": reverse, "form": forms[layer % len(forms)]}
                own = fold_in_rows(keys, int(reverse))
                final, ys = unroll_layer(cell, x, start, projected and layer == 0, own, **options)
                summary = getattr(self.cell_kinds[layer], "summary", lambda carry: carry)
                read.append((summary(cell_state(cell, final)), ys))
            finals.append(tuple(final for final, _ in read))
            outputs = [ys for _, ys in read]
            if self.block is not None and self.bidirectional and layer + 1 < self.layers:
                x = outputs[0] + outputs[1] - x  # both directions add to one stream
            else:
                x = jnp.concatenate(outputs, axis=-1)
            if self.block is None and (drop_outputs or layer + 1 < self.layers):
                x = dropout(x, self.dropout, keys, self.locked_dropout)
            inputs = [x] * len(cells)
        return EncoderOutput(jnp.swapaxes(x, 0, 1), tuple(finals))

    def encode(self, inputs: TokenRows, row_keys: RowKeys | None = None) -> DecoderInput:
        """``__call__`` in the form that ``EncoderDecoder`` needs."""
        encoded = self(inputs.tokens, inputs.valid, row_keys)
        return DecoderInput(encoded.finals, encoded.outputs, jnp.asarray(inputs.valid, bool))

    @nn.nowrap
    def example(self) -> TokenRows:
        """Inputs of one row, from which the parameters get their shapes."""
        return TokenRows(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
