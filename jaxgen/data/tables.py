"""Rows of tables: several columns of CSV, TSV and JSONL files side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from jaxgen.data.batches import permutation
from jaxgen.data.columns import check_alike, column_kind, column_texts
from jaxgen.data.files import FilesDigest, FileText, find_paths
from jaxgen.data.named import NAMED, fetch
from jaxgen.errors import DataError, UsageError


class Column(NamedTuple):
    """One part of every row: the columns of the table that make it, joined by spaces."""

    names: tuple[str, ...]
    flag: str  # that names them
    numbers: bool = False  # whether JSON's numbers are allowed


@dataclass(frozen=True)
class Rows:
    """Parts of rows side by side: ``parts[p][r]`` is part p of row r.

    ``places`` says where each row stands, for messages; ``sha256`` is the ``FilesDigest`` of all files;
    ``skipped`` counts the rows that were left out because a part of them was empty.
    """

    parts: tuple[list[str], ...]
    places: list[str]
    name: str
    sha256: str
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.places)

    def take(self, which: np.ndarray) -> Rows:
        """The rows at these indices, in their order."""
        chosen = which.tolist()
        parts = tuple([part[i] for i in chosen] for part in self.parts)
        return Rows(parts, [self.places[i] for i in chosen], self.name, self.sha256, self.skipped)


def read_table(specs: Sequence[str], columns: Sequence[Column], header: bool | None = None) -> Rows:
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
    return Rows(parts, places, " + ".join(map(str, specs)), FilesDigest(digests).hexdigest())


def without_empty(rows: Rows, policy: Literal["skip", "refuse"]) -> Rows:
    """``rows`` without those of which a part is empty, or white space alone.

    Raises ``DataError`` when nothing is left, and with ``refuse`` for the first that is left out.
    """
    full = [all(cell.strip() for cell in cells) for cells in zip(*rows.parts)]
    empty = full.count(False)
    if empty and policy == "refuse":
        place = rows.places[full.index(False)]
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
    return Rows(left.parts, left.places, left.name, left.sha256, empty)


def split_rows(rows: Rows, held_out: int, seed: int) -> tuple[Rows, Rows]:
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
