"""The bpe level: byte-level byte-pair encoding by the ``tokenizers`` library (extra ``[bpe]``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import regex
from pydantic import AfterValidator, ConfigDict, FailFast, Strict, model_validator

from jaxgen.errors import UsageError, check_int
from jaxgen.fsutil import StrictModel, load_strict, malformed, parse_json
from jaxgen.text import Text, in_pieces
from jaxgen.tokenizers.base import (
    MAX_VOCAB,
    NUM_SPECIAL,
    SPECIAL_PIECES,
    Tokenizer,
    last_cut,
    safe_chunks,
    without_surrogates,
)

# The library keeps about a hundred bytes (offsets, masks, strings) per token of a call, and trains on 256 chunks at a
# time.
_CHUNK = 1 << 12
# The pre-tokenizer always cuts between a character that is not white space and one of these, and neither side affects
# the other.
_SAFE_CUT = regex.compile(r"(?<=\S)[\n ]")
_SEVERAL_SPACES = regex.compile(r"\s\s\Z")
# A run of letters, of numbers, of other characters or of white space; combining marks and joiners belong to the letter
# or number before them.
_RUNS = (r"\p{L}[\p{L}\p{M}\u200c\u200d]", r"\p{N}[\p{N}\p{M}]", r"[^\s\p{L}\p{N}][^\s\p{L}\p{N}]")
# The pre-tokenizer's rule is that of GPT-2, but for marks and joiners: it treats them as other characters.
_RULE = "|".join(["'(?:s|t|re|ve|m|ll|d)", *(f" ?{run}*" for run in _RUNS), r"\s+(?!\S)", r"\s+"])
# The library treats a run as one word, however long. A merge takes time in proportion to the length of each word it
# occurs in: hours for a megabyte.
_LONGEST = 1 << 8
_WORD = regex.compile("|".join([*(f" ?{run}{{0,{_LONGEST - 1}}}" for run in _RUNS), rf"\s{{1,{_LONGEST}}}"]))
# The library stores every distinct word: this many bytes per word, and per byte of a word. Words beyond the memory
# limit are not trained on. The limit grows with the text, so that frequent words of later parts are learnt too.
_TAKEN_BY_WORD, _TAKEN_BY_BYTE = 256, 128
_MEMORY, _MEMORY_OF_TEXT = 40_000_000, 4500


class BpeTokenizer(Tokenizer):
    """Tokens are learnt byte sequences; every text without lone surrogates decodes exactly.

    The library gets no special tokens, so no text can be mistaken for one; its ids are shifted by three.

    Example:
        >>> tokenizer = jaxgen.TOKENIZERS["bpe"].train(["the cat saw the cat " * 10], vocab_size=280)
        >>> tokenizer.decode(tokenizer.encode("the cat"))
        'the cat'
    """

    kind = "bpe"
    OPTIONS: ClassVar[tuple[str, ...]] = ("vocab_size",)

    def __init__(self, inner: Any):
        self._inner = inner
        vocab = inner.get_vocab(with_added_tokens=False)
        to_byte = {char: byte for byte, char in enumerate(_byte_alphabet())}
        tokens = sorted(vocab, key=vocab.__getitem__)
        self.pieces = [*SPECIAL_PIECES, *(bytes([to_byte[char] for char in token]) for token in tokens)]

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of the byte sequences, int32 [T]; never UNK."""
        parts = [
            np.array(self._inner.encode(chunk, add_special_tokens=False).ids, np.int32)
            for chunk in safe_chunks(without_surrogates(text), _SAFE_CUT, _CHUNK)
        ]
        return np.concatenate(parts) + np.int32(NUM_SPECIAL) if parts else np.zeros(0, np.int32)

    def safe_cut(self, text: str) -> int:
        """Returns the place before the last space or line break that follows a character other than white space."""
        return last_cut(_SAFE_CUT, without_surrogates(text))

    def encode_open(self, text: str) -> tuple[np.ndarray, str]:
        """Returns the ids of a text without a space at its end, and that space."""
        if text.endswith(" "):
            return self.encode(text[:-1]), " "
        # Of several white space characters before a word, the last is a token of its own.
        at = len(text) - 1 if _SEVERAL_SPACES.search(text) else len(text)
        return np.concatenate([self.encode(text[:at]), self.encode(text[at:])]), ""

    def to_json(self) -> dict[str, Any]:
        """Returns the library's own JSON as a string."""
        return {"kind": self.kind, "tokenizers": self._inner.to_str()}

    @classmethod
    def from_json(cls, obj: object) -> BpeTokenizer:
        """The tokenizer of the library's JSON; raises ``CheckpointError``, ``UsageError`` without the library."""
        source = load_strict(_Saved, obj, "bpe tokenizer").tokenizers
        try:
            inner = parse_json(source.encode())
        except ValueError as error:
            raise malformed("bpe tokenizer", f"the field 'tokenizers' is not JSON ({error})") from error
        load_strict(_Inner, inner, "bpe tokenizer")
        library = _library()
        try:
            return cls(library.Tokenizer.from_str(source))
        except Exception as error:  # the library raises the bare base class
            raise malformed("bpe tokenizer", f"the tokenizers library refuses it ({error})") from error

    @classmethod
    def train(cls, texts: Iterable[Text], *, vocab_size: int = 8192) -> BpeTokenizer:
        """Learns at most ``vocab_size`` tokens, including the 3 special ids and the 256 bytes."""
        check_int("The tokenizer option vocab_size", vocab_size, NUM_SPECIAL + 256, MAX_VOCAB)
        library = _library()
        inner = library.Tokenizer(library.models.BPE())
        split = library.pre_tokenizers.Split(library.Regex(_RULE), behavior="isolated")
        to_bytes = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.pre_tokenizer = library.pre_tokenizers.Sequence([split, to_bytes])
        inner.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size - NUM_SPECIAL,
            min_frequency=2,
            initial_alphabet=_byte_alphabet(),
            special_tokens=[],
            show_progress=False,
        )
        inner.train_from_iterator(_chunks(texts), trainer=trainer)
        return cls(inner)


def _chunks(texts: Iterable[Text]) -> Iterator[str]:
    """Yields the training texts in chunks: very long words in parts, and as many different words as memory allows."""
    known: set[str] = set()
    taken = read = 0
    for text in texts:
        for chunk in safe_chunks(map(without_surrogates, in_pieces(text)), _SAFE_CUT, _CHUNK):
            read += len(chunk)
            allowed = _MEMORY + _MEMORY_OF_TEXT * math.isqrt(read)
            words = _WORD.findall(chunk)
            for word in dict.fromkeys(words):
                if taken < allowed and word not in known:
                    known.add(word)
                    taken += _TAKEN_BY_WORD + _TAKEN_BY_BYTE * len(word.encode())
            if known.issuperset(words) and max(map(len, words), default=0) < _LONGEST:
                yield chunk
            else:
                yield from _learnt(words, known)


def _learnt(words: list[str], known: set[str]) -> Iterator[str]:
    """Yields the ``known`` words: adjacent ones together, except parts of very long words."""
    together = ""
    for word in words:
        together += word if word in known else ""
        if together and (word not in known or len(word) >= _LONGEST):
            yield together
            together = ""
    if together:
        yield together


def _library() -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise UsageError(
            "The level bpe needs the package tokenizers, which is not installed. "
            'Install it with: pip install "jaxgen[bpe]", or choose --level char, byte or word.'
        ) from error
    return tokenizers


def _byte_alphabet() -> list[str]:
    """Returns the character for each byte in byte-level BPE (Radford et al. 2019): itself if it is printable."""
    alphabet = []
    stand_in = 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE:
            alphabet.append(chr(byte))
        else:
            alphabet.append(chr(stand_in))
            stand_in += 1
    return alphabet


def _absent(value: object) -> object:
    if value:
        raise ValueError("training never sets this option")
    return value


_Absent = Annotated[object, AfterValidator(_absent)]


class _Saved(StrictModel):
    kind: Literal["bpe"]
    tokenizers: str


class _Part(StrictModel):
    """A part of the library's JSON; what later releases of the library add to it is ignored."""

    model_config = ConfigDict(extra="ignore")


def _rule(pattern: dict[str, str]) -> dict[str, str]:
    if pattern != {"Regex": _RULE}:
        raise ValueError("it is not the rule of this version")
    return pattern


class _Split(_Part):
    type: Literal["Split"]
    pattern: Annotated[dict[str, str], AfterValidator(_rule)]
    behavior: Literal["Isolated"]
    invert: Literal[False]


class _ToBytes(_Part):
    type: Literal["ByteLevel"]
    add_prefix_space: Literal[False]
    use_regex: Literal[False]


class _PreTokenizer(_Part):
    type: Literal["Sequence"]
    pretokenizers: Annotated[tuple[_Split, _ToBytes], Strict(False)]


class _Decoder(_Part):
    type: Literal["ByteLevel"]  # not used, but any other may hold a regular expression


class _Model(_Part):
    type: Literal["BPE"]
    vocab: dict[str, int]
    merges: Annotated[list[str | list[str]], FailFast()]
    dropout: _Absent = None
    unk_token: _Absent = None
    continuing_subword_prefix: _Absent = None
    end_of_word_suffix: _Absent = None
    ignore_merges: _Absent = None

    @model_validator(mode="after")
    def _consistent(self) -> _Model:
        alphabet = set(_byte_alphabet())
        if sorted(self.vocab.values()) != list(range(len(self.vocab))):
            raise ValueError("the ids of the vocabulary are not 0, 1, 2, …")
        if not alphabet <= self.vocab.keys():
            raise ValueError("some of the 256 bytes are missing from the vocabulary")
        if not all(token and set(token) <= alphabet for token in self.vocab):
            raise ValueError("a token of the vocabulary is not a run of bytes")
        for merge in self.merges:
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if len(pair) != 2 or not {*pair, "".join(pair)} <= self.vocab.keys():
                raise ValueError(f"the merge {merge!a} does not join two tokens of the vocabulary to a third")
        return self


class _Inner(_Part):
    """Checks the JSON before the library reads it, which panics over some values and accepts unused options."""

    pre_tokenizer: _PreTokenizer
    decoder: _Decoder
    model: _Model
    added_tokens: _Absent = None
    normalizer: _Absent = None
    post_processor: _Absent = None
    truncation: _Absent = None
    padding: _Absent = None
