"""Evaluation batches of one shape: a whole split with carried state, or seeded windows from a zero state."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxgen.data.packing import DocumentPacker
from jaxgen.data.tokens import Tokens, check_sizes, random_bits
from jaxgen.errors import UsageError
from jaxgen.tokenizers.base import PAD
from jaxgen.types import Batch, ConditionedBatch


def stream_eval(
    tokens: Tokens, lanes: int, seq_len: int, burn_in: int = 256, limit_tokens: int | None = None
) -> Iterator[Batch | ConditionedBatch]:
    """Yields every target of a split once, in batches [lanes, seq_len] that carry the state from one to the next.

    Running text is divided among the lanes. Each lane but the first reads up to ``burn_in`` earlier tokens, masked, to
    warm up its state; lanes that a short split does not need are masked. Documents stay whole, and their EOS is scored.
    ``limit_tokens`` keeps only the beginning of the split, at least one document.
    """
    check_sizes(lanes=lanes, seq_len=seq_len)
    if limit_tokens is not None:
        check_sizes(limit_tokens=limit_tokens)
        tokens = _prefix(tokens, limit_tokens)
    if burn_in < 0:
        raise UsageError(f"The burn-in is {burn_in}; it must be 0 or more tokens.")
    if tokens.doc_starts is None:
        return _running_text(tokens.ids, lanes, seq_len, burn_in)
    return _documents(tokens, lanes, seq_len)


def window_eval(tokens: Tokens, n_windows: int, length: int, seed: int, batch_size: int) -> Iterator[Batch]:
    """Yields ``n_windows`` uniformly drawn windows, each from a zero state, in batches [batch_size, length].

    Rows that fill the last batch are masked. A split shorter than length + 1 has no windows.
    """
    check_sizes(n_windows=n_windows, length=length, batch_size=batch_size, seed=seed)
    return _windows(tokens, n_windows, length, seed, batch_size)


def _prefix(tokens: Tokens, limit: int) -> Tokens:
    if tokens.doc_starts is None:
        return Tokens(tokens.ids[: max(2, limit)], None, 0, 0)
    ends = np.append(tokens.doc_starts[1:], tokens.ids.size)
    keep = max(1, int(np.searchsorted(ends, limit, side="right")))
    if not ends.size:
        return tokens
    known = tokens.conditions and tokens.conditions._replace(of=np.asarray(tokens.conditions.of)[:keep])
    return Tokens(tokens.ids[: ends[keep - 1]], tokens.doc_starts[:keep], 0, 0, conditions=known)


def _running_text(ids: np.ndarray, lanes: int, seq_len: int, burn_in: int) -> Iterator[Batch]:
    n_targets = ids.size - 1
    if n_targets < 1:
        return
    # A lane with a share smaller than its burn-in would cost more than it saves.
    used = max(1, min(lanes, n_targets // max(burn_in, seq_len)))
    # Lane b predicts ids[share[b]:share[b + 1]]; unused lanes have an empty share at the end.
    share = np.full(lanes + 1, ids.size, np.int64)
    share[: used + 1] = 1 + np.arange(used + 1) * n_targets // used
    first, last = share[:-1], share[1:]
    begin = np.where(first < last, np.maximum(1, first - burn_in), last)
    for start in range(0, int((last - begin).max()), seq_len):
        at = (begin + start)[:, None] + np.arange(seq_len)
        there = at < last[:, None]
        at = np.where(there, at, 1)
        reset = np.zeros(at.shape, bool)
        reset[:, 0] = start == 0
        yield Batch(
            np.where(there, ids[at - 1], PAD).astype(np.int32),
            np.where(there, ids[at], PAD).astype(np.int32),
            reset,
            there & (at >= first[:, None]),
        )


def _documents(tokens: Tokens, lanes: int, seq_len: int) -> Iterator[Batch | ConditionedBatch]:
    if tokens.doc_starts is None or tokens.doc_starts.size == 0:
        return
    packer = DocumentPacker(tokens, lanes)
    packed = packer.pack(np.arange(packer.count), np.arange(lanes))
    for start in range(0, packer.longest, seq_len):
        yield packed.window(start, seq_len)


def _windows(tokens: Tokens, n_windows: int, length: int, seed: int, batch_size: int) -> Iterator[Batch]:
    ids = tokens.ids
    if ids.size < length + 1:
        return
    starts = (random_bits(n_windows, seed, 0, "evaluation") % np.uint64(ids.size - length)).astype(np.int64)
    for k in range(0, n_windows, batch_size):
        rows = starts[k : k + batch_size]
        mask = np.arange(batch_size) < rows.size
        at = np.pad(rows, (0, batch_size - rows.size))[:, None] + np.arange(length)
        reset = _begins(at + 1, tokens.doc_starts)
        reset[:, 0] = True
        yield Batch(
            ids[at].astype(np.int32), ids[at + 1].astype(np.int32), reset, np.repeat(mask[:, None], length, axis=1)
        )


def _begins(at: np.ndarray, starts: np.ndarray | None) -> np.ndarray:
    """Returns which positions are in the ascending ``starts``."""
    if starts is None or not starts.size:
        return np.zeros(at.shape, bool)
    return starts[np.minimum(np.searchsorted(starts, at), starts.size - 1)] == at
