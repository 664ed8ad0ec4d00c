"""The base class of tokenizers, and what they share: the special ids, decoding and prompts."""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from jaxgen.errors import UsageError, choose

#: Padding: never a target that counts, never sampled.
PAD = 0
#: Whatever the vocabulary lacks.
UNK = 1
#: The end of a document, and the input in front of its first token.
EOS = 2
#: The bytes that the special ids stand for; ordinary tokens follow them.
SPECIAL_PIECES: tuple[bytes, ...] = (b"", b"<unk>", b"")
NUM_SPECIAL = len(SPECIAL_PIECES)
#: The largest vocabulary that is learnt. The library of the bpe level allocates for all of it at once, and ends the
#: process when it cannot.
MAX_VOCAB = 2**20

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_A_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_SHOWN = 5

T = TypeVar("T", bound="Tokenizer")
#: A text, or the pieces that add up to it.
Text = str | Iterable[str]


def text_bytes(text: str) -> bytes:
    """UTF-8 of any string: U+DC80…DCFF give back the byte they escape, other lone surrogates become U+FFFD."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return _NOT_A_BYTE.sub("\ufffd", text).encode("utf-8", "surrogateescape")


def without_surrogates(text: str) -> str:
    """The text with every lone surrogate replaced by U+FFFD, one character for one."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def in_pieces(text: Text) -> Iterable[str]:
    """The pieces of a text; a string is one."""
    return (text,) if isinstance(text, str) else text


def safe_chunks(text: Text, safe: re.Pattern[str], size: int) -> Iterator[str]:
    """The text in chunks of ``size`` characters and up to the next ``safe`` place to cut; one of 16 times ``size``
    without any is cut all the same, because what a tokenizer needs for it would grow without bound.

    ``safe`` may look at the characters before a place and at one behind it, and so it does not matter where the pieces
    of a text end.
    """
    held, start, looked = "", 0, 0
    for piece in in_pieces(text):
        held, start, looked = held[start:] + piece, 0, looked - start
        while start + size < len(held):
            cut = safe.search(held, max(start + size, looked), start + 16 * size)
            if cut is None and start + 16 * size > len(held):
                looked = len(held) - 1  # the next piece may have a place to cut, behind this character
                break
            end = cut.start() if cut else start + 16 * size
            yield held[start:end]
            start = end
    while start < len(held):
        cut = safe.search(held, start + size, start + 16 * size)
        end = cut.start() if cut else start + 16 * size
        yield held[start:end]
        start = end


def last_cut(safe: re.Pattern[str], text: str) -> int:
    """Where the last ``safe`` place to cut a text is, 0 if there is none; it is sought from the end."""
    size = 256
    while True:
        if found := [cut.start() for cut in safe.finditer(text, max(0, len(text) - size))]:
            return found[-1]
        if size >= len(text):
            return 0
        size *= 4


class StreamDecoder:
    """Turns ids into text as they come; a character split over tokens comes out whole, with its last token."""

    def __init__(self, pieces: Sequence[bytes]):
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Any) -> str:
        """The text that became complete with these ids; raises ``UsageError`` for an id outside the vocabulary."""
        return self._decoder.decode(join_pieces(self._pieces, ids))

    def flush(self) -> str:
        """What was left: U+FFFD for an unfinished character, usually nothing."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def join_pieces(pieces: Sequence[bytes], ids: Any) -> bytes:
    """The bytes that ids stand for; raises ``UsageError`` for an id outside the vocabulary."""
    flat = np.asarray(ids).reshape(-1)
    if flat.size == 0:
        return b""
    if flat.dtype.kind not in "iu" or flat.min() < 0 or flat.max() >= len(pieces):
        wrong = flat[0] if flat.dtype.kind not in "iu" else flat[(flat < 0) | (flat >= len(pieces))][0]
        raise UsageError(
            f"Token ids must be whole numbers from 0 to {len(pieces) - 1}, but {wrong!s} is among those given. "
            "Decode with the tokenizer that made them."
        )
    return b"".join([pieces[i] for i in flat.tolist()])


class Tokenizer(ABC):
    """Text to token ids and back: ids 0, 1 and 2 are PAD, UNK and EOS, ordinary tokens follow.

    ``pieces[i]`` is the UTF-8 that id ``i`` stands for. Lone surrogates, which UTF-8 cannot hold, come
    back as U+FFFD; every other covered text comes back exactly.
    """

    kind: ClassVar[str]
    #: What an unknown is called in messages.
    unit: ClassVar[str] = "character"
    #: The options of ``train`` with their defaults.
    OPTIONS: ClassVar[dict[str, int]] = {}

    pieces: Sequence[bytes]

    @property
    def vocab_size(self) -> int:
        """V, the special ids included."""
        return len(self.pieces)

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, int32 [T]; what the vocabulary lacks is UNK."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything needed to make this tokenizer again, as JSON values with a ``kind``."""

    @classmethod
    @abstractmethod
    def from_json(cls: type[T], obj: Any) -> T:
        """The tokenizer that ``to_json`` described; raises ``CheckpointError`` for anything malformed."""

    @classmethod
    @abstractmethod
    def train(cls: type[T], texts: Iterable[Text], *args: Any, **options: Any) -> T:
        """The tokenizer of some training texts, each a string or its pieces: the same wherever they are cut.

        Raises ``UsageError`` for an option out of range.
        """

    def safe_cut(self, text: str) -> int:
        """The last place n at which a text that begins so can be cut, whatever follows; 0 if none is known.

        The ids of ``text[:n]`` and of ``text[n:] + more`` are then together those of ``text + more``.
        """
        return 0

    def unknown(self, text: str) -> list[tuple[int, str]]:
        """What the vocabulary lacks in a text, as (position from 0, piece)."""
        return []

    def decode(self, ids: Any) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD. Raises ``UsageError`` for an id out of range."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Any) -> bytes:
        """The bytes of ids, nothing replaced. Raises ``UsageError`` for an id outside the vocabulary."""
        return join_pieces(self.pieces, ids)

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for ids that come a few at a time; its pieces of text add up to ``decode`` of all ids."""
        return StreamDecoder(self.pieces)

    def encode_prompt(self, text: str, unk: str = "error") -> np.ndarray:
        """Token ids of a prompt, int32 [T]; ``unk`` is ``error``, ``skip`` (leave unknowns out) or ``keep`` (as UNK).

        With ``error``, raises ``UsageError`` that names the unknowns and their positions.
        """
        choose(unk, ("error", "skip", "keep"), "way to treat unknowns (--unk)")
        ids = self.encode(text)
        if unk == "keep" or not (ids == UNK).any():
            return ids
        if unk == "skip":
            return ids[ids != UNK]
        unknown = self.unknown(text)
        shown = ", ".join(repr(piece) for _, piece in unknown[:_SHOWN])
        places = ", ".join(str(position + 1) for position, _ in unknown[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        s, it = ("s", "them") if len(unknown) > 1 else ("", "it")
        raise UsageError(
            f"The prompt has {len(unknown)} {self.unit}{s} that the vocabulary lacks: {shown}{more}, at position{s} "
            f"{places}{' …' if more else ''} (counted from 1). Only what the training text contains can be read: "
            f"leave {it} out with --unk skip, or write the prompt without {it}."
        )
