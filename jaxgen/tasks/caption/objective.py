"""Captioning: one to many. An encoder looks at a picture, a decoder writes about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from jaxgen.models.decoder import Decoder, EncoderDecoder
from jaxgen.models.image_encoder import FeatureEncoder, ImageEncoder, ImageEncoderAdapter
from jaxgen.models.layers import cell_factory
from jaxgen.tasks.seq2seq.objective import EOS, Seq2SeqTask


class CaptionTask(Seq2SeqTask):
    """``Seq2SeqTask`` of pictures: inputs are images uint8 [B, Y, X, 3], or features in their place.

    A subclass with another ``encoder`` (``jaxgen.models.image_encoder`` says what one is) in ``TASKS["caption"]`` is
    trained, kept, resumed and asked as this one is.
    """

    #: Steps in one compiled call: on a CPU convolutions are slow inside its loop (``train_steps``).
    STEPS_PER_CALL: ClassVar[int] = 1

    @classmethod
    def encoder(
        cls,
        shape: tuple[int, ...],
        features: int,
        *,
        patch: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        dropout: float,
        flips: float,
        grays: float,
    ) -> Any:
        """What looks at inputs of ``shape``: images (Y, X, 3), or features (F,) or (P, F); gives ``features`` each."""
        if is_image(shape):
            return ImageEncoder((shape[0], shape[1]), features, patch, widths, blocks, dropout, flips, grays)
        return FeatureEncoder(shape, features, dropout)

    @classmethod
    def build(
        cls,
        *,
        vocab_size: int,
        shape: Sequence[int],
        cell: str,
        cell_options: dict[str, Any],
        hidden: int,
        patch: int = 2,
        widths: Sequence[int] = (32, 32, 64),
        blocks: Sequence[int] = (0, 1, 1),
        dropout: float = 0.0,
        flips: float = 0.0,
        grays: float = 0.0,
        attention: str = "none",
        label_smoothing: float = 0.0,
        eos: int = EOS,
        **sizes: Any,
    ) -> CaptionTask:
        """The task from plain values: a name in ``CELLS``, the cell's own options, and the sizes of both networks.

        ``shape`` is that of an image or of features, as ``encoder`` gets it with ``patch``, ``widths``, ``blocks``
        and the rates.
        The encoder gives ``hidden`` features; ``dropout`` is of both networks, ``sizes`` (``layers``, ``embed``,
        ``embed_dropout``, ``token_dropout``, ``form``, ``precision``) are the decoder's.
        """
        options: dict[str, Any] = {"patch": patch, "widths": tuple(widths), "blocks": tuple(blocks)}
        options |= {"dropout": dropout, "flips": flips, "grays": grays}
        encoder = cls.encoder(tuple(shape), hidden, **options)
        made = {"hidden": hidden, "dropout": dropout, "attention": attention, **sizes}
        decoder = Decoder(vocab_size, cell_factory(cell, cell_options), **made)
        return cls(EncoderDecoder(ImageEncoderAdapter(encoder), decoder), False, label_smoothing, eos)


def is_image(shape: Sequence[int]) -> bool:
    """Whether an input of this shape is an image, and not features."""
    return len(shape) == 3
