"""No sequence of n tokens twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.sampling.transforms.base import Context, Last, check_whole, unless_empty
from jaxgen.types import Array

#: Vocabularies up to this size are compared with the whole window; into larger ones it is written token by token.
COMPARED = 256


class History(NamedTuple):
    """The last W tokens of each row, oldest first, and what stands before each.

    ``shared`` is how many tokens in front of this place equal as many at the end of the text: a place where it reaches
    n - 1 holds a token that would complete an n-gram a second time. It follows from that of the step before.
    """

    n: Array
    tokens: Array  # [R, W], -1 where there is no text yet
    shared: Array  # [R, W + 1], the last one for the place that comes next


@dataclass(frozen=True)
class NoRepeatNgram:
    """Never draw a token that would complete a sequence of this many tokens a second time; the prompt counts.

    Only the last ``window`` tokens are looked at. Where every token would be ruled out, none is. Paulus et al. 2018,
    arXiv:1705.04304, section 2.5.
    """

    n: int
    window: int = 1024

    def __post_init__(self) -> None:
        check_whole("no-repeat-ngram", self.n, 1, 1000)
        check_whole("The window of no-repeat-ngram", self.window, self.n, 100_000)

    def init(self, context: Context) -> History:
        prompt = np.asarray(context.prompt, np.int32)[-self.window :]
        tokens, shared = np.full((1, self.window), -1, np.int32), np.zeros((1, self.window + 1), np.int32)
        for token in prompt:
            tokens, shared = _moved(np, tokens, shared, token[None])
        rows = (jnp.asarray(array.repeat(context.rows, 0)) for array in (tokens, shared))
        return History(jnp.int32(self.n), *rows)

    @staticmethod
    def update(state: History, logits: Array, last: Last) -> tuple[History, Array]:
        tokens, shared = _moved(jnp, state.tokens, state.shared, last.token)
        first = last.t == 0
        tokens, shared = jnp.where(first, state.tokens, tokens), jnp.where(first, state.shared, shared)
        completing = jnp.where((shared[:, :-1] >= state.n - 1) & (tokens >= 0), tokens, -1)
        rows, vocab = logits.shape
        if vocab <= COMPARED:
            ids = jnp.arange(vocab, dtype=jnp.int32)
            banned = jnp.any(completing[:, None, :] == ids[None, :, None], axis=-1)
        else:
            target = jnp.where(completing < 0, vocab, completing)  # beyond the end, where nothing is written
            banned = jnp.zeros((rows, vocab), bool).at[jnp.arange(rows)[:, None], target].set(True, mode="drop")
        left = jnp.where(banned, -jnp.inf, logits)
        return History(state.n, tokens, shared), unless_empty(left, logits)


def _moved(xp: Any, tokens: Any, shared: Any, token: Any) -> tuple[Any, Any]:
    """Both with one more ``token`` [R] at the end of the text; ``xp`` is NumPy or its JAX face."""
    tokens = xp.concatenate([tokens[:, 1:], token[:, None]], axis=1)
    # What stands in front of the next place is this one's token and, if that is the new token, what it shared.
    after = xp.where(tokens == token[:, None], shared[:, 1:] + 1, 0)
    return tokens, xp.concatenate([xp.zeros_like(shared[:, :1]), after], axis=1)
