"""Training batches of tokens. Each batch is a pure function of (seed, step), so a run can resume at any step.

Random numbers are the raw bits of a Philox counter keyed by (seed, purpose, epoch): NumPy guarantees these bits, but
not the results of ``shuffle``.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from jaxgen.errors import DataError, UsageError, check_int, check_kind, choose, counted
from jaxgen.tokenizers.base import EOS, PAD
from jaxgen.training.windows import Conditions, WindowIndex, read_conditioned, read_window
from jaxgen.types import Batch, ConditionedBatch

#: The keys of independent streams of random numbers; they must never change.
PURPOSES = {"split": 1, "stream": 2, "windows": 3, "documents": 4, "lanes": 5, "evaluation": 6}
PURPOSES |= {"dates": 7, "shapes": 8, "snippets": 9, "rows": 10, "row batches": 11, "sequences": 12, "cold starts": 13}
PURPOSES |= {"lengths": 14}

#: All rows of a batch.
EVERY = slice(None)
#: More steps than any run has.
FOREVER = 1 << 62


@dataclass(frozen=True)
class Tokens:
    """The tokens of one split: ids [N].

    ``chars`` and ``bytes`` count the text of the ids (EOS has none), ``words`` its words and line ends (also EOS), and
    ``unknown`` the tokens outside the vocabulary.
    ``doc_starts`` (int64) has the index of each document's first id; a document ends with EOS, and the next one
    follows. It is None for running text. ``conditions`` are the labels and numbers of the documents, if there are any.
    """

    ids: np.ndarray
    doc_starts: np.ndarray | None
    chars: int
    bytes: int
    words: int = 0
    unknown: int = 0
    conditions: Conditions | None = None

    def __repr__(self) -> str:
        return f"<Tokens: {counted(self.ids.size, 'token')}, {counted(self.chars, 'character')}>"

    @property
    def chars_per_token(self) -> float:
        """Characters of text per id (NaN without ids)."""
        return self.chars / self.ids.size if self.ids.size else float("nan")

    @property
    def words_per_token(self) -> float:
        """Words and line ends of text per id, of at least one word (NaN without ids)."""
        return max(self.words, 1) / self.ids.size if self.ids.size else float("nan")

    @property
    def bytes_per_token(self) -> float:
        """Bytes of UTF-8 per id (NaN without ids)."""
        return self.bytes / self.ids.size if self.ids.size else float("nan")


def random_bits(n: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    """Returns ``n`` random 64-bit numbers, uint64 [n], the same on every platform."""
    key = np.array([(PURPOSES[purpose] << 32) + seed, epoch], np.uint64)
    return np.random.Philox(key=key).random_raw(n)


def permutation(n: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    """Returns a random order of 0 to n-1, int64 [n]."""
    return np.argsort(random_bits(n, seed, epoch, purpose), kind="stable")


def check_batch_sizes(**sizes: int) -> None:
    """Raises ``UsageError`` unless every size is a whole number of at least 1 (a ``seed``: 0 to 2**32 - 1)."""
    for name, value in sizes.items():
        check_int(f"The {name.replace('_', ' ')}", value, *((0, (1 << 32) - 1) if name == "seed" else (1,)))


#: Probability of windows of half the usual length.
HALF = 0.05
#: Probabilities of a standard normal number that is rounded to -2 ... 2.
ROUNDED_NORMAL = (0.0668, 0.2417, 0.3830, 0.2417, 0.0668)


@dataclass(frozen=True)
class WindowLengths:
    """How many tokens the windows of each step have: ``usual``, unless they are random or still grow.

    In the first ``warmup`` steps they have a quarter of it, then a half, then three quarters, each for a third of these
    steps (Li et al. 2022, arXiv:2108.06084). Later, with a ``spread``, each step draws its own (Merity et al. 2018,
    arXiv:1708.02182, section 4.1): with probability 0.05 half of the usual length, else the usual one plus a normal
    number with the standard deviation ``spread``, rounded to -2 to 2 times ``spread``. Each of these few lengths is
    compiled once.
    """

    usual: int
    spread: int = 0
    warmup: int = 0

    def __post_init__(self) -> None:
        check_batch_sizes(seq_len=self.usual)
        check_int("The warm-up of the sequence length", self.warmup, 0)
        if check_int("The spread of the sequence length", self.spread, 0) > self.usual // 4:
            raise UsageError(
                f"--seq-len-spread {self.spread} is more than a quarter of --seq-len {self.usual}: give "
                f"{self.usual // 4} or less."
            )

    @property
    def longest(self) -> int:
        """The length of the longest windows."""
        return self.usual + 2 * self.spread

    @property
    def varies(self) -> bool:
        """Whether there are several lengths."""
        return self.spread > 0 or self.warmup > 0

    def of_epoch(self, seed: int, epoch: int, steps: int) -> np.ndarray:
        """Returns the length of each step of an epoch of so many ``steps``, int64 [steps]."""
        lengths = np.full(steps, self.usual, np.int64)
        if self.spread:
            choices = np.append(max(self.usual // 2, 1), self.usual + self.spread * np.arange(-2, 3))
            bounds = np.cumsum([HALF, *((1 - HALF) * share for share in ROUNDED_NORMAL)])[:-1]
            drawn = random_bits(steps, seed, epoch, "lengths") * 2.0**-64
            lengths = choices[np.searchsorted(bounds, drawn, side="right")]
        step = epoch * steps + np.arange(steps, dtype=np.int64)
        growing = np.maximum(self.usual * (step * 3 // max(self.warmup, 1) + 1) // 4, 1)
        return np.where(step < self.warmup, growing, lengths)


class Batches(ABC):
    """The training batches of any task."""

    steps_per_epoch: int

    def __repr__(self) -> str:
        return f"<jaxgen.{type(self).__name__}: {counted(self.steps_per_epoch, 'step')} per epoch>"

    @abstractmethod
    def batch(self, step: int, rows: slice = EVERY) -> Any:
        """Returns the batch of a step (from 0), a tree of arrays [B, ...], or only ``rows`` of it."""

    def same_shape(self, step: int) -> int:
        """Returns for how many steps, from ``step`` on, the shapes stay the same."""
        return FOREVER

    def shapes(self) -> list[tuple[int, int]]:
        """Returns for each shape a step that has it, and how many steps of an epoch do."""
        return [(0, self.steps_per_epoch)]

    def relative_size(self, step: int) -> float:
        """Returns the size of a step's batch as a multiple of the usual one."""
        return 1.0

    def rate_scale(self, step: int) -> float:
        """Returns a factor on the learning rate of a step, the same for all of ``same_shape``."""
        return 1.0


class TextBatches(Batches):
    """Batches that are windows of a text, given by B positions at each step."""

    eos: int | None = None

    def __repr__(self) -> str:
        steps = counted(self.steps_per_epoch, "step")
        return f"<jaxgen.{type(self).__name__}: {self._size:,} x {self.length:,} tokens, {steps} per epoch>"

    def __init__(self, tokens: Tokens, batch_size: int, seq_len: int, seed: int, spread: int = 0, warmup: int = 0):
        check_batch_sizes(batch_size=batch_size, seq_len=seq_len, seed=seed)
        self._ids, self._size, self.length, self._seed = tokens.ids, batch_size, seq_len, seed
        self.lengths = WindowLengths(seq_len, spread, warmup)
        self._in_epoch = lru_cache(maxsize=2)(lambda epoch: self.lengths.of_epoch(seed, epoch, self.steps_per_epoch))
        #: The smallest integer type that holds every id.
        self.id_type = np.min_scalar_type(int(tokens.ids.max(initial=0)))
        #: Size of the text in that type, in bytes.
        self.text_bytes = (tokens.ids.size + 1) * self.id_type.itemsize

    def text(self, step: int) -> np.ndarray:
        """Returns the ids [N] that the windows of a step lie in; the same array for all steps of one text."""
        return self._ids

    def conditions(self, step: int) -> Conditions | None:
        """Returns the conditions of the positions of a step's text, if there are any."""
        return None

    def same_text(self, step: int) -> int:
        """Returns for how many steps, from ``step`` on, the text stays the same."""
        return FOREVER

    @abstractmethod
    def places(self, step: int) -> WindowIndex:
        """Returns where the windows of a step lie in the text."""

    def length_at(self, step: int) -> int:
        """Returns the tokens of a window of a step."""
        epoch, k = divmod(step, self.steps_per_epoch)
        return int(self._in_epoch(epoch)[k]) if self.lengths.varies else self.length

    def same_shape(self, step: int) -> int:
        if not self.lengths.varies:
            return FOREVER
        epoch, k = divmod(step, self.steps_per_epoch)
        following = self._in_epoch(epoch)[k:]
        alike = int(np.argmax(following != following[0])) or following.size
        left = self.lengths.warmup - step
        return min(alike, left) if left > 0 else alike  # the warm-up has another ``rate_scale``

    def shapes(self) -> list[tuple[int, int]]:
        """As of all batches, for the epoch after the warm-up. Lengths of the warm-up alone have 0 steps of it."""
        if not self.lengths.varies:
            return super().shapes()
        warmup, found = self.lengths.warmup, dict[int, list[int]]()
        for step in range(warmup, warmup + self.steps_per_epoch):
            found.setdefault(self.length_at(step), []).append(step)
        shapes = {length: (steps[0], len(steps)) for length, steps in found.items()}
        for third in range(3):
            if (step := -(-third * warmup // 3)) < warmup:
                shapes.setdefault(self.length_at(step), (step, 0))
        return [*shapes.values()]

    def relative_size(self, step: int) -> float:
        return self.length_at(step) / self.length

    def rate_scale(self, step: int) -> float:
        return 1.0 if step < self.lengths.warmup else self.relative_size(step)

    def batch(self, step: int, rows: slice = EVERY) -> Batch | ConditionedBatch:
        """Returns the batch of a step (from 0), [B, T], or only ``rows`` of it."""
        places = WindowIndex(*(field[rows] for field in self.places(step)))
        return read_conditioned(self.text(step), self.conditions(step), places, self.length_at(step), self.eos, PAD, np)


class StreamBatches(TextBatches):
    """B contiguous lanes of the text; each window continues the one before it.

    Each epoch rotates the text by an offset drawn from (seed, epoch). ``reset`` is set at an epoch's first position and
    where the text starts over; the target across that boundary is masked. A share ``cold_starts`` of the windows, drawn
    for each (seed, step, row), starts with ``reset`` too.

    Where the length of the windows varies, an epoch has as many steps as it has otherwise, so it reads the text about
    once, and a part of it while the lengths grow.
    """

    def __init__(
        self,
        tokens: Tokens,
        batch_size: int,
        seq_len: int,
        seed: int,
        cold_starts: float = 0.0,
        spread: int = 0,
        warmup: int = 0,
    ):
        super().__init__(tokens, batch_size, seq_len, seed, spread, warmup)
        self._cold_starts = cold_starts
        self._stride, longest = self._ids.size // batch_size, self.lengths.longest
        if self._stride < longest or self._ids.size < 2:
            length = "sequence length" if longest == seq_len else "longest sequence length"
            raise too_short(self._ids.size, max(2, batch_size * longest), f"batch size × {length}")
        self.steps_per_epoch = self._stride // seq_len
        self._before = lru_cache(maxsize=2)(lambda epoch: np.cumsum(self._in_epoch(epoch)) - self._in_epoch(epoch))

    def places(self, step: int) -> WindowIndex:
        epoch, window = divmod(step, self.steps_per_epoch)
        n = self._ids.size
        offset = int(random_bits(1, self._seed, epoch, "stream")[0]) % n
        read = int(self._before(epoch)[window]) if self.lengths.varies else window * self.length
        start = (offset + read + self._stride * np.arange(self._size, dtype=np.int64)) % n
        fresh = np.full(self._size, window == 0)
        if self._cold_starts:
            fresh |= random_bits(self._size, self._seed, step, "cold starts") < self._cold_starts * 2.0**64
        return WindowIndex(start, start, fresh)


class WindowBatches(TextBatches):
    """Windows of T tokens at a stride, shuffled in each epoch, each from a fresh state.

    The last partial batch of an epoch is dropped; fewer than B windows are repeated to fill one batch. While the
    lengths grow, only the beginnings of windows are read.
    """

    def __init__(
        self, tokens: Tokens, batch_size: int, seq_len: int, seed: int, stride: int | None = None, warmup: int = 0
    ):
        super().__init__(tokens, batch_size, seq_len, seed, warmup=warmup)
        self._stride = seq_len if stride is None else stride
        check_batch_sizes(stride=self._stride)
        if self._ids.size < seq_len + 1:
            raise too_short(self._ids.size, seq_len + 1, "sequence length + 1")
        self._windows = (self._ids.size - seq_len - 1) // self._stride + 1
        self.steps_per_epoch = max(1, self._windows // batch_size)
        self._order = lru_cache(maxsize=1)(lambda epoch: permutation(self._windows, seed, epoch, "windows"))

    def places(self, step: int) -> WindowIndex:
        epoch, k = divmod(step, self.steps_per_epoch)
        window = self._order(epoch)[(k * self._size + np.arange(self._size)) % self._windows]
        return WindowIndex(window * self._stride, window * self._stride, np.ones(self._size, bool))


class DocumentBatches(TextBatches):
    """Whole documents, one after the other in B lanes, shuffled in each epoch, with the state reset before each.

    A document d1 … dn is read as EOS d1 … dn with targets d1 … dn EOS. A document longer than T continues in the next
    window. Lanes are filled with the longest document first, so their lengths and ``steps_per_epoch`` are the same in
    every epoch. Each epoch shuffles documents of equal length, the rows of the lanes, and the order inside a lane.
    """

    eos = EOS

    def __init__(self, tokens: Tokens, batch_size: int, seq_len: int, seed: int):
        super().__init__(tokens, batch_size, seq_len, seed)
        if tokens.conditions is not None:
            numbers = (tokens.ids.size + 1) * number_type(tokens.conditions).itemsize
            self.text_bytes += numbers + np.asarray(tokens.conditions.vectors).nbytes
        self._packer = DocumentPacker(tokens, batch_size)
        self.steps_per_epoch = -(-self._packer.longest // seq_len)
        self._epoch = lru_cache(maxsize=1)(self._pack)

    def text(self, step: int) -> np.ndarray:
        return self._packed(step).text

    def conditions(self, step: int) -> Conditions | None:
        return self._packed(step).conditions

    def same_text(self, step: int) -> int:
        return self.steps_per_epoch - step % self.steps_per_epoch

    def places(self, step: int) -> WindowIndex:
        return self._packed(step).places(step % self.steps_per_epoch * self.length)

    def _packed(self, step: int) -> PackedDocuments:
        return self._epoch(step // self.steps_per_epoch)

    def _pack(self, epoch: int) -> PackedDocuments:
        order = permutation(self._packer.count, self._seed, epoch, "documents")
        return self._packer.pack(order, permutation(self._size, self._seed, epoch, "lanes"))


BATCHES: dict[str, type[TextBatches]] = {
    "stream": StreamBatches,
    "windows": WindowBatches,
    "documents": DocumentBatches,
}


def make_batches(
    layout: str,
    tokens: Tokens,
    batch_size: int,
    seq_len: int,
    seed: int,
    stride: int | None = None,
    cold_starts: float = 0.0,
    spread: int = 0,
    warmup: int = 0,
) -> Batches:
    """Returns the batches of a layout.

    Only ``windows`` has a ``stride``, the tokens between windows (default: T), and only ``stream`` has ``cold_starts``,
    the share of the windows that start from the initial state instead of the carried one. With a ``spread`` (only
    ``stream``) or a ``warmup`` (not ``documents``) the windows have the lengths of ``WindowLengths``.

    Example:
        >>> corpus = jaxgen.prepare(["book.txt"])
        >>> batches = jaxgen.make_batches("stream", corpus.train, batch_size=2, seq_len=8, seed=0)
        >>> batches.batch(0).tokens.shape
        (2, 8)
    """
    choose(layout, BATCHES, "layout")
    check_kind("make_batches", tokens, Tokens, "the tokens of a split, for example jaxgen.prepare([file]).train")
    if stride is not None and layout != "windows":
        raise UsageError(f"--stride applies to --layout windows, but the layout is {layout}. Leave it out.")
    if cold_starts and layout != "stream":
        raise UsageError(f"--cold-starts applies to --layout stream, but the layout is {layout}. Leave it out.")
    if spread and layout != "stream":
        raise UsageError(f"--seq-len-spread applies to --layout stream, but the layout is {layout}. Leave it out.")
    if warmup and layout not in ("stream", "windows"):
        raise UsageError(
            f"--seq-len-warmup applies to --layout stream and windows, but the layout is {layout}. Leave it out."
        )
    if layout == "windows":
        return WindowBatches(tokens, batch_size, seq_len, seed, stride, warmup)
    if layout == "stream":
        return StreamBatches(tokens, batch_size, seq_len, seed, cold_starts, spread, warmup)
    return BATCHES[layout](tokens, batch_size, seq_len, seed)


def too_short(found: int, needed: int, why: str) -> DataError:
    """Returns the error for a training split with too few tokens."""
    return DataError(
        f"The training split has {counted(found, 'token')}, but at least {needed:,} ({why}) are needed. "
        "Give more text, or a smaller --batch-size or --seq-len."
    )


def stream_eval(
    tokens: Tokens, lanes: int, seq_len: int, burn_in: int = 256, limit_tokens: int | None = None
) -> Iterator[Batch | ConditionedBatch]:
    """Yields every target of a split once, in batches [lanes, seq_len] that carry the state from one to the next.

    Running text is divided among the lanes. Each lane but the first reads up to ``burn_in`` earlier tokens, masked, to
    warm up its state; lanes that a short split does not need are masked. Documents stay whole, and their EOS is scored.
    With ``limit_tokens``, about so many targets are scored: those at the beginning of each lane, which lie all over the
    split, or those of the first documents, at least one.
    """
    check_batch_sizes(lanes=lanes, seq_len=seq_len)
    if limit_tokens is not None:
        check_batch_sizes(limit_tokens=limit_tokens)
    check_int("The burn-in", burn_in, 0)
    if tokens.doc_starts is None:
        yield from _running_text(tokens.ids, lanes, seq_len, burn_in, limit_tokens)
    elif tokens.doc_starts.size:
        tokens = tokens if limit_tokens is None else _first_documents(tokens, tokens.doc_starts, limit_tokens)
        packer = DocumentPacker(tokens, lanes)
        packed = packer.pack(np.arange(packer.count), np.arange(lanes))
        for start in range(0, packer.longest, seq_len):
            yield packed.window(start, seq_len)


def window_eval(tokens: Tokens, n_windows: int, length: int, seed: int, batch_size: int) -> Iterator[Batch]:
    """Yields ``n_windows`` uniformly drawn windows, each from a zero state, in batches [batch_size, length].

    Rows that fill the last batch are masked. A split shorter than length + 1 has no windows.
    """
    check_batch_sizes(n_windows=n_windows, length=length, batch_size=batch_size, seed=seed)
    ids = tokens.ids
    if ids.size < length + 1:
        return
    starts = (random_bits(n_windows, seed, 0, "evaluation") % np.uint64(ids.size - length)).astype(np.int64)
    for k in range(0, n_windows, batch_size):
        rows = starts[k : k + batch_size]
        at = np.pad(rows, (0, batch_size - rows.size))
        places = WindowIndex(at, at + length, np.ones(batch_size, bool))
        batch = read_window(ids, places, length, None if tokens.doc_starts is None else EOS, PAD, np)
        reset, mask = np.array(batch.reset), np.array(batch.mask)
        reset[:, 0] = True
        mask[rows.size :] = False
        yield batch._replace(reset=reset, mask=mask)


def _first_documents(tokens: Tokens, starts: np.ndarray, limit: int) -> Tokens:
    ends = np.append(starts[1:], tokens.ids.size)
    keep = max(1, int(np.searchsorted(ends, limit, side="right")))
    known = tokens.conditions and tokens.conditions._replace(of=np.asarray(tokens.conditions.of)[:keep])
    return Tokens(tokens.ids[: ends[keep - 1]], starts[:keep], 0, 0, conditions=known)


def _running_text(ids: np.ndarray, lanes: int, seq_len: int, burn_in: int, limit: int | None) -> Iterator[Batch]:
    n_targets = ids.size - 1
    if n_targets < 1:
        return
    # A lane with a share smaller than its burn-in would cost more than it saves.
    used = max(1, min(lanes, n_targets // max(burn_in, seq_len)))
    # Lane b predicts ids[share[b]:share[b + 1]]; unused lanes have an empty share at the end.
    share = np.full(lanes + 1, ids.size, np.int64)
    share[: used + 1] = 1 + np.arange(used + 1) * n_targets // used
    first, last = share[:-1], share[1:]
    if limit is not None:
        last = np.minimum(last, first + max(1, limit // used))
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


#: Ids that are copied at once.
COPIED_AT_ONCE = 1 << 18


class DocumentPacker:
    """Packs documents into lanes without splitting any: each, the longest first, goes to the shortest lane."""

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
        """Packs all documents: those of equal length in the ``order`` [count], lane b as row ``rows[b]``."""
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
        return WindowIndex(self.begin + start, self.end, np.zeros(self.begin.size, bool))

    def window(self, start: int, length: int) -> Batch | ConditionedBatch:
        """Returns the positions from ``start`` of every lane, [lanes, length]; beyond a lane's end PAD, masked."""
        return read_conditioned(self.text, self.conditions, self.places(start), length, EOS, PAD, np)


def number_type(conditions: Conditions) -> np.dtype:
    """Returns the smallest integer type that holds the index of every vector."""
    return np.min_scalar_type(len(conditions.vectors) - 1)
