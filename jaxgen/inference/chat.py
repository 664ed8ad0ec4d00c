"""A chat session: a text that a user and the model write in turns, with undo."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from math import exp

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from jaxgen.errors import UsageError, check_int, check_kind, counted
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.state import DecoderState
from jaxgen.inference.text_stream import Chunk
from jaxgen.tokenizers.base import EOS, Tokenizer

NO_TOKENS = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class _Step:
    """One step of a chat: the tokens ``drawn`` and the text ``held`` (see ``DecoderState``) follow the state ``begun``.

    ``begun`` is ``None`` if nothing was read.
    """

    sampler: Sampler
    begun: DecoderState | None
    drawn: np.ndarray
    #: The session's ``number`` before this step.
    number: int
    answer: bool = False
    held: str = ""

    @cached_property
    def after(self) -> DecoderState | None:
        """The state after ``drawn``. Computed when it is needed, so that an interrupt loses nothing that was shown."""
        if EOS in self.drawn[-1:]:
            return None
        return self.sampler.read_tokens(self.drawn, self.begun, self.held) if self.drawn.size else self.begun


class ChatSession:
    """A text that a user and the model continue in turns, each from the state after the last turn.

    ``settings``, ``unk`` and ``sampler`` (for another condition) may be changed at any time. Answer k, counted from 0,
    is sample k of the seed (``number`` is that of the next answer), so that the same calls give the same texts; the
    first answer is what ``Sampler`` draws for the same prompt. The state has read exactly the text that was shown, and
    no stop string or tokens that an answer closed early had not yielded. After <eos> the next step begins a new text.

    Args:
        sampler: Draws the answers.
        settings: How to draw them.
        state: Where the text begins; ``None`` for a new text.
        unk: What to do with characters that are not in the vocabulary: ``error`` or ``skip``.

    Example:
        >>> chat = jaxgen.ChatSession(jaxgen.Sampler.load("runs/language-1"), jaxgen.GenerationConfig(length=20))
        >>> answer = "".join(chunk.text for chunk in chat.send("the "))
        >>> chat.text == "the " + answer
        True
    """

    def __init__(
        self,
        sampler: Sampler,
        settings: GenerationConfig | None = None,
        *,
        state: DecoderState | None = None,
        unk: str = "error",
    ) -> None:
        self.sampler = check_kind("A chat", sampler, Sampler, "a jaxgen.Sampler")
        self.settings, self.unk = GenerationConfig() if settings is None else settings, unk
        self.number = 0
        self._step, self._past = _Step(sampler, state, NO_TOKENS, 0), list[_Step]()

    def __repr__(self) -> str:
        return f"<jaxgen.ChatSession: {counted(self.number, 'answer')} so far, {self.sampler!r}>"

    @property
    def state(self) -> DecoderState | None:
        """The state after the whole text; ``None`` at its beginning."""
        return self._step.after

    @property
    def text(self) -> str:
        """The text so far."""
        return "" if self.state is None else self.sampler.decode(self.state.tokens) + self.state.held

    def send(self, text: str = "") -> Generator[Chunk, None, None]:
        """Read ``text`` and generate an answer; close the generator to stop early.

        The step begins with the first chunk.

        Raises:
            UsageError: ``text`` has characters that are not in the vocabulary (see ``unk``); nothing has changed.
        """
        return self._answer(self._read(text))

    def regenerate(self) -> Generator[Chunk, None, None]:
        """Generate another answer in place of the last one. Raises ``UsageError`` if the last step was no answer."""
        if not self._step.answer or self._step.begun is None:
            raise UsageError("There is no answer to replace: the last step was not an answer, so ask for one first.")
        return self._answer(self._step.begun)

    def add(self, text: str) -> None:
        """Read ``text`` without an answer. Raises what ``send`` raises."""
        self._add_step(self._read(text))

    def append(self, tokens: npt.ArrayLike) -> None:
        """Add tokens [T], such as those of a ``Continuation``. Raises ``UsageError`` for ids out of range."""
        self.sampler.tokenizer.decode_bytes(tokens)
        self._add_step(self._current_state(), np.asarray(tokens, np.int32))

    def reset(self, state: DecoderState | None = None) -> None:
        """Begin a new text, or continue from ``state``."""
        self._add_step(state)

    def undo(self) -> None:
        """Undo the last step: an answer with the text before it. Raises ``UsageError`` if there is none."""
        if not self._past:
            raise UsageError("There is nothing to take back: this is where the conversation began.")
        self.number = self._step.number
        self._step = self._past.pop()

    def continuations(self, n: int = 5, length: int = 16) -> list[Continuation]:
        """The most probable continuations of the text, which ``append`` can add; see ``continuations``."""
        return continuations(self.sampler, self._current_state(), n, length)

    def _current_state(self) -> DecoderState:
        return self.sampler.read() if self.state is None else self.state

    def _read(self, text: str) -> DecoderState:
        return self.sampler.read(text, self.state, unk=self.unk)

    def _add_step(
        self, begun: DecoderState | None, drawn: np.ndarray = NO_TOKENS, held: str = "", *, answer: bool = False
    ) -> None:
        self._past.append(self._step)
        self._step = _Step(self.sampler, begun, drawn, self.number, answer, held)
        self.number += answer

    def _answer(self, begun: DecoderState) -> Generator[Chunk, None, None]:
        chunks: list[Chunk] = []
        failed = False
        try:
            for chunk in self.sampler.stream(settings=self.settings, first=self.number, state=begun):
                chunks.append(chunk)
                yield chunk
        except Exception:
            failed = True
            raise
        finally:  # also if it is closed early or interrupted
            if not failed:
                self._add_step(begun, *_shown_tokens(self.sampler, chunks, begun.held), answer=True)


def _shown_tokens(sampler: Sampler, chunks: list[Chunk], held: str) -> tuple[np.ndarray, str]:
    """The tokens [T] of the text of ``chunks`` after the text ``held``, and the end of it that begins the next token.

    They are those drawn, without the ones that were not shown.
    """
    tokens = np.concatenate([NO_TOKENS, *(chunk.tokens for chunk in chunks)])
    text = held + "".join(chunk.text for chunk in chunks)
    count, known = tokens.size, sampler.decode(tokens)
    while not text.startswith(known):
        count -= 1
        known = sampler.decode(tokens[:count])
    # A token of several characters may have been shown in part.
    rest, held = sampler.tokenizer.encode_prompt(text[len(known) :], unk="skip")
    return np.concatenate([tokens[:count], rest]), held


#: The largest number of continuations, and of tokens in each.
MAX_CONTINUATIONS = 1_000


@dataclass(frozen=True)
class Continuation:
    """A continuation: its text, tokens [T], and the log-probability in nats that the model gives each of them."""

    text: str
    tokens: np.ndarray
    logp: np.ndarray

    def __repr__(self) -> str:
        return f"<jaxgen.Continuation {self.text!r}: probability {self.probability:.4g}>"

    @property
    def probability(self) -> float:
        """The probability of the first token, in which continuations differ."""
        return exp(float(self.logp[0]))

    @property
    def ends(self) -> bool:
        """Whether it ends the text."""
        return EOS in self.tokens[-1:]


def continuations(sampler: Sampler, state: DecoderState, n: int = 5, length: int = 16) -> list[Continuation]:
    """The ``n`` most probable next tokens, each with its greedy continuation, the most probable first.

    Temperature and transforms have no effect. A continuation ends at its last complete character.

    Args:
        sampler: The model.
        state: The text to continue.
        n: How many. There are fewer if the vocabulary has fewer tokens that can be drawn.
        length: The largest number of tokens in each.

    Raises:
        UsageError: A number is out of range.

    Example:
        >>> sampler = jaxgen.Sampler.load("runs/language-1")
        >>> found = jaxgen.continuations(sampler, sampler.read("the "), n=3, length=2)
        >>> [len(each.text) for each in found]
        [2, 2, 2]
    """
    check_kind("continuations", state, DecoderState, "a state, for example sampler.read(text)")
    n = check_int("The number of continuations", n, 1, MAX_CONTINUATIONS)
    length = check_int("The length of continuations", length, 1, MAX_CONTINUATIONS)
    logp = np.array(jax.nn.log_softmax(state.logits[0].astype(jnp.float32)))
    allowed = np.setdiff1d(np.arange(logp.size), sampler.forbidden)
    most_probable = allowed[np.argsort(-logp[allowed], kind="stable")[:n]]
    return [_continue_greedily(sampler, state, int(token), logp[token], length) for token in most_probable]


def _continue_greedily(
    sampler: Sampler, state: DecoderState, token: int, logp: np.float32, length: int
) -> Continuation:
    """``token`` and its greedy continuation."""
    tokens, each = np.array([token], np.int32), np.array([logp], np.float32)
    if token != EOS:
        after, _ = sampler.step(state, token)
        (greedy,) = sampler.samples(settings=GenerationConfig(length - 1, temperature=0.0), state=after)
        tokens, each = np.append(tokens, greedy.tokens), np.append(each, greedy.logp)
    count = _complete_characters(sampler.tokenizer, tokens)
    text = sampler.decode(tokens[:count]).removeprefix(state.held)
    return Continuation(text, tokens[:count], each[:count])


def _complete_characters(tokenizer: Tokenizer, tokens: np.ndarray) -> int:
    """How many of ``tokens`` end with a complete character; all of them if none does."""
    counts = range(tokens.size, 0, -1)
    return next((n for n in counts if not tokenizer.decode(tokens[:n]).endswith("\ufffd")), tokens.size)
