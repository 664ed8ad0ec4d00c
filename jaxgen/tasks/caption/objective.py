"""Image captioning (one to many): an image encoder and a recurrent decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from jaxgen.models.blocks import layers_from_names
from jaxgen.models.decoder import Decoder, EncoderDecoder
from jaxgen.models.image_encoder import FeatureEncoder, ImageEncoder, ImageEncoderAdapter
from jaxgen.tasks.seq2seq.objective import EOS, Seq2SeqTask


class CaptionTask(Seq2SeqTask):
    """A ``Seq2SeqTask`` whose inputs are images uint8 [B, Y, X, 3], or precomputed features.

    To use another image encoder (``jaxgen.models.image_encoder`` describes the interface), override ``encoder`` in a
    subclass and assign it to ``TASKS["caption"]``.
    """

    #: Steps per compiled call. On a CPU convolutions are slow inside the loop of ``train_steps``.
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
        """Return the encoder for inputs of ``shape``: images (Y, X, 3), or features (F,) or (S, F)."""
        if is_image(shape):
            return ImageEncoder((shape[0], shape[1]), features, patch, widths, blocks, dropout, flips, grays)
        return FeatureEncoder(shape, features, dropout)

    @classmethod
    def build(
        cls,
        *,
        vocab_size: int,
        shape: Sequence[int],
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
        """Build the task from plain values.

        Args:
            vocab_size: the number of tokens the decoder can write.
            shape: the shape of an image or of features.
            hidden: the size of the decoder's layers, and the number of the encoder's output features.
            patch: see ``ImageEncoder``, as for ``widths``, ``blocks``, ``flips`` and ``grays``.
            dropout: the dropout rate of both networks.
            attention: a name in ``ATTENTIONS``, or "none".
            label_smoothing: see ``Seq2SeqTask``, as for ``eos``.
            **sizes: for the decoder: the options of ``layers_from_names``, and ``layers``, ``embed``,
                ``embed_dropout``, ``token_dropout``, ``form``, ``precision``, and those for noise inside cells.
        """
        options: dict[str, Any] = {"patch": patch, "widths": tuple(widths), "blocks": tuple(blocks)}
        options |= {"dropout": dropout, "flips": flips, "grays": grays}
        encoder = cls.encoder(tuple(shape), hidden, **options)
        made = {"hidden": hidden, "dropout": dropout, "attention": attention, **sizes}
        decoder = Decoder(vocab_size, **layers_from_names(**made))
        return cls(EncoderDecoder(ImageEncoderAdapter(encoder), decoder), False, label_smoothing, eos)


def is_image(shape: Sequence[int]) -> bool:
    """Whether an input of this shape is an image rather than features."""
    return len(shape) == 3
