"""The codec of a captioner: the shape of its inputs, and the tokenizer of captions."""

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


class NamedFeatures(NamedTuple):
    """The features of one image from an ``.npz`` file, with its name."""

    name: str
    features: np.ndarray
    file: str = ""


@dataclass(frozen=True, config=STRICT)
class CaptionCodec:
    """Reads images of ``shape`` (height, width, 3), or features of that shape, and writes captions.

    The model was trained on captions of up to ``max_length`` tokens, including the end.
    """

    tokenizer: SavedTokenizer
    shape: Annotated[tuple[PositiveInt, ...], Strict(False), Field(min_length=1, max_length=3)]
    max_length: PositiveInt

    #: Whether inputs are files, not lines of text.
    FILES: ClassVar[bool] = True

    @property
    def of_images(self) -> bool:
        """Whether inputs are images, not features."""
        return len(self.shape) == 3

    @property
    def longest(self) -> int:
        """Default limit of the tokens of a caption: the model was trained on none that are longer."""
        return self.max_length

    def sources(self, paths: Sequence[str]) -> Iterator[str | NamedFeatures]:
        """Yields the inputs in files: an image each, or all features of ``.npz`` files in order.

        An unusable file of features is yielded as a path; ``encode`` then raises the error.
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
                yield from (NamedFeatures(name, features, path) for name, features in zip(found.names, found.features))

    def encode(self, source: str | Path | NamedFeatures | np.ndarray) -> np.ndarray:
        """Returns the array of an image file, of features, or an array unchanged.

        Raises:
            DataError: A file is not an image, or its features do not have the run's shape.
            UsageError: An array does not have the run's shape.
        """
        if isinstance(source, (str, Path)):
            if not self.of_images:
                if str(source).lower().endswith(".npz"):
                    read_features(source)  # raises an error about the file, if it is damaged
                raise DataError(
                    f"This run was trained on features of the shape {self.shape} and cannot read {source}: give "
                    "features that were computed in the same way (.npz), or train a run on images."
                )
            height, width = self.shape[:2]
            return read_image(source, (height, width))
        name, array, file = source if isinstance(source, NamedFeatures) else ("an array", np.asarray(source), "")
        if array.shape != self.shape:
            where = f" of {file}" if file else ""
            raise (DataError if isinstance(source, NamedFeatures) else UsageError)(
                f"The input {name}{where} has the shape {array.shape}, but this run reads arrays of "
                f"{self.shape}: give those."
            )
        if self.of_images and array.dtype != np.uint8:
            raise UsageError(f"The input {name} is of the type {array.dtype}: give an image of uint8, from 0 to 255.")
        return array

    def widths(self, array: np.ndarray) -> tuple[int, ...]:
        """Returns nothing: inputs are not padded."""
        del array
        return ()

    def pack(self, examples: Sequence[np.ndarray], widths: tuple[int, ...], rows: int) -> np.ndarray:
        """Returns arrays as model inputs, padded to ``rows`` rows with zeros."""
        del widths
        packed = np.zeros((rows, *self.shape), np.uint8 if self.of_images else np.float32)
        for to, array in zip(packed, examples):
            to[:] = array
        return packed

    def answer(self, source: Any, output: Any) -> dict[str, Any]:
        """Returns a caption with its log-probability in nats, its number of tokens, and whether it ended."""
        return {
            "image": _name(source),
            "text": decode_target(self.tokenizer, output.tokens),
            "logp": round(float(output.logp), 6),
            "tokens": int(output.tokens.size),
            "ended": bool(output.ended),
        }

    def line(self, answer: Mapping[str, Any]) -> str:
        """Returns an answer as one line."""
        return " ".join(str(answer["text"]).split())

    def attention_map(self, source: Any, output: Any, weights: np.ndarray) -> AttentionMap:
        """Where the decoder looked with each token of a caption, ``weights`` [.., P]: at places of the image."""
        ids = [*output.tokens, *[EOS] * output.ended]
        written = [token_label(self.tokenizer, i) for i in ids]
        labels = [str(place + 1) for place in range(weights.shape[-1])]
        return AttentionMap(labels, written, weights[: len(ids)], self.encode(source) if self.of_images else None)

    def to_json(self) -> dict[str, object]:
        """Returns what ``load_strict`` makes this codec of."""
        return {"shape": list(self.shape), "max_length": self.max_length, "tokenizer": self.tokenizer.to_json()}


def _name(source: Any) -> str | None:
    """Returns the name of an input, if it has one."""
    if isinstance(source, NamedFeatures):
        return source.name
    return str(source) if isinstance(source, (str, Path)) else None
