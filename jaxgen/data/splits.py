"""The seeded split of data into training and validation rows, and the fingerprint that a run keeps of its data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from jaxgen.data.tokens import permutation
from jaxgen.errors import DataError

#: Share of the data held out by default.
VAL_FRACTION = 0.1


def fingerprint(name: str, sha256: str, val_sha256: str | None = None) -> dict[str, str]:
    """Returns what a run keeps of its data: their name and the digest of their bytes.

    With validation data of their own, the digest is that of both hexadecimal digests, training data first.
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
        of_labels, check = "", ""
        if labels is not None:
            of_labels, check = f" of each of the {len(remaining):,} labels", ", or check --label-column"
        raise DataError(
            f"{count + int(held_out.sum()):,} of the {size:,} {unit} of {name} cannot be held out for validation: at "
            f"least one must be, and at least one{of_labels} must remain for training. Give more {unit}, or another "
            f"--val-rows or --val-fraction{check}."
        )
    return rows.take(np.flatnonzero(~held_out)), rows.take(np.flatnonzero(held_out))
