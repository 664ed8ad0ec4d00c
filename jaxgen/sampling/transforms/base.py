"""What a logit transform is, and chains of them: what happens to the model's logits before a token is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from jaxgen.errors import UsageError
from jaxgen.types import Array


class Context(NamedTuple):
    """What is known before the first token is drawn. ``prompt`` holds the ids read so far, the same for every row."""

    rows: int
    vocab: int
    prompt: np.ndarray = np.zeros(0, np.int32)
    eos: int = -1

    @property
    def shape(self) -> tuple[int, int]:
        """(R, V)"""
        return self.rows, self.vocab


class Last(NamedTuple):
    """Where the decode loop stands: ``t`` tokens drawn so far, ``token`` [R] the last of them, -1 before the first."""

    t: Array
    token: Array

    @classmethod
    def none(cls, rows: int) -> Last:
        """Before the first token."""
        return cls(jnp.zeros((), jnp.int32), jnp.full(rows, -1, jnp.int32))


@runtime_checkable
class Transform(Protocol):
    """A pair (init, update), as in optax. An entry of ``TRANSFORMS`` is a frozen dataclass; its fields are its options.

    ``init(context)`` returns the state, on the host, with the options in it as arrays, so that other values need no new
    compilation. ``update(state, logits, last)`` is a pure function [R, V] -> [R, V] in float32 whose rows do not see
    each other; it leaves at least one token that was there before, and brings back none that was -inf.
    """

    def init(self, context: Context) -> Any: ...

    @staticmethod
    def update(state: Any, logits: Array, last: Last) -> tuple[Any, Array]: ...


#: The classes of a chain's transforms: all that a compiled function needs to know of it.
Kinds = tuple[type[Any], ...]


@dataclass(frozen=True)
class Chain:
    """Transforms applied one after the other; itself a pair (init, update)."""

    transforms: tuple[Any, ...] = field(default=())

    @property
    def kinds(self) -> Kinds:
        return tuple(type(transform) for transform in self.transforms)

    def init(self, context: Context) -> tuple[Any, ...]:
        """The states, in order."""
        return tuple(transform.init(context) for transform in self.transforms)

    def update(self, states: Sequence[Any], logits: Array, last: Last) -> tuple[tuple[Any, ...], Array]:
        """Apply all to logits [R, V]."""
        return update_chain(self.kinds, states, logits, last)


def chain(*transforms: Any) -> Chain:
    """The transforms in the order in which they are applied; a chain among them is taken apart."""
    flat: list[Any] = []
    for transform in transforms:
        flat += transform.transforms if isinstance(transform, Chain) else [transform]
    return Chain(tuple(flat))


def update_chain(kinds: Kinds, states: Sequence[Any], logits: Array, last: Last) -> tuple[tuple[Any, ...], Array]:
    """Apply a chain, given as the classes and the states of its transforms, to logits [R, V]."""
    after = []
    for kind, state in zip(kinds, states):
        state, logits = kind.update(state, logits, last)
        after.append(state)
    return tuple(after), logits


def check_number(name: str, value: Any, least: float, most: float, allowed: str) -> None:
    """Raise ``UsageError`` unless ``value`` is a number from ``least`` to ``most``; ``allowed`` says so in words."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not least <= value <= most:
        raise UsageError(f"{name} of {value} cannot be used: give {allowed}.")


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """Raise ``UsageError`` unless ``value`` is a whole number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        allowed = f"from {least} to {most}" if most < 10**18 else f"of {least} or more"
        raise UsageError(f"{name} of {value} cannot be used: give a whole number {allowed}.")


def check_ids(name: str, ids: Sequence[int], vocab: int) -> None:
    """Raise ``UsageError`` unless every one of ``ids`` is a token of the vocabulary."""
    wrong = [i for i in ids if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not 0 <= i < vocab]
    if wrong:
        raise UsageError(f"{name} got the token ids {wrong}: ids go from 0 to {vocab - 1}.")


def padded(values: Sequence[float], fill: float, dtype: Any, least: int = 64) -> np.ndarray:
    """``values`` with ``fill`` behind, to the next power of two: tables of different lengths share compiled code."""
    size = max(least, 1 << (len(values) - 1).bit_length() if values else 0)
    table = np.full(size, fill, dtype)
    table[: len(values)] = values
    return table


def unless_empty(logits: Array, before: Array) -> Array:
    """``logits``, or ``before`` in rows where no token would be left."""
    left = jnp.any(logits > -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(left, logits, before)


def bounded(logits: Array) -> Array:
    """``logits`` that were multiplied, at most the largest float32.

    Without it an overflow makes a softmax NaN, and so does XLA with very large logits that do not overflow: where the
    largest is subtracted it makes the product anew, in one operation that does not round, and what should be 0 is more
    than ``exp`` can take. Between the two, the minimum keeps them apart; an optimisation barrier does not.
    """
    return jnp.minimum(logits, jnp.finfo(jnp.float32).max)
