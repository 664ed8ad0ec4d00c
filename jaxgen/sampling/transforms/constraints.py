"""Transforms that forbid, favour or force given tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from jaxgen.errors import UsageError, check_int
from jaxgen.sampling.transforms.base import Context, Last, Logits, check_ids, check_number, padded, unless_empty
from jaxgen.types import ArrayLike, TokenId


@dataclass(frozen=True)
class Forbid:
    """Never draw any of these tokens. ``<pad>`` and ``<unk>`` are always among them.

    Example:
        >>> from jaxgen.sampling.transforms import Forbid
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = Forbid((1,)), jnp.array([[3.0, 2.0, 1.0]])
        >>> state, logits = transform.update(transform.init(Context(rows=1, vocab=3)), logits, Last.none(1))
        >>> logits.tolist()
        [[3.0, -inf, 1.0]]
    """

    ids: tuple[TokenId, ...]

    def init(self, context: Context) -> np.ndarray:
        check_ids("Forbid", self.ids, context.vocab)
        if len(set(self.ids)) >= context.vocab:
            raise UsageError("Forbid got every token of the vocabulary: leave at least one to draw.")
        forbidden = np.zeros(context.vocab, bool)  # in NumPy, which needs no compilation
        forbidden[list(self.ids)] = True
        return forbidden

    @staticmethod
    def update(state: ArrayLike, logits: Logits, last: Last) -> tuple[ArrayLike, Logits]:
        return state, jnp.where(state[None, :], -jnp.inf, logits)


@dataclass(frozen=True)
class Bias:
    """Add a number to the logit of each of these tokens: +1 makes a token 2.7 times as probable relative to others.

    Example:
        >>> from jaxgen.sampling.transforms import Bias
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = Bias(((1, 0.5),)), jnp.array([[3.0, 2.0, 1.0]])
        >>> state, logits = transform.update(transform.init(Context(rows=1, vocab=3)), logits, Last.none(1))
        >>> logits.tolist()
        [[3.0, 2.5, 1.0]]
    """

    biases: tuple[tuple[TokenId, float], ...]

    def __post_init__(self) -> None:
        for _, value in self.biases:
            check_number("A bias", value, -1e4, 1e4, "a number from -10000 to 10000; to rule a token out, forbid it")

    def init(self, context: Context) -> np.ndarray:
        check_ids("Bias", [i for i, _ in self.biases], context.vocab)
        bias = np.zeros(context.vocab, np.float32)
        for i, value in self.biases:
            bias[i] += value
        return bias

    @staticmethod
    def update(state: ArrayLike, logits: Logits, last: Last) -> tuple[ArrayLike, Logits]:
        return state, jnp.where(state[None, :] == 0, logits, logits + state[None, :])


@dataclass(frozen=True)
class Force:
    """Begin the generated text with these tokens. They are drawn with probability 1 and count as generated.

    A forbidden token cannot be forced: its step then draws from the unchanged logits.

    Example:
        >>> from jaxgen.sampling.transforms import Force
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = Force((2,)), jnp.array([[3.0, 2.0, 1.0]])
        >>> state, logits = transform.update(transform.init(Context(rows=1, vocab=3)), logits, Last.none(1))
        >>> logits.tolist()
        [[-inf, -inf, 1.0]]
    """

    #: The command-line flag encodes its texts as one sequence of tokens, not as a set.
    in_order: ClassVar[bool] = True

    ids: tuple[TokenId, ...]

    def init(self, context: Context) -> np.ndarray:
        check_ids("Force", self.ids, context.vocab)
        return padded(self.ids, -1, np.int32)

    @staticmethod
    def update(state: ArrayLike, logits: Logits, last: Last) -> tuple[ArrayLike, Logits]:
        size = state.shape[0]
        token = jnp.where(last.t < size, jnp.asarray(state)[jnp.minimum(last.t, size - 1)], -1)
        ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :]
        forced = jnp.where(ids == token, logits, -jnp.inf)
        return state, jnp.where(token < 0, logits, unless_empty(forced, logits))


class Least(NamedTuple):
    """The minimum length, and which tokens end a text."""

    n: Int[ArrayLike, ""]
    ends: Bool[ArrayLike, "V"]


@dataclass(frozen=True)
class MinLength:
    """Do not let a text end before it has this many tokens, unless nothing else is possible.

    Example:
        >>> from jaxgen.sampling.transforms import MinLength
        >>> from jaxgen.sampling.transforms.base import Context, Last
        >>> transform, logits = MinLength(5), jnp.array([[3.0, 2.0, 1.0]])
        >>> state, logits = transform.update(transform.init(Context(rows=1, vocab=3, eos=2)), logits, Last.none(1))
        >>> logits.tolist()
        [[3.0, 2.0, -inf]]
    """

    n: int

    def __post_init__(self) -> None:
        check_int("The minimum length", self.n, 0)

    def init(self, context: Context) -> Least:
        return Least(np.array(min(self.n, 2**31 - 1), np.int32), np.arange(context.vocab) == context.eos)

    @staticmethod
    def update(state: Least, logits: Logits, last: Last) -> tuple[Least, Logits]:
        held = jnp.where((last.t < state.n) & state.ends[None, :], -jnp.inf, logits)
        return state, unless_empty(held, logits)
