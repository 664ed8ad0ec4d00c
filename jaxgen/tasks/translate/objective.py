"""Translation: many to many, unaligned. A recurrent encoder reads a text, a decoder writes another."""

from __future__ import annotations

from typing import Any

from jaxgen.models.decoder import Decoder, EncoderDecoder
from jaxgen.models.encoder import Encoder
from jaxgen.models.layers import cell_factory
from jaxgen.tasks.seq2seq.objective import EOS, Seq2SeqTask


class TranslateTask(Seq2SeqTask):
    """``Seq2SeqTask`` of texts: inputs are a ``TokenRows`` of source tokens."""

    @classmethod
    def build(
        cls,
        *,
        source_vocab: int,
        vocab_size: int,
        cell: str,
        cell_options: dict[str, Any],
        embed_dropout: float = 0.0,
        token_dropout: float = 0.0,
        bidirectional: bool = False,
        attention: str = "none",
        tie: bool = False,
        scheduled_sampling: bool = False,
        label_smoothing: float = 0.0,
        eos: int = EOS,
        **sizes: Any,
    ) -> TranslateTask:
        """The task from plain values: a name in ``CELLS``, the cell's own options, and the sizes of both networks.

        ``sizes`` (``hidden``, ``layers``, ``embed``, ``dropout``, ``form``, ``precision``) and ``embed_dropout`` are
        those of ``Encoder`` and ``Decoder`` alike; ``bidirectional`` is of the encoder, whose every direction is
        ``hidden`` wide; ``attention``, ``tie`` and ``token_dropout`` are of the decoder, which writes ``vocab_size``
        tokens; ``source_vocab`` tokens are read. The rest is that of ``Seq2SeqTask``.
        """
        make = cell_factory(cell, cell_options)
        sizes["embed_dropout"] = embed_dropout
        encoder = Encoder(source_vocab, make, bidirectional=bidirectional, **sizes)
        decoder = Decoder(vocab_size, make, attention=attention, tie=tie, token_dropout=token_dropout, **sizes)
        return cls(EncoderDecoder(encoder, decoder), scheduled_sampling, label_smoothing, eos)
