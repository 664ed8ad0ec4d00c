"""The word level: words and punctuation marks, each with the space before it. Rare words become ``<unk>``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import regex
from pydantic import AfterValidator, FailFast

from jaxgen.errors import check_int
from jaxgen.fsutil import StrictModel
from jaxgen.text import WORD, WORD_CHARACTERS, WORD_START, Text
from jaxgen.tokenizers.base import (
    MAX_VOCAB,
    NUM_SPECIAL,
    SPECIAL_PIECES,
    UNK,
    Tokenizer,
    last_cut,
    safe_chunks,
    without_surrogates,
)

# What attaches to the symbol before it: combining marks, skin tones, joiners, and the letters in some flags.
_ATTACHED = r"\p{M}\p{EMod}\u200c\u200d\U000E0020-\U000E007F"
# White space as Python defines it.
_SPACE = r"\s\x1c-\x1f"
_SYMBOL = rf"\p{{RI}}\p{{RI}}|[^{WORD_START}{_SPACE}](?:\u200d\p{{ExtPict}}|[{_ATTACHED}])*+"
# Every character begins a piece in exactly one branch, so the pieces add up to the text.
_PIECE = regex.compile(rf" ?(?:{WORD.pattern}|{_SYMBOL})|[{_SPACE}]")
# The same for ASCII text, twice as fast.
_ASCII_PIECE = re.compile(r" ?\w+(?:'\w+)*| ?[^\w\s]|\s")
# White space begins a piece. A symbol ends one if nothing attaches to it; half of a flag and apostrophes may not end.
_SAFE_CUT = regex.compile(rf"(?=[{_SPACE}])|(?<=[^{WORD_CHARACTERS}{_SPACE}'’\p{{RI}}])(?=[^{_ATTACHED}])")
# A list of all pieces takes ten times the memory of their text.
_CHUNK = 1 << 18
# Different pieces that are counted at a time, a hundred bytes each. Beyond that, the rarest so far are dropped, as in
# lossy counting (Manku and Motwani 2002): pieces that are frequent anywhere in the text are still found.
_COUNTED = 1 << 18


def _pieces(words: list[str]) -> list[str]:
    for word in words:
        if not _PIECE.fullmatch(word) or word != without_surrogates(word):
            raise ValueError(f"{word!a} is not a word, a punctuation mark or one white space character")
    if len(set(words)) != len(words):
        raise ValueError("a word is listed twice")
    if " " not in words:
        raise ValueError("the single space is missing")
    return words


class _Saved(StrictModel):
    kind: Literal["word"]
    words: Annotated[list[str], FailFast(), AfterValidator(_pieces)]


class WordTokenizer(Tokenizer):
    """Tokens are words (with inner apostrophes) or symbols, with the space before them; case is kept.

    Combining marks and joiners belong to the word or symbol before them, so that emoji sequences are one symbol.

    A piece that is not in the vocabulary with its space is encoded as a space and the bare piece.

    Example:
        >>> tokenizer = jaxgen.TOKENIZERS["word"].train(["the cat saw the cat"], min_count=1)
        >>> [tokenizer.decode([token]) for token in tokenizer.encode("the cat")]
        ['the', ' cat']
    """

    kind = "word"
    Saved = _Saved
    unit = "word"
    OPTIONS: ClassVar[dict[str, int]] = {"min_count": 2, "vocab_size": 20000}

    def __init__(self, words: Sequence[str]):
        self._words = list(words)
        self._ids = {word: NUM_SPECIAL + i for i, word in enumerate(self._words)}
        self.pieces = [*SPECIAL_PIECES, *(word.encode() for word in self._words)]

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of the pieces, int32 [T]; a piece that is unknown with and without its space becomes UNK."""
        ids: list[int] = []
        known = self._ids.get
        for piece in split_words(text):
            found = known(piece)
            if found is None:
                if piece[0] == " " and len(piece) > 1:
                    ids.append(self._ids[" "])
                    piece = piece[1:]
                found = known(piece, UNK)
            ids.append(found)
        return np.array(ids, np.int32)

    def safe_cut(self, text: str) -> int:
        """Returns the place before the last white space or after the last punctuation mark, whichever is later."""
        return last_cut(_SAFE_CUT, without_surrogates(text))

    def encode_open(self, text: str) -> tuple[np.ndarray, str]:
        """Returns the ids of a text without a space at its end, and that space."""
        return self.encode(text.removesuffix(" ")), text[len(text.removesuffix(" ")) :]

    def unknown(self, text: str) -> list[tuple[int, str]]:
        """Returns the unknown words with the positions of their first characters from 0."""
        found = []
        for match in _PIECE.finditer(without_surrogates(text)):
            word = match[0][1:] if match[0][0] == " " and len(match[0]) > 1 else match[0]
            if match[0] not in self._ids and word not in self._ids:
                found.append((match.end() - len(word), word))
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns the pieces in the order of their ids."""
        return {"kind": self.kind, "words": self._words}

    @classmethod
    def train(cls, texts: Iterable[Text], *, min_count: int = 2, vocab_size: int = 20000) -> WordTokenizer:
        """Uses the single space, then pieces by frequency, down to ``min_count`` and up to ``vocab_size``.

        With more than max(262,144, 4 ``vocab_size``) different pieces, the counts of rare ones are too low.
        """
        check_int("The tokenizer option min_count", min_count, 1)
        check_int("The tokenizer option vocab_size", vocab_size, NUM_SPECIAL + 1, MAX_VOCAB)
        counts: Counter[str] = Counter()
        most = max(_COUNTED, 4 * vocab_size)
        for text in texts:
            for chunk in safe_chunks(text, _SAFE_CUT, _CHUNK):
                counts.update(split_words(chunk))
                if len(counts) > most:
                    counts = _frequent(counts, most // 2)
        del counts[" "]
        frequent = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls([" ", *(word for _, word in frequent[: vocab_size - NUM_SPECIAL - 1])])


def _frequent(counts: Counter[str], most: int) -> Counter[str]:
    """Returns the highest counts, at most ``most``; equal counts are all kept or all dropped."""
    beyond = sorted(counts.values(), reverse=True)[most]
    return Counter({piece: count for piece, count in counts.items() if count > beyond})


def split_words(text: str) -> list[str]:
    """Returns the pieces of a text, which add up to it (lone surrogates become U+FFFD)."""
    pieces: list[str] = []
    for line in without_surrogates(text).split("\n"):
        pieces += (_ASCII_PIECE if line.isascii() else _PIECE).findall(line)
        pieces.append("\n")
    return pieces[:-1]
