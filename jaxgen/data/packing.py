"""Packs whole documents into lanes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxgen.errors import DataError
from jaxgen.tokenizers.base import EOS, PAD
from jaxgen.training.windows import Conditions, WindowIndex, read_conditioned
from jaxgen.types import Batch, ConditionedBatch

if TYPE_CHECKING:
    from jaxgen.data.tokens import Tokens

#: Ids that are copied at once.
COPIED_AT_ONCE = 1 << 18


class DocumentPacker:
    """Packs documents into lanes without splitting any: the next longest always goes to the emptiest lane."""

    def __init__(self, tokens: Tokens, lanes: int):
        starts = tokens.doc_starts
        if starts is None or starts.size == 0:
            raise DataError("There are no documents in this split. Prepare the data with the layout documents.")
        self._ids, self._starts, self._conditions = tokens.ids, starts, tokens.conditions
        self._lengths = np.diff(starts, append=tokens.ids.size)
        self.count = starts.size
        ordered = np.sort(self._lengths)[::-1]
        heap = [(0, lane) for lane in range(lanes)]
        self._slots = np.empty(self.count, np.int64)
        for slot, length in enumerate(ordered.tolist()):
            filled, lane = heap[0]
            self._slots[slot] = lane
            heapq.heapreplace(heap, (filled + length, lane))
        self.lanes = lanes
        self.longest = max(filled for filled, _ in heap)

    def pack(self, order: np.ndarray, rows: np.ndarray) -> PackedDocuments:
        """Packs all documents.

        Args:
            order: The order [count] of documents of equal length.
            rows: The row [lanes] of each lane.
        """
        rank = np.empty(self.count, np.int64)
        rank[order] = np.arange(self.count)
        lane = np.empty(self.count, np.int64)
        lane[np.lexsort((rank, -self._lengths))] = rows[self._slots]
        packed = np.lexsort((rank, lane))  # by lane, then by rank
        lengths = self._lengths[packed]
        begin = np.cumsum(lengths) - lengths
        text = np.empty(self._ids.size + 1, self._ids.dtype)
        text[0] = EOS
        for some in _slices(lengths):
            first, stop = begin[some.start], begin[some.stop - 1] + lengths[some.stop - 1]
            from_ = np.repeat(self._starts[packed[some]] - begin[some], lengths[some])
            text[1 + first : 1 + stop] = self._ids[from_ + np.arange(first, stop)]
        filled = np.bincount(lane, weights=self._lengths, minlength=self.lanes).astype(np.int64)
        known = self._conditions
        if known is not None:
            # A document is read from the EOS in front of it; nothing is read after the last one.
            of = np.append(np.repeat(np.asarray(known.of)[packed].astype(number_type(known)), lengths), 0)
            known = Conditions(of.astype(number_type(known)), known.vectors)
        return PackedDocuments(text, np.cumsum(filled) - filled, np.cumsum(filled), known)


def _slices(lengths: np.ndarray) -> Iterator[slice]:
    """Yields slices of about ``COPIED_AT_ONCE`` ids: indices take ten times the memory of ids."""
    ends = np.cumsum(lengths)
    start = 0
    while start < lengths.size:
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + COPIED_AT_ONCE, side="right")))
        yield slice(start, stop)
        start = stop


@dataclass(frozen=True)
class PackedDocuments:
    """Lanes one after the other in a text [N + 1] that begins with EOS; lane b is ``begin[b]`` to ``end[b]``.

    Every document ends with EOS, which is also the first input of the next one.
    """

    text: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    conditions: Conditions | None = None  # of each position of ``text``

    def places(self, start: int) -> WindowIndex:
        """Returns where position ``start`` of every lane lies in the text."""
        return WindowIndex(self.begin + start, self.end, np.bool_(False))

    def window(self, start: int, length: int) -> Batch | ConditionedBatch:
        """Returns the positions from ``start`` of every lane, [lanes, length]; beyond a lane's end PAD, masked."""
        return read_conditioned(self.text, self.conditions, self.places(start), length, EOS, PAD, np)


def number_type(conditions: Conditions) -> np.dtype:
    """Returns the smallest integer type that holds the index of every vector."""
    return np.min_scalar_type(len(conditions.vectors) - 1)
