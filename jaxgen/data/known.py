"""Rows of tables as documents of which something is known beside their text: a label, numbers, or both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxgen.data.builtin import BUILTIN
from jaxgen.data.columns import check_alike
from jaxgen.data.named import NAMED, NamedSet
from jaxgen.data.tables import Column, Rows, read_table
from jaxgen.errors import DataError, UsageError


@dataclass(frozen=True)
class Known:
    """What is known of N documents: ``labels`` (none of them, or N), ``numbers`` [N, F], and where each stands."""

    labels: list[str]
    numbers: np.ndarray  # float64
    places: list[str]

    def __len__(self) -> int:
        return len(self.places)

    def take(self, which: np.ndarray) -> Known:
        """What is known of the documents at these indices, in their order."""
        chosen = which.tolist()
        labels = [self.labels[i] for i in chosen] if self.labels else []
        return Known(labels, self.numbers[which], [self.places[i] for i in chosen])


@dataclass(frozen=True)
class KnownSource:
    """Documents with what is known of them; ``sha256`` is the ``FilesDigest`` of all files."""

    texts: list[str]
    known: Known
    name: str
    sha256: str


def read_known(
    specs: Sequence[str],
    text_column: str | None = None,
    label_column: str | None = None,
    feature_columns: Sequence[str] = (),
) -> KnownSource:
    """The rows of CSV, TSV and JSONL files (``.gz`` too) or of a named set that have a text, with label and numbers.

    Columns are names, or positions from 1, with which every row is data. A named set has a text column of its own, and
    names for the labels of its label column. Rows whose text is white space are left out, as without labels. Raises
    ``DataError`` for what cannot be read, also for a text without label or number, ``UsageError`` for data that are no
    table.
    """
    specs = [specs] if isinstance(specs, str) else list(specs)
    if built_in := [spec for spec in specs if spec in BUILTIN]:
        raise UsageError(
            f"The built-in data {built_in[0]} have no columns for --label-column or --feature-columns to name: give a "
            ".csv, .tsv or .jsonl file, or leave the flag out."
        )
    named = NAMED.get(specs[0]) if len(specs) == 1 else None
    text_column = text_column or (named.text_column if named else None)
    if text_column is None:
        raise UsageError(
            f"Which column of {' '.join(specs)} holds the text? Name it with --text-column, by name or by position "
            "from 1: labels and numbers are read beside it."
        )
    check_alike([text_column, *([] if label_column is None else [label_column]), *feature_columns])
    columns = [Column((text_column,), "--text-column")]
    if label_column is not None:
        columns.append(Column((label_column,), "--label-column", numbers=True))
    columns += [Column((name,), "--feature-columns", numbers=True) for name in feature_columns]
    rows = read_table(specs, columns, header=named.header if named else None)
    kept = [i for i, text in enumerate(rows.parts[0]) if text and not text.isspace()]
    if not kept:
        raise DataError(f"The data {rows.name} have no row with a text. Give rows with text, or check --text-column.")
    rows = rows.take(np.array(kept))
    labels = [] if label_column is None else _labels(rows, named, label_column)
    first = len(rows.parts) - len(feature_columns)
    numbers = [_numbers(rows, part, name) for part, name in zip(rows.parts[first:], feature_columns)]
    table = np.stack(numbers, axis=1) if numbers else np.zeros((len(rows), 0))
    return KnownSource(rows.parts[0], Known(labels, table, rows.places), rows.name, rows.sha256)


def _labels(rows: Rows, named: NamedSet | None, column: str) -> list[str]:
    """The label of every row; a named set has names for its own."""
    labels = [label.strip() for label in rows.parts[1]]
    if missing := [i for i, label in enumerate(labels) if not label]:
        raise DataError(
            f"{_capital(rows.places[missing[0]])} has a text and no label, one of {len(missing):,} such rows. Fill in "
            "the label, or remove the row."
        )
    names = dict(named.labels) if named and column == named.label_column else {}
    return [names.get(label, label) for label in labels]


def _numbers(rows: Rows, cells: list[str], column: str) -> np.ndarray:
    """A column as numbers, float64 [N]."""
    found = np.empty(len(cells))
    for i, cell in enumerate(cells):
        try:
            found[i] = float(cell)
        except ValueError:
            found[i] = math.nan
        if not math.isfinite(found[i]):
            raise DataError(
                f"{_capital(rows.places[i])} has {cell!r} in the column {column!r}, which is no finite number: correct "
                "it, remove the row, or leave the column out of --feature-columns."
            )
    return found


def _capital(place: str) -> str:
    return place[0].upper() + place[1:]
