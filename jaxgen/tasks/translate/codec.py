"""What a translator needs beside its weights: how sources are read, and how targets are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from jaxgen.data.bucketing import bucket_width, padded
from jaxgen.fsutil import STRICT
from jaxgen.tasks.seq2seq.data import decode_target, spaced, token_label
from jaxgen.tokenizers import SavedTokenizer
from jaxgen.tokenizers.base import EOS, PAD
from jaxgen.types import AttentionMap, TokenRows


@dataclass(frozen=True, config=STRICT)
class TranslateCodec:
    """Two tokenizers; sources are cut to ``max_length`` tokens, and read in lower case if ``lower``."""

    source: SavedTokenizer
    target: SavedTokenizer
    lower: bool
    max_length: PositiveInt

    #: Whether inputs are files rather than lines.
    FILES: ClassVar[bool] = False

    def normal(self, text: str) -> str:
        """A source as the tokenizer gets it."""
        text = text.strip().lower() if self.lower else text.strip()
        return " " + text if spaced(self.source) else text

    @property
    def longest(self) -> int:
        """Tokens of a text that is written, at most, unless asked otherwise: the model has seen no longer ones."""
        return self.max_length

    def encode(self, text: str) -> np.ndarray:
        """What is read of a source; what the vocabulary lacks is <unk>."""
        return self.source.encode(self.normal(text))[: self.max_length]

    def widths(self, ids: np.ndarray) -> tuple[int, ...]:
        """To what a source is padded."""
        return (bucket_width(ids.size),)

    def pack(self, examples: Sequence[np.ndarray], widths: tuple[int, ...], rows: int) -> TokenRows:
        """What a model reads of sources, filled up to ``rows`` rows."""
        empty = np.zeros(0, np.int32)
        return TokenRows(*padded([*examples, *[empty] * (rows - len(examples))], widths[0], PAD))

    def answer(self, text: str, output: Any) -> dict[str, Any]:
        """A translation, its log-probability in nats, its number of tokens, and whether it came to its end.

        ``cut`` is how many tokens of the source were left unread. A source of white space has nothing to translate.
        """
        if not text.strip():
            return {"source": text, "text": "", "logp": 0.0, "tokens": 0, "ended": True, "cut": 0}
        return {
            "source": text,
            "text": decode_target(self.target, output.tokens),
            "logp": round(float(output.logp), 6),
            "tokens": int(output.tokens.size),
            "ended": bool(output.ended),
            "cut": max(0, self.source.encode(self.normal(text)).size - self.max_length),
        }

    def line(self, answer: Mapping[str, Any]) -> str:
        """An answer as one line of plain text, whatever line breaks a model writes."""
        return " ".join(str(answer["text"]).splitlines())

    def pieces(self, text: str) -> list[str]:
        """The tokens of a source, to label what attention looks at."""
        return [token_label(self.source, i) for i in self.encode(text)]

    def written(self, ids: np.ndarray) -> list[str]:
        """The tokens of a translation, and its end."""
        return [token_label(self.target, i) for i in [*ids, EOS]]

    def attention_map(self, text: str, output: Any, weights: np.ndarray) -> AttentionMap:
        """Where the decoder looked with each token of a translation, ``weights`` [.., S]: at tokens of the source."""
        labels = self.pieces(text)
        written = self.written(output.tokens)[: output.tokens.size + output.ended]
        return AttentionMap(labels, written, weights[: len(written), : len(labels)])

    def to_json(self) -> dict[str, Any]:
        """Everything needed to make this codec again."""
        return {
            "lower": self.lower,
            "max_length": self.max_length,
            "source": self.source.to_json(),
            "target": self.target.to_json(),
        }
