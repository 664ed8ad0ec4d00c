"""The byte level: one token per byte of UTF-8. Nothing is unknown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from jaxgen.fsutil import StrictModel
from jaxgen.text import Text
from jaxgen.tokenizers.base import NUM_SPECIAL, SPECIAL_PIECES, Tokenizer, text_bytes


class _Saved(StrictModel):
    kind: Literal["byte"]


class ByteTokenizer(Tokenizer):
    """256 byte values after the special ids.

    A file read with ``surrogateescape`` is encoded to exactly its bytes, and ``decode_bytes`` returns them; ``decode``
    replaces bytes that are not UTF-8 by U+FFFD.

    Example:
        >>> jaxgen.TOKENIZERS["byte"].train().encode("hé").tolist()
        [107, 198, 172]
    """

    kind = "byte"
    Saved = _Saved

    def __init__(self) -> None:
        self.pieces = [*SPECIAL_PIECES, *(bytes([value]) for value in range(256))]

    def encode(self, text: str) -> np.ndarray:
        """Returns one id per byte, int32 [T]; never UNK."""
        return np.frombuffer(text_bytes(text), np.uint8).astype(np.int32) + NUM_SPECIAL

    def safe_cut(self, text: str) -> int:
        """Returns the end: no byte depends on another."""
        return len(text)

    def to_json(self) -> dict[str, str]:
        """Returns the kind: there is nothing to learn."""
        return {"kind": self.kind}

    @classmethod
    def train(cls, texts: Iterable[Text] = ()) -> ByteTokenizer:
        """Returns the byte tokenizer; ``texts`` are not read."""
        return cls()
