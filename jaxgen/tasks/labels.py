"""Labels of texts, which ``classify`` predicts and on which a language model can be conditioned."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from jaxgen.data.datasets import NamedSet
from jaxgen.errors import DataError, listed

#: With more labels, a column of texts or of numbers was probably named by mistake.
MAX_LABELS = 1_000


def label_names(cells: Iterable[str], named: NamedSet | None, column: str) -> list[str]:
    """Returns labels without white space around them; a named set has names for the numbers in its label column."""
    names = dict(named.labels) if named is not None and column == named.label_column else {}
    return [names.get(cell.strip(), cell.strip()) for cell in cells]


def distinct_labels(labels: Iterable[str], name: str) -> list[str]:
    """Returns the different labels of the data ``name``, sorted.

    Raises:
        DataError: There is only one label, or there are too many.
    """
    found = sorted({*labels})
    if len(found) < 2:
        raise DataError(
            f"All texts of {name} have the label {found[0]!r}: there is nothing to tell apart. Give data with at least "
            "two labels, or check --label-column."
        )
    if len(found) > MAX_LABELS:
        raise DataError(
            f"{name} has {len(found):,} different labels, but at most {MAX_LABELS:,} are allowed: {listed(found)}. "
            "Check --label-column: it should name classes, not texts or numbers."
        )
    return found


def check_known(labels: Sequence[str], locations: Sequence[str], known: Collection[str]) -> None:
    """Raises ``DataError`` for a label that is not ``known`` from training."""
    if unknown := [i for i, label in enumerate(labels) if label not in known]:
        raise DataError(
            f"The label {labels[unknown[0]]!r} ({locations[unknown[0]]}) was not in the training data, which have "
            f"{listed(sorted(known))}. Add training texts with this label, or remove these from the validation data."
        )
