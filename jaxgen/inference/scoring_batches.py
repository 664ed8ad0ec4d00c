"""Packs segments of texts into batches of few shapes, to score many at once without recompilation."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

#: Steps of a compiled call.
CHUNK = 64
#: Targets of a segment of a text that is scored without windows.
SEGMENT = 4_096
#: Steps that every row has before a batch is scored.
FILL = 4 * CHUNK


class Segment(NamedTuple):
    """A part of a text: the model reads ``tokens`` [n] and predicts ``targets`` [n].

    The first ``skip`` targets are not scored: they warm up the state. ``fresh``: starts from a zero state.
    """

    tokens: np.ndarray
    targets: np.ndarray
    skip: int = 0
    fresh: bool = True


@dataclass(frozen=True)
class PackedBatch:
    """Segments packed into rows: fields [R, C], where C is a multiple of ``CHUNK``.

    ``places`` has the row, first column and end column of the scored targets of each segment, in order.
    """

    tokens: np.ndarray
    targets: np.ndarray
    reset: np.ndarray
    valid: np.ndarray
    places: list[tuple[int, int, int]]


def stateful_segments(ids: Iterable[np.ndarray], start: int) -> Iterator[Segment]:
    """Yields a text as segments that each continue the state of the one before; ``start`` is read first."""
    fresh = True
    for targets in rechunk(ids, SEGMENT):  # the same segments, and bits, wherever the text was cut
        yield whole_segment(targets, start)._replace(fresh=fresh)
        start, fresh = int(targets[-1]), False


def windows(ids: Iterable[np.ndarray], start: int, length: int, burn_in: int = 0) -> Iterator[Segment]:
    """Yields segments of ``length`` targets, each from a fresh state that reads up to ``burn_in`` earlier tokens.

    The first token that a segment reads is the one before it, as in ``window_eval``.
    """
    context = np.array([start], np.int32)
    for targets in rechunk(ids, length):
        skip = context.size - 1
        read = np.concatenate([context, targets])
        yield Segment(read[:-1], read[1:], skip)
        context = read[-(burn_in + 1) :]


def whole_segment(ids: np.ndarray, start: int) -> Segment:
    """Returns a text as one segment; ``start`` is read before its first token."""
    return Segment(np.concatenate([np.array([start], np.int32), ids])[: ids.size], ids)


def rechunk(arrays: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yields the same ids in arrays of ``size``; the last one may be shorter."""
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
    """Packs segments into batches of ``rows`` rows; the next segment is always appended to the shortest row.

    Segments that are not ``fresh`` need a single row, so that they follow the segment that they continue.
    """
    lanes: list[tuple[int, int]] = [(0, row) for row in range(rows)]
    held: list[tuple[int, int, Segment]] = []
    for segment in segments:
        filled, row = lanes[0]
        heapq.heapreplace(lanes, (filled + segment.targets.size, row))
        held.append((row, filled, segment))
        if lanes[0][0] >= FILL:
            yield _batch(held, rows, max(lanes)[0])
            lanes, held = [(0, row) for row in range(rows)], []
    if held:
        yield _batch(held, rows, max(lanes)[0])


def _batch(held: list[tuple[int, int, Segment]], rows: int, steps: int) -> PackedBatch:
    shape = rows, max(-(-steps // CHUNK), 1) * CHUNK  # one empty chunk for empty texts
    tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    reset, valid = np.zeros(shape, bool), np.zeros(shape, bool)
    places = []
    for row, at, segment in held:
        end = at + segment.targets.size
        tokens[row, at:end], targets[row, at:end], valid[row, at:end] = segment.tokens, segment.targets, True
        reset[row, at : min(at + 1, end)] = segment.fresh
        places.append((row, at + segment.skip, end))
    return PackedBatch(tokens, targets, reset, valid, places)
