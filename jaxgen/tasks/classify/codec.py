"""The codec of a classifier: how texts are tokenized, and the names of the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import AfterValidator, PositiveInt, Strict
from pydantic.dataclasses import dataclass

from jaxgen.data.bucketing import bucket_width, pad_rows
from jaxgen.fsutil import STRICT
from jaxgen.tokenizers import SavedTokenizer
from jaxgen.tokenizers.base import PAD
from jaxgen.types import TokenRows


def normalize(text: str, lower: bool, level: str) -> str:
    """Returns a text as the tokenizer of a level expects it."""
    text = text.strip().lower() if lower else text.strip()
    # These levels have other tokens for a word with a space in front of it than without.
    return " " + text if text and level in ("bpe", "word") else text


class Example(NamedTuple):
    """An encoded text: its ids, and how many were cut off."""

    ids: np.ndarray
    cut: int


def _different(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len({*labels}) != len(labels):
        raise ValueError("a label is listed twice")
    return labels


@dataclass(frozen=True, config=STRICT)
class ClassifyCodec:
    """Encodes texts of up to ``max_length`` tokens, and names the labels."""

    tokenizer: SavedTokenizer
    labels: Annotated[tuple[str, ...], Strict(False), AfterValidator(_different)]
    lower: bool
    max_length: PositiveInt

    #: Whether inputs are files, not lines of text.
    FILES: ClassVar[bool] = False

    def encode(self, text: str) -> Example:
        """Encodes a text; unknown tokens become <unk>. A text of white space has no tokens."""
        ids = self.tokenizer.encode(normalize(text, self.lower, self.tokenizer.kind))
        return Example(ids[: self.max_length], max(0, ids.size - self.max_length))

    def widths(self, example: Example) -> tuple[int, ...]:
        """Returns the lengths to which an example is padded."""
        return (bucket_width(example.ids.size),)

    def pack(self, examples: Sequence[Example], widths: tuple[int, ...], rows: int) -> TokenRows:
        """Returns ``examples`` as model inputs, padded to ``rows`` rows."""
        ids = [example.ids for example in examples]
        empty = np.zeros(0, np.int32)
        return TokenRows(*pad_rows([*ids, *[empty] * (rows - len(ids))], widths[0], PAD))

    def answer(self, text: str, output: np.ndarray) -> dict[str, Any]:
        """Returns the most likely label, all probabilities in descending order, and how many tokens were cut off."""
        order = np.argsort(-output, kind="stable")
        probabilities = {self.labels[i]: round(float(output[i]), 6) for i in order}
        label, cut = self.labels[order[0]], self.encode(text).cut
        return {"text": text, "label": label, "probabilities": probabilities, "cut": cut}

    def line(self, answer: Mapping[str, Any]) -> str:
        """Returns an answer as a line: label, tab, probability. White space in a label becomes single spaces."""
        return f"{' '.join(answer['label'].split())}\t{answer['probabilities'][answer['label']]:.4f}"

    def to_json(self) -> dict[str, object]:
        """Returns what ``load_strict`` makes this codec of."""
        labels, tokenizer = list(self.labels), self.tokenizer.to_json()
        return {"labels": labels, "lower": self.lower, "max_length": self.max_length, "tokenizer": tokenizer}
