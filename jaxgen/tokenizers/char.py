"""The char level: one token per Unicode code point. Texts within the vocabulary decode exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, FailFast, Field

from jaxgen.errors import check_int
from jaxgen.fsutil import StrictModel
from jaxgen.text import Text, in_pieces
from jaxgen.tokenizers.base import (
    NUM_SPECIAL,
    SPECIAL_PIECES,
    UNK,
    Tokenizer,
    evenly,
    without_surrogates,
)

_CODE_POINTS = 0x110000
_CHUNK = 1 << 18


def _different(points: list[int]) -> list[int]:
    if len(set(points)) != len(points):
        raise ValueError("a code point is listed twice")
    return points


class _Saved(StrictModel):
    kind: Literal["char"]
    code_points: Annotated[list[Annotated[int, Field(ge=0, lt=_CODE_POINTS)]], FailFast(), AfterValidator(_different)]


class CharTokenizer(Tokenizer):
    """Characters in the order of their code points, after the special ids; those of ``extended`` follow.

    Example:
        >>> tokenizer = jaxgen.TOKENIZERS["char"].train(["abc"])
        >>> tokenizer.encode("cab").tolist()
        [5, 3, 4]
        >>> tokenizer.decode([5, 3, 4])
        'cab'
    """

    kind = "char"
    Saved = _Saved
    OPTIONS: ClassVar[tuple[str, ...]] = ("min_count",)

    def __init__(self, code_points: Sequence[int]):
        points = np.asarray(code_points, np.int64)
        self._points = points
        self.pieces = [*SPECIAL_PIECES, *(without_surrogates(chr(p)).encode() for p in points.tolist())]
        # The entry after the largest code point stands for all larger ones.
        self._end = int(points.max()) + 1 if points.size else 0
        self._table = np.full(self._end + 1, UNK, np.int32)
        self._table[points] = np.arange(NUM_SPECIAL, NUM_SPECIAL + points.size, dtype=np.int32)

    def encode(self, text: str) -> np.ndarray:
        """Returns one id per character, int32 [T]."""
        return self._table[np.minimum(_code_points(text), self._end)]

    def unknown(self, text: str) -> list[tuple[int, str]]:
        """Returns the unknown characters with their positions from 0."""
        return [(int(i), text[i]) for i in np.flatnonzero(self.encode(text) == UNK)]

    def extended(self, texts: Iterable[Text], **options: Any) -> tuple[CharTokenizer, list[str]]:
        """Returns the tokenizer with the characters of other texts behind its own, and these."""
        new = np.setdiff1d(type(self).train(texts, **options)._points, self._points).tolist()
        return type(self)([*self._points.tolist(), *new]), list(map(chr, new))

    def safe_cut(self, text: str) -> int:
        """Returns the end: no character depends on another."""
        return len(text)

    def to_json(self) -> dict[str, Any]:
        """Returns the code points (as numbers: JSON would merge two lone surrogates into one character)."""
        return {"kind": self.kind, "code_points": self._points.tolist()}

    @classmethod
    def train(cls, texts: Iterable[Text], *, min_count: int = 1) -> CharTokenizer:
        """Uses every character that occurs at least ``min_count`` times."""
        check_int("The tokenizer option min_count", min_count, 1)
        counts = np.zeros(0, np.int64)
        for chunk in evenly(chain.from_iterable(map(in_pieces, texts)), _CHUNK):  # many tiny texts together
            found = np.bincount(_code_points(chunk), minlength=counts.size)
            found[: counts.size] += counts
            counts = found
        return cls(np.flatnonzero(counts >= min_count).tolist())


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
