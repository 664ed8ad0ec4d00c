"""The codec of a translator: the tokenizers of sources and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from jaxgen.data.bucketing import bucket_width, pad_rows
from jaxgen.fsutil import STRICT
from jaxgen.tasks.seq2seq.data import decode_target, spaced, token_label
from jaxgen.tokenizers import SavedTokenizer
from jaxgen.tokenizers.base import EOS, PAD
from jaxgen.types import AttentionMap, TokenRows


@dataclass(frozen=True, config=STRICT)
class TranslateCodec:
    """Two tokenizers; sources are cut to ``max_length`` tokens, and converted to lower case if ``lower``."""

    source: SavedTokenizer
    target: SavedTokenizer
    lower: bool
    max_length: PositiveInt

    #: Whether inputs are files, not lines of text.
    FILES: ClassVar[bool] = False

    def normalize(self, text: str) -> str:
        """Returns a source as its tokenizer expects it."""
        text = text.strip().lower() if self.lower else text.strip()
        return " " + text if spaced(self.source) else text

    @property
    def longest(self) -> int:
        """Default limit of the tokens of a translation: the model was trained on none that are longer."""
        return self.max_length

    def encode(self, text: str) -> np.ndarray:
        """Encodes a source; unknown tokens become <unk>."""
        return self.source.encode(self.normalize(text))[: self.max_length]

    def widths(self, ids: np.ndarray) -> tuple[int, ...]:
        """Returns the lengths to which a source is padded."""
        return (bucket_width(ids.size),)

    def pack(self, examples: Sequence[np.ndarray], widths: tuple[int, ...], rows: int) -> TokenRows:
        """Returns encoded sources as model inputs, padded to ``rows`` rows."""
        empty = np.zeros(0, np.int32)
        return TokenRows(*pad_rows([*examples, *[empty] * (rows - len(examples))], widths[0], PAD))

    def answer(self, text: str, output: Any) -> dict[str, Any]:
        """Returns a translation with its log-probability in nats, its number of tokens, and whether it ended.

        ``cut`` is how many tokens of the source were cut off. The translation of white space is empty.
        """
        if not text.strip():
            return {"source": text, "text": "", "logp": 0.0, "tokens": 0, "ended": True, "cut": 0}
        return {
            "source": text,
            "text": decode_target(self.target, output.tokens),
            "logp": round(float(output.logp), 6),
            "tokens": int(output.tokens.size),
            "ended": bool(output.ended),
            "cut": max(0, self.source.encode(self.normalize(text)).size - self.max_length),
        }

    def line(self, answer: Mapping[str, Any]) -> str:
        """Returns an answer as one line; line breaks become spaces."""
        return " ".join(str(answer["text"]).splitlines())

    def pieces(self, text: str) -> list[str]:
        """Returns labels of the tokens of a source, for plots of attention."""
        return [token_label(self.source, i) for i in self.encode(text)]

    def written(self, ids: np.ndarray) -> list[str]:
        """Returns labels of the tokens of a translation and of its end."""
        return [token_label(self.target, i) for i in [*ids, EOS]]

    def attention_map(self, text: str, output: Any, weights: np.ndarray) -> AttentionMap:
        """Where the decoder looked with each token of a translation, ``weights`` [.., S]: at tokens of the source."""
        labels = self.pieces(text)
        written = self.written(output.tokens)[: output.tokens.size + output.ended]
        return AttentionMap(labels, written, weights[: len(written), : len(labels)])

    def to_json(self) -> dict[str, object]:
        """Returns what ``load_strict`` makes this codec of."""
        return {
            "lower": self.lower,
            "max_length": self.max_length,
            "source": self.source.to_json(),
            "target": self.target.to_json(),
        }
