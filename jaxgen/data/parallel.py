"""From what the user names to pairs of texts: two parallel files, two columns of a table, named and built-in sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxgen.data.columns import column_kind
from jaxgen.data.dates import dates
from jaxgen.data.examples import Pairs, digest
from jaxgen.data.files import FilesDigest, FileText, find_paths
from jaxgen.data.named import NAMED, fetch
from jaxgen.data.pieces import whole_lines
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

    Sets by name may have validation and test pairs of their own, which ``val_data`` and ``test_data`` replace; named
    there, a set gives these. Where there are no validation pairs, some of the pairs are held out at random. Raises
    ``DataError`` for data that cannot be used, naming the line where two files part, and ``UsageError`` for settings
    that have no meaning with the data.
    """
    columns = source_column, target_column
    read = _set(data, columns, seed) or {"train": _read(data, columns)}
    digests = {split: rows.sha256 for split, rows in read.items()}
    if len({*digests.values()}) == 1:  # of all splits of a built-in set together
        digests = {"train": digests["train"]}
    if "val" in read:
        _no_other_way(read["train"].name, {"--val-rows": val_rows, "--val-fraction": val_fraction})
    for split, specs in {"val": val_data, "test": test_data}.items():
        if specs is not None:
            known = _set(specs, columns, seed)
            read[split] = known.get(split, known["train"]) if known else _read(specs, columns)
            digests[split] = read[split].sha256
    full = {split: without_empty(rows, empty) for split, rows in read.items()}
    sha256 = digests["train"]
    if len(digests) > 1:  # which pairs are which split is part of it
        sha256 = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    skipped = sum(rows.skipped for rows in full.values())
    if "val" not in full:
        train = full["train"]
        held_out = val_rows or max(1, round(len(train) * (VAL_FRACTION if val_fraction is None else val_fraction)))
        full["train"], full["val"] = split_rows(train, held_out, seed)
    order = ["train", "val", *(split for split in full if split not in ("train", "val"))]
    return PairSplits({split: full[split] for split in order}, full["train"].name, sha256, skipped)


def _set(data: Sequence[str], columns: tuple[str | None, str | None], seed: int) -> dict[str, Rows]:
    """All splits of a built-in or named set of pairs; nothing for other data."""
    name = data[0] if len(data) == 1 else ""
    named = NAMED[name].pairs if name in NAMED else ()
    if name in PAIR_SETS or named:
        _no_other_way(name, dict(zip(("--source-column", "--target-column"), columns)))
    if name in PAIR_SETS:
        made = PAIR_SETS[name](seed)
        sha256 = digest(made)  # of all splits together
        return {
            split: Rows((a, b), [f"pair {n} of {split}" for n in range(1, len(a) + 1)], name, sha256)
            for split, (a, b) in made.items()
        }
    return {split: _parallel(fetch(source), fetch(target), name) for split, source, target in named}


def _no_other_way(name: str, settings: dict[str, object]) -> None:
    """Raise ``UsageError`` if one of these settings was given for a set that leaves no choice."""
    given = [flag for flag, value in settings.items() if value is not None]
    if given:
        what = "validation pairs" if given[0].startswith("--val") else "sources and targets"
        raise UsageError(f"{given[0]} was given, but {name} has {what} of its own: leave it out.")


def _read(specs: Sequence[str], columns: tuple[str | None, str | None]) -> Rows:
    source, target = columns
    if source is not None and target is not None:
        return read_table(specs, (Column((source,), "--source-column"), Column((target,), "--target-column")))
    sets = [*PAIR_SETS, *(name for name, known in NAMED.items() if known.pairs)]
    found = [find_paths(spec, sets) for spec in specs]
    paths = [path for files in found for path in files]
    if [len(files) for files in found] == [1, 1] and not any(map(column_kind, paths)):
        return _parallel(paths[0], paths[1], " + ".join(specs))
    number = len(paths)
    what = "a table" if any(map(column_kind, paths)) else "one file" if number == 1 else f"{number:,} files"
    raise UsageError(
        f"Pairs cannot be read from {' '.join(specs)}, {what}: give two parallel files, the source first, or a table "
        f"with --source-column and --target-column, by name or by position from 1, or one of: {', '.join(sets)}."
    )


def _parallel(source: Path, target: Path, name: str) -> Rows:
    """Line n of one file and line n of the other; ``.gz`` or not."""
    texts = [FileText(path) for path in (source, target)]
    sides = [_lines(text) for text in texts]
    if len(sides[0]) != len(sides[1]):
        longer, shorter = (source, target) if len(sides[0]) > len(sides[1]) else (target, source)
        last = min(map(len, sides))
        raise DataError(
            f"{source} has {len(sides[0]):,} lines and {target} has {len(sides[1]):,}: line {last + 1:,} of {longer} "
            f"has no counterpart in {shorter}. Line n of one must belong to line n of the other: give two files of "
            "equal length."
        )
    places = [f"line {n} of {source} or of {target}" for n in range(1, len(sides[0]) + 1)]
    return Rows((sides[0], sides[1]), places, name, FilesDigest(text.sha256 for text in texts).hexdigest())


def _lines(text: FileText) -> list[str]:
    """The lines of a text; what stands behind the last line break is one if it is not empty."""
    lines = list(whole_lines(text))
    lines[0] = lines[0].removeprefix("\ufeff")
    return [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]
