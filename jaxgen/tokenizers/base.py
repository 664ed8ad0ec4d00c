"""The base class of tokenizers, and what they share: the special ids, decoding and prompts."""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import regex
from numpy.typing import ArrayLike

from jaxgen.errors import UsageError, choose, listed
from jaxgen.fsutil import StrictModel, load_strict
from jaxgen.text import Text, count_words, in_pieces

#: Ways to treat unknown tokens.
UNKNOWNS = ("error", "skip", "keep")
#: A text is cut anyway after this many characters without a safe place to cut.
MAX_UNCUT = 1 << 20


#: Padding: never a target that counts, never sampled.
PAD = 0
#: Any token outside the vocabulary.
UNK = 1
#: The end of a document, and the input before its first token.
EOS = 2
#: The bytes of the special ids; the ids of ordinary tokens follow.
SPECIAL_PIECES: tuple[bytes, ...] = (b"", b"<unk>", b"")
NUM_SPECIAL = len(SPECIAL_PIECES)
#: How the special ids are shown.
SPECIAL_TOKENS = ("<pad>", "<unk>", "<eos>")
#: The largest vocabulary. The tokenizers library (bpe level) allocates all of it at once, and aborts if it cannot.
MAX_VOCAB = 2**20

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_A_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_SHOWN = 5

T = TypeVar("T", bound="Tokenizer")


def text_bytes(text: str) -> bytes:
    """Encodes any string as UTF-8: U+DC80 to U+DCFF become the bytes they escape, other lone surrogates U+FFFD."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return _NOT_A_BYTE.sub("\ufffd", text).encode("utf-8", "surrogateescape")


def without_surrogates(text: str) -> str:
    """Replaces every lone surrogate by U+FFFD."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def safe_chunks(text: Text, safe: regex.Pattern[str], size: int) -> Iterator[str]:
    """Yields a text in chunks that end at the first ``safe`` place to cut after ``size`` characters.

    A chunk of 16 times ``size`` without such a place is cut anyway, to bound the memory of the tokenizer. ``safe`` may
    look at the characters before a place and at one after it, so the chunks do not depend on the pieces of the text.
    """
    held, start, looked = "", 0, 0
    for piece in chain(in_pieces(text), [None]):
        held, start, looked = held[start:] + (piece or ""), 0, looked - start
        while start + size < len(held):
            cut = safe.search(held, max(start + size, looked), start + 16 * size)
            if cut is None and piece is not None and start + 16 * size > len(held):
                looked = len(held) - 1  # the next piece may have a place to cut, behind this character
                break
            end = cut.start() if cut else start + 16 * size
            yield held[start:end]
            start = end
    if start < len(held):
        yield held[start:]


def last_cut(safe: regex.Pattern[str], text: str) -> int:
    """Returns the last ``safe`` place to cut a text, or 0; searches from the end."""
    size = 256
    while True:
        if found := [cut.start() for cut in safe.finditer(text, max(0, len(text) - size))]:
            return found[-1]
        if size >= len(text):
            return 0
        size *= 4


class StreamDecoder:
    """Decodes ids incrementally; a character split over several tokens is returned whole, with the last one.

    ``errors`` is what becomes of bytes that are not UTF-8: ``replace`` or ``surrogateescape``, as in ``bytes.decode``.
    """

    def __init__(self, pieces: Sequence[bytes], errors: str = "replace"):
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def feed(self, ids: ArrayLike) -> str:
        """Returns the text completed by these ids; raises ``UsageError`` for an id outside the vocabulary."""
        return self._decoder.decode(join_pieces(self._pieces, ids))

    def flush(self) -> str:
        """Returns the rest: the bytes of an unfinished character, usually nothing."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def join_pieces(pieces: Sequence[bytes], ids: ArrayLike) -> bytes:
    """Returns the bytes of ids; raises ``UsageError`` for an id outside the vocabulary."""
    flat = np.asarray(ids).reshape(-1)
    wrong = flat[(flat < 0) | (flat >= len(pieces))] if flat.dtype.kind in "iu" else flat
    if wrong.size:
        raise UsageError(
            f"Token ids must be whole numbers from 0 to {len(pieces) - 1}, but {wrong[0]!s} is among those given. "
            "Decode with the tokenizer that made them."
        )
    return b"".join([pieces[i] for i in flat.tolist()])


class Tokenizer(ABC):
    """Converts text to token ids and back. Ids 0, 1 and 2 are PAD, UNK and EOS; ordinary tokens follow.

    ``pieces[i]`` is the UTF-8 of id ``i``. Lone surrogates, which UTF-8 cannot encode, decode as U+FFFD; every other
    text within the vocabulary decodes exactly.
    """

    kind: ClassVar[str]
    #: The schema of ``to_json``: the kind, and the arguments of the class.
    Saved: ClassVar[type[StrictModel]]
    #: What a token is called in messages.
    unit: ClassVar[str] = "character"
    #: The names of the options of ``train``.
    OPTIONS: ClassVar[tuple[str, ...]] = ()

    pieces: Sequence[bytes]

    @property
    def vocab_size(self) -> int:
        """V, including the special ids."""
        return len(self.pieces)

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Returns the token ids of a text, int32 [T]; unknown tokens are UNK."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Returns the JSON values that ``from_json`` reads, ``kind`` among them."""

    @classmethod
    def from_json(cls: type[T], obj: object) -> T:
        """Returns the tokenizer that ``to_json`` described; raises ``CheckpointError`` if it is malformed."""
        saved = load_strict(cls.Saved, obj, f"{cls.kind} tokenizer")
        return cls(**saved.model_dump(exclude={"kind"}))

    @classmethod
    @abstractmethod
    def train(cls: type[T], texts: Iterable[Text], *args: Any, **options: Any) -> T:
        """Returns a tokenizer trained on texts, each a string or its pieces; where they are cut makes no difference.

        Raises ``UsageError`` for an option out of range.
        """

    def extended(self: T, texts: Iterable[Text], **options: Any) -> tuple[T, list[str]]:
        """Returns this tokenizer with the tokens of other texts behind its own, whose ids stay, and the new tokens.

        ``options`` are those of ``train``. Raises ``UsageError`` at levels that know every text.
        """
        raise UsageError(f"The {self.kind} level knows every text: leave out --extend-vocabulary.")

    def safe_cut(self, text: str) -> int:
        """Returns the last place n where a text that begins with ``text`` can be cut, whatever follows; 0 if none.

        The ids of ``text[:n]`` and of ``text[n:] + more`` together are those of ``text + more``.
        """
        return 0

    def unknown(self, text: str) -> list[tuple[int, str]]:
        """Returns the unknown tokens of a text as (position from 0, piece)."""
        return []

    def is_unknown(self, text: str, ids: np.ndarray) -> np.ndarray:
        """Returns which ``ids``, those of ``text``, stand for unknown tokens, bool [T]."""
        return np.equal(ids, UNK)

    def decode(self, ids: ArrayLike, errors: str = "replace") -> str:
        """Returns the text of ids; ``errors`` as in ``StreamDecoder``. Raises ``UsageError`` for an invalid id."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """Returns the bytes of ids, unchanged. Raises ``UsageError`` for an invalid id."""
        return join_pieces(self.pieces, ids)

    def stream_decoder(self, errors: str = "replace") -> StreamDecoder:
        """Returns an incremental decoder; its texts add up to ``decode`` of all ids."""
        return StreamDecoder(self.pieces, errors)

    def text_parts(self, ids: ArrayLike, logp: ArrayLike) -> list[tuple[str, float]]:
        """Returns the texts of ids with their log-probabilities; a character of several ids is one part with their sum.

        EOS is shown as ``<eos>``.
        """
        decoder, parts, waiting = self.stream_decoder(), list[tuple[str, float]](), 0.0
        for token, each in zip(np.asarray(ids).tolist(), np.asarray(logp, np.float64).tolist()):
            waiting += each
            if text := f"{decoder.flush()}<eos>" if token == EOS else decoder.feed([token]):
                parts.append((text, waiting))
                waiting = 0.0
        rest = decoder.flush()
        return [*parts, (rest, waiting)] if rest else parts

    def __repr__(self) -> str:
        return f"<jaxgen.{type(self).__name__}: {self.vocab_size:,} tokens>"

    def encode_open(self, text: str) -> tuple[np.ndarray, str]:
        """Returns the ids that a text has if a word follows it, and its end, which is held back.

        At levels whose tokens include the space before a word, a space at the end of a text begins the next token.
        """
        return self.encode(text), ""

    def encode_prompt(self, text: str, unk: str = "error", held: str = "") -> tuple[np.ndarray, str]:
        """Returns the ids of a prompt to read, int32 [T], and its end that is held back; see ``encode_open``.

        ``held`` was held back before the prompt. ``unk`` is ``error``, ``skip`` (leave unknown tokens out) or ``keep``
        (as UNK). With ``error``, raises ``UsageError`` that names the unknown tokens and their positions.
        """
        choose(unk, UNKNOWNS, "way to treat unknowns (--unk)")
        ids, rest = self.encode_open(held + text)
        unknown = self.is_unknown((held + text).removesuffix(rest), ids)
        if unk == "error" and unknown.any():
            raise _unknown_error(self, held + text, "The prompt", "or change the prompt", -len(held))
        return ids[~unknown] if unk == "skip" else ids, rest


def token_texts(tokenizer: Tokenizer, without: Container[int] = ()) -> tuple[str, ...]:
    """Returns the text of each token; empty for special ids, those of ``without``, and parts of characters."""
    texts = [piece.decode("utf-8", "ignore") for piece in tokenizer.pieces]
    is_whole = (text.encode() == piece for text, piece in zip(texts, tokenizer.pieces))
    return tuple(
        text if whole and i >= NUM_SPECIAL and i not in without else ""
        for i, (text, whole) in enumerate(zip(texts, is_whole))
    )


class Encoded(NamedTuple):
    """Some ids, the characters, bytes and words (see ``count_words``) of their text, and how many are unknown tokens.

    ``forced``: the cut before them was not safe, so a few ids there may differ from those of the whole text.
    """

    ids: np.ndarray
    chars: int = 0
    bytes: int = 0
    words: int = 0
    unknown: int = 0
    forced: bool = False


def evenly(pieces: Iterable[str], size: int) -> Iterator[str]:
    """Yields a text in pieces of ``size`` characters, wherever it was cut before."""
    waiting: list[str] = []
    held = 0
    for piece in pieces:
        start = 0
        while held + len(piece) - start >= size:
            end = start + size - held
            yield "".join([*waiting, piece[start:end]])
            waiting, held, start = [], 0, end
        if start < len(piece):
            waiting.append(piece[start:])
            held += len(piece) - start
    if waiting:
        yield "".join(waiting)


def between(pieces: Iterable[str], start: int, stop: int | None) -> Iterator[str]:
    """Yields characters ``start`` to ``stop`` of a text in pieces; consumes no more pieces than needed."""
    before = 0
    for piece in pieces:
        if part := piece[max(0, start - before) : None if stop is None else max(0, stop - before)]:
            yield part
        before += len(piece)
        if stop is not None and before >= stop:
            return


def encode_pieces(
    tokenizer: Tokenizer, pieces: Iterable[str], *, unk: str = "error", where: str = "The text", held: str = ""
) -> Iterator[Encoded]:
    """Encodes a text in pieces; the ids together are those of the whole text.

    Text is held back until the tokenizer knows a place to cut (``Tokenizer.safe_cut``), up to a million characters.

    Args:
        tokenizer: The tokenizer.
        pieces: The text, cut anywhere.
        unk: What to do with unknown tokens: ``error``, ``skip`` (also in the counts), or ``keep`` as UNK.
        where: The name of the text, for the message.
        held: What was held back of the prompt (``Tokenizer.encode_open``): it begins the first token; not counted.

    Raises:
        UsageError: There is an unknown token, and ``unk`` is ``error``.
    """
    choose(unk, UNKNOWNS, "way to treat unknowns (--unk)")
    waiting, before, forced, last = "", 0, False, ""
    for piece in pieces:
        if held and piece:
            yield Encoded(np.zeros(0, np.int32), -len(held), -len(held))
            waiting, before, held = held, -len(held), ""
        waiting += piece
        at = tokenizer.safe_cut(waiting)
        forcing = at == 0 and len(waiting) >= MAX_UNCUT
        at = len(waiting) if forcing else at
        if at:
            yield _encode(tokenizer, waiting[:at], unk, where, before, last)._replace(forced=forced)
            waiting, before, forced, last = waiting[at:], before + at, forcing, waiting[at - 1]
    if waiting:
        yield _encode(tokenizer, waiting, unk, where, before, last)._replace(forced=forced)


def _encode(tokenizer: Tokenizer, text: str, unk: str, where: str, before: int, last: str) -> Encoded:
    """Encodes a part of a text, which begins ``before`` characters into the whole, after the character ``last``."""
    ids = tokenizer.encode(text)
    is_unknown = tokenizer.is_unknown(text, ids)
    unknown = int(np.count_nonzero(is_unknown))
    if not unknown or unk == "keep":
        return Encoded(ids, len(text), len(text_bytes(text)), count_words(text, last), unknown)
    if unk == "error":
        advice = "or score them as <unk> with --unk keep"
        if any(piece == "\n" for _, piece in tokenizer.unknown(text)):
            advice += ", or score each line as a text with --lines"
        raise _unknown_error(tokenizer, text, where, advice, before)
    parts, at = [], 0
    for position, piece in tokenizer.unknown(text):
        parts.append(text[at:position])
        at = position + len(piece)
    kept = "".join([*parts, text[at:]])
    return Encoded(ids[~is_unknown], len(kept), len(text_bytes(kept)), count_words(kept, last), unknown)


def _unknown_error(tokenizer: Tokenizer, text: str, where: str, advice: str, before: int = 0) -> UsageError:
    """Returns the error for unknown tokens in ``text``, which begins ``before`` characters into the whole."""
    found = ((position + len(piece), piece.removeprefix(" ") or piece) for position, piece in tokenizer.unknown(text))
    unknown = [(end - len(piece), piece) for end, piece in found]
    pieces = [*dict.fromkeys(piece for _, piece in unknown)]
    positions = ", ".join(str(before + position + 1) for position, _ in unknown[:_SHOWN])
    return UsageError(
        f"{where} has {tokenizer.unit}s that are not in the vocabulary: {listed(pieces, _SHOWN)} (positions "
        f"from 1: {positions}). Leave them out with --unk skip, {advice}."
    )


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token; bytes of an incomplete character are escaped."""
    if token < len(SPECIAL_TOKENS):
        return SPECIAL_TOKENS[token]
    return tokenizer.pieces[token].decode("utf-8", "backslashreplace")


def token_json(tokenizer: Tokenizer, token: int, logp: float) -> dict[str, object]:
    """A token and its log-probability in nats as JSON values."""
    return {"token": token_text(tokenizer, token), "id": token, "logp": round(logp, 6)}


def quote_token(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token in quotes, in which blanks can be seen and line breaks and controls are escaped."""
    if token < len(SPECIAL_TOKENS):
        return SPECIAL_TOKENS[token]
    text = repr(tokenizer.pieces[token].decode("utf-8", "surrogateescape"))
    return re.sub(r"\\udc(..)", r"\\x\1", text)  # bytes of an incomplete character
