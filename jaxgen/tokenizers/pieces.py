"""Token ids of a text that comes in pieces: those of the whole text, with no more of it in memory than needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jaxgen.errors import UsageError, choose
from jaxgen.tokenizers.base import UNK, Tokenizer, text_bytes

#: Ways to treat what the vocabulary lacks.
UNKNOWNS = ("error", "skip", "keep")
#: Characters without a safe place to cut after which a text is cut all the same.
MAX_UNCUT = 1 << 20


class Encoded(NamedTuple):
    """Some ids, with the characters and bytes of text that they stand for, and how many unknowns were met.

    ``forced``: the cut in front of them was not a safe one, so that a few ids there may differ from those of the whole.
    """

    ids: np.ndarray
    chars: int
    bytes: int
    unknown: int
    forced: bool = False


def evenly(pieces: Iterable[str], size: int) -> Iterator[str]:
    """The text that ``pieces`` add up to in pieces of ``size`` characters, wherever it was cut before."""
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
    """Characters ``start`` to ``stop`` of the text that ``pieces`` add up to; no more than needed is taken of them."""
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
    """Encode a text that comes in ``pieces``: the ids add up to those of the text, wherever it was cut.

    A piece waits for the next as long as the tokenizer knows no place to cut (``Tokenizer.safe_cut``), up to a million
    characters. ``unk`` says what becomes of what the vocabulary lacks: ``error`` raises ``UsageError`` (``where`` names
    the text), ``skip`` leaves it out, and out of the counts too, ``keep`` has it as UNK.
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
            "the vocabulary lacks. Only what the training text contains can be scored: leave it out with --unk skip, "
            "or have it scored as <unk> with --unk keep."
            + (" Texts of one line each are scored with --lines." if piece == "\n" else "")
        )
    left_out = [piece for _, piece in found]
    chars -= sum(map(len, left_out))
    return Encoded(ids[ids != UNK], chars, size - sum(len(text_bytes(piece)) for piece in left_out), unknown)
