"""Encodes a text in pieces, with the same ids as the whole text, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jaxgen.errors import UsageError, choose
from jaxgen.tokenizers.base import UNK, Tokenizer, text_bytes

#: Ways to treat unknown tokens.
UNKNOWNS = ("error", "skip", "keep")
#: Characters without a safe place to cut after which a text is cut anyway.
MAX_UNCUT = 1 << 20


class Encoded(NamedTuple):
    """Some ids, the characters and bytes of their text, and the number of unknown tokens.

    ``forced``: the cut before them was not safe, so a few ids there may differ from those of the whole text.
    """

    ids: np.ndarray
    chars: int
    bytes: int
    unknown: int
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
    tokenizer: Tokenizer, pieces: Iterable[str], *, unk: str = "error", where: str = "The text"
) -> Iterator[Encoded]:
    """Encodes a text in pieces; the ids together are those of the whole text.

    Text is held back until the tokenizer knows a place to cut (``Tokenizer.safe_cut``), up to a million characters.

    Args:
        tokenizer: The tokenizer.
        pieces: The text, cut anywhere.
        unk: What to do with unknown tokens: ``error``, ``skip`` (also in the counts), or ``keep`` as UNK.
        where: The name of the text, for the message.

    Raises:
        UsageError: There is an unknown token, and ``unk`` is ``error``.
    """
    choose(unk, UNKNOWNS, "way to treat unknowns (--unk)")
    waiting, before, forced = "", 0, False
    for piece in pieces:
        waiting += piece
        at = tokenizer.safe_cut(waiting)
        forcing = at == 0 and len(waiting) >= MAX_UNCUT
        at = len(waiting) if forcing else at
        if at:
            yield _encode(tokenizer, waiting[:at], unk, where, before)._replace(forced=forced)
            waiting, before, forced = waiting[at:], before + at, forcing
    if waiting:
        yield _encode(tokenizer, waiting, unk, where, before)._replace(forced=forced)


def _encode(tokenizer: Tokenizer, text: str, unk: str, where: str, before: int) -> Encoded:
    ids = tokenizer.encode(text)
    chars, size = len(text), len(text_bytes(text))
    unknown = int(np.count_nonzero(ids == UNK))
    if not unknown or unk == "keep":
        return Encoded(ids, chars, size, unknown)
    found = tokenizer.unknown(text)
    if unk == "error":
        position, piece = found[0]
        raise UsageError(
            f"{where} has the {tokenizer.unit} {piece!r} at position {before + position + 1:,} (counted from 1), which "
            "is not in the vocabulary: leave it out with --unk skip, or score it as <unk> with --unk keep."
            + (" Texts of one line each are scored with --lines." if piece == "\n" else "")
        )
    left_out = [piece for _, piece in found]
    chars -= sum(map(len, left_out))
    return Encoded(ids[ids != UNK], chars, size - sum(len(text_bytes(piece)) for piece in left_out), unknown)
