"""Rows of tables: several columns of CSV, TSV and JSONL files side by side."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxgen.data.datasets import NAMED, fetch
from jaxgen.data.files import FilesDigest, FileText, find_paths, whole_lines
from jaxgen.data.tokens import permutation
from jaxgen.errors import DataError, UsageError
from jaxgen.tokenizers.base import Text, in_pieces

_KINDS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
#: What JSON calls the values that Python reads.
_JSON = {
    "NoneType": "null",
    "bool": "a boolean",
    "int": "a number",
    "float": "a number",
    "str": "a string",
    "list": "an array",
    "dict": "an object",
}
#: A column that is given by its number. Longer numbers are names: no table is as wide, and the longest are no ``int``.
_POSITION = re.compile("[+-]?[0-9]{1,9}")
#: Half of a character beyond U+FFFF, which no file in UTF-8 holds and an escape in JSON may.
_SURROGATE = re.compile("[\ud800-\udfff]")
_ENDED = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)")
_FIELD_LIMIT = 2**31 - 1  # a C long on every platform


def column_kind(path: Path) -> str | None:
    """``csv``, ``tsv`` or ``jsonl`` by the file's name (``.gz`` aside), or None."""
    name = path.name.lower().removesuffix(".gz")
    return _KINDS.get(Path(name).suffix)


def column_texts(
    text: Text,
    kind: str,
    column: str,
    path: Path,
    header: bool | None = None,
    numbers: bool = False,
    flag: str = "--text-column",
) -> Iterator[str]:
    """The texts of one column, by name (from the header row) or by position from 1 (every row is data), row by row.

    ``header`` says whether a table addressed by position starts with a header row. CSV may quote fields, TSV
    has no quoting, a line of JSONL is an object (by name) or an array (by position); blank lines are skipped.
    JSON's null is an empty cell; with ``numbers`` its numbers and booleans are taken as they are written. ``flag`` is
    how a user names the column. Read one column to its end before the next: Python's limit on the length of a field is
    lifted meanwhile. Raises ``DataError`` naming the line, ``UsageError`` for a position below 1.
    """
    column = str(column)
    position = column_position(column, flag)
    if kind == "jsonl":
        for number, line in enumerate(whole_lines(_without_mark(text)), 1):
            if line.strip():
                yield _json_cell(line, column, position, f"line {number} of {path}", numbers)
    else:
        yield from _cells(table_rows(text, kind, path), column, position, path, header, flag)


def column_position(column: str, flag: str) -> int | None:
    """The position from 1 that ``column`` is, or None for a name; raises ``UsageError`` for one below 1."""
    position = int(column) if _POSITION.fullmatch(column) else None
    if position is not None and position < 1:
        raise UsageError(f"{flag} is {column}, but positions count from 1. Give 1 for the first column.")
    return position


def check_alike(names: Sequence[str]) -> None:
    """Raise ``UsageError`` for names beside positions: with the one the first row is a header, with the other data."""
    positions = [name for name in map(str, names) if _POSITION.fullmatch(name)]
    if positions and len(positions) < len(names):
        name = next(name for name in names if name not in positions)
        raise UsageError(
            f"The column {name!r} was given by its name, which is in the first row, and the column {positions[0]} by "
            "its position, with which the first row is data: give all columns by name, or all by position from 1."
        )


def _without_mark(text: Text) -> Iterator[str]:
    """The pieces of a text, without a byte order mark in front of it."""
    begun = False
    for piece in filter(None, in_pieces(text)):
        yield piece if begun else piece.removeprefix("\ufeff")
        begun = True


def _csv_lines(text: Text) -> Iterator[str]:
    """The lines of a text with their ends, which are \\n, \\r or both."""
    for line in whole_lines(_without_mark(text)):
        if "\r" in line:
            yield from _ENDED.findall(f"{line}\n")
        else:
            yield f"{line}\n"


def table_rows(text: Text, kind: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The (line, fields) of each row that is not blank; the line is the one where the row begins."""
    if kind == "csv":
        reader = csv.reader(_csv_lines(text), strict=True)
    else:
        reader = csv.reader(_csv_lines(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    begin = 1  # a quote left open swallows the rest of the file: only the row's first line tells where
    with _long_fields():
        try:
            for row in reader:
                if row:
                    yield begin, row
                begin = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"Line {begin} of {path} begins a row that is not well-formed {kind.upper()} ({error}). "
                "Correct that row, for example its quotation marks."
            ) from error


@contextmanager
def _long_fields() -> Iterator[None]:
    """No limit on the length of a field while this runs (the csv module keeps one for the whole process)."""
    before = csv.field_size_limit(_FIELD_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _cells(
    rows: Iterator[tuple[int, list[str]]],
    column: str,
    position: int | None,
    path: Path,
    header: bool | None,
    flag: str,
) -> Iterator[str]:
    first: list[str] = []
    width = index = 0
    for number, row in rows:
        if width == 0:
            first, width = row, len(row)
            index = column_index(row, column, position, path, flag)
            if header or (header is None and position is None):
                continue
        if len(row) != width:
            raise DataError(
                f"Line {number} of {path} has {len(row)} columns, but the first row has {width}. "
                "Correct that line: every row must have the same number of columns."
                + (_separator_hint(first) or _separator_hint(row))
            )
        yield row[index]


def column_index(row: list[str], column: str, position: int | None, path: Path, flag: str) -> int:
    """Where in ``row``, the first of a table, a column is: from 0, by its name or by its ``position`` from 1.

    Raises ``DataError`` unless it is there once.
    """
    if position is not None:
        if position > len(row):
            raise DataError(
                f"{flag} is {position}, but {path} has {len(row)} columns. "
                f"Give a position from 1 to {len(row)}.{_separator_hint(row)}"
            )
        return position - 1
    if row.count(column) == 1:
        return row.index(column)
    problem = "appears more than once" if column in row else "is not there"
    names = ", ".join(repr(name) for name in row)
    raise DataError(
        f"The column {column!r} {problem} in {path}, whose first row is: {names}. "
        f"Give one of these names with {flag}, or a position from 1 to {len(row)} if this row is data."
        + _separator_hint(row)
    )


def _separator_hint(row: list[str]) -> str:
    """What may be wrong with a row that is a single field with another separator in it."""
    if len(row) == 1 and "\t" in row[0]:
        return " The columns seem to be separated by tabs: give the file a name that ends in .tsv."
    if len(row) == 1 and ";" in row[0]:
        return " The columns seem to be separated by semicolons: convert the file to commas (.csv) or tabs (.tsv)."
    return ""


def _json_cell(line: str, column: str, position: int | None, where: str, numbers: bool) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where[0].upper()}{where[1:]} is not JSON ({error}). Correct or remove that line.") from error
    if isinstance(record, dict) and column in record:
        value: Any = record[column]
    elif isinstance(record, dict):
        names = ", ".join(repr(name) for name in record)
        raise DataError(f"The column {column!r} is not in {where}, which has: {names}. Give one of these names.")
    elif isinstance(record, list) and position is not None and position <= len(record):
        value = record[position - 1]
    else:
        raise DataError(
            f"The column {column!r} cannot be found in {where}: it is {_JSON[type(record).__name__]}. "
            "Each line must be an object (column by name) or a long enough array (by position)."
        )
    if value is None:  # how many programs write a cell with nothing in it
        return ""
    if numbers and isinstance(value, (int, float)):
        return json.dumps(value)
    if not isinstance(value, str):
        raise DataError(
            f"The column {column!r} of {where} holds {_JSON[type(value).__name__]}, but it must hold a string. "
            "Correct or remove that line."
        )
    if (half := _SURROGATE.search(value)) and not _SURROGATE.search(line):
        raise DataError(
            f"The column {column!r} of {where} holds half a character, \\u{ord(half[0]):04x}: write both halves of the "
            "surrogate pair, or remove that line."
        )
    return value


class Column(NamedTuple):
    """One part of every row: the columns of the table that make it, joined by spaces."""

    names: tuple[str, ...]
    flag: str  # that names them
    numbers: bool = False  # whether JSON's numbers are allowed


@dataclass(frozen=True)
class Table:
    """Columns side by side: ``columns[c][r]`` is the cell of column c in row r.

    ``locations`` says where each row stands, for messages; ``sha256`` is the ``FilesDigest`` of all files;
    ``skipped`` counts the rows that were left out because a part of them was empty.
    """

    columns: tuple[list[str], ...]
    locations: list[str]
    name: str
    sha256: str
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.locations)

    def take(self, which: np.ndarray) -> Table:
        """The rows at these indices, in their order."""
        chosen = which.tolist()
        columns = tuple([column[i] for i in chosen] for column in self.columns)
        return Table(columns, [self.locations[i] for i in chosen], self.name, self.sha256, self.skipped)


def read_table(specs: Sequence[str], columns: Sequence[Column], header: bool | None = None) -> Table:
    """The rows of CSV, TSV and JSONL files (``.gz`` too), folders and globs of them, or named sets.

    A column is a name, or a position from 1, with which every row is data unless ``header`` says otherwise. Raises
    ``DataError`` for what cannot be read, ``UsageError`` for a file that is no table and for names beside positions.
    """
    if header is None:
        check_alike([name for column in columns for name in column.names])
    parts: tuple[list[str], ...] = tuple([] for _ in columns)
    places: list[str] = []
    digests: list[bytes] = []
    for spec in specs:
        named = NAMED.get(spec)
        for path in [fetch(file) for file in named.files] if named else find_paths(spec):
            kind = column_kind(path)
            if kind is None:
                raise UsageError(
                    f"{path} is not a .csv, .tsv or .jsonl file (or one of these with .gz), from which rows are read. "
                    "Give such a file."
                )
            text = FileText(path)  # read for every column anew: whole, it may take far more memory than they do
            first = len(places)
            for part, column in zip(parts, columns):
                options = header, column.numbers, column.flag
                several = [list(column_texts(text, kind, name, path, *options)) for name in column.names]
                text.check()
                part += [" ".join(filter(None, cells)) for cells in zip(*several, strict=True)]
            digests.append(text.sha256)
            places += [f"row {n} of {path}" for n in range(1, len(parts[0]) - first + 1)]
    return Table(parts, places, " + ".join(map(str, specs)), FilesDigest(digests).hexdigest())


def without_empty(rows: Table, policy: Literal["skip", "refuse"]) -> Table:
    """``rows`` without those of which a part is empty, or white space alone.

    Raises ``DataError`` when nothing is left, and with ``refuse`` for the first that is left out.
    """
    full = [all(cell.strip() for cell in cells) for cells in zip(*rows.columns)]
    empty = full.count(False)
    if empty and policy == "refuse":
        place = rows.locations[full.index(False)]
        raise DataError(
            f"{place[0].upper()}{place[1:]} has an empty part, one of {empty:,} such rows: nothing, white space alone "
            "or JSON's null. Fill it in, or leave these rows out with --empty skip."
        )
    if not full:
        raise DataError(f"There are no rows in the data {rows.name}: they are empty, or have a header alone. Add rows.")
    if not any(full):
        raise DataError(
            f"The data {rows.name} has no row that can be used: of {len(full):,}, {empty:,} have an empty part. "
            "Give data with rows of which no part is empty."
        )
    left = rows.take(np.flatnonzero(full)) if empty else rows
    return Table(left.columns, left.locations, left.name, left.sha256, empty)


def split_rows(rows: Table, held_out: int, seed: int) -> tuple[Table, Table]:
    """The rows to train on and ``held_out`` others to validate with, drawn at random; both in their former order.

    Raises ``DataError`` when no row would be left to train on.
    """
    if not 0 < held_out < len(rows):
        raise DataError(
            f"{held_out:,} of the {len(rows):,} rows of {rows.name} cannot be held out for validation: at least one "
            "must be, and at least one must be left to train on. Give more rows, or another --val-rows or "
            "--val-fraction."
        )
    order = permutation(len(rows), seed, 0, "split")
    return rows.take(np.sort(order[held_out:])), rows.take(np.sort(order[:held_out]))


class Pairs(NamedTuple):
    """Parallel texts: ``source[i]`` is to become ``target[i]``. As a tuple its length is 2; count ``source``."""

    source: list[str]
    target: list[str]


class Labelled(NamedTuple):
    """Texts with their classes: ``texts[i]`` belongs to ``labels[i]``. As a tuple its length is 2; count ``texts``."""

    texts: list[str]
    labels: list[str]


def digest(splits: Mapping[str, Pairs | Labelled]) -> str:
    """SHA-256, in hexadecimal, of the names of the splits and all their texts in order."""
    content = json.dumps([[name, *columns] for name, columns in splits.items()])
    return hashlib.sha256(content.encode()).hexdigest()
