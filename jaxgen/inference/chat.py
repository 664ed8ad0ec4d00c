"""A text written in turns, by a user and by the model, in which every step can be taken back."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from math import exp
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import UsageError
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.state import DecoderState
from jaxgen.inference.text_stream import Chunk
from jaxgen.tokenizers.base import EOS, Tokenizer

NOTHING = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class _Step:
    """Where a conversation stands: at ``begun`` (``None``: nothing was read), and then ``drawn`` followed."""

    sampler: Sampler
    begun: DecoderState | None
    drawn: np.ndarray
    #: The conversation's ``number`` before this step.
    number: int
    answer: bool = False

    @cached_property
    def after(self) -> DecoderState | None:
        """The state behind it all. Read when it is needed: an interrupt then loses nothing that was shown."""
        if EOS in self.drawn[-1:]:
            return None
        return self.sampler.read_tokens(self.drawn, self.begun) if self.drawn.size else self.begun


class ChatSession:
    """A text to which a user and the model add in turns, each going on from the state that the last one left.

    ``settings``, ``unk`` and ``sampler`` (by one under another condition) may be changed at any time. Answer k, counted
    from 0, is sample k of the seed (``number`` is that of the next one), so that the same calls give the same texts;
    the first is what ``Sampler`` draws without a conversation. What the state has read is what was shown: not a stop
    string, nor what an answer that was closed early had not handed out yet. When the model ends its text (<eos>), the
    next step begins another.
    """

    def __init__(
        self,
        sampler: Sampler,
        settings: GenerationConfig | None = None,
        *,
        state: DecoderState | None = None,
        unk: str = "error",
    ) -> None:
        self.sampler, self.settings, self.unk = sampler, settings or GenerationConfig(), unk
        self.number = 0
        self._step, self._past = _Step(sampler, state, NOTHING, 0), list[_Step]()

    @property
    def state(self) -> DecoderState | None:
        """After all that was read and drawn; ``None`` at the beginning of a text."""
        return self._step.after

    @property
    def text(self) -> str:
        """All that the state has read."""
        return "" if self.state is None else self.sampler.tokenizer.decode(self.state.tokens)

    def say(self, text: str = "") -> Generator[Chunk, None, None]:
        """Read ``text`` and draw an answer, piece by piece; close it to stop there. The first piece makes it a step.

        Raises ``UsageError`` for characters that the vocabulary lacks (as ``unk`` says); nothing has changed then.
        """
        return self._answer(self._read(text))

    def again(self) -> Generator[Chunk, None, None]:
        """Another answer in place of the last one. Raises ``UsageError`` where the last step was none."""
        if not self._step.answer or self._step.begun is None:
            raise UsageError("There is no answer to replace by another: the last step was none, so draw one first.")
        return self._answer(self._step.begun)

    def add(self, text: str) -> None:
        """Read ``text`` without an answer. Errors as those of ``say``."""
        self._go(self._read(text))

    def take(self, tokens: Any) -> None:
        """Add tokens [T], such as those of a ``Continuation``. Raises ``UsageError`` for ids out of range."""
        self.sampler.tokenizer.decode_bytes(tokens)
        self._go(self._here(), np.asarray(tokens, np.int32))

    def begin(self, state: DecoderState | None = None) -> None:
        """Begin a new text, or go on from ``state``."""
        self._go(state)

    def undo(self) -> None:
        """Take back the last step, an answer with the text before it. Raises ``UsageError`` if there is none."""
        if not self._past:
            raise UsageError("There is nothing to take back: this is where the conversation began.")
        self.number = self._step.number
        self._step = self._past.pop()

    def continuations(self, n: int = 5, length: int = 16) -> list[Continuation]:
        """The likeliest ways to go on from here, as ``continuations`` finds them; one of them can be taken."""
        return continuations(self.sampler, self._here(), n, length)

    def _here(self) -> DecoderState:
        return self.sampler.read() if self.state is None else self.state

    def _read(self, text: str) -> DecoderState:
        return self.sampler.read(text, self.state, unk=self.unk)

    def _go(self, begun: DecoderState | None, drawn: np.ndarray = NOTHING, *, answer: bool = False) -> None:
        self._past.append(self._step)
        self._step = _Step(self.sampler, begun, drawn, self.number, answer)
        self.number += answer

    def _answer(self, begun: DecoderState) -> Generator[Chunk, None, None]:
        pieces: list[Chunk] = []
        failed = False
        try:
            for piece in self.sampler.stream(settings=self.settings, first=self.number, state=begun):
                pieces.append(piece)
                yield piece
        except Exception:
            failed = True
            raise
        finally:  # also when it is closed early, or interrupted
            if not failed:
                self._go(begun, _shown(self.sampler.tokenizer, pieces), answer=True)


def _shown(tokenizer: Tokenizer, pieces: list[Chunk]) -> np.ndarray:
    """The tokens [T] of the text of ``pieces``: those drawn, without what was held back of them."""
    tokens = np.concatenate([NOTHING, *(piece.tokens for piece in pieces)])
    text = "".join(piece.text for piece in pieces)
    count, known = tokens.size, tokenizer.decode(tokens)
    while not text.startswith(known):
        count -= 1
        known = tokenizer.decode(tokens[:count])
    # A token of several characters may be shown in part.
    return np.concatenate([tokens[:count], tokenizer.encode_prompt(text[len(known) :], unk="skip")])


#: The most that can be asked for: of continuations, and of tokens in each.
MAX_OFFERED = 1_000


@dataclass(frozen=True)
class Continuation:
    """A way to go on: tokens [T], their text, and the log-probability that the model gives each, in nats."""

    text: str
    tokens: np.ndarray
    logp: np.ndarray

    @property
    def probability(self) -> float:
        """Of the first token, in which continuations differ."""
        return exp(float(self.logp[0]))

    @property
    def ends(self) -> bool:
        """Whether the text ends with it."""
        return EOS in self.tokens[-1:]


def continuations(sampler: Sampler, state: DecoderState, n: int = 5, length: int = 16) -> list[Continuation]:
    """The ``n`` likeliest next tokens, the likeliest first, each with the likeliest behind it, up to ``length`` in all.

    The model alone decides: temperature and transforms play no part. Tokens that are never drawn are not offered, so
    that a small vocabulary gives fewer than ``n``. A continuation ends at its last whole character. Raises
    ``UsageError`` for numbers out of range.
    """
    for value, what in ((n, "continuations"), (length, "tokens")):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_OFFERED:
            raise UsageError(f"{value!r} {what} cannot be offered: give a whole number from 1 to {MAX_OFFERED}.")
    logp = np.array(jax.nn.log_softmax(state.logits[0].astype(jnp.float32)))
    allowed = np.setdiff1d(np.arange(logp.size), sampler.forbidden)
    likeliest = allowed[np.argsort(-logp[allowed], kind="stable")[:n]]
    return [_followed(sampler, state, int(token), logp[token], length) for token in likeliest]


def _followed(sampler: Sampler, state: DecoderState, token: int, logp: np.float32, length: int) -> Continuation:
    """``token`` and what is likeliest behind it."""
    tokens, each = np.array([token], np.int32), np.array([logp], np.float32)
    if token != EOS:
        after, _ = sampler.step(state, token)
        (greedy,) = sampler.samples(settings=GenerationConfig(length - 1, temperature=0.0), state=after)
        tokens, each = np.append(tokens, greedy.tokens), np.append(each, greedy.logp)
    whole = _whole_characters(sampler.tokenizer, tokens)
    return Continuation(sampler.tokenizer.decode(tokens[:whole]), tokens[:whole], each[:whole])


def _whole_characters(tokenizer: Tokenizer, tokens: np.ndarray) -> int:
    """How many of ``tokens`` end with a whole character; all of them if none does."""
    counts = range(tokens.size, 0, -1)
    return next((n for n in counts if not tokenizer.decode(tokens[:n]).endswith("\ufffd")), tokens.size)
