"""What a captioner needs beside its weights: how images become arrays, and how captions are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxgen.data.images import Resize, read_images
from jaxgen.data.writing import decode_target
from jaxgen.errors import CheckpointError, UsageError
from jaxgen.pictures import resize
from jaxgen.text import Tokenizer, load_tokenizer


def to_size(height: int, width: int | None = None) -> Resize:
    """What brings pictures on canvases to this size, as ``read_images`` asks for it; ``width`` is ``height``."""

    def resized(canvases: np.ndarray, extents: np.ndarray) -> np.ndarray:
        return np.asarray(resize(canvases, (height, width or height), extents))

    return resized


@dataclass(frozen=True)
class CaptionCodec:
    """Images of ``shape`` (height, width, 3), or features of that shape in their place, and the captions' tokenizer."""

    tokenizer: Tokenizer
    shape: tuple[int, ...]
    max_length: int

    #: Whether inputs are files rather than lines.
    FILES: ClassVar[bool] = True

    @property
    def longest(self) -> int:
        """Tokens of a caption that is written, at most, unless asked otherwise: the model has seen no longer ones."""
        return self.max_length

    @property
    def of_images(self) -> bool:
        """Whether inputs are images, not features."""
        return len(self.shape) == 3

    def encode(self, source: str | Path | np.ndarray) -> np.ndarray:
        """The array of an image file, or an array as it is.

        Raises ``DataError`` for a file that is no image, ``UsageError`` for what does not have the run's shape.
        """
        if isinstance(source, (str, Path)):
            if not self.of_images:
                raise UsageError(
                    f"This run was trained on features of the shape {self.shape} and cannot read the image {source}: "
                    "train one on images, or give arrays of features to jaxgen.Predictor."
                )
            height, width = self.shape[:2]
            return read_images([source], (height, width), to_size(height, width), strict=True).images[0]
        array = np.asarray(source)
        if array.shape != self.shape:
            raise UsageError(f"An input has the shape {array.shape}, but this run reads arrays of {self.shape}.")
        return array

    def widths(self, array: np.ndarray) -> tuple[int, ...]:
        """Nothing is padded."""
        del array
        return ()

    def pack(self, examples: Sequence[np.ndarray], widths: tuple[int, ...], rows: int) -> np.ndarray:
        """What a model reads of arrays, filled up to ``rows`` rows with zeros."""
        del widths
        packed = np.zeros((rows, *self.shape), np.uint8 if self.of_images else np.float32)
        packed[: len(examples)] = examples
        return packed

    def answer(self, source: Any, output: Any) -> dict[str, Any]:
        """A caption, its log-probability in nats, its number of tokens, and whether it came to its end."""
        return {
            "image": str(source) if isinstance(source, (str, Path)) else None,
            "text": decode_target(self.tokenizer, output.tokens),
            "logp": round(float(output.logp), 6),
            "tokens": int(output.tokens.size),
            "ended": bool(output.ended),
        }

    def line(self, answer: Mapping[str, Any]) -> str:
        """An answer as a line of plain text."""
        return " ".join(str(answer["text"]).split())

    def to_json(self) -> dict[str, Any]:
        """Everything needed to make this codec again."""
        return {"max_length": self.max_length, "shape": list(self.shape), "tokenizer": self.tokenizer.to_json()}

    @classmethod
    def from_json(cls, obj: Any) -> CaptionCodec:
        """What ``to_json`` described; raises ``CheckpointError`` for anything else."""
        try:
            shape, length = tuple(obj["shape"]), obj["max_length"]
            if type(length) is not int or length < 1:
                raise ValueError
            if not (1 <= len(shape) <= 3 and all(type(n) is int and n > 0 for n in shape)):
                raise ValueError
            return cls(load_tokenizer(obj["tokenizer"]), shape, length)
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                "The tokenizer.json of this run does not describe what a captioner reads and writes: copy the run "
                "again, or train anew."
            ) from None
