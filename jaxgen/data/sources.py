"""Reads texts from data sets, files, folders, globs and columns of tables."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from jaxgen.data.datasets import BUILTIN, NAMED
from jaxgen.data.files import NO_PROGRESS, FilesDigest, FileText, ProgressCounter, ProgressReporter, find_data
from jaxgen.data.in_memory import data_name
from jaxgen.data.tables import Column, FirstRow, read_rows, table_kind
from jaxgen.errors import DataError, UsageError, choose
from jaxgen.text import KEEP_NEWLINES, STANDARD, Reading, Text, as_lf, in_pieces
from jaxgen.tokenizers.base import between, text_bytes

#: Also encodes lone surrogates, which stand for bytes that are not UTF-8 (level ``byte``).
_ENCODING = "utf-8", "surrogatepass"


class CompactStrings(Sequence[str]):
    """A sequence of texts that are decoded when they are accessed."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes, self._ends = bytearray(), array("Q", [0])
        self._indices: np.ndarray | None = None
        self.extend(texts)

    def extend(self, texts: Iterable[str]) -> None:
        """Appends texts."""
        if self._indices is not None:
            raise TypeError("A selection of texts cannot be extended.")
        for text in texts:
            self._bytes += text.encode(*_ENCODING)
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


@dataclass(frozen=True)
class TextStream:
    """The same part of every text of a source, joined, in pieces; can be iterated repeatedly.

    ``spans`` has the first character and the end of the part of each text.
    """

    source: TextSource
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, source: TextSource) -> TextStream:
        """Returns the whole texts of a source, after reading them once to count their characters."""
        chars = [sum(map(len, in_pieces(text))) for text in source.texts]
        source.check()
        return cls(source, tuple((0, count) for count in chars))

    def __iter__(self) -> Iterator[str]:
        return join_texts(between(in_pieces(text), *span) for text, span in zip(self.source.texts, self.spans))

    def __len__(self) -> int:
        """The number of characters, without the line ends that join texts."""
        return sum(stop - start for start, stop in self.spans)

    def cut(self, fraction: float) -> tuple[TextStream, TextStream]:
        """Splits every text after this share of its characters."""
        places = [start + int((stop - start) * fraction) for start, stop in self.spans]
        heads = tuple((start, at) for (start, _), at in zip(self.spans, places))
        tails = tuple((at, stop) for (_, stop), at in zip(self.spans, places))
        return replace(self, spans=heads), replace(self, spans=tails)

    def check(self) -> None:
        """Raises ``DataError`` if a file changed since its characters were counted."""
        for text in self.source.texts:
            if not isinstance(text, str):
                text.check()

    @property
    def sha256(self) -> str:
        """The digest of the files, of how they are read, and of ``spans``."""
        about = f"{self.source.sha256} {self.source.reading.model_dump_json()} {self.spans}"
        return hashlib.sha256(about.encode()).hexdigest()


def join_texts(texts: Iterable[Text]) -> Iterator[str]:
    """Yields the texts one after the other, with a newline between two if the first does not end with one."""
    last = "\n"
    for text in texts:
        begun = False
        for piece in filter(None, in_pieces(text)):
            if not begun and last != "\n":
                yield "\n"
            begun, last = True, piece[-1]
            yield piece


#: Ways to cut a text into documents (layout ``documents``).
DOCUMENTS = ("line", "blank-line", "file", "row")


@dataclass(frozen=True)
class TextSource:
    """Texts and where they came from.

    ``texts`` has one entry per file, or per row if ``by_row``: a string, or a ``FileText`` that is read in pieces each
    time. ``files`` are the SHA-256 digests of all files (a built-in corpus counts as one), or the files themselves:
    their digests are known after they were read. ``first_rows`` are those of tables that may be headers.
    """

    texts: Sequence[str | FileText]
    name: str
    files: Sequence[bytes | FileText]
    default_documents: str | None
    by_row: bool
    reading: Reading = STANDARD
    line_ends_in_cells: int = 0
    first_rows: tuple[FirstRow, ...] = ()

    @property
    def line_ends(self) -> int:
        """How many CR LF and CR were read as LF; known after the files were read."""
        return self.line_ends_in_cells + sum(text.line_ends for text in self.texts if isinstance(text, FileText))

    @property
    def sha256(self) -> str:
        """The ``FilesDigest`` of all files."""
        return FilesDigest(self.digests).hexdigest()

    @property
    def digests(self) -> list[bytes]:
        """The SHA-256 of each file; known after the files were read."""
        return [each.sha256 if isinstance(each, FileText) else each for each in self.files]

    def check(self) -> None:
        """Raises ``DataError`` if the data have no text; call it after they were read."""
        if not any(text.chars if isinstance(text, FileText) else text for text in self.texts):
            raise DataError(f"The data {self.name} is empty. Give a file that has text in it.")


def open_texts(
    specs: Sequence[str],
    *,
    text_column: str | None = None,
    documents: str | None = None,
    level: str = "char",
    reading: Reading | None = None,
    header: bool | None = None,
    watch: ProgressReporter = NO_PROGRESS,
) -> TextSource:
    """Finds built-in corpora, named sets, files, folders and globs, ``.gz`` or not, or reads a column of tables.

    Files of running text are opened later and read in pieces, as often as needed; errors in them are raised then.

    Args:
        specs: What to read. A data set has priority over a file of the same name: write ``./name`` for the file.
        text_column: A column of CSV, TSV or JSONL files: a name from the header, or a position from 1.
        documents: One of ``DOCUMENTS``.
        level: The level of the tokenizer; ``byte`` reads any bytes.
        reading: How texts are read. Default: that of the level.
        header: Whether the first row of a table is a header, as in ``read_table``.
        watch: Receives the progress of the first reading.

    Raises:
        DataError: The data cannot be read.
        UsageError: Arguments contradict each other.
    """
    reading = reading or Reading.of_level(level)
    if isinstance(specs, str):
        specs = [specs]
    if not specs:
        raise UsageError("No data was given. Name a built-in corpus, a data set, a file, a folder or a glob.")
    if documents is not None:
        choose(documents, DOCUMENTS, "way to cut documents (--documents)")
    texts: list[str | FileText] = []
    cells = CompactStrings()
    files: list[bytes | FileText] = []
    defaults: set[str | None] = set()
    first_rows: list[FirstRow] = []
    rows: set[bool] = set()
    changed = 0
    counter = ProgressCounter(watch, "reading", 0)
    for spec, paths in find_data(specs, watch):
        if spec in BUILTIN:
            if text_column is not None:
                raise _no_column(spec)
            found = BUILTIN[spec].texts()
            files.append(hashlib.sha256(b"".join(map(text_bytes, found))).digest())
            texts += map(reading.text, found)
            defaults.add(BUILTIN[spec].documents)
            rows.add(False)
            continue
        named = NAMED.get(spec)
        column = named.text_column if named and text_column is None else text_column
        for path in paths:
            # The rows of a table end at any line end, those in quoted fields are read below.
            text = FileText(path, reading if column is None else KEEP_NEWLINES, level, counter.add)
            with suppress(OSError):  # reading the file raises the error
                counter.total += os.stat(path).st_size
            files.append(text)
            if column is None:
                texts.append(text)
            else:
                kind = table_kind(path)
                if kind is None:
                    raise _no_column(str(path))
                columns, has_header = [Column((column,), "--text-column")], named.header if named else header
                for _, (cell,) in read_rows(text, kind, path, columns, has_header, first_rows):
                    if reading.newlines == "lf":
                        changed += cell.count("\r")
                        cell = as_lf(cell)
                    cells.extend((cell,))
        defaults.add(named.documents if named else None)
        rows.add(column is not None)
    if len(rows) > 1:
        raise UsageError(f"The data {data_name(specs)} mix rows of a table with whole texts. Give one kind at a time.")
    by_row = rows == {True}
    if documents == ("file" if by_row else "row"):
        kind, others = "whole texts", "file, line or blank-line, or give a .csv, .tsv or .jsonl file and --text-column"
        if by_row:
            kind, others = "tables", "row, line or blank-line"
        raise UsageError(f"--documents {documents} does not apply to {kind}: choose --documents {others}.")
    default = defaults.pop() if len(defaults) == 1 else None
    if by_row and text_column is not None:
        default = "row"
    name = data_name(specs)
    return TextSource(cells if by_row else texts, name, files, default, by_row, reading, changed, tuple(first_rows))


def _no_column(where: str) -> UsageError:
    return UsageError(
        f"--text-column was given, but {where} is not a .csv, .tsv or .jsonl file (or one of these with .gz). "
        "Leave the flag out to read whole texts."
    )
