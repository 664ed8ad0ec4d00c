"""The word level: words and punctuation marks, or what stands between white space. Rare words become ``<unk>``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import regex
from pydantic import FailFast, model_validator

from jaxgen.errors import UsageError, check_int, choose
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
# The same for words between white space: where to cut, and the words with the space before them.
_WHITE_SPACE = regex.compile(rf"(?=[{_SPACE}])")
_SPACED = regex.compile(rf" ?[^{_SPACE}]+|\n")
# A list of all pieces takes ten times the memory of their text.
_CHUNK = 1 << 18
# Different pieces that are counted at a time, a hundred bytes each. Beyond that, the rarest so far are dropped, as in
# lossy counting (Manku and Motwani 2002): pieces that are frequent anywhere in the text are still found.
_COUNTED = 1 << 18

#: The defaults of ``WordTokenizer.train``, split on punctuation.
MIN_COUNT, VOCAB_SIZE = 2, 20000
#: How a text is split into words; see ``WordTokenizer``.
SPLITS = ("punctuation", "whitespace")
#: How an unknown word is written: mostly there is a space before it. The literature's corpora have it in their text.
_UNKNOWN = " <unk>"


class _Saved(StrictModel):
    kind: Literal["word"]
    split_on: Literal["punctuation", "whitespace"]
    words: Annotated[list[str], FailFast()]

    @model_validator(mode="after")
    def _are_pieces(self) -> _Saved:
        split = split_whitespace if self.split_on == "whitespace" else split_words
        for word in self.words:
            if split(word) != [word] or word == _UNKNOWN or word != without_surrogates(word):
                raise ValueError(f"{word!a} is not a word, a punctuation mark or one white space character")
        if len(set(self.words)) != len(self.words):
            raise ValueError("a word is listed twice")
        if self.split_on == "punctuation" and " " not in self.words:
            raise ValueError("the single space is missing")
        return self


class WordTokenizer(Tokenizer):
    """Tokens are words with the space before them; case is kept.

    Split on ``punctuation``, punctuation marks and symbols are tokens of their own. Apostrophes inside a word belong to
    it, and combining marks and joiners to the word or symbol before them, so that emoji sequences are one symbol. A
    piece that is in the vocabulary only without its space is encoded as a space and the bare piece. One that is in it
    in neither form is UNK, which stands for its space too.

    Split on ``whitespace``, tokens are what stands between white space, and line ends (the literature's ``<eos>``).
    Decoding writes one space before each word. The word ``<unk>`` in a text is the known unknown: its id is UNK.

    Example:
        >>> tokenizer = jaxgen.TOKENIZERS["word"].train(["the cat saw the cat"], min_count=1)
        >>> [tokenizer.decode([token]) for token in tokenizer.encode("the cat")]
        ['the', ' cat']
    """

    kind = "word"
    Saved = _Saved
    unit = "word"
    OPTIONS: ClassVar[tuple[str, ...]] = ("min_count", "vocab_size", "split_on")

    def __init__(self, words: Sequence[str], split_on: str = "punctuation"):
        self._words, self.split_on = list(words), split_on
        self._split = split_whitespace if split_on == "whitespace" else split_words
        self._ids = {word: NUM_SPECIAL + i for i, word in enumerate(self._words)}
        self.pieces = [*SPECIAL_PIECES, *(word.encode() for word in self._words)]
        self.pieces[UNK] = _UNKNOWN.encode()

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of the pieces, int32 [T]; a piece that is unknown with and without its space becomes UNK."""
        ids: list[int] = []
        known = self._ids.get
        for piece in self._split(text):
            found = known(piece)
            if found is None:
                bare = known(piece[1:]) if piece[0] == " " else None
                if bare is not None:
                    ids.append(self._ids[" "])
                found = UNK if bare is None else bare
            ids.append(found)
        return np.array(ids, np.int32)

    def extended(self, texts: Iterable[Text], **options: Any) -> tuple[WordTokenizer, list[str]]:
        """Returns the tokenizer with the words of other texts behind its own, and these."""
        other = type(self).train(texts, **{"split_on": self.split_on, **options})
        if other.split_on != self.split_on:
            raise UsageError(
                f"The words of --init-from are split on {self.split_on}: give that as --split-on, or leave it out."
            )
        new = [word for word in other._words if word not in self._ids]
        return type(self)([*self._words, *new], self.split_on), new

    def safe_cut(self, text: str) -> int:
        """Returns the last place before white space or, split on punctuation, after a punctuation mark."""
        return last_cut(_SAFE_CUT if self.split_on == "punctuation" else _WHITE_SPACE, without_surrogates(text))

    def encode_open(self, text: str) -> tuple[np.ndarray, str]:
        """Returns the ids of a text without a space at its end, and that space."""
        return self.encode(text.removesuffix(" ")), text[len(text.removesuffix(" ")) :]

    def unknown(self, text: str) -> list[tuple[int, str]]:
        """Returns the unknown words, each with the space before it that belongs to it, and their positions from 0."""
        text = without_surrogates(text)
        if self.split_on == "whitespace":
            words = ((match.start(), match[0]) for match in _SPACED.finditer(text))
            return [(at, word) for at, word in words if (self.encode(word) == UNK).any() and word.strip() != "<unk>"]
        found = [(match.start(), match[0]) for match in _PIECE.finditer(text) if match[0] not in self._ids]
        return [(at, piece) for at, piece in found if piece[0] != " " or piece[1:] not in self._ids]

    def is_unknown(self, text: str, ids: np.ndarray) -> np.ndarray:
        """Returns which ids of a text stand for unknown words, bool [T]; the known unknown does not."""
        mask = super().is_unknown(text, ids)
        if self.split_on == "whitespace" and mask.any():
            mask &= [piece != _UNKNOWN for piece in self._split(text)]
        return mask

    def to_json(self) -> dict[str, Any]:
        """Returns the pieces in the order of their ids."""
        return {"kind": self.kind, "split_on": self.split_on, "words": self._words}

    @classmethod
    def train(
        cls,
        texts: Iterable[Text],
        *,
        min_count: int | None = None,
        vocab_size: int | None = None,
        split_on: str = "punctuation",
    ) -> WordTokenizer:
        """Uses pieces by frequency, down to ``min_count`` and up to ``vocab_size``.

        Split on whitespace, the defaults keep all words of a corpus, up to the largest vocabulary. With more than
        max(262,144, 4 ``vocab_size``) different pieces, the counts of rare ones are too low.
        """
        whitespace = choose(split_on, SPLITS, "way to split words (--split-on)") == "whitespace"
        if min_count is None:
            min_count = 1 if whitespace else MIN_COUNT
        if vocab_size is None:
            vocab_size = MAX_VOCAB if whitespace else VOCAB_SIZE
        check_int("The tokenizer option min_count", min_count, 1)
        check_int("The tokenizer option vocab_size", vocab_size, NUM_SPECIAL + 1, MAX_VOCAB)
        split, cut = (split_whitespace, _WHITE_SPACE) if whitespace else (split_words, _SAFE_CUT)
        counts: Counter[str] = Counter()
        most = max(_COUNTED, 4 * vocab_size)
        for text in texts:
            for chunk in safe_chunks(text, cut, _CHUNK):
                counts.update(split(chunk))
                if len(counts) > most:
                    counts = _frequent(counts, most // 2)
        always = [] if whitespace else [" "]
        for piece in (*always, _UNKNOWN):
            del counts[piece]
        frequent = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls([*always, *(word for _, word in frequent[: vocab_size - NUM_SPECIAL - len(always)])], split_on)


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


def split_whitespace(text: str) -> list[str]:
    """Returns the words between white space, each with one space before it, and the line ends."""
    pieces: list[str] = []
    for line in without_surrogates(text).split("\n"):
        pieces += [f" {word}" for word in line.split()]
        pieces.append("\n")
    return pieces[:-1]
