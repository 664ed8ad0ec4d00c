"""Texts as they come out of the decode loop: pieces, whole samples, and where a text ends."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.tokenizers.base import EOS, Tokenizer


class StopStrings:
    """Finds the first of some strings in a text, however the text is cut into pieces.

    What could be the beginning of one is held back until it is decided. The first to be complete counts, and of those
    complete at the same place the longest.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Some more text: returns what is certain to belong to the text, and the string found, if any."""
        text = self._held + text
        found = [(text.find(s) + len(s), -len(s), s) for s in self._strings if s in text]
        if found:
            end, _, string = min(found)
            self._held = ""
            return text[: end - len(string)], string
        held = max((self._overlap(text, s) for s in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], None

    @property
    def held(self) -> int:
        """How many characters are held back."""
        return len(self._held)

    def flush(self) -> str:
        """What was held back, once there is no more text."""
        rest, self._held = self._held, ""
        return rest

    @staticmethod
    def _overlap(text: str, string: str) -> int:
        """How much of the end of ``text`` is a beginning of ``string``."""
        longest = min(len(text), len(string) - 1)
        return next((n for n in range(longest, 0, -1) if string.startswith(text[len(text) - n :])), 0)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some more text of sample ``index``.

    ``tokens`` are its ids (<eos> too, which has no text) and ``logp`` what the model gave each of them, in nats, before
    any transform. ``end`` says why the last piece is the last: length, eos, stop or time. The tokens of a stop string
    are among those of the last piece, its text is not.
    """

    index: int
    text: str
    tokens: np.ndarray
    logp: np.ndarray
    end: str | None = None

    @property
    def last(self) -> bool:
        return self.end is not None


@dataclass(frozen=True, eq=False)
class Sample:
    """A whole text: the pieces of one sample put together."""

    index: int
    text: str
    tokens: np.ndarray
    logp: np.ndarray
    end: str

    @property
    def mean_logp(self) -> float:
        """Mean log-probability of a token in nats, by which samples are compared; -inf without any token."""
        return float(self.logp.mean()) if self.logp.size else -np.inf


def collect(pieces: Iterator[Chunk]) -> Iterator[Sample]:
    """Pieces put together to samples, in order of their numbers."""
    parts: dict[int, list[Chunk]] = {}
    done: dict[int, Sample] = {}
    turn: int | None = None
    for piece in pieces:
        turn = piece.index if turn is None else turn
        parts.setdefault(piece.index, []).append(piece)
        if piece.end is not None:
            mine = parts.pop(piece.index)
            text = "".join(part.text for part in mine)
            tokens, logp = (np.concatenate([getattr(part, name) for part in mine]) for name in ("tokens", "logp"))
            done[piece.index] = Sample(piece.index, text, tokens, logp, piece.end)
        while turn in done:
            yield done.pop(turn)
            turn += 1


def select_best(samples: Iterable[Sample], keep: int) -> list[Sample]:
    """The ``keep`` samples with the largest mean log-probability of a token, the best first.

    Those that the time limit cut come behind all others.
    """
    return heapq.nsmallest(keep, samples, key=lambda each: (each.end == "time", -each.mean_logp, each.index))


class StreamingDetokenizer:
    """One text being made: its bytes become characters, its characters end at a stop string.

    ``row`` is its place in a block; the text of the first ``skip`` tokens is left out.
    """

    def __init__(self, tokenizer: Tokenizer, index: int, row: int, settings: GenerationConfig, skip: int) -> None:
        self.index, self.row, self.running = index, row, True
        self._decoder = tokenizer.stream_decoder()
        self._stop = StopStrings(settings.stop) if settings.stop else None
        self._left, self._skip, self._drop = settings.length, skip, 0

    def more(self, tokens: np.ndarray, logp: np.ndarray) -> Chunk:
        """The piece that these tokens make, up to the end of the text."""
        ends = np.flatnonzero(tokens == EOS)
        count = int(ends[0]) + 1 if ends.size else tokens.size
        hidden = min(self._skip, count)
        self._skip -= hidden
        _, _, stopped = self._read(tokens[:hidden])
        if hidden and self._stop is not None:
            self._drop = self._stop.held  # of hidden tokens too
        if stopped:
            return self._piece("", tokens[:0], logp[:0], "stop")
        text, taken, stopped = self._read(tokens[hidden:count])
        shown = slice(hidden, hidden + taken)
        self._left -= count
        end = "stop" if stopped else "eos" if ends.size else None if self._left else "length"
        return self._piece(text, tokens[shown], logp[shown], end)

    def _read(self, tokens: np.ndarray) -> tuple[str, int, bool]:
        """The text that is certain with these tokens, how many were taken, and whether a stop string was complete."""
        if self._stop is None:
            return self._decoder.feed(tokens), tokens.size, False
        text = ""
        for taken, token in enumerate(tokens, start=1):  # one by one, to know which completes a stop string
            certain, found = self._stop.feed(self._decoder.feed(token))
            text += certain
            if found is not None:
                return text, taken, True
        return text, tokens.size, False

    def cut(self, end: str) -> Chunk:
        """The last piece of a text that is not made any further."""
        return self._piece("", np.zeros(0, np.int32), np.zeros(0, np.float32), end)

    def _piece(self, text: str, tokens: np.ndarray, logp: np.ndarray, end: str | None) -> Chunk:
        self.running = end is None
        if end is not None and end != "stop":
            text, end = self._rest(text, end)
        shown, self._drop = text[self._drop :], max(self._drop - len(text), 0)
        return Chunk(self.index, shown, tokens, logp, end)

    def _rest(self, text: str, end: str) -> tuple[str, str]:
        """``text`` with what was held back behind it: an unfinished character, the beginning of a stop string."""
        rest = self._decoder.flush()
        if self._stop is None:
            return text + rest, end
        certain, found = self._stop.feed(rest)
        return (text + certain, "stop") if found is not None else (text + certain + self._stop.flush(), end)
