"""Many short texts in little memory: a Python string takes about fifty bytes besides its characters."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

#: Also encodes lone surrogates, which stand for bytes that are not UTF-8 (level ``byte``).
_ENCODING = "utf-8", "surrogatepass"
#: Type codes of the offsets: the second for more bytes than the first can count.
_SMALL, _LARGE = "I", "Q"


class CompactStrings(Sequence[str]):
    """A sequence of texts that are decoded when they are accessed."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes, self._ends = bytearray(), array(_SMALL, [0])
        self._indices: np.ndarray | None = None
        self.extend(texts)

    def extend(self, texts: Iterable[str]) -> None:
        """Appends texts."""
        if self._indices is not None:
            raise TypeError("A selection of texts cannot be extended.")
        for text in texts:
            self._bytes += text.encode(*_ENCODING)
            try:
                self._ends.append(len(self._bytes))
            except OverflowError:
                self._ends = array(_LARGE, self._ends)
                self._ends.append(len(self._bytes))

    def take(self, indices: np.ndarray) -> CompactStrings:
        """Returns the texts at ``indices``, in that order; the bytes are shared."""
        taken = CompactStrings()
        taken._bytes, taken._ends = self._bytes, self._ends
        chosen = indices if self._indices is None else self._indices[indices]
        taken._indices = chosen.astype(np.min_scalar_type(len(self._ends)), copy=False)
        return taken

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._indices is None else len(self._indices)

    def __iter__(self) -> Iterator[str]:
        return map(self._text, range(len(self)) if self._indices is None else map(int, self._indices))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self[i] for i in places]
        return self._text(places if self._indices is None else int(self._indices[places]))

    def _text(self, place: int) -> str:
        return self._bytes[self._ends[place] : self._ends[place + 1]].decode(*_ENCODING)
