"""Many short texts in little memory: a Python string takes some fifty bytes besides its characters."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

#: What also packs half a character, and a byte that is none (level ``byte``).
_ENCODING = "utf-8", "surrogatepass"
#: Types of where texts end: the second for more bytes than the first can count.
_SMALL, _LARGE = "I", "Q"


class CompactStrings(Sequence[str]):
    """Texts, or some of them (``take``), that are made into strings when they are asked for."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes, self._ends = bytearray(), array(_SMALL, [0])
        self._which: np.ndarray | None = None
        self.extend(texts)

    def extend(self, texts: Iterable[str]) -> None:
        """Add texts at the end."""
        if self._which is not None:
            raise TypeError("A selection of texts cannot be extended.")
        for text in texts:
            self._bytes += text.encode(*_ENCODING)
            try:
                self._ends.append(len(self._bytes))
            except OverflowError:
                self._ends = array(_LARGE, self._ends)
                self._ends.append(len(self._bytes))

    def take(self, which: np.ndarray) -> CompactStrings:
        """The texts at these indices, in their order; the bytes are shared."""
        taken = CompactStrings()
        taken._bytes, taken._ends = self._bytes, self._ends
        chosen = which if self._which is None else self._which[which]
        taken._which = chosen.astype(np.min_scalar_type(len(self._ends)), copy=False)
        return taken

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._which is None else len(self._which)

    def __iter__(self) -> Iterator[str]:
        return map(self._text, range(len(self)) if self._which is None else map(int, self._which))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self[i] for i in places]
        return self._text(places if self._which is None else int(self._which[places]))

    def _text(self, place: int) -> str:
        return self._bytes[self._ends[place] : self._ends[place + 1]].decode(*_ENCODING)
