"""From what the user names to labelled texts: tables, folders named after labels, and built-in sets."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxgen.data.batches import permutation
from jaxgen.data.conditioning import MAX_LABELS
from jaxgen.data.corpus import identity
from jaxgen.data.examples import Labelled, digest
from jaxgen.data.files import FilesDigest, FileText, find_paths
from jaxgen.data.named import NAMED
from jaxgen.data.packages import stdlib_packages
from jaxgen.data.rows_config import VAL_FRACTION
from jaxgen.data.tables import Column, Rows, read_table, without_empty
from jaxgen.errors import DataError, UsageError

#: Built-in sets by name: from a seed to the splits ``train`` and ``val``.
LABELLED_SETS: dict[str, Callable[[int], dict[str, Labelled]]] = {"stdlib-packages": stdlib_packages}


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

    Without ``val_data`` rows are held out at random, but for one of each label at least. A built-in set has a
    validation split of its own. Raises ``DataError`` for data that cannot be used, also for a label that occurs in
    ``val_data`` alone and when there are fewer than two labels; ``UsageError`` for flags that do not fit.
    """
    if len(data) == 1 and data[0] in LABELLED_SETS:
        flags: dict[str, object] = {"--text-column": text_columns, "--label-column": label_column}
        flags |= {"--val-data": val_data, "--val-fraction": val_fraction, "--val-rows": val_rows}
        return _builtin(data[0], seed, [flag for flag, value in flags.items() if value is not None])
    columns = tuple(text_columns) if text_columns else None, label_column
    _check_there([spec for spec in (*data, *(val_data or ())) if spec in LABELLED_SETS])
    rows = without_empty(_read(data, *columns), empty)
    known = {*rows.parts[1]}
    labels = tuple(sorted(known))
    if len(labels) < 2:
        raise DataError(
            f"All rows of {rows.name} have the label {labels[0]!r}: there is nothing to tell apart. Give data with at "
            "least two labels, or check --label-column."
        )
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"The {len(rows):,} rows of {rows.name} have {len(labels):,} labels, and at most {MAX_LABELS:,} can be "
            f"told apart: {_listed(labels)}. Check --label-column: it should name kinds of texts, not single ones."
        )
    if val_data:
        train, val = rows, without_empty(_read(val_data, *columns), empty)
        val_sha256 = val.sha256
        skipped = train.skipped + val.skipped
    else:
        held_out = val_rows or max(1, round(len(rows) * (VAL_FRACTION if val_fraction is None else val_fraction)))
        train, val = _split(rows, held_out, seed)
        val_sha256, skipped = None, rows.skipped
    if unseen := [i for i, label in enumerate(val.parts[1]) if label not in known]:
        raise DataError(
            f"The label {val.parts[1][unseen[0]]!r} ({val.places[unseen[0]]}) occurs in the validation data alone, "
            f"which cannot be learnt; the training data have {_listed(labels)}. Add texts of it to the training data, "
            "or remove it."
        )
    return LabelledSplits(train, val, val_sha256, labels, skipped)


def _split(rows: Rows, held_out: int, seed: int) -> tuple[Rows, Rows]:
    """``split_rows``, but that a row which is the last of its label stays to be trained on and another is held out."""
    left = Counter(rows.parts[1])
    held: list[int] = []
    for i in permutation(len(rows), seed, 0, "split").tolist():
        if left[rows.parts[1][i]] > 1 and len(held) < held_out:
            left[rows.parts[1][i]] -= 1
            held.append(i)
    if not held or len(held) < held_out:
        raise DataError(
            f"{held_out:,} of the {len(rows):,} rows of {rows.name} cannot be held out for validation: at least one "
            f"must be, and of each of the {len(left):,} labels one must be left to train on. Give more rows, or "
            "another --val-rows or --val-fraction, or check --label-column."
        )
    chosen = np.isin(np.arange(len(rows)), held)
    return rows.take(np.flatnonzero(~chosen)), rows.take(np.flatnonzero(chosen))


def _builtin(name: str, seed: int, given: Sequence[str]) -> LabelledSplits:
    """The splits of a built-in set; ``UsageError`` for flags that it has no use for."""
    if given:
        raise UsageError(
            f"The built-in set {name} has texts, labels and validation rows of its own, for which {given[0]} has no "
            "meaning: leave it out."
        )
    made = LABELLED_SETS[name](seed)
    sha256 = digest(made)
    train, val = (
        Rows((texts, labels), [f"text {n} of {split}" for n in range(1, len(texts) + 1)], name, sha256)
        for split, (texts, labels) in ((split, made[split]) for split in ("train", "val"))
    )
    return LabelledSplits(train, val, None, tuple(sorted({*train.parts[1]})), 0)


def _read(data: Sequence[str], text_columns: tuple[str, ...] | None, label_column: str | None) -> Rows:
    known = NAMED.get(data[0]) if len(data) == 1 else None
    labels: dict[str, str] = {}
    if known is not None and known.label_column is not None:
        text_columns = text_columns or known.text_columns
        # What the set calls its labels is said of its own column alone.
        labels = dict(known.labels) if label_column in (None, known.label_column) else {}
        label_column = label_column or known.label_column
    elif text_columns is None and label_column is None and len(data) == 1 and os.path.isdir(_home(data[0])):
        return _folders(Path(_home(data[0])))
    if text_columns is None or label_column is None:
        _check_there(data)
        missing = "Which columns hold the text and the label"
        if text_columns is not None or label_column is not None:
            missing = "Which column holds the " + ("text" if text_columns is None else "label")
        raise UsageError(
            f"{missing} of {' '.join(data)}? Name them with --text-column and --label-column, by name or by position "
            "from 1. Or give a folder with a folder of texts for each label."
        )
    flags = Column(text_columns, "--text-column"), Column((label_column,), "--label-column", numbers=True)
    rows = read_table(data, flags, header=known.header if known is not None else None)
    named = [labels.get(label.strip(), label.strip()) for label in rows.parts[1]]
    return Rows((rows.parts[0], named), rows.places, rows.name, rows.sha256)


def _home(spec: str) -> str:
    return os.path.expanduser(spec)


def _check_there(data: Sequence[str]) -> None:
    """Raise ``DataError`` for what is neither a named set nor there, ``UsageError`` for a built-in set among data."""
    for spec in data:
        if spec in LABELLED_SETS and not os.path.exists(_home(spec)):
            raise UsageError(
                f"The built-in set {spec} stands alone: it has validation rows of its own, goes with no other data "
                "and cannot be --val-data. Give it as the only --data, or leave it out."
            )
        near = difflib.get_close_matches(spec, LABELLED_SETS, n=1)
        if near and not os.path.exists(_home(spec)):
            raise DataError(f"There is no file or folder {spec!r}. Did you mean the built-in set {near[0]!r}?")
        if spec not in NAMED:
            find_paths(spec)


def _folders(root: Path) -> Rows:
    """The files under ``root``, a text each, labelled with the name of the folder in ``root`` that they are in.

    The digest is over the labels too: a file that was moved to another folder is another example.
    """
    texts: list[str] = []
    labels: list[str] = []
    places: list[str] = []
    digests: list[bytes] = []
    for path in find_paths(str(root)):
        parts = path.relative_to(root).parts
        if len(parts) < 2:
            raise DataError(
                f"{path} lies beside the folders that are to name the labels. Put it into the folder of its label, or "
                "leave it out; for a table give the file itself with --text-column and --label-column."
            )
        text = FileText(path, named=parts[0].encode("utf-8", "surrogateescape") + b"\0")
        texts.append("".join(text))
        digests.append(text.sha256)
        labels.append(parts[0])
        places.append(f"the file {path}")
    return Rows((texts, labels), places, str(root), FilesDigest(digests).hexdigest())


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(map(repr, labels[:10]))
    return f"{shown} and {len(labels) - 10} more" if len(labels) > 10 else shown
