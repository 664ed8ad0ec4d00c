"""Translation (many to many, unaligned): a recurrent encoder and a recurrent decoder."""

from __future__ import annotations

from typing import Any

from jaxgen.models.blocks import layers_from_names
from jaxgen.models.decoder import Decoder, EncoderDecoder
from jaxgen.models.encoder import Encoder
from jaxgen.tasks.seq2seq.objective import EOS, Seq2SeqTask


class TranslateTask(Seq2SeqTask):
    """A ``Seq2SeqTask`` whose inputs are source texts, as ``TokenRows``."""

    @classmethod
    def build(
        cls,
        *,
        source_vocab: int,
        vocab_size: int,
        embed_dropout: float = 0.0,
        token_dropout: float = 0.0,
        bidirectional: bool = False,
        attention: str = "none",
        tie: bool = False,
        use_scheduled_sampling: bool = False,
        label_smoothing: float = 0.0,
        eos: int = EOS,
        **options: Any,
    ) -> TranslateTask:
        """Build the task from plain values.

        Args:
            source_vocab: the vocabulary size of the encoder.
            vocab_size: the vocabulary size of the decoder.
            embed_dropout: for both networks.
            token_dropout: for the decoder.
            bidirectional: for the encoder; each direction has ``hidden`` units.
            attention: for the decoder, a name in ``ATTENTIONS`` or "none".
            tie: for the decoder.
            use_scheduled_sampling: see ``Seq2SeqTask``, as for ``label_smoothing`` and ``eos``.
            **options: for both networks: those of ``layers_from_names``, and ``hidden``, ``layers``, ``embed``,
                ``dropout``, ``form``, ``precision``, and those for noise inside cells.
        """
        shared = layers_from_names(**options, embed_dropout=embed_dropout)
        encoder = Encoder(source_vocab, bidirectional=bidirectional, **shared)
        decoder = Decoder(vocab_size, attention=attention, tie=tie, token_dropout=token_dropout, **shared)
        return cls(EncoderDecoder(encoder, decoder), use_scheduled_sampling, label_smoothing, eos)
