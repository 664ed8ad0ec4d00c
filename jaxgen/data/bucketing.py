"""Rows of different lengths in batches of few shapes: every batch is a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from jaxgen.data.tokens import EVERY, check_sizes, permutation

#: Shapes that training compiles at most.
MAX_BUCKETS = 8
#: What stands in a batch for a row that is not there.
PAD_ROW = -1


def bucket_width(length: int) -> int:
    """The width to which ``length`` is padded: 8, 12, 16, 24, 32, 48, 64, 96, …

    It depends on nothing else, so that a row by itself and among others has the same width. Of widths above 8 less
    than a third is padding, and lengths up to L have about 2 log2(L) widths.
    """
    width = 8
    while width < length:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return width


class Buckets:
    """Rows of F lengths each ([N, F]) in at most ``most`` groups; those of a group are padded to the same widths.

    Rows are grouped by the rung of their longest field. Where that makes more than ``most`` groups, the smallest one
    joins the next longer.
    """

    def __init__(self, lengths: np.ndarray, most: int = MAX_BUCKETS) -> None:
        check_sizes(most=most)
        self.lengths = np.asarray(lengths, np.int64).reshape(len(lengths), -1)
        longest = self.lengths.max(axis=1, initial=1)
        rungs = np.array([bucket_width(int(length)) for length in np.unique(longest)])
        group = rungs[np.searchsorted(np.unique(longest), longest)]
        names, counts = np.unique(group, return_counts=True)
        while names.size > most:
            least = int(np.argmin(counts[:-1]))
            group[group == names[least]] = names[least + 1]
            counts[least + 1] += counts[least]
            names, counts = np.delete(names, least), np.delete(counts, least)
        #: The group of each row, [N].
        self.bucket_of = np.searchsorted(names, group)
        #: The widths of each group's fields.
        self.widths = [
            tuple(bucket_width(int(n)) for n in self.lengths[self.bucket_of == k].max(axis=0))
            for k in range(names.size)
        ]

    def __len__(self) -> int:
        return len(self.widths)


#: Makes a batch of rows (``PAD_ROW`` for one that is not there), padded to the widths given.
Pack = Callable[[np.ndarray, tuple[int, ...]], Any]


class RowBatches:
    """Shuffled batches of ``batch_size`` rows of one bucket each; every row is in one batch of an epoch.

    The batches of an epoch are in random order. The last of a bucket is filled up with rows that are not there.
    """

    def __init__(self, buckets: Buckets, batch_size: int, seed: int, pack: Callable[..., Any]) -> None:
        check_sizes(batch_size=batch_size, seed=seed)
        self._buckets, self._size, self._seed, self._pack = buckets, batch_size, seed, pack
        counts = np.bincount(buckets.bucket_of, minlength=len(buckets))
        self.steps_per_epoch = int(np.sum(-(-counts // batch_size)))
        self._plan = lru_cache(maxsize=2)(self._planned)

    def batch(self, step: int, rows: slice = EVERY) -> Any:
        """The batch of a step from 0, or those ``rows`` of it."""
        epoch, place = divmod(step, self.steps_per_epoch)
        bucket, every = self._plan(epoch)[place]
        return self._pack(every[rows], self._buckets.widths[bucket], step)

    def same_shape(self, step: int) -> int:
        """For how many steps from ``step`` on, in its epoch, the widths stay the same."""
        epoch, place = divmod(step, self.steps_per_epoch)
        following = [bucket for bucket, _ in self._plan(epoch)[place:]]
        return next((i for i, bucket in enumerate(following) if bucket != following[0]), len(following))

    def shapes(self) -> list[tuple[int, int]]:
        """For each bucket a step that has it, and how many of an epoch's steps do."""
        planned = [bucket for bucket, _ in self._plan(0)]
        return [(planned.index(bucket), planned.count(bucket)) for bucket in range(len(self._buckets))]

    def _planned(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        order = permutation(self._buckets.bucket_of.size, self._seed, epoch, "rows")
        batches = list(in_batches(self._buckets, self._size, order))
        shuffled = permutation(len(batches), self._seed, epoch, "row batches")
        return [batches[i] for i in shuffled]


def in_batches(buckets: Buckets, size: int, order: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """All rows once, bucket by bucket: (bucket, rows [size]), in ``order`` within each."""
    order = np.arange(buckets.bucket_of.size) if order is None else order
    for bucket in range(len(buckets)):
        rows = order[buckets.bucket_of[order] == bucket]
        for start in range(0, rows.size, size):
            part = rows[start : start + size]
            yield bucket, np.concatenate([part, np.full(size - part.size, PAD_ROW, part.dtype)])


def padded(rows: Sequence[np.ndarray], width: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of different lengths as one array [B, width] padded with ``fill``, and what of it is no padding."""
    ids = np.full((len(rows), width), fill, np.int32)
    lengths = np.array([len(row) for row in rows])
    for to, row in zip(ids, rows):
        to[: len(row)] = row
    return ids, np.arange(width)[None, :] < lengths[:, None]
