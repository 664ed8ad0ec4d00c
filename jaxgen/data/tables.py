"""Rows of CSV, TSV and JSONL tables: each file is read once, and only the columns asked for are kept."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from jaxgen.data.batches import permutation
from jaxgen.data.files import NO_PROGRESS, FilesDigest, FileText, ProgressReporter, find_data
from jaxgen.data.in_memory import data_name
from jaxgen.errors import DataError, UsageError, counted, listed
from jaxgen.text import KEEP_NEWLINES, STANDARD, Reading, Text, as_lf, in_pieces, lines_with_ends, whole_lines

_KINDS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
#: A column given by position. Longer digit strings are names: no table is that wide.
_POSITION = re.compile("[+-]?[0-9]{1,9}")
#: Half of a surrogate pair: impossible in a UTF-8 file, but a JSON escape can spell it.
_SURROGATE = re.compile("[\ud800-\udfff]")
_FIELD_LIMIT = 2**31 - 1  # a C long on every platform
#: The first line with which Excel names the separator of a table.
EXCEL_SEPARATOR = re.compile('"?sep=(.)"?', re.IGNORECASE)
_NAME, _WORD = re.compile("(?=.*[A-Za-z])[A-Za-z0-9_ ./-]{1,40}"), re.compile("[a-z]+")
#: Words of which the usual names of columns consist.
_USUAL_WORDS = (
    "abstract answer ar arabic author body caption captions categories category chinese class classes code "
    "comment comments content context cs czech data date de description doc document dutch email emotion en "
    "english es feature features file filename fr french genre german greek headline hebrew hi hindi hungarian "
    "hypothesis id idx image images index input intent it italian ja japanese key keyword ko korean label labels "
    "lang language latin line message msg name nl no note number output paragraph path photo phrase phrases "
    "picture pl polish portuguese post premise prompt pt query question rating raw reference reply response "
    "review reviews romanian row ru russian score sentence sentences sentiment source spanish src stars subject "
    "summary swedish tag tags target text texts tgt title topic tr translation trg turkish tweet type uk "
    "ukrainian url utterance value verse vietnamese word words year zh"
)
_USUAL = frozenset(_USUAL_WORDS.split(" "))
#: Usual names of the column with a text, and of the one with its label, without regard to letter case.
_TEXT = "text texts sentence sentences content body comment message post review tweet"
_LABEL = "label labels class category emotion intent rating sentiment spam stars target topic"
TEXT_NAMES, LABEL_NAMES = frozenset(_TEXT.split(" ")), frozenset(_LABEL.split(" "))
#: What ``--header`` may say, and the argument of ``read_table`` for it.
HEADERS: dict[str, bool | None] = {"auto": None, "yes": True, "no": False}


class Column(NamedTuple):
    """One value of every row: one column of the table, or several joined by spaces."""

    names: tuple[str, ...]  # names from the header row, or positions from 1
    flag: str  # the command-line flag that names the column, for messages
    numbers: bool = False  # whether JSON numbers and booleans are allowed


class Dialect(NamedTuple):
    """How the fields of a table are written."""

    separator: str
    quoted: bool  # whether fields may be in quotation marks
    skipped: int = 0  # lines before the first row

    @property
    def is_padded(self) -> bool:
        """Whether white space around fields is not part of them, as in the captions of Flickr30k."""
        return self.separator == "|"


DIALECTS = {"csv": Dialect(",", quoted=True), "tsv": Dialect("\t", quoted=False)}
#: What the separator of a table may be instead, if its first row then has more of the columns.
_OTHERS = DIALECTS["csv"], Dialect(";", quoted=True), Dialect("\t", quoted=True), Dialect("|", quoted=False)


class FirstRow(NamedTuple):
    """The first row of a file whose columns are given by position, and whether it was read as a header."""

    where: str
    is_header: bool


def header_notes(first_rows: Sequence[FirstRow]) -> list[str]:
    """Returns notes of what the first rows of files were read as."""
    notes = []
    for is_header, what, other in (
        (True, "a header", "no reads it as data"),
        (False, "data", "yes reads it as a header"),
    ):
        found = [row.where for row in first_rows if row.is_header == is_header]
        if found:
            more = f" and of {len(found) - 1:,} more files" if len(found) > 1 else ""
            notes.append(f"The first row of {found[0]}{more} is read as {what}: --header {other}.")
    return notes


def header_decision(first_rows: Sequence[FirstRow]) -> Literal["yes", "no"] | None:
    """Returns whether the first rows of all files are headers; None if they differ, or nothing was decided."""
    found = {row.is_header for row in first_rows}
    return None if len(found) != 1 else "yes" if found.pop() else "no"


@dataclass(frozen=True)
class Table:
    """Columns side by side: ``columns[c][r]`` is the value of column c in row r.

    ``locations`` says where each row was read, for messages. ``sha256`` is the ``FilesDigest`` of all files, ``files``
    are those of each.
    ``skipped`` counts the rows that were left out because a value was empty, ``line_ends`` the CR LF and CR in values
    that were read as LF.
    """

    columns: tuple[list[str], ...]
    locations: list[str]
    name: str
    sha256: str
    skipped: int = 0
    line_ends: int = 0
    first_rows: tuple[FirstRow, ...] = ()
    files: tuple[bytes, ...] = ()

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
        header: Whether the first row is a header. By default it is one if the columns are given by name, or if it has
            usual names of columns and none of them occurs again in its column.
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
    first_rows: list[FirstRow] = []
    for _, paths in find_data(specs, watch):
        for path in paths:
            kind = table_kind(path)
            if kind is None:
                raise UsageError(
                    f"{path} is not a .csv, .tsv or .jsonl file (or one of these with .gz). Give a table to read rows "
                    "from."
                )
            text, shown = FileText(path, KEEP_NEWLINES), data_name([path])
            for number, (_, row) in enumerate(read_rows(text, kind, path, columns, header, first_rows), 1):
                for column, cell in zip(cells, row):
                    if reading.newlines == "lf":
                        changed += cell.count("\r")
                        cell = as_lf(cell)
                    column.append(cell)
                locations.append(f"row {number} of {shown}")
            text.check()
            digests.append(text.sha256)
    name = data_name(specs)
    sha256 = FilesDigest(digests).hexdigest()
    return Table(cells, locations, name, sha256, 0, changed, tuple(first_rows), tuple(digests))


def read_rows(
    text: Text,
    kind: str,
    path: Path,
    columns: Sequence[Column],
    header: bool | None = None,
    first_rows: list[FirstRow] | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, values of ``columns``) for each row of a table.

    CSV may quote fields; TSV has no quoting, unless all of its quotation marks are as Excel writes them. Rows end at
    LF, CR LF or CR; line ends in quoted fields are kept. A line of JSONL is an object (columns by name) or an array
    (columns by position). Blank lines are skipped, and JSON's null is an empty value. Read a table to its end before
    the next one: Python's limit on the length of a CSV field is lifted meanwhile.

    Args:
        text: The text of the table, or its pieces.
        kind: ``csv``, ``tsv`` or ``jsonl``.
        path: The file, for messages.
        columns: The columns to return.
        header: As in ``read_table``.
        first_rows: Gets the first row, if it was decided here whether that is a header.

    Raises:
        DataError: A row is malformed or lacks a column; the message names the line.
        UsageError: A position is below 1.
    """
    if kind == "jsonl":
        shown = data_name([path])
        positions = [[column_position(name, column.flag) for name in column.names] for column in columns]
        for number, line in enumerate(whole_lines(text), 1):
            if line.strip():
                yield number, _json_row(line, columns, positions, f"line {number} of {shown}")
        return
    dialect = _find_dialect(text, kind, path, [name for column in columns for name in column.names])
    first = _first_row(text, dialect, path)
    if first is None:
        return
    indices = _indices(first, columns, header, path)
    if header is None:
        header = any(column_position(name, "") is None for column in columns for name in column.names)
        if not header and first_rows is not None:
            header = _is_header(text, dialect, path, first, {i for each in indices for i in each})
            where = f"{path} ({listed((cell[:30] for cell in first), 4)})"
            first_rows.append(FirstRow(where, header))
    for number, row in islice(table_rows(text, dialect, path), int(header), None):
        if dialect.is_padded:
            row += [""] * (len(first) - len(row))  # a line of the file of Flickr30k lacks a separator
        if len(row) != len(first):
            hint = f"; fields with {dialect.separator!r} must be in quotation marks" if dialect.quoted else ""
            raise DataError(
                f"Line {number} of {path} has {counted(len(row), 'column')}, but the first row has {len(first)}. "
                f"Correct that line{hint}."
            )
        yield number, [" ".join(filter(None, [row[i] for i in each])) for each in indices]


def read_first_row(specs: Sequence[str]) -> list[str]:
    """Returns the first row of the first file, of JSONL the names in its first line; nothing of what is no table."""
    path = next((path for _, paths in find_data(specs) for path in paths), None)
    kind = None if path is None else table_kind(path)
    if path is None or kind is None:
        return []
    text = FileText(path, KEEP_NEWLINES)
    if kind != "jsonl":
        return _first_row(text, _find_dialect(text, kind, path, ()), path) or []
    with suppress(ValueError, RecursionError):
        record = json.loads(next((line for line in whole_lines(text) if line.strip()), ""))
        return [*record] if isinstance(record, dict) else []
    return []


def usual_column(first_row: Sequence[str], names: Collection[str]) -> str | None:
    """Returns the only cell of a first row that is one of these ``names`` of columns; None if there is not one."""
    found = [cell for cell in first_row if cell.strip().lower() in names]
    return found[0] if len(found) == 1 else None


def shown_first_row(row: Sequence[str]) -> str:
    """Returns a sentence on the first row of a table for a message that asks for columns, with a space before it."""
    return f" The first row is: {listed(cell[:30] for cell in row)}." if row else ""


def _first_row(text: Text, dialect: Dialect, path: Path) -> list[str] | None:
    with closing(table_rows(text, dialect, path)) as rows:
        return next((row for _, row in rows), None)


def _find_dialect(text: Text, kind: str, path: Path, columns: Sequence[str]) -> Dialect:
    """Returns how a table is written: as its name says, or as its first line or its columns and quotation marks do."""
    first_line = next(iter(lines_with_ends(text)), "").rstrip("\r\n")
    if found := EXCEL_SEPARATOR.fullmatch(first_line):
        return Dialect(found[1], quoted=True, skipped=1)
    named = DIALECTS[kind]
    if kind == "tsv":
        named = named._replace(quoted=_has_excel_quotes(text))

    def fit(dialect: Dialect) -> tuple[int, int]:
        """How many of the columns the first row has, and its length."""
        try:
            first = _first_row(text, dialect, path) or []
        except DataError:
            return 0, 0
        positions = {str(n) for n in range(1, len(first) + 1)}
        return sum(name in first or name.lstrip("+0") in positions for name in columns), len(first)

    fitting, length = fit(named)
    if fitting == len(columns) and length == 1 and all(map(_POSITION.fullmatch, columns)):
        # Every line has a first column: it is a part of the line if another separator divides all lines alike.
        return next((dialect for dialect in _OTHERS if _is_regular(text, dialect, path)), named)
    return named if fitting == len(columns) else max((named, *_OTHERS), key=fit)


def _is_regular(text: Text, dialect: Dialect, path: Path) -> bool:
    """Returns whether all rows, at least three, have the same number of fields, at least two."""
    with suppress(DataError):
        lengths = [len(row) for _, row in table_rows(text, dialect, path)]
        return len(lengths) > 2 and lengths[0] > 1 and len({*lengths}) == 1
    return False


def _has_excel_quotes(text: Text) -> bool:
    """Returns whether tab-separated text has fields in quotation marks, by one of the rules of programs.

    Either all fields are, or those with a quotation mark, a tab or a line break (with Excel also those with a comma).
    """
    if not any('"' in piece for piece in in_pieces(text)):
        return False
    lines: list[str] = []

    def read() -> Iterator[str]:
        for line in lines_with_ends(text):
            lines.append(line)
            yield line

    rules = [re.compile(rule) for rule in ("", '["\t\r\n]', '[",\t\r\n]')]
    try:
        for row in csv.reader(read(), delimiter="\t", strict=True):
            written = "".join(lines).rstrip("\r\n")
            lines.clear()
            quoted = {cell: '"' + cell.replace('"', '""') + '"' for cell in row}
            rules = [
                rule
                for rule in rules
                if written == "\t".join(quoted[cell] if rule.search(cell) else cell for cell in row)
            ]
            if not rules:
                return False
    except csv.Error:
        return False
    return True


def _is_header(text: Text, dialect: Dialect, path: Path, first: Sequence[str], indices: Collection[int]) -> bool:
    """Returns whether a first row has usual names in all ``indices``, and none of them again in its column."""
    names = {i: _without_numbers(first[i]) for i in indices}
    if not all(_NAME.fullmatch(first[i]) and {*_WORD.findall(names[i])} <= _USUAL for i in indices):
        return False
    with closing(table_rows(text, dialect, path)) as rows:
        later = (row for _, row in islice(rows, 1, None) if len(row) == len(first))
        return not any(_without_numbers(row[i]) == names[i] for row in later for i in indices)


def _without_numbers(cell: str) -> str:
    """Returns a cell as it is compared with a name: "label 1" is no name above "label 2"."""
    return re.sub("[0-9]+", "", cell).strip().lower()


def column_position(name: str, flag: str) -> int | None:
    """Returns the position that ``name`` spells, or None for a name; ``UsageError`` for a position below 1."""
    position = int(name) if _POSITION.fullmatch(str(name)) else None
    if position is not None and position < 1:
        raise UsageError(
            f"{flag} is {name}, but positions count from 1. Give 1 for the first column, or add --header yes if {name} "
            "is a name in the header."
        )
    return position


def check_same_style(names: Sequence[str]) -> None:
    """Raises ``UsageError`` if some columns are given by name (needs a header) and others by position (needs none)."""
    positions = [name for name in map(str, names) if _POSITION.fullmatch(name)]
    if positions and len(positions) < len(names):
        name = next(name for name in names if name not in positions)
        raise UsageError(
            f"The column {name!r} is given by name and the column {positions[0]} by position: give all by name, or all "
            "by position from 1, or add --header yes if the first row is a header."
        )


def _indices(row: list[str], columns: Sequence[Column], header: bool | None, path: Path) -> list[list[int]]:
    """Returns the indices of columns in ``row``, the first row of a table; ``DataError`` unless they are there.

    If there is a ``header`` and it has all of them, numbers are names.
    """
    by_name = header is True and all(name in row for column in columns for name in column.names)
    indices = []
    for names, flag, _ in columns:
        positions = [None if by_name else column_position(name, flag) for name in names]
        if header is False and None in positions:
            raise UsageError(
                f"{flag} {names[positions.index(None)]} is a name, but --header no says that the first row of {path} "
                "is data: give a position from 1, or leave the flag out."
            )
        indices.append([_index(row, name, position, path, flag) for name, position in zip(names, positions)])
    return indices


def _index(row: list[str], name: str, position: int | None, path: Path, flag: str) -> int:
    """Returns the index of a column in ``row``; ``DataError`` unless there is one."""
    if position is not None and position <= len(row):
        return position - 1
    if position is None and row.count(name) == 1:
        return row.index(name)
    problem = "appears more than once" if position is None and name in row else "is not there"
    raise DataError(
        f"The column {name!r} {problem} in {path}, whose first row is: {', '.join(map(repr, row))}. Give one of these "
        f"names with {flag}, or a position from 1 to {len(row)} if this row is data."
    )


def table_rows(text: Text, dialect: Dialect, path: Path) -> Generator[tuple[int, list[str]]]:
    """Yields (line, fields) of each row of a CSV or TSV table; the line is the one where the row begins."""
    lines = lines_with_ends(text)
    if dialect.quoted:
        reader = csv.reader(lines, delimiter=dialect.separator, strict=True)
    else:
        reader = csv.reader(lines, delimiter=dialect.separator, quoting=csv.QUOTE_NONE)
    begin = 1  # an unclosed quote makes the rest of the file part of the row, so report where the row begins
    with _unlimited_fields():
        try:
            for row in reader:
                if row and begin > dialect.skipped:
                    yield begin, [cell.strip() for cell in row] if dialect.is_padded else row
                begin = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"Line {begin} of {path} begins a row that is not well-formed ({error}). "
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


def shared_files_notes(train: Sequence[bytes], held_out: Sequence[bytes], split: str = "validation") -> list[str]:
    """Returns a note if held-out data are training data, by the digests of their files."""
    shared = {*train} & {*held_out}
    if not shared:
        return []
    which = "" if shared == {*held_out} else f"{len(shared):,} of the {len({*held_out}):,} files of "
    return [f"{which}the {split} data are training data, so they say nothing about other data"]


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
