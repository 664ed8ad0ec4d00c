"""Training batches of tokens. Each batch is a pure function of (seed, step), so a run can resume at any step.

Random numbers are the raw bits of a Philox counter keyed by (seed, purpose, epoch): NumPy guarantees these bits, but
not the results of ``shuffle``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np

from jaxgen.data.packing import DocumentPacker, PackedDocuments, number_type
from jaxgen.data.tokens import EVERY, Tokens, check_sizes, permutation, random_bits
from jaxgen.errors import DataError, UsageError, choose
from jaxgen.tokenizers.base import EOS, PAD
from jaxgen.training.windows import Conditions, WindowIndex, read_conditioned
from jaxgen.types import Batch, ConditionedBatch


class Batches(Protocol):
    """The training batches of any task."""

    steps_per_epoch: int

    def batch(self, step: int, rows: slice = EVERY) -> Any:
        """Returns the batch of a step (from 0), a tree of arrays [B, ...], or only ``rows`` of it."""
        ...

    def same_shape(self, step: int) -> int:
        """Returns for how many steps, from ``step`` on, the shapes stay the same."""
        ...

    def shapes(self) -> list[tuple[int, int]]:
        """Returns for each shape a step that has it, and how many steps of an epoch do."""
        ...


class TextBatches(ABC):
    """Batches that are windows of a text, given by B places at each step."""

    eos: int | None = None
    steps_per_epoch: int

    def __init__(self, tokens: Tokens, length: int):
        self.length = length
        #: The smallest integer type that holds every id.
        self.id_type = np.min_scalar_type(int(tokens.ids.max(initial=0)))
        #: Size of the text in that type, in bytes.
        self.text_bytes = (tokens.ids.size + 1) * self.id_type.itemsize

    @abstractmethod
    def text(self, step: int) -> np.ndarray:
        """Returns the ids [N] that the windows of a step lie in; the same array for all steps of one text."""

    def conditions(self, step: int) -> Conditions | None:
        """Returns the conditions of the positions of a step's text, if there are any."""
        del step
        return None

    def same_text(self, step: int) -> int:
        """Returns for how many steps, from ``step`` on, the text stays the same."""
        del step
        return 1 << 62

    def same_shape(self, step: int) -> int:
        """Returns for how many steps, from ``step`` on, the shapes stay the same."""
        del step
        return 1 << 62

    def shapes(self) -> list[tuple[int, int]]:
        """Returns the only shape: a step that has it, and the steps of an epoch."""
        return [(0, self.steps_per_epoch)]

    @abstractmethod
    def places(self, step: int) -> WindowIndex:
        """Returns where the windows of a step lie in the text."""

    def batch(self, step: int, rows: slice = EVERY) -> Batch | ConditionedBatch:
        """Returns the batch of a step (from 0), [B, T], or only ``rows`` of it."""
        start, stop, fresh = self.places(step)
        places = WindowIndex(start[rows], stop[rows], fresh)
        return read_conditioned(self.text(step), self.conditions(step), places, self.length, self.eos, PAD, np)


class StreamBatches(TextBatches):
    """B contiguous lanes of the text; each window continues the one before it.

    Each epoch rotates the text by an offset drawn from (seed, epoch). ``reset`` is set at an epoch's first position and
    where the text starts over; the target across that seam is masked.
    """

    def __init__(self, tokens: Tokens, batch_size: int, seq_len: int, seed: int):
        check_sizes(batch_size=batch_size, seq_len=seq_len, seed=seed)
        super().__init__(tokens, seq_len)
        self._ids, self._size, self._seed = tokens.ids, batch_size, seed
        self._stride = self._ids.size // batch_size
        if self._stride < seq_len or self._ids.size < 2:
            raise too_short(self._ids.size, max(2, batch_size * seq_len), "batch size × sequence length")
        self.steps_per_epoch = self._stride // seq_len

    def text(self, step: int) -> np.ndarray:
        return self._ids

    def places(self, step: int) -> WindowIndex:
        epoch, window = divmod(step, self.steps_per_epoch)
        n = self._ids.size
        offset = int(random_bits(1, self._seed, epoch, "stream")[0]) % n
        start = (offset + window * self.length + self._stride * np.arange(self._size, dtype=np.int64)) % n
        return WindowIndex(start, start, np.bool_(window == 0))


class WindowBatches(TextBatches):
    """Windows of T tokens at a stride, shuffled in each epoch, each from a fresh state.

    The last partial batch of an epoch is dropped; fewer than B windows are repeated to fill one batch.
    """

    def __init__(self, tokens: Tokens, batch_size: int, seq_len: int, seed: int, stride: int | None = None):
        check_sizes(batch_size=batch_size, seq_len=seq_len, seed=seed)
        if stride is not None:
            check_sizes(stride=stride)
        super().__init__(tokens, seq_len)
        self._ids, self._size, self._seed = tokens.ids, batch_size, seed
        self._stride = seq_len if stride is None else stride
        if self._ids.size < seq_len + 1:
            raise too_short(self._ids.size, seq_len + 1, "sequence length + 1")
        self._windows = (self._ids.size - seq_len - 1) // self._stride + 1
        self.steps_per_epoch = max(1, self._windows // batch_size)
        self._order: tuple[int, np.ndarray] | None = None

    def text(self, step: int) -> np.ndarray:
        return self._ids

    def places(self, step: int) -> WindowIndex:
        epoch, k = divmod(step, self.steps_per_epoch)
        cached = self._order
        if cached is None or cached[0] != epoch:
            cached = self._order = (epoch, permutation(self._windows, self._seed, epoch, "windows"))
        window = cached[1][(k * self._size + np.arange(self._size)) % self._windows]
        return WindowIndex(window * self._stride, window * self._stride, np.bool_(True))


class DocumentBatches(TextBatches):
    """Whole documents, one after the other in B lanes, shuffled in each epoch, with the state reset before each.

    A document d1 … dn is read as EOS d1 … dn with targets d1 … dn EOS. A document longer than T continues in the next
    window. Lanes are filled with the longest document first, so their lengths and ``steps_per_epoch`` are the same in
    every epoch. Each epoch shuffles documents of equal length, the rows of the lanes, and the order inside a lane.
    """

    eos = EOS

    def __init__(self, tokens: Tokens, batch_size: int, seq_len: int, seed: int):
        check_sizes(batch_size=batch_size, seq_len=seq_len, seed=seed)
        super().__init__(tokens, seq_len)
        if tokens.conditions is not None:
            numbers = (tokens.ids.size + 1) * number_type(tokens.conditions).itemsize
            self.text_bytes += numbers + np.asarray(tokens.conditions.vectors).nbytes
        self._size, self._seed = batch_size, seed
        self._packer = DocumentPacker(tokens, batch_size)
        self.steps_per_epoch = -(-self._packer.longest // seq_len)
        self._epoch: tuple[int, PackedDocuments] | None = None

    def text(self, step: int) -> np.ndarray:
        return self._packed(step).text

    def conditions(self, step: int) -> Conditions | None:
        return self._packed(step).conditions

    def same_text(self, step: int) -> int:
        return self.steps_per_epoch - step % self.steps_per_epoch

    def places(self, step: int) -> WindowIndex:
        return self._packed(step).places(step % self.steps_per_epoch * self.length)

    def _packed(self, step: int) -> PackedDocuments:
        epoch, cached = step // self.steps_per_epoch, self._epoch
        if cached is None or cached[0] != epoch:
            order = permutation(self._packer.count, self._seed, epoch, "documents")
            rows = permutation(self._size, self._seed, epoch, "lanes")
            cached = self._epoch = (epoch, self._packer.pack(order, rows))
        return cached[1]


BATCHES: dict[str, type[StreamBatches] | type[WindowBatches] | type[DocumentBatches]] = {
    "stream": StreamBatches,
    "windows": WindowBatches,
    "documents": DocumentBatches,
}


def make_batches(
    layout: str, tokens: Tokens, batch_size: int, seq_len: int, seed: int, stride: int | None = None
) -> Batches:
    """Returns the batches of a layout; only ``windows`` has a ``stride``, the tokens between windows (default: T)."""
    choose(layout, BATCHES, "layout")
    if layout == "windows":
        return WindowBatches(tokens, batch_size, seq_len, seed, stride)
    if stride is not None:
        raise UsageError(f"--stride applies to --layout windows, but the layout is {layout}. Leave it out.")
    return BATCHES[layout](tokens, batch_size, seq_len, seed)


def too_short(found: int, needed: int, why: str) -> DataError:
    """Returns the error for a training split with too few tokens."""
    return DataError(
        f"The training split has {found:,} tokens, but at least {needed:,} ({why}) are needed. "
        "Give more text, or a smaller --batch-size or --seq-len."
    )
