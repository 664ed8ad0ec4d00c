"""Penalties for tokens that have already occurred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxgen.errors import check_int
from jaxgen.sampling.transforms.base import Context, Last, Logits, bounded, check_number, unless_empty
from jaxgen.types import Array, ArrayLike


class Seen(NamedTuple):
    """A penalty, and which tokens have occurred (bool) or how often (int32)."""

    penalty: Float[ArrayLike, ""]
    seen: Shaped[ArrayLike, "B V"]


@dataclass(frozen=True)
class RepetitionPenalty:
    """Divide the logit of every token that has occurred by this, or multiply it if negative; the prompt counts.

    Keskar et al. 2019, arXiv:1909.05858, section 4.1, in the now usual form for logits of both signs.

    Example:
        >>> from jaxgen.sampling.transforms import RepetitionPenalty
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = RepetitionPenalty(2.0), jnp.array([[3.0, 2.0, 1.0]])
        >>> state = transform.init(Context(rows=1, vocab=3, prompt=np.array([0])))
        >>> state, logits = transform.update(state, logits, Last.none(1))
        >>> logits.tolist()
        [[1.5, 2.0, 1.0]]
    """

    penalty: float

    def __post_init__(self) -> None:
        check_number("A repetition penalty", self.penalty, 1e-2, 1e2, "a number from 0.01 to 100 (1: none)")

    def init(self, context: Context) -> Seen:
        seen = np.zeros(context.shape, bool)
        seen[:, context.prompt] = True
        return Seen(np.array(self.penalty, np.float32), seen)

    @staticmethod
    def update(state: Seen, logits: Logits, last: Last) -> tuple[Seen, Logits]:
        seen = state.seen | drawn(last, logits)
        penalised = jnp.where(logits < 0, logits * state.penalty, logits / state.penalty)
        return Seen(state.penalty, seen), bounded(jnp.where(seen, penalised, logits))


@dataclass(frozen=True)
class PresencePenalty:
    """Subtract this from the logit of every token that the generated text already has; the prompt does not count.

    Example:
        >>> from jaxgen.sampling.transforms import PresencePenalty
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = PresencePenalty(0.5), jnp.array([[3.0, 2.0, 1.0]])
        >>> state = transform.init(Context(rows=1, vocab=3))
        >>> state, logits = transform.update(state, logits, Last(t=jnp.int32(1), token=jnp.array([0])))
        >>> logits.tolist()
        [[2.5, 2.0, 1.0]]
    """

    penalty: float

    def __post_init__(self) -> None:
        check_number("A presence penalty", self.penalty, -100, 100, "a number from -100 to 100 (0: none)")

    def init(self, context: Context) -> Seen:
        return Seen(np.array(self.penalty, np.float32), np.zeros(context.shape, bool))

    @staticmethod
    def update(state: Seen, logits: Logits, last: Last) -> tuple[Seen, Logits]:
        seen = state.seen | drawn(last, logits)
        return Seen(state.penalty, seen), jnp.where(seen, logits - state.penalty, logits)


@dataclass(frozen=True)
class FrequencyPenalty:
    """Subtract this from a token's logit once for each time the generated text has it; the prompt does not count.

    Example:
        >>> from jaxgen.sampling.transforms import FrequencyPenalty
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = FrequencyPenalty(0.5), jnp.array([[3.0, 2.0, 1.0]])
        >>> state = transform.init(Context(rows=1, vocab=3))
        >>> state, logits = transform.update(state, logits, Last(t=jnp.int32(1), token=jnp.array([0])))
        >>> logits.tolist()
        [[2.5, 2.0, 1.0]]
    """

    penalty: float

    def __post_init__(self) -> None:
        check_number("A frequency penalty", self.penalty, -100, 100, "a number from -100 to 100 (0: none)")

    def init(self, context: Context) -> Seen:
        return Seen(np.array(self.penalty, np.float32), np.zeros(context.shape, np.int32))

    @staticmethod
    def update(state: Seen, logits: Logits, last: Last) -> tuple[Seen, Logits]:
        counts = state.seen + drawn(last, logits).astype(jnp.int32)
        return Seen(state.penalty, counts), logits - state.penalty * counts.astype(jnp.float32)


def drawn(last: Last, logits: Logits) -> Bool[Array, "B V"]:
    """The last token of every row, one-hot; all false before the first token."""
    return jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :] == last.token[:, None]


class History(NamedTuple):
    """The last tokens of each row, oldest first, and how far the text before each matches the end of the text.

    ``shared`` at position j is the number of tokens, ending with token j, that equal the last tokens of the text. When
    a token is appended, everything shifts left by one. The count at a position is then one more than the previous count
    at the same position if the position holds the new token, else 0: its distance from the end stays the same.
    """

    n: Int[ArrayLike, ""]
    tokens: Int[ArrayLike, "B window+1"]  # -1 where there is no text yet; the first has just left the window
    shared: Int[ArrayLike, "B window+1"]


@dataclass(frozen=True)
class NoRepeatNgram:
    """Never draw a token that would complete a sequence of this many tokens a second time; the prompt counts.

    Only the last ``window`` tokens are searched; changing the window recompiles. If this would rule out every token, it
    rules out none. Paulus et al. 2018, arXiv:1705.04304, section 2.5.

    Example:
        >>> from jaxgen.sampling.transforms import NoRepeatNgram
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = NoRepeatNgram(2), jnp.array([[3.0, 2.0, 1.0]])
        >>> state = transform.init(Context(rows=1, vocab=3, prompt=np.array([0, 1, 0])))
        >>> state, logits = transform.update(state, logits, Last.none(1))
        >>> logits.tolist()
        [[3.0, -inf, 1.0]]
    """

    n: int
    window: int = 1024

    def __post_init__(self) -> None:
        check_int("The length for no-repeat-ngram", self.n, 1, 1000)
        check_int("The window of no-repeat-ngram", self.window, self.n, 100_000)

    def init(self, context: Context) -> History:
        prompt = np.asarray(context.prompt, np.int32)[-self.window :]
        tokens, shared = np.full((1, self.window + 1), -1, np.int32), np.zeros((1, self.window + 1), np.int32)
        if len(prompt):
            tokens[0, -len(prompt) :] = prompt
            shared[0, -len(prompt) :] = common_prefixes(prompt[::-1].tolist())[::-1]
        rows = (array.repeat(context.rows, 0) for array in (tokens, shared))
        return History(np.array(self.n, np.int32), *rows)

    @staticmethod
    def update(state: History, logits: Logits, last: Last) -> tuple[History, Logits]:
        tokens = jnp.concatenate([state.tokens[:, 1:], last.token[:, None]], axis=1)
        shared = jnp.where(tokens == last.token[:, None], state.shared + 1, 0)
        first = last.t == 0
        tokens, shared = jnp.where(first, state.tokens, tokens), jnp.where(first, state.shared, shared)
        rows, vocab = logits.shape
        # A match may extend back beyond the window; only its part inside the window counts.
        inside = jnp.arange(tokens.shape[1] - 1, dtype=jnp.int32)[None, :]
        repeats = jnp.minimum(shared[:, :-1], inside) >= state.n - 1
        completing = tokens[:, 1:]
        target = jnp.where(repeats & (completing >= 0), completing, vocab)  # out of range: dropped
        banned = jnp.zeros((rows, vocab), bool).at[jnp.arange(rows)[:, None], target].set(True, mode="drop")
        left = jnp.where(banned, -jnp.inf, logits)
        return History(state.n, tokens, shared), unless_empty(left, logits)


def common_prefixes(ids: Sequence[int]) -> list[int]:
    """How many ids from each position on equal those from the start, in linear time.

    This is the Z algorithm; Gusfield 1997, Algorithms on Strings, Trees and Sequences, section 1.4.
    """
    lengths, start, end = [len(ids)], 0, 0  # ids[start:end] equals ids[: end - start]
    for i in range(1, len(ids)):
        same = min(end - i, lengths[i - start]) if i < end else 0
        while i + same < len(ids) and ids[same] == ids[i + same]:
            same += 1
        if i + same > end:
            start, end = i, i + same
        lengths.append(same)
    return lengths
