"""Batches as windows of a text that stays on the device: a step transfers B positions instead of B * T tokens."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int, PyTree

from jaxgen.types import Array, ArrayLike, Batch, ConditionedBatch


class WindowIndex(NamedTuple):
    """The windows of a text that make up a batch; several batches are stacked in front."""

    start: Int[ArrayLike, "*updates B"]  # where each row's window begins
    stop: Int[ArrayLike, "*updates B"]  # for documents: where the row's tokens end and padding begins
    fresh: Bool[ArrayLike, "*updates B"]  # whether the row starts from the initial state (not for documents)


class Conditions(NamedTuple):
    """The condition vectors of documents; documents with equal vectors share one."""

    of: Int[ArrayLike, "length"]  # index of the vector, for each document or for each position of a text
    vectors: Float[ArrayLike, "conditions condition"]


class Windows(NamedTuple):
    """Several batches as windows of one text."""

    text: Int[ArrayLike, "length"]  # token ids
    window_index: WindowIndex
    offsets: Int[ArrayLike, "T"]  # 0 to T - 1. Its shape is the length of the windows: each is compiled once
    conditions: Conditions | None = None  # of the positions of ``text``


def read_window(text: ArrayLike, places: WindowIndex, length: int, eos: int | None, pad: int, xp: ModuleType) -> Batch:
    """The batch of windows of ``text``; the target at each position is the next token.

    Running text (``eos`` is ``None``) wraps around: at the wrap the state is reset and the target is masked. Documents
    are concatenated, with ``eos`` in front of each and after the last: every ``eos`` in the input resets the state.
    Positions from ``stop`` on are ``pad`` and masked.

    Args:
        text: token ids.
        places: the windows.
        length: tokens of a window, T.
        eos: the token between documents.
        pad: the token in padding.
        xp: ``jax.numpy`` or ``numpy``.
    """
    start, stop, fresh = places
    step = xp.arange(length)[None, :]
    at, n = start[:, None] + step, text.shape[0]
    tokens, targets = (text[(at + shift) % n].astype(xp.int32) for shift in (0, 1))
    if eos is None:
        return Batch(tokens, targets, (at % n == 0) | ((step == 0) & fresh[:, None]), at % n != n - 1)
    there = at < stop[:, None]
    reset = xp.where(there, tokens == eos, at == stop[:, None])
    return Batch(xp.where(there, tokens, pad), xp.where(there, targets, pad), reset, there)


def read_conditioned(
    text: ArrayLike,
    conditions: Conditions | None,
    places: WindowIndex,
    length: int,
    eos: int | None,
    pad: int,
    xp: ModuleType,
) -> Batch | ConditionedBatch:
    """``read_window``, and with ``conditions`` the vector of the document at each position.

    ``conditions.of`` is by position of ``text``; a document's first position is the ``eos`` in front of it.
    """
    batch = read_window(text, places, length, eos, pad, xp)
    if conditions is None:
        return batch
    at = (places.start[:, None] + xp.arange(length)[None, :]) % text.shape[0]
    return ConditionedBatch(batch, conditions.vectors[conditions.of[at]])


@dataclass(frozen=True)
class HostBatches:
    """Stacked batches: a pytree of arrays [updates, B, ...]."""

    def count(self, batches: PyTree) -> int:
        """The number of batches."""
        return jnp.shape(jax.tree.leaves(batches)[0])[0]

    def __call__(self, batches: PyTree, i: Array | int) -> PyTree:
        """The i-th batch."""
        return jax.tree.map(lambda field: lax.dynamic_index_in_dim(jnp.asarray(field), i, keepdims=False), batches)


HOST_BATCHES = HostBatches()


@dataclass(frozen=True)
class DeviceText:
    """Batches as ``Windows``."""

    eos: int | None
    pad: int

    def count(self, windows: Windows) -> int:
        """The number of batches."""
        return jnp.shape(windows.window_index.start)[0]

    def __call__(self, windows: Windows, i: Array | int) -> Batch | ConditionedBatch:
        """The i-th batch."""
        places = jax.tree.map(
            lambda a: lax.dynamic_index_in_dim(jnp.asarray(a), i, keepdims=False), windows.window_index
        )
        text, conditions = jax.tree.map(jnp.asarray, (windows.text, windows.conditions))
        length = jnp.shape(windows.offsets)[0]
        return read_conditioned(text, conditions, places, length, self.eos, self.pad, jnp)
