"""The likeliest ways to go on from a state, to choose from."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import UsageError
from jaxgen.run.sampler import Sampler
from jaxgen.run.settings import Settings
from jaxgen.run.state import State
from jaxgen.text import EOS, Tokenizer

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


def continuations(sampler: Sampler, state: State, n: int = 5, length: int = 16) -> list[Continuation]:
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


def _followed(sampler: Sampler, state: State, token: int, logp: np.float32, length: int) -> Continuation:
    """``token`` and what is likeliest behind it."""
    tokens, each = np.array([token], np.int32), np.array([logp], np.float32)
    if token != EOS:
        after, _ = sampler.step(state, token)
        (greedy,) = sampler.samples(settings=Settings(length - 1, temperature=0.0), state=after)
        tokens, each = np.append(tokens, greedy.tokens), np.append(each, greedy.logp)
    whole = _whole_characters(sampler.tokenizer, tokens)
    return Continuation(sampler.tokenizer.decode(tokens[:whole]), tokens[:whole], each[:whole])


def _whole_characters(tokenizer: Tokenizer, tokens: np.ndarray) -> int:
    """How many of ``tokens`` end with a whole character; all of them if none does."""
    counts = range(tokens.size, 0, -1)
    return next((n for n in counts if not tokenizer.decode(tokens[:n]).endswith("\ufffd")), tokens.size)
