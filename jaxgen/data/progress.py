"""Progress and notes while data are read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Protocol

#: Bytes or characters from which reading reports its progress.
REPORTED_FROM = 1 << 24


class ProgressReporter(Protocol):
    """Receives progress and notes while data are read."""

    def progress(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of ``what`` are done."""
        ...

    def note(self, text: str) -> None:
        """Something worth knowing that is not an error."""
        ...


class Silent:
    """Ignores progress and issues notes as Python warnings."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Issues a Python warning."""
        warnings.warn(text, stacklevel=2)


SILENT = Silent()


class Counter:
    """Counts what is done, and reports it to ``watch`` if ``total`` is large."""

    def __init__(self, watch: ProgressReporter, what: str, total: int) -> None:
        self.watch, self.what, self.total, self.done = watch, what, total, 0

    def add(self, amount: int) -> None:
        """Counts ``amount`` more."""
        self.done += amount
        if self.total >= REPORTED_FROM:
            self.watch.progress(self.what, self.done, self.total)


def track(pieces: Iterable[str], counter: Counter) -> Iterator[str]:
    """Yields the pieces of a text and counts their characters after they were used."""
    for piece in pieces:
        yield piece
        counter.add(len(piece))
