"""What a captioner needs beside its weights: how images become arrays, and how captions are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field, PositiveInt, Strict
from pydantic.dataclasses import dataclass

from jaxgen.errors import DataError, UsageError
from jaxgen.fsutil import STRICT
from jaxgen.tasks.caption.images import read_features, read_image
from jaxgen.tasks.seq2seq.data import decode_target, token_label
from jaxgen.tokenizers import SavedTokenizer
from jaxgen.tokenizers.base import EOS
from jaxgen.types import AttentionMap


class Named(NamedTuple):
    """Features of one image of an ``.npz`` file, with its name."""

    name: str
    features: np.ndarray
    file: str = ""


@dataclass(frozen=True, config=STRICT)
class CaptionCodec:
    """Images of ``shape`` (height, width, 3), or features of that shape in their place, and the captions' tokenizer.

    Captions of up to ``max_length`` tokens, the end among them, were learnt.
    """

    tokenizer: SavedTokenizer
    shape: Annotated[tuple[PositiveInt, ...], Strict(False), Field(min_length=1, max_length=3)]
    max_length: PositiveInt

    #: Whether inputs are files rather than lines.
    FILES: ClassVar[bool] = True

    @property
    def of_images(self) -> bool:
        """Whether inputs are images, not features."""
        return len(self.shape) == 3

    @property
    def longest(self) -> int:
        """Tokens of a caption that is written, at most, unless asked otherwise: the model has seen no longer ones."""
        return self.max_length

    def sources(self, paths: Sequence[str]) -> Iterator[str | Named]:
        """The inputs in these files: an image each, or all features of ``.npz`` files in their order.

        A file of features that cannot be used is an input itself, for which ``encode`` says why.
        """
        for path in paths:
            if self.of_images or not path.lower().endswith(".npz"):
                yield path
            else:
                try:
                    found = read_features(path)
                except DataError:
                    yield path
                    continue
                yield from (Named(name, features, path) for name, features in zip(found.names, found.features))

    def encode(self, source: str | Path | Named | np.ndarray) -> np.ndarray:
        """The array of an image file, or an array as it is.

        Raises ``DataError`` for a file that is no image and for features of a file that do not have the run's shape,
        ``UsageError`` for an array that does not.
        """
        if isinstance(source, (str, Path)):
            if not self.of_images:
                if str(source).lower().endswith(".npz"):
                    read_features(source)  # says what is wrong with it
                raise DataError(
                    f"This run was trained on features of the shape {self.shape} and cannot read {source}: give "
                    "features that were computed in the same way (.npz), or train a run on images."
                )
            height, width = self.shape[:2]
            return read_image(source, (height, width))
        name, array, file = source if isinstance(source, Named) else ("an array", np.asarray(source), "")
        if array.shape != self.shape:
            where = f" of {file}" if file else ""
            raise (DataError if isinstance(source, Named) else UsageError)(
                f"The input {name}{where} has the shape {array.shape}, but this run reads arrays of "
                f"{self.shape}: give those."
            )
        if self.of_images and array.dtype != np.uint8:
            raise UsageError(f"The input {name} is of the type {array.dtype}: give an image of uint8, from 0 to 255.")
        return array

    def widths(self, array: np.ndarray) -> tuple[int, ...]:
        """Nothing is padded."""
        del array
        return ()

    def pack(self, examples: Sequence[np.ndarray], widths: tuple[int, ...], rows: int) -> np.ndarray:
        """What a model reads of arrays, filled up to ``rows`` rows with zeros."""
        del widths
        packed = np.zeros((rows, *self.shape), np.uint8 if self.of_images else np.float32)
        for to, array in zip(packed, examples):
            to[:] = array
        return packed

    def answer(self, source: Any, output: Any) -> dict[str, Any]:
        """A caption, its log-probability in nats, its number of tokens, and whether it came to its end."""
        return {
            "image": _name(source),
            "text": decode_target(self.tokenizer, output.tokens),
            "logp": round(float(output.logp), 6),
            "tokens": int(output.tokens.size),
            "ended": bool(output.ended),
        }

    def line(self, answer: Mapping[str, Any]) -> str:
        """An answer as a line of plain text."""
        return " ".join(str(answer["text"]).split())

    def attention_map(self, source: Any, output: Any, weights: np.ndarray) -> AttentionMap:
        """Where the decoder looked with each token of a caption, ``weights`` [.., P]: at places of the image."""
        ids = [*output.tokens, *[EOS] * output.ended]
        written = [token_label(self.tokenizer, i) for i in ids]
        labels = [str(place + 1) for place in range(weights.shape[-1])]
        return AttentionMap(labels, written, weights[: len(ids)], self.encode(source) if self.of_images else None)

    def to_json(self) -> dict[str, Any]:
        """Everything needed to make this codec again."""
        return {"shape": list(self.shape), "max_length": self.max_length, "tokenizer": self.tokenizer.to_json()}


def _name(source: Any) -> str | None:
    """What an input is called, if it has a name."""
    if isinstance(source, Named):
        return source.name
    return str(source) if isinstance(source, (str, Path)) else None
