"""Transforms that keep the generated text to a regular expression or to the words of a list."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Int

from jaxgen.errors import UsageError
from jaxgen.sampling.automaton import NEVER, START, token_automaton
from jaxgen.sampling.transforms.base import Context, Last, Logits, unless_empty
from jaxgen.types import Array


class PatternState(NamedTuple):
    """A ``TokenAutomaton``, and where each row is in it."""

    at: Int[Array, "B"]
    table: Int[Array, "states classes"]
    columns: Int[Array, "characters V"]
    steps: Int[Array, "states"]
    length: Int[Array, ""]  # tokens of a whole text
    ends: Bool[Array, "V"]  # <eos>
    runs_on: Bool[Array, ""]  # whether the model never ends a text by itself


def begin(pattern: str, context: Context) -> PatternState:
    """Return the state before the first token. Raises ``UsageError`` if no text of tokens can match."""
    if len(context.pieces) != context.vocab:
        raise UsageError("A pattern needs the texts of the tokens: give them as `pieces` of the context.")
    found = token_automaton(pattern, tuple(context.pieces), context.held)
    fewest = int(found.steps[START])
    if fewest == NEVER:
        raise UsageError(
            f"No text of this model's tokens matches {pattern[:60]!r}: give another pattern, or allow more."
        )
    if fewest > context.length:
        raise UsageError(
            f"The shortest text that matches {pattern[:60]!r} has {fewest:,} tokens, and {context.length:,} are to be "
            "generated: raise --length."
        )
    return PatternState(
        jnp.full(context.rows, START, jnp.int32),
        jnp.asarray(_to_power_of_two(found.table)),
        jnp.asarray(found.columns),
        jnp.asarray(np.pad(found.steps, (0, _room(len(found.steps))), constant_values=NEVER)),
        jnp.int32(min(context.length, NEVER)),
        jnp.asarray(np.arange(context.vocab) == context.eos),
        jnp.bool_(context.runs_on),
    )


def _room(size: int, least: int = 64) -> int:
    """How much is missing to a power of two, so that patterns of similar size share compiled code."""
    return max(least, 1 << (size - 1).bit_length()) - size


def _to_power_of_two(table: np.ndarray) -> np.ndarray:
    return np.pad(table, [(0, _room(table.shape[0])), (0, _room(table.shape[1], 16))])


def follow(state: PatternState, logits: Logits, last: Last) -> tuple[PatternState, Logits]:
    """Leave the tokens after which a match can be completed in the tokens that are left, and <eos> after a match."""

    def read(at: Array, column: Array) -> tuple[Array, None]:
        return state.table[at, jnp.broadcast_to(column, at.shape)], None

    drawn = jnp.maximum(last.token, 0)
    moved, _ = lax.scan(read, state.at, jnp.take(state.columns, drawn, axis=1))
    at = jnp.where(last.token < 0, state.at, moved)
    after, _ = lax.scan(read, jnp.broadcast_to(at[:, None], logits.shape), state.columns[:, None, :])
    allowed = state.steps[after] < state.length - last.t
    # A text that runs on ends where the model would leave the pattern.
    outside = jnp.where(allowed | state.ends[None, :], -jnp.inf, logits)
    end = jnp.where(state.runs_on, jax.nn.logsumexp(outside, axis=-1, keepdims=True), logits)
    may_end = state.ends[None, :] & (state.steps[at] == 0)[:, None] & (logits > -jnp.inf)
    kept = jnp.where(may_end, end, jnp.where(allowed, logits, -jnp.inf))
    return state._replace(at=at), unless_empty(kept, logits)


@dataclass(frozen=True)
class Regex:
    """The generated text matches this regular expression, as Python's ``re.fullmatch`` decides.

    A model of running text ends the text where it would leave the pattern after a match. Lookaround, backreferences
    and word boundaries cannot be followed.

    Example:
        >>> from jaxgen.sampling.transforms import Regex
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = Regex("a+"), jnp.array([[3.0, 2.0, 1.0]])
        >>> state = transform.init(Context(rows=1, vocab=3, eos=0, pieces=("", "a", "b")))
        >>> transform.update(state, logits, Last.none(1))[1].tolist()
        [[-inf, 2.0, -inf]]
    """

    #: The sampler lets a model of running text draw <eos>.
    ends_texts: ClassVar[bool] = True

    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise UsageError(f"A pattern of {self.pattern!r} cannot be used: give a regular expression.")

    def init(self, context: Context) -> PatternState:
        return begin(self.pattern, context)

    @staticmethod
    def update(state: PatternState, logits: Logits, last: Last) -> tuple[PatternState, Logits]:
        return follow(state, logits, last)


@dataclass(frozen=True)
class WordsFrom:
    """Every word of the generated text is a line of this file; between words, anything but letters, digits and _.

    Example:
        >>> from jaxgen.sampling.transforms import WordsFrom
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = WordsFrom(("cat",)), jnp.array([[3.0, 2.0, 1.0]])
        >>> state = transform.init(Context(rows=1, vocab=3, pieces=("dog", "cat", ", ")))
        >>> transform.update(state, logits, Last.none(1))[1].tolist()
        [[-inf, 2.0, 1.0]]
    """

    #: A model of running text goes on: between words anything may follow.
    ends_texts: ClassVar[bool] = False
    #: The command-line flag names a file with a word on each line.
    from_file: ClassVar[bool] = True

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.words or not all(isinstance(word, str) and word for word in self.words):
            raise UsageError("A list of words must have at least one word, and none that is empty.")

    def init(self, context: Context) -> PatternState:
        words = "|".join(map(re.escape, sorted(set(self.words))))
        return begin(rf"\W*(?:(?:{words})(?:\W+(?:{words}))*\W*)?", context)

    @staticmethod
    def update(state: PatternState, logits: Logits, last: Last) -> tuple[PatternState, Logits]:
        return follow(state, logits, last)
