"""The interface of logit transforms, chains of them, and helpers that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from jaxgen.errors import UsageError, check_int
from jaxgen.types import Array, ArrayLike

#: The logits of the next token of B rows.
Logits: TypeAlias = Float[Array, "B V"]


class Context(NamedTuple):
    """What is known before the first token is drawn. All rows share it.

    Attributes:
        rows: B.
        vocab: V.
        prompt: The ids read so far.
        eos: The id of <eos>; -1 if there is none.
        pieces: The text of each token; empty for those that are never drawn or have part of a character.
        held: A text with which the first tokens begin that belongs to the prompt.
        length: The tokens of a whole text.
        runs_on: Whether the model was trained on running text, which has no <eos>.
    """

    rows: int
    vocab: int
    prompt: Int[np.ndarray, "length"] = np.zeros(0, np.int32)
    eos: int = -1
    pieces: Sequence[str] = ()
    held: str = ""
    length: int = 2**31 - 1
    runs_on: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(B, V)"""
        return self.rows, self.vocab


class Last(NamedTuple):
    """The position in the decode loop: ``t`` tokens drawn so far, and the last ``token`` (-1 before the first)."""

    t: Int[ArrayLike, ""]
    token: Int[ArrayLike, "B"]

    @classmethod
    def none(cls, rows: int) -> Last:
        """The position before the first token."""
        return cls(np.zeros((), np.int32), np.full(rows, -1, np.int32))


@runtime_checkable
class Transform(Protocol):
    """A pair (init, update), as in optax. An entry of ``TRANSFORMS`` is a frozen dataclass; its fields are its options.

    ``init(context)`` runs on the host and returns the state. The options are part of the state, as arrays, so changing
    their values does not recompile. ``update(state, logits, last)`` is a pure function in float32 that treats rows
    independently. It must keep at least one of the remaining tokens and must not restore a logit of -inf.
    """

    def init(self, context: Context) -> PyTree: ...

    @staticmethod
    def update(state: PyTree, logits: Logits, last: Last) -> tuple[PyTree, Logits]: ...


#: The classes of a chain's transforms: the static part of a chain, which compiled functions are specialised on.
Kinds = tuple[type[Any], ...]


@dataclass(frozen=True)
class Chain:
    """Transforms applied in sequence; itself a pair (init, update)."""

    transforms: tuple[Any, ...] = field(default=())

    @property
    def kinds(self) -> Kinds:
        return tuple(type(transform) for transform in self.transforms)

    def init(self, context: Context) -> tuple[PyTree, ...]:
        """The initial states, in order."""
        return tuple(transform.init(context) for transform in self.transforms)

    def update(self, states: Sequence[PyTree], logits: Logits, last: Last) -> tuple[tuple[PyTree, ...], Logits]:
        """The new states and the logits after all transforms."""
        return update_chain(self.kinds, states, logits, last)


def chain(*transforms: Transform | Chain) -> Chain:
    """A chain that applies the transforms in this order. Nested chains are flattened.

    Example:
        >>> from jaxgen.sampling.transforms import TopK, TopP
        >>> jaxgen.chain(TopK(40), TopP(0.95)).transforms
        (TopK(k=40), TopP(p=0.95))
    """
    flat: list[Transform] = []
    for transform in transforms:
        flat += transform.transforms if isinstance(transform, Chain) else [transform]
    return Chain(tuple(flat))


def update_chain(
    kinds: Kinds, states: Sequence[PyTree], logits: Logits, last: Last
) -> tuple[tuple[PyTree, ...], Logits]:
    """``Chain.update`` of a chain that is given as the classes and the states of its transforms."""
    after = []
    for kind, state in zip(kinds, states):
        state, logits = kind.update(state, logits, last)
        after.append(state)
    return tuple(after), logits


def check_number(name: str, value: object, least: float, most: float, allowed: str) -> None:
    """Raise ``UsageError`` unless ``value`` is a number from ``least`` to ``most``; ``allowed`` is for the message."""
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not least <= value <= most:  # type: ignore[operator]
        raise UsageError(f"{name} of {value} cannot be used: give {allowed}.")


def check_ids(name: str, ids: Sequence[int], vocab: int) -> None:
    """Raise ``UsageError`` unless every one of ``ids`` is a token of the vocabulary."""
    for i in ids:
        check_int(f"A token id of {name}", i, 0, vocab - 1)


def padded(values: Sequence[float], fill: float, dtype: Any, least: int = 64) -> np.ndarray:
    """``values`` and ``fill`` up to the next power of two, so that tables of similar length share compiled code."""
    size = max(least, 1 << (len(values) - 1).bit_length() if values else 0)
    table = np.full(size, fill, dtype)
    table[: len(values)] = values
    return table


def unless_empty(logits: Logits, before: Logits) -> Logits:
    """``logits``, but ``before`` in rows where no token would be left."""
    left = jnp.any(logits > -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(left, logits, before)


def bounded(logits: Logits) -> Logits:
    """Clip scaled logits to the largest float32.

    An overflow would make the softmax NaN. Very large logits that do not overflow can do so too: XLA may recompute the
    product in a fused multiply-add where the softmax subtracts the maximum. The product is not rounded there, so a
    difference that should be 0 can overflow ``exp``. The minimum prevents this fusion; an optimization barrier does
    not.
    """
    return jnp.minimum(logits, jnp.finfo(jnp.float32).max)
