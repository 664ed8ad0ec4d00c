"""From what the user names to pairs of texts: two parallel files, two columns of a table, named and built-in sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxgen.data.columns import column_kind
from jaxgen.data.corpus import identity
from jaxgen.data.dates import dates
from jaxgen.data.examples import Pairs, digest
from jaxgen.data.files import decode, find_paths, read_bytes, unzip
from jaxgen.data.named import NAMED, fetch
from jaxgen.data.rows_config import VAL_FRACTION
from jaxgen.data.tables import Column, Rows, read_table, split_rows, without_empty
from jaxgen.errors import DataError, UsageError


@dataclass(frozen=True)
class PairSplits:
    """Pairs of texts by split: ``train``, ``val``, and others that are judged when a run has ended."""

    splits: dict[str, Rows]
    name: str
    sha256: str
    skipped: int

    @property
    def identity(self) -> dict[str, str]:
        """What a run remembers of its data: their name and the digest of their bytes."""
        return {"name": self.name, "sha256": self.sha256}


#: Built-in sets by name: from a seed to splits.
PAIR_SETS: dict[str, Callable[[int], dict[str, Pairs]]] = {"dates": dates}


def read_pairs(
    data: Sequence[str],
    val_data: Sequence[str] | None = None,
    test_data: Sequence[str] | None = None,
    *,
    source_column: str | None = None,
    target_column: str | None = None,
    empty: Literal["skip", "refuse"] = "skip",
    val_fraction: float | None = None,
    val_rows: int | None = None,
    seed: int = 0,
) -> PairSplits:
    """Read pairs and split them. Each of ``data``, ``val_data`` and ``test_data`` names two parallel files or a table.

    Without ``val_data`` pairs are held out at random, unless the set has validation pairs of its own. Raises
    ``DataError`` for data that cannot be used, naming the line where two files part.
    """
    if len(data) == 1 and data[0] in PAIR_SETS:
        return _builtin(data[0], seed)
    columns = source_column, target_column
    named = NAMED.get(data[0]) if len(data) == 1 else None
    read = {"train": _read(data, *columns)}
    if named is not None:
        others = [(split, source, target) for split, source, target in named.pairs if split != "train"]
        read |= {split: _parallel(fetch(source), fetch(target), data[0]) for split, source, target in others}
    read |= {
        split: _read(specs, *columns) for split, specs in (("val", val_data), ("test", test_data)) if specs is not None
    }
    full = {split: without_empty(rows, empty) for split, rows in read.items()}
    sha256 = full["train"].sha256
    for split, rows in full.items():
        if split != "train":
            sha256 = identity("", sha256, rows.sha256)["sha256"]
    skipped = sum(rows.skipped for rows in full.values())
    if "val" not in full:
        train = full["train"]
        held_out = val_rows or max(1, round(len(train) * (VAL_FRACTION if val_fraction is None else val_fraction)))
        full["train"], full["val"] = split_rows(train, held_out, seed)
    order = ["train", "val", *(split for split in full if split not in ("train", "val"))]
    return PairSplits({split: full[split] for split in order}, full["train"].name, sha256, skipped)


def _builtin(name: str, seed: int) -> PairSplits:
    made = PAIR_SETS[name](seed)
    sha256 = digest(made)
    splits = {
        split: Rows(
            (pairs.source, pairs.target),
            [f"pair {n} of {split}" for n in range(1, len(pairs.source) + 1)],
            name,
            sha256,
        )
        for split, pairs in made.items()
    }
    return PairSplits(splits, name, sha256, 0)


def _read(specs: Sequence[str], source_column: str | None, target_column: str | None) -> Rows:
    named = NAMED.get(specs[0]) if len(specs) == 1 else None
    if named is not None and named.pairs:
        source, target = next((source, target) for split, source, target in named.pairs if split == "train")
        return _parallel(fetch(source), fetch(target), specs[0])
    if source_column is not None and target_column is not None:
        columns = Column((source_column,), "--source-column"), Column((target_column,), "--target-column")
        return read_table(specs, columns)
    paths = [path for spec in specs for path in find_paths(spec)]
    if len(paths) == 2 and not any(map(column_kind, paths)):
        return _parallel(paths[0], paths[1], " + ".join(specs))
    what = "a table" if any(map(column_kind, paths)) else f"{len(paths)} file" + ("s" if len(paths) != 1 else "")
    raise UsageError(
        f"Pairs cannot be read from {' '.join(specs)}, {what}: give two parallel files, the source first, or a table "
        "with --source-column and --target-column, by name or by position from 1."
    )


def _parallel(source: Path, target: Path, name: str) -> Rows:
    """Line n of one file and line n of the other; ``.gz`` or not."""
    raw = [read_bytes(path) for path in (source, target)]
    sides = [_lines(decode(unzip(data, path), path)) for data, path in zip(raw, (source, target))]
    if len(sides[0]) != len(sides[1]):
        longer, shorter = (source, target) if len(sides[0]) > len(sides[1]) else (target, source)
        last = min(map(len, sides))
        raise DataError(
            f"{source} has {len(sides[0]):,} lines and {target} has {len(sides[1]):,}: line {last + 1:,} of {longer} "
            f"has no counterpart in {shorter}. Line n of one must belong to line n of the other: give two files of "
            "equal length."
        )
    places = [f"line {n} of {source}" for n in range(1, len(sides[0]) + 1)]
    return Rows((sides[0], sides[1]), places, name, hashlib.sha256(raw[0] + raw[1]).hexdigest())


def _lines(text: str) -> list[str]:
    """The lines of a text; what stands behind the last line break is one if it is not empty."""
    lines = text.removeprefix("\ufeff").split("\n")
    return [line.rstrip("\r") for line in (lines[:-1] if not lines[-1] else lines)]
