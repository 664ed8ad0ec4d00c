"""What a classifier needs beside its weights: how texts are read, and what the labels are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import AfterValidator, PositiveInt, Strict
from pydantic.dataclasses import dataclass

from jaxgen.data.bucketing import bucket_width, padded
from jaxgen.fsutil import STRICT
from jaxgen.tokenizers import SavedTokenizer
from jaxgen.tokenizers.base import PAD
from jaxgen.types import TokenRows


def normal(text: str, lower: bool, level: str) -> str:
    """A text as the tokenizer of a level gets it."""
    text = text.strip().lower() if lower else text.strip()
    # There a word with a space in front of it is one token, and the same at the beginning of a text another one.
    return " " + text if text and level in ("bpe", "word") else text


class Example(NamedTuple):
    """One text as it is read: its ids, cut to the length that is read, and how many were cut off."""

    ids: np.ndarray
    cut: int


def _different(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len({*labels}) != len(labels):
        raise ValueError("a label is listed twice")
    return labels


@dataclass(frozen=True, config=STRICT)
class ClassifyCodec:
    """How texts are read, and what the labels are called."""

    tokenizer: SavedTokenizer
    labels: Annotated[tuple[str, ...], Strict(False), AfterValidator(_different)]
    lower: bool
    max_length: PositiveInt

    #: Whether inputs are files rather than lines.
    FILES: ClassVar[bool] = False

    def encode(self, text: str) -> Example:
        """What is read of a text; what the vocabulary lacks is <unk>. A text of white space alone has no tokens."""
        ids = self.tokenizer.encode(normal(text, self.lower, self.tokenizer.kind))
        return Example(ids[: self.max_length], max(0, ids.size - self.max_length))

    def widths(self, example: Example) -> tuple[int, ...]:
        """To what an example is padded."""
        return (bucket_width(example.ids.size),)

    def pack(self, examples: Sequence[Example], widths: tuple[int, ...], rows: int) -> TokenRows:
        """What a model reads of ``examples``, filled up to ``rows`` rows."""
        ids = [example.ids for example in examples]
        empty = np.zeros(0, np.int32)
        return TokenRows(*padded([*ids, *[empty] * (rows - len(ids))], widths[0], PAD))

    def answer(self, text: str, output: np.ndarray) -> dict[str, Any]:
        """The likeliest label, the probabilities of all, the likeliest first, and how many tokens were not read.

        Of a text without tokens it is what the model takes texts for of which it knows nothing.
        """
        order = np.argsort(-output, kind="stable")
        probabilities = {self.labels[i]: round(float(output[i]), 6) for i in order}
        label, cut = self.labels[order[0]], self.encode(text).cut
        return {"text": text, "label": label, "probabilities": probabilities, "cut": cut}

    def line(self, answer: Mapping[str, Any]) -> str:
        """An answer as a line of plain text: label, tab, probability. White space in a label becomes single spaces."""
        return f"{' '.join(answer['label'].split())}\t{answer['probabilities'][answer['label']]:.4f}"

    def to_json(self) -> dict[str, Any]:
        """Everything needed to make this codec again."""
        labels, tokenizer = list(self.labels), self.tokenizer.to_json()
        return {"labels": labels, "lower": self.lower, "max_length": self.max_length, "tokenizer": tokenizer}
