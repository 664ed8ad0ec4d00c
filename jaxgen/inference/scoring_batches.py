"""Stretches of text laid side by side in rows of one shape, so that many are scored at once and nothing recompiles."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

#: Steps of a compiled call.
CHUNK = 64
#: Targets that a text without windows is scored in at a time.
STRETCH = 4_096
#: Steps that the shortest row has at least before its rows are scored.
FILL = 4 * CHUNK


class Segment(NamedTuple):
    """A stretch of a text: the model reads ``tokens`` [n] and predicts ``targets`` [n].

    The first ``skip`` of them only warm the state. ``fresh``: the state starts anew in front of it.
    """

    tokens: np.ndarray
    targets: np.ndarray
    skip: int = 0
    fresh: bool = True


@dataclass(frozen=True)
class PackedBatch:
    """Segments laid in rows: fields [R, C], with C a multiple of ``CHUNK``.

    ``places`` says for each segment in order where its scored targets lie: row, first column, end column.
    """

    tokens: np.ndarray
    targets: np.ndarray
    reset: np.ndarray
    valid: np.ndarray
    places: list[tuple[int, int, int]]


def stateful_segments(ids: Iterable[np.ndarray], start: int) -> Iterator[Segment]:
    """A whole text, each stretch going on from the one before it; ``start`` is read in front of its first token."""
    fresh = True
    for targets in rechunk(ids, STRETCH):  # the same stretches, and bits, wherever the text was cut
        yield whole(targets, start)._replace(fresh=fresh)
        start, fresh = int(targets[-1]), False


def windows(ids: Iterable[np.ndarray], start: int, length: int, burn_in: int = 0) -> Iterator[Segment]:
    """Stretches of ``length`` targets, each from a fresh state that has read up to ``burn_in`` earlier targets.

    The first token that a stretch reads is the one in front of it, as in ``window_eval``.
    """
    context = np.array([start], np.int32)
    for targets in rechunk(ids, length):
        skip = context.size - 1
        read = np.concatenate([context, targets])
        yield Segment(read[:-1], read[1:], skip)
        context = read[-(burn_in + 1) :]


def whole(ids: np.ndarray, start: int) -> Segment:
    """A text in one segment; ``start`` is read in front of its first token."""
    return Segment(np.concatenate([np.array([start], np.int32), ids])[: ids.size], ids)


def rechunk(arrays: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same ids in arrays of ``size``, the last of what is left."""
    held: list[np.ndarray] = []
    count = 0
    for array in arrays:
        held.append(array)
        count += array.size
        if count >= size:
            joined = np.concatenate(held)
            end = count // size * size
            yield from joined[:end].reshape(-1, size)
            held, count = [joined[end:]], count - end
    if count:
        yield np.concatenate(held)


def pack(segments: Iterable[Segment], rows: int) -> Iterator[PackedBatch]:
    """Lay segments in ``rows`` rows, the next always behind the shortest, and hand them out when all rows have some.

    Those that are not ``fresh`` take one row, where they lie behind the segment that they go on from.
    """
    lanes: list[tuple[int, int]] = [(0, row) for row in range(rows)]
    held: list[tuple[int, int, Segment]] = []
    for segment in segments:
        filled, row = lanes[0]
        heapq.heapreplace(lanes, (filled + segment.targets.size, row))
        held.append((row, filled, segment))
        if lanes[0][0] >= FILL:
            yield _slab(held, rows, max(lanes)[0])
            lanes, held = [(0, row) for row in range(rows)], []
    if held:
        yield _slab(held, rows, max(lanes)[0])


def _slab(held: list[tuple[int, int, Segment]], rows: int, steps: int) -> PackedBatch:
    shape = rows, max(-(-steps // CHUNK), 1) * CHUNK  # one chunk of nothing for empty texts
    tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    reset, valid = np.zeros(shape, bool), np.zeros(shape, bool)
    places = []
    for row, at, segment in held:
        end = at + segment.targets.size
        tokens[row, at:end], targets[row, at:end], valid[row, at:end] = segment.tokens, segment.targets, True
        reset[row, at : min(at + 1, end)] = segment.fresh
        places.append((row, at + segment.skip, end))
    return PackedBatch(tokens, targets, reset, valid, places)
