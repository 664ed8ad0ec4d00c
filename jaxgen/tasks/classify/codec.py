"""What a classifier needs beside its weights: how texts are read, and what the labels are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxgen.data.bucketing import bucket_width, padded
from jaxgen.errors import CheckpointError
from jaxgen.tokenizers import load_tokenizer
from jaxgen.tokenizers.base import PAD, Tokenizer
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


@dataclass(frozen=True)
class ClassifyCodec:
    """How texts are read, and what the labels are called."""

    tokenizer: Tokenizer
    labels: tuple[str, ...]
    lower: bool
    max_length: int

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

    @classmethod
    def from_json(cls, obj: Any) -> ClassifyCodec:
        """What ``to_json`` described; raises ``CheckpointError`` for anything else."""
        try:
            labels, lower, length = obj["labels"], obj["lower"], obj["max_length"]
            if not (isinstance(lower, bool) and type(length) is int and length > 0):
                raise ValueError
            if not (isinstance(labels, list) and all(isinstance(each, str) for each in labels)):
                raise ValueError
            if len({*labels}) != len(labels):
                raise ValueError
            return cls(load_tokenizer(obj["tokenizer"]), tuple(labels), lower, length)
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                "The tokenizer.json of this run does not describe a classifier's labels and tokenizer: copy the run "
                "again, or train anew."
            ) from None
