"""Running text: the texts of the data as a single one, which need not fit into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from jaxgen.data.reader import Source
from jaxgen.text import Text, in_pieces
from jaxgen.text.pieces import between


@dataclass(frozen=True)
class RunningText:
    """Characters ``start`` to ``stop`` of the texts of a source one after the other, in pieces, as often as wanted."""

    source: Source
    start: int
    stop: int

    @classmethod
    def of(cls, source: Source) -> RunningText:
        """All of a source, which is read once to count its characters. Raises ``DataError`` as reading it does."""
        chars = sum(map(len, join_texts(source.texts)))
        source.check()
        return cls(source, 0, chars)

    def __iter__(self) -> Iterator[str]:
        return between(join_texts(self.source.texts), self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start

    def cut(self, at: int) -> tuple[RunningText, RunningText]:
        """Its first ``at`` characters, and the others."""
        return replace(self, stop=self.start + at), replace(self, start=self.start + at)

    def check(self) -> None:
        """Raise ``DataError`` if a file was changed since its characters were counted."""
        for text in self.source.texts:
            if not isinstance(text, str):
                text.check()

    @property
    def sha256(self) -> str:
        """What tells this text from others: the digest of the files, and which characters of them it is."""
        return hashlib.sha256(f"{self.source.sha256} {self.start} {self.stop}".encode()).hexdigest()


def join_texts(texts: Iterable[Text]) -> Iterator[str]:
    """The texts one after the other, with a newline between two where the first does not end in one."""
    last = "\n"
    for text in texts:
        begun = False
        for piece in filter(None, in_pieces(text)):
            if not begun and last != "\n":
                yield "\n"
            begun, last = True, piece[-1]
            yield piece
