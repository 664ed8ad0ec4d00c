"""Who follows how data are read: told of progress where it takes a while, and of what is worth knowing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Protocol

#: Bytes or characters of which reading is worth a progress bar.
LARGE = 1 << 24


class ProgressReporter(Protocol):
    """What a command shows while data are read."""

    def progress(self, what: str, done: int, total: int) -> None:
        """So much of ``total`` is done of something that takes a while."""
        ...

    def note(self, text: str) -> None:
        """Something worth knowing that is no error."""
        ...


class Silent:
    """Shows no progress, and warns of the rest."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """As a warning of Python."""
        warnings.warn(text, stacklevel=2)


SILENT = Silent()


class Counter:
    """Adds up how much is done, and tells ``watch`` if ``total`` is large."""

    def __init__(self, watch: ProgressReporter, what: str, total: int) -> None:
        self.watch, self.what, self.total, self.done = watch, what, total, 0

    def add(self, amount: int) -> None:
        """So much more is done."""
        self.done += amount
        if self.total >= LARGE:
            self.watch.progress(self.what, self.done, self.total)


def track(pieces: Iterable[str], counter: Counter) -> Iterator[str]:
    """The pieces of a text, whose characters are counted once they have been used."""
    for piece in pieces:
        yield piece
        counter.add(len(piece))
