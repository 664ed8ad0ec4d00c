"""An encoder and a decoder put together: from anything to a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import linen as nn

from jaxgen.models.decoder import Decoder, Written
from jaxgen.models.embedding import folded
from jaxgen.types import Array, Carry, Key


class EncoderDecoder(nn.Module):
    """``decoder`` writes from what ``encoder`` has read.

    An encoder is any Linen module with

    - ``source(inputs, row_keys=None) -> Source``: reads ``inputs``, a pytree of arrays with B in front; ``row_keys``
      [B] switches dropout on. What one row gives must not depend on the others;
    - ``example() -> inputs`` of one row, by which parameters get their shapes;
    - ``has_dropout``, whether ``row_keys`` change anything.
    """

    encoder: Any
    decoder: Decoder

    @property
    def has_dropout(self) -> bool:
        return self.encoder.has_dropout or self.decoder.has_dropout

    def begin(self, inputs: Any, row_keys: Key | None = None) -> tuple[tuple[Carry, ...], Any]:
        """Read ``inputs`` -> the state in which the decoder begins and its memory (``Decoder.begin``)."""
        source = self.encoder.source(inputs, row_keys=folded(row_keys, 0))
        return self.decoder.begin(source.finals, source.values, source.valid)

    def read(
        self,
        tokens: Array,
        carry: Sequence[Carry],
        memory: Any,
        row_keys: Key | None = None,
        table: Array | None = None,
    ) -> Written:
        """``Decoder.read`` of ``tokens`` [B, T]."""
        return self.decoder.read(tokens, carry, memory, folded(row_keys, 1), table)

    def logits(self, features: Array) -> Array:
        """``Decoder.logits``: features [..., H] -> float32 logits [..., V]."""
        return self.decoder.logits(features)

    def token_table(self) -> Array | None:
        """``Decoder.token_table``."""
        return self.decoder.token_table()

    def __call__(self, inputs: Any, tokens: Array, row_keys: Key | None = None) -> Array:
        """Logits [B, T, V] of what follows each of ``tokens`` [B, T] when written from ``inputs``."""
        return self.logits(self.read(tokens, *self.begin(inputs, row_keys), row_keys).features)
