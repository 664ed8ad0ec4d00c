"""No sequence of n tokens twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.sampling.transforms.base import Context, Last, check_whole, unless_empty
from jaxgen.types import Array


class History(NamedTuple):
    """The last tokens of each row, oldest first, and what each has in common with the end of the text.

    ``shared`` is how many tokens, up to and with the one in this place, equal as many at the end. When the text grows
    by a token, everything moves a place to the left and a place that holds the new token has one more in common than
    what stood there before it: the place keeps its distance from the end.
    """

    n: Array
    tokens: Array  # [R, W + 1], -1 where there is no text yet; the first is the one that has just left the window
    shared: Array  # [R, W + 1]


@dataclass(frozen=True)
class NoRepeatNgram:
    """Never draw a token that would complete a sequence of this many tokens a second time; the prompt counts.

    Only the last ``window`` tokens are looked at; another window compiles anew. Where every token would be ruled out,
    none is. Paulus et al. 2018, arXiv:1705.04304, section 2.5.
    """

    n: int
    window: int = 1024

    def __post_init__(self) -> None:
        check_whole("no-repeat-ngram", self.n, 1, 1000)
        check_whole("The window of no-repeat-ngram", self.window, self.n, 100_000)

    def init(self, context: Context) -> History:
        prompt = np.asarray(context.prompt, np.int32)[-self.window :]
        tokens, shared = np.full((1, self.window + 1), -1, np.int32), np.zeros((1, self.window + 1), np.int32)
        for token in prompt:
            tokens, shared = _moved(np, tokens, shared, token[None])
        rows = (jnp.asarray(array.repeat(context.rows, 0)) for array in (tokens, shared))
        return History(jnp.int32(self.n), *rows)

    @staticmethod
    def update(state: History, logits: Array, last: Last) -> tuple[History, Array]:
        tokens, shared = _moved(jnp, state.tokens, state.shared, last.token)
        first = last.t == 0
        tokens, shared = jnp.where(first, state.tokens, tokens), jnp.where(first, state.shared, shared)
        rows, vocab = logits.shape
        # What a place shares may reach back out of the window, of which only what lies in it counts.
        inside = jnp.arange(tokens.shape[1] - 1, dtype=jnp.int32)[None, :]
        repeats = jnp.minimum(shared[:, :-1], inside) >= state.n - 1
        completing = tokens[:, 1:]
        target = jnp.where(repeats & (completing >= 0), completing, vocab)  # beyond the end nothing is written
        banned = jnp.zeros((rows, vocab), bool).at[jnp.arange(rows)[:, None], target].set(True, mode="drop")
        left = jnp.where(banned, -jnp.inf, logits)
        return History(state.n, tokens, shared), unless_empty(left, logits)


def _moved(xp: Any, tokens: Any, shared: Any, token: Any) -> tuple[Any, Any]:
    """Both with one more ``token`` [R] at the end of the text; ``xp`` is NumPy or its JAX face."""
    tokens = xp.concatenate([tokens[:, 1:], token[:, None]], axis=1)
    return tokens, xp.where(tokens == token[:, None], shared + 1, 0)
