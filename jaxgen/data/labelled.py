"""From what the user names to labelled texts: tables, folders named after labels, and built-in sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxgen.data.corpus import identity
from jaxgen.data.files import decode, find_paths, read_bytes, unzip
from jaxgen.data.named import NAMED
from jaxgen.data.rows_config import VAL_FRACTION
from jaxgen.data.tables import Column, Rows, read_table, split_rows, without_empty
from jaxgen.errors import DataError, UsageError


@dataclass(frozen=True)
class LabelledSplits:
    """Texts and their labels (the two parts of the rows), to train on and to validate with."""

    train: Rows
    val: Rows
    val_sha256: str | None
    labels: tuple[str, ...]
    skipped: int

    @property
    def identity(self) -> dict[str, str]:
        """What a run remembers of its data: their name and the digest of their bytes."""
        return identity(self.train.name, self.train.sha256, self.val_sha256)


def read_labelled(
    data: Sequence[str],
    val_data: Sequence[str] | None = None,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    empty: Literal["skip", "refuse"] = "skip",
    val_fraction: float | None = None,
    val_rows: int | None = None,
    seed: int = 0,
) -> LabelledSplits:
    """Read labelled texts and split them; the labels are those of the training split, sorted.

    Without ``val_data`` rows are held out at random; the first row of a label that would be held out altogether is
    trained on. Raises ``DataError`` for data that cannot be used: also for a label that occurs in ``val_data`` alone,
    or when there are fewer than two labels.
    """
    columns = tuple(text_columns) if text_columns else None, label_column
    rows = without_empty(_read(data, *columns), empty)
    if val_data:
        train, val = rows, without_empty(_read(val_data, *columns), empty)
        val_sha256 = val.sha256
        skipped = train.skipped + val.skipped
    else:
        held_out = val_rows or max(1, round(len(rows) * (VAL_FRACTION if val_fraction is None else val_fraction)))
        train, val = _with_every_label(*split_rows(rows, held_out, seed))
        val_sha256, skipped = None, rows.skipped
    labels = sorted({*train.parts[1]})
    if unseen := [i for i, label in enumerate(val.parts[1]) if label not in {*labels}]:
        raise DataError(
            f"The label {val.parts[1][unseen[0]]!r} ({val.places[unseen[0]]}) occurs in the validation data alone, "
            f"which cannot be learnt; the training data have {_listed(labels)}. Add texts of it to the training data, "
            "or remove it."
        )
    if len(labels) < 2:
        raise DataError(
            f"All rows of {rows.name} have the label {labels[0]!r}: there is nothing to tell apart. Give data with at "
            "least two labels, or check --label-column."
        )
    return LabelledSplits(train, val, val_sha256, tuple(labels), skipped)


def _with_every_label(train: Rows, val: Rows) -> tuple[Rows, Rows]:
    """The split with the first row of each label that only ``val`` has moved to ``train``."""
    known, moved = {*train.parts[1]}, []
    for i, label in enumerate(val.parts[1]):
        if label not in known:
            known.add(label)
            moved.append(i)
    if not moved:
        return train, val
    if len(moved) == len(val):
        raise DataError(
            f"Every row of {train.name} that was held out has a label of its own, so that none is left to validate "
            "with. Give more rows, or check --label-column."
        )
    more = val.take(np.array(moved))
    parts = tuple(a + b for a, b in zip(train.parts, more.parts))
    joined = Rows(parts, train.places + more.places, train.name, train.sha256, train.skipped)
    return joined, val.take(np.setdiff1d(np.arange(len(val)), moved))


def _read(data: Sequence[str], text_columns: tuple[str, ...] | None, label_column: str | None) -> Rows:
    if len(data) == 1 and text_columns is None and label_column is None:
        name = data[0]
        if name in NAMED and NAMED[name].label_column is not None:
            return _named(name)
        if Path(name).expanduser().is_dir():
            return _folders(Path(name).expanduser())
    if text_columns is None or label_column is None:
        raise UsageError(
            f"Which columns of {' '.join(data)} hold the text and the label? Name them with --text-column and "
            "--label-column, by name or by position from 1. Or give a folder with a folder of texts for each label."
        )
    flags = Column(text_columns, "--text-column"), Column((label_column,), "--label-column", numbers=True)
    rows = read_table(data, flags)
    return Rows((rows.parts[0], [label.strip() for label in rows.parts[1]]), rows.places, rows.name, rows.sha256)


def _named(name: str) -> Rows:
    """A named set by what is known of its columns, with the names of its labels."""
    known = NAMED[name]
    columns = Column(known.text_columns, "--text-column"), Column((str(known.label_column),), "--label-column")
    rows = read_table([name], columns, header=known.header)
    names = dict(known.labels)
    labels = [names.get(label, label) for label in rows.parts[1]]
    return Rows((rows.parts[0], labels), rows.places, rows.name, rows.sha256)


def _folders(root: Path) -> Rows:
    """The files under ``root``, a text each, labelled with the name of the folder in ``root`` that they are in."""
    texts: list[str] = []
    labels: list[str] = []
    places: list[str] = []
    digest = hashlib.sha256()
    for path in find_paths(str(root)):
        parts = path.relative_to(root).parts
        if len(parts) < 2:
            raise DataError(
                f"{path} lies beside the folders that are to name the labels. Put it into the folder of its label, or "
                "leave it out; for a table give the file itself with --text-column and --label-column."
            )
        raw = read_bytes(path)
        digest.update(raw)
        texts.append(decode(unzip(raw, path), path))
        labels.append(parts[0])
        places.append(f"the file {path}")
    return Rows((texts, labels), places, str(root), digest.hexdigest())


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(map(repr, labels[:10]))
    return f"{shown} and {len(labels) - 10} more" if len(labels) > 10 else shown
