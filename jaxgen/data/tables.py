"""Rows of CSV, TSV and JSONL tables: each file is read once, and only the columns asked for are kept."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from jaxgen.data.batches import permutation
from jaxgen.data.datasets import NAMED, fetch
from jaxgen.data.files import NO_PROGRESS, FilesDigest, FileText, ProgressReporter, find_paths
from jaxgen.errors import DataError, UsageError
from jaxgen.text import KEEP_NEWLINES, STANDARD, Reading, Text, as_lf, lines_with_ends, whole_lines

_KINDS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
#: A column given by position. Longer digit strings are names: no table is that wide.
_POSITION = re.compile("[+-]?[0-9]{1,9}")
#: Half of a surrogate pair: impossible in a UTF-8 file, but a JSON escape can spell it.
_SURROGATE = re.compile("[\ud800-\udfff]")
_FIELD_LIMIT = 2**31 - 1  # a C long on every platform


class Column(NamedTuple):
    """One value of every row: one column of the table, or several joined by spaces."""

    names: tuple[str, ...]  # names from the header row, or positions from 1
    flag: str  # the command-line flag that names the column, for messages
    numbers: bool = False  # whether JSON numbers and booleans are allowed


@dataclass(frozen=True)
class Table:
    """Columns side by side: ``columns[c][r]`` is the value of column c in row r.

    ``locations`` says where each row was read, for messages. ``sha256`` is the ``FilesDigest`` of all files.
    ``skipped`` counts the rows that were left out because a value was empty, ``line_ends`` the CR LF and CR in values
    that were read as LF.
    """

    columns: tuple[list[str], ...]
    locations: list[str]
    name: str
    sha256: str
    skipped: int = 0
    line_ends: int = 0

    def __len__(self) -> int:
        return len(self.locations)

    def take(self, indices: np.ndarray) -> Table:
        """Returns the rows at ``indices``, in that order."""
        chosen = indices.tolist()
        columns = tuple([column[i] for i in chosen] for column in self.columns)
        return replace(self, columns=columns, locations=[self.locations[i] for i in chosen])


def table_kind(path: Path) -> str | None:
    """Returns ``csv``, ``tsv`` or ``jsonl`` by the file's name (``.gz`` ignored), or None for other files."""
    name = path.name.lower().removesuffix(".gz")
    return _KINDS.get(Path(name).suffix)


def read_table(
    specs: Sequence[str],
    columns: Sequence[Column],
    header: bool | None = None,
    watch: ProgressReporter = NO_PROGRESS,
    reading: Reading = STANDARD,
) -> Table:
    """Reads columns of CSV, TSV and JSONL files (also ``.gz``), of folders and globs of them, or of named sets.

    Args:
        specs: What to read.
        columns: The columns to keep, by name or by position from 1.
        header: Whether the first row is a header. By default it is one if the columns are given by name.
        watch: Receives notes.
        reading: Whether line ends in values become LF.

    Raises:
        DataError: A file cannot be read, is malformed, or changed while it was read.
        UsageError: A file is not a table, or columns are given partly by name and partly by position.
    """
    if header is None:
        check_same_style([name for column in columns for name in column.names])
    cells: tuple[list[str], ...] = tuple([] for _ in columns)
    locations: list[str] = []
    digests: list[bytes] = []
    changed = 0
    for spec in specs:
        named = NAMED.get(spec)
        for path in [fetch(file) for file in named.files] if named else find_paths(spec, watch=watch):
            kind = table_kind(path)
            if kind is None:
                raise UsageError(
                    f"{path} is not a .csv, .tsv or .jsonl file (or one of these with .gz). Give a table to read rows "
                    "from."
                )
            text = FileText(path, KEEP_NEWLINES)
            for number, (_, row) in enumerate(read_rows(text, kind, path, columns, header), 1):
                for column, cell in zip(cells, row):
                    if reading.newlines == "lf":
                        changed += cell.count("\r")
                        cell = as_lf(cell)
                    column.append(cell)
                locations.append(f"row {number} of {path}")
            text.check()
            digests.append(text.sha256)
    return Table(cells, locations, " + ".join(map(str, specs)), FilesDigest(digests).hexdigest(), 0, changed)


def read_rows(
    text: Text, kind: str, path: Path, columns: Sequence[Column], header: bool | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, values of ``columns``) for each row of a table.

    CSV may quote fields, TSV has no quoting. Rows end at LF, CR LF or CR; line ends in quoted fields are kept. A line
    of JSONL is an object (columns by name) or an array (columns by position). Blank lines are skipped, and JSON's null
    is an empty value. Read a table to its end before the next one: Python's limit on the length of a CSV field is
    lifted meanwhile.

    Args:
        text: The text of the table, or its pieces.
        kind: ``csv``, ``tsv`` or ``jsonl``.
        path: The file, for messages.
        columns: The columns to return.
        header: As in ``read_table``.

    Raises:
        DataError: A row is malformed or lacks a column; the message names the line.
        UsageError: A position is below 1.
    """
    positions = [[column_position(name, column.flag) for name in column.names] for column in columns]
    if kind == "jsonl":
        for number, line in enumerate(whole_lines(text), 1):
            if line.strip():
                yield number, _json_row(line, columns, positions, f"line {number} of {path}")
        return
    if header is None:
        header = any(position is None for at in positions for position in at)
    first: list[str] = []
    indices: list[list[int]] = []
    for number, row in table_rows(text, kind, path):
        if not first:
            first = row
            indices = [
                [_index(row, name, position, path, column.flag) for name, position in zip(column.names, at)]
                for column, at in zip(columns, positions)
            ]
            if header:
                continue
        if len(row) != len(first):
            raise DataError(
                f"Line {number} of {path} has {len(row)} columns, but the first row has {len(first)}. Correct that "
                "line; CSV fields with commas must be in quotation marks."
                + (_separator_hint(first) or _separator_hint(row))
            )
        yield number, [" ".join(filter(None, [row[i] for i in each])) for each in indices]


def column_position(name: str, flag: str) -> int | None:
    """Returns the position that ``name`` spells, or None for a name; ``UsageError`` for a position below 1."""
    position = int(name) if _POSITION.fullmatch(str(name)) else None
    if position is not None and position < 1:
        raise UsageError(f"{flag} is {name}, but positions count from 1. Give 1 for the first column.")
    return position


def check_same_style(names: Sequence[str]) -> None:
    """Raises ``UsageError`` if some columns are given by name (needs a header) and others by position (needs none)."""
    positions = [name for name in map(str, names) if _POSITION.fullmatch(name)]
    if positions and len(positions) < len(names):
        name = next(name for name in names if name not in positions)
        raise UsageError(
            f"The column {name!r} is given by name and the column {positions[0]} by position: give all columns by name "
            "(the first row is a header), or all by position from 1 (it is data)."
        )


def _index(row: list[str], name: str, position: int | None, path: Path, flag: str) -> int:
    """Returns the index of a column in ``row``, the first row of a table; ``DataError`` unless there is one."""
    if position is not None and position <= len(row):
        return position - 1
    if position is None and row.count(name) == 1:
        return row.index(name)
    problem = "appears more than once" if position is None and name in row else "is not there"
    raise DataError(
        f"The column {name!r} {problem} in {path}, whose first row is: {', '.join(map(repr, row))}. Give one of these "
        f"names with {flag}, or a position from 1 to {len(row)} if this row is data.{_separator_hint(row)}"
    )


def _separator_hint(row: list[str]) -> str:
    """Returns a hint for a row with a single field that contains another separator."""
    if len(row) == 1 and "\t" in row[0]:
        return " The columns seem to be separated by tabs: give the file a name that ends in .tsv."
    if len(row) == 1 and ";" in row[0]:
        return " The columns seem to be separated by semicolons: convert the file to commas (.csv) or tabs (.tsv)."
    return ""


def table_rows(text: Text, kind: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, fields) of each row of a CSV or TSV table; the line is the one where the row begins."""
    if kind == "csv":
        reader = csv.reader(lines_with_ends(text), strict=True)
    else:
        reader = csv.reader(lines_with_ends(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    begin = 1  # an unclosed quote makes the rest of the file part of the row, so report where the row begins
    with _unlimited_fields():
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
def _unlimited_fields() -> Iterator[None]:
    """Lifts the csv module's limit on the length of a field, which is global to the process."""
    before = csv.field_size_limit(_FIELD_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _json_row(line: str, columns: Sequence[Column], positions: Sequence[Sequence[int | None]], where: str) -> list[str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{capitalized(where)} is not JSON ({error}). Correct or remove that line.") from error
    cells = (
        [_json_cell(record, line, *each, where, column.numbers) for each in zip(column.names, at)]
        for column, at in zip(columns, positions)
    )
    return [" ".join(filter(None, each)) for each in cells]


def _kind(value: object) -> str:
    """Returns the type of a JSON value in words, and the value itself if it is short by its type."""
    if isinstance(value, list):
        return f"an array of length {len(value)}"
    return "an object" if isinstance(value, dict) else json.dumps(value)[:100]


def _json_cell(record: object, line: str, name: str, position: int | None, where: str, numbers: bool) -> str:
    cells = dict(enumerate(record, 1)) if isinstance(record, list) else record
    key = position if isinstance(record, list) else name
    if not isinstance(cells, dict) or key not in cells:
        there = ", ".join(map(repr, record)) if isinstance(record, dict) else _kind(record)
        raise DataError(
            f"The column {name!r} is not in {where}, which has: {there}. Each line must be an object (column by name) "
            "or a long enough array (by position)."
        )
    value = cells[key]
    if value is None:
        return ""
    if numbers and isinstance(value, (int, float)):
        return json.dumps(value)
    if not isinstance(value, str):
        raise DataError(
            f"The column {name!r} of {where} holds {_kind(value)}, not a string. Correct or remove that line."
        )
    if (half := _SURROGATE.search(value)) and not _SURROGATE.search(line):
        raise DataError(
            f"The column {name!r} of {where} holds half of a surrogate pair, \\u{ord(half[0]):04x}: write both halves, "
            "or remove that line."
        )
    return value


def without_empty(table: Table, policy: Literal["skip", "refuse"]) -> Table:
    """Returns ``table`` without the rows in which a value is empty or white space.

    Raises:
        DataError: No row is left, or ``policy`` is ``refuse`` and there is such a row.
    """
    full = [all(cell.strip() for cell in row) for row in zip(*table.columns)]
    empty = full.count(False)
    if empty and policy == "refuse":
        raise DataError(
            f"{capitalized(table.locations[full.index(False)])} has an empty part, one of {empty:,} such rows: "
            "nothing, white space or JSON's null. Fill it in, or skip these rows with --empty skip."
        )
    if not any(full):
        raise DataError(
            f"The data {table.name} has no usable row: of {len(full):,} rows, {empty:,} have an empty part. Give data "
            "with complete rows."
        )
    return replace(table.take(np.flatnonzero(full)) if empty else table, skipped=empty)


def capitalized(location: str) -> str:
    """Returns ``location`` with a capital first letter, to begin a sentence."""
    return location[:1].upper() + location[1:]


class Pairs(NamedTuple):
    """Parallel texts: ``target[i]`` is the translation of ``source[i]``. ``len`` returns 2, the number of fields."""

    source: list[str]
    target: list[str]


class Labelled(NamedTuple):
    """Texts with their classes: ``labels[i]`` is the class of ``texts[i]``. ``len`` returns 2, the number of fields."""

    texts: list[str]
    labels: list[str]


def digest(splits: Mapping[str, Pairs | Labelled]) -> str:
    """Returns the SHA-256, in hexadecimal, of the names of the splits and of all their texts in order."""
    content = json.dumps([[name, *columns] for name, columns in splits.items()])
    return hashlib.sha256(content.encode()).hexdigest()


#: Share of the data held out by default.
VAL_FRACTION = 0.1


def fingerprint(name: str, sha256: str, val_sha256: str | None = None) -> dict[str, str]:
    """Returns what a run keeps of its data: their name and the digest of their bytes.

    With ``val_sha256``, the digest is that of both hexadecimal digests, training data first.
    """
    if val_sha256 is not None:
        sha256 = hashlib.sha256(f"{sha256}{val_sha256}".encode()).hexdigest()
    return {"name": name, "sha256": sha256}


R = TypeVar("R", bound="Rows")


class Rows(Protocol):
    """A sequence of rows from which some can be taken by index."""

    def __len__(self) -> int: ...

    def take(self: R, indices: np.ndarray, /) -> R: ...


def hold_out(
    rows: R,
    name: str,
    seed: int,
    *,
    val_rows: int | None = None,
    val_fraction: float | None = None,
    labels: Sequence[str] | None = None,
    unit: str = "rows",
) -> tuple[R, R]:
    """Splits rows at random into training and validation rows, each in their original order.

    Args:
        rows: The rows to split.
        name: The name of the data, for messages.
        seed: Seed of the split.
        val_rows: Number of rows to hold out.
        val_fraction: Share of the rows to hold out if ``val_rows`` is not given. Default: ``VAL_FRACTION``.
        labels: The label of each row, if one row of each label must remain for training.
        unit: What a row is, for messages.

    Raises:
        DataError: That many rows cannot be held out.
    """
    size = len(rows)
    fraction = VAL_FRACTION if val_fraction is None else val_fraction
    count = max(1, round(size * fraction)) if val_rows is None else val_rows
    groups = [""] * size if labels is None else labels
    remaining = Counter(groups)
    held_out = np.zeros(size, bool)
    for i in permutation(size, seed, 0, "split").tolist():
        if count > 0 and remaining[groups[i]] > 1:
            held_out[i] = True
            remaining[groups[i]] -= 1
            count -= 1
    if count or not held_out.any():
        of_labels = "" if labels is None else f" of each of the {len(remaining):,} labels"
        raise DataError(
            f"{count + int(held_out.sum()):,} of the {size:,} {unit} of {name} cannot be held out for validation: at "
            f"least one must be, and at least one{of_labels} must remain for training. Give more {unit}, or another "
            "--val-rows or --val-fraction."
        )
    return rows.take(np.flatnonzero(~held_out)), rows.take(np.flatnonzero(held_out))
