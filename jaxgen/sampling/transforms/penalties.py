"""Penalties for tokens that have occurred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.sampling.transforms.base import Context, Last, bounded, check_number
from jaxgen.types import Array


class Seen(NamedTuple):
    """A penalty and the tokens that have occurred."""

    penalty: Array
    seen: Array  # bool [R, V]


class Counted(NamedTuple):
    """A penalty and how often each token has occurred."""

    penalty: Array
    counts: Array  # int32 [R, V]


@dataclass(frozen=True)
class RepetitionPenalty:
    """Divide the logit of every token that has occurred by this, or multiply it if negative; the prompt counts.

    Keskar et al. 2019, arXiv:1909.05858, section 4.1, in the form for logits of both signs that has become usual.
    """

    penalty: float

    def __post_init__(self) -> None:
        check_number("A repetition penalty", self.penalty, 1e-2, 1e2, "a number from 0.01 to 100 (1: none)")

    def init(self, context: Context) -> Seen:
        seen = np.zeros(context.shape, bool)
        seen[:, context.prompt] = True
        return Seen(jnp.float32(self.penalty), jnp.asarray(seen))

    @staticmethod
    def update(state: Seen, logits: Array, last: Last) -> tuple[Seen, Array]:
        seen = state.seen | drawn(last, logits)
        penalised = jnp.where(logits < 0, logits * state.penalty, logits / state.penalty)
        return Seen(state.penalty, seen), bounded(jnp.where(seen, penalised, logits))


@dataclass(frozen=True)
class PresencePenalty:
    """Subtract this from the logit of every token that the generated text already has; the prompt does not count."""

    penalty: float

    def __post_init__(self) -> None:
        check_number("A presence penalty", self.penalty, -100, 100, "a number from -100 to 100 (0: none)")

    def init(self, context: Context) -> Seen:
        return Seen(jnp.float32(self.penalty), jnp.asarray(np.zeros(context.shape, bool)))

    @staticmethod
    def update(state: Seen, logits: Array, last: Last) -> tuple[Seen, Array]:
        seen = state.seen | drawn(last, logits)
        return Seen(state.penalty, seen), jnp.where(seen, logits - state.penalty, logits)


@dataclass(frozen=True)
class FrequencyPenalty:
    """Subtract this from a token's logit once for each time the generated text has it; the prompt does not count."""

    penalty: float

    def __post_init__(self) -> None:
        check_number("A frequency penalty", self.penalty, -100, 100, "a number from -100 to 100 (0: none)")

    def init(self, context: Context) -> Counted:
        return Counted(jnp.float32(self.penalty), jnp.asarray(np.zeros(context.shape, np.int32)))

    @staticmethod
    def update(state: Counted, logits: Array, last: Last) -> tuple[Counted, Array]:
        counts = state.counts + drawn(last, logits).astype(jnp.int32)
        return Counted(state.penalty, counts), logits - state.penalty * counts.astype(jnp.float32)


def drawn(last: Last, logits: Array) -> Array:
    """The last token of every row as bool [R, V]; nothing before the first."""
    return jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :] == last.token[:, None]
