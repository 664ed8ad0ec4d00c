"""Batches as windows of a text, in terms that both halves share: a step's data are B places and not B * T tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgen.types import Array, ArrayLike, Batch, ConditionedBatch


class WindowIndex(NamedTuple):
    """Which windows of a text a batch is; K of them stacked have K in front."""

    start: ArrayLike  # integer [B], where each row's window begins
    stop: ArrayLike  # integer [B], of documents: where its lane ends and padding begins
    fresh: ArrayLike | np.bool_  # bool [], whether the rows start from a fresh state


class Conditions(NamedTuple):
    """What is known of documents beside their text: each has one of a few vectors."""

    of: ArrayLike  # integer [N], which one: of each document, or of the document that each position of a text is in
    vectors: ArrayLike  # float32 [K, C]


class Windows(NamedTuple):
    """K batches as windows of one text."""

    text: ArrayLike  # ids [N], of any integer type
    window_index: WindowIndex
    conditions: Conditions | None = None  # of the positions of ``text``


def read_window(text: Any, places: WindowIndex, length: int, eos: int | None, pad: int, xp: Any) -> Batch:
    """The batch [B, T] at ``places`` of ``text``: at each position an id, and the one behind it as the target.

    Running text (``eos`` is None) goes on at its beginning after its end: there the state starts afresh and the target
    is masked. Of documents, one behind the other with ``eos`` in front of each and behind the last, every ``eos`` that
    is read starts one; beyond ``stop`` there is ``pad``, masked. ``xp`` is ``jax.numpy`` or ``numpy``.
    """
    start, stop, fresh = places
    step = xp.arange(length)[None, :]
    at, n = start[:, None] + step, text.shape[0]
    tokens, targets = (text[(at + shift) % n].astype(xp.int32) for shift in (0, 1))
    if eos is None:
        return Batch(tokens, targets, (at % n == 0) | ((step == 0) & fresh), at % n != n - 1)
    there = at < stop[:, None]
    reset = xp.where(there, tokens == eos, at == stop[:, None])
    return Batch(xp.where(there, tokens, pad), xp.where(there, targets, pad), reset, there)


def read_conditioned(
    text: Any, conditions: Conditions | None, places: WindowIndex, length: int, eos: int | None, pad: int, xp: Any
) -> Batch | ConditionedBatch:
    """``read_window``, and with ``conditions`` the vector of the document that each position is in.

    Of a text that begins with ``eos``, a document's first position is the ``eos`` in front of it.
    """
    batch = read_window(text, places, length, eos, pad, xp)
    if conditions is None:
        return batch
    at = (places.start[:, None] + xp.arange(length)[None, :]) % text.shape[0]
    return ConditionedBatch(batch, conditions.vectors[conditions.of[at]])


@dataclass(frozen=True)
class HostBatches:
    """Batches as they are: a tree of arrays [K, B, ...]."""

    def count(self, batches: Any) -> int:
        """K."""
        return jnp.shape(jax.tree.leaves(batches)[0])[0]

    def __call__(self, batches: Any, i: Array | int) -> Any:
        """The i-th batch."""
        return jax.tree.map(lambda field: lax.dynamic_index_in_dim(jnp.asarray(field), i, keepdims=False), batches)


HOST_BATCHES = HostBatches()


@dataclass(frozen=True)
class DeviceText:
    """Batches as ``Windows`` of ``length`` tokens."""

    length: int
    eos: int | None
    pad: int

    def count(self, windows: Windows) -> int:
        """K."""
        return jnp.shape(windows.window_index.start)[0]

    def __call__(self, windows: Windows, i: Array | int) -> Batch | ConditionedBatch:
        """The i-th batch."""
        places = jax.tree.map(
            lambda a: lax.dynamic_index_in_dim(jnp.asarray(a), i, keepdims=False), windows.window_index
        )
        text, conditions = jax.tree.map(jnp.asarray, (windows.text, windows.conditions))
        return read_conditioned(text, conditions, places, self.length, self.eos, self.pad, jnp)
