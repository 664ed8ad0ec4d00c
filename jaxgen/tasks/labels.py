"""Labels of texts, which ``classify`` predicts and on which a language model can be conditioned."""

from __future__ import annotations

import unicodedata
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


def twin_notes(labels: Iterable[str]) -> list[str]:
    """Returns a note of labels that differ only in letter case, white space or Unicode form."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(_folded(label), []).append(label)
    twins = []
    for group in groups.values():
        alike = len({unicodedata.normalize("NFC", label) for label in group}) < len(group)
        twins += [" and ".join(map(ascii if alike else repr, group))] if len(group) > 1 else []
    shown = "; ".join([*twins[:3], *(["…"] if len(twins) > 3 else [])])
    about = "Labels that differ only in letter case, white space or Unicode form are separate labels"
    return [f"{about}: {shown}. Write them in one way if they are the same."] if twins else []


def _folded(label: str) -> str:
    """Returns a label as it is compared with others that may be meant to be the same."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold()).split())


def check_known(labels: Sequence[str], locations: Sequence[str], known: Collection[str]) -> None:
    """Raises ``DataError`` for a label that is not ``known`` from training."""
    if unknown := [i for i, label in enumerate(labels) if label not in known]:
        twins = [label for label in known if _folded(label) == _folded(labels[unknown[0]])]
        near = f" It differs from {twins[0]!r} only in letter case, white space or Unicode form." if twins else ""
        raise DataError(
            f"The label {labels[unknown[0]]!r} ({locations[unknown[0]]}) was not in the training data, which have "
            f"{listed(sorted(known))}.{near} Add training texts with this label, or remove these from the validation "
            "data."
        )
