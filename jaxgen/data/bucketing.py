"""Batches of rows of different lengths, in few shapes. Each batch is a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from jaxgen.data.batches import EVERY, Batches, check_batch_sizes, permutation

#: Default maximum number of shapes that training compiles.
MAX_BUCKETS = 8
#: The index of a row of padding.
PAD_ROW = -1


def bucket_width(length: int) -> int:
    """Returns the width to which ``length`` is padded: 8, 12, 16, 24, 32, 48, 64, 96, …

    It depends on nothing else, so a row has the same width alone and in a batch. Above 8, less than a third of a width
    is padding. Lengths up to L have about 2 log2(L) widths.
    """
    width = 8
    while width < length:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return width


class Buckets:
    """Groups rows of F lengths each ([N, F]) into at most ``most`` buckets, each padded to the same widths.

    Rows are grouped by the ``bucket_width`` of their longest field. While there are too many buckets, the smallest one
    is merged into the next longer one.
    """

    def __init__(self, lengths: np.ndarray, most: int = MAX_BUCKETS) -> None:
        check_batch_sizes(most=most)
        self.lengths = np.asarray(lengths, np.int64).reshape(len(lengths), -1)
        longest = self.lengths.max(axis=1, initial=1)
        widths = np.array([bucket_width(int(length)) for length in np.unique(longest)])
        group = widths[np.searchsorted(np.unique(longest), longest)]
        names, counts = np.unique(group, return_counts=True)
        while names.size > most:
            least = int(np.argmin(counts[:-1]))
            group[group == names[least]] = names[least + 1]
            counts[least + 1] += counts[least]
            names, counts = np.delete(names, least), np.delete(counts, least)
        #: The bucket of each row, [N].
        self.bucket_of = np.searchsorted(names, group)
        #: The widths of each bucket's fields.
        self.widths = [
            tuple(bucket_width(int(n)) for n in self.lengths[self.bucket_of == k].max(axis=0))
            for k in range(names.size)
        ]

    def __len__(self) -> int:
        return len(self.widths)


class RowBatches(Batches):
    """Shuffled batches, each of ``batch_size`` rows of one bucket; every row occurs once in an epoch.

    The batches of an epoch are in random order. The last one of a bucket is filled with ``PAD_ROW``. The batch of a
    step is ``pack(rows, widths, step)``.
    """

    def __init__(self, buckets: Buckets, batch_size: int, seed: int, pack: Callable[..., Any]) -> None:
        check_batch_sizes(batch_size=batch_size, seed=seed)
        self._buckets, self._size, self._seed, self._pack = buckets, batch_size, seed, pack
        counts = np.bincount(buckets.bucket_of, minlength=len(buckets))
        self.steps_per_epoch = int(np.sum(-(-counts // batch_size)))
        self._plan = lru_cache(maxsize=2)(self._planned)

    def batch(self, step: int, rows: slice = EVERY) -> Any:
        """Returns the batch of a step (from 0), or only ``rows`` of it."""
        epoch, place = divmod(step, self.steps_per_epoch)
        bucket, every = self._plan(epoch)[place]
        return self._pack(every[rows], self._buckets.widths[bucket], step)

    def same_shape(self, step: int) -> int:
        """Returns for how many steps, from ``step`` on in its epoch, the widths stay the same."""
        epoch, place = divmod(step, self.steps_per_epoch)
        following = [bucket for bucket, _ in self._plan(epoch)[place:]]
        return next((i for i, bucket in enumerate(following) if bucket != following[0]), len(following))

    def shapes(self) -> list[tuple[int, int]]:
        """Returns for each bucket a step that has it, and how many steps of an epoch do."""
        planned = [bucket for bucket, _ in self._plan(0)]
        return [(planned.index(bucket), planned.count(bucket)) for bucket in range(len(self._buckets))]

    def _planned(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        order = permutation(self._buckets.bucket_of.size, self._seed, epoch, "rows")
        batches = list(bucket_batches(self._buckets, self._size, order))
        shuffled = permutation(len(batches), self._seed, epoch, "row batches")
        return [batches[i] for i in shuffled]


def bucket_batches(buckets: Buckets, size: int, order: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (bucket, rows [size]) until every row occurred once, bucket by bucket, in ``order`` within each."""
    order = np.arange(buckets.bucket_of.size) if order is None else order
    for bucket in range(len(buckets)):
        rows = order[buckets.bucket_of[order] == bucket]
        for start in range(0, rows.size, size):
            part = rows[start : start + size]
            yield bucket, np.concatenate([part, np.full(size - part.size, PAD_ROW, part.dtype)])


def pad_rows(rows: Sequence[np.ndarray], width: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads ids of different lengths with ``fill`` to [B, width]; also returns the mask of what is not padding."""
    ids = np.full((len(rows), width), fill, np.int32)
    lengths = np.array([len(row) for row in rows])
    for to, row in zip(ids, rows):
        to[: len(row)] = row
    return ids, np.arange(width)[None, :] < lengths[:, None]
