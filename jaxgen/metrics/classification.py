"""How good labels are: the usual figures of a confusion matrix and of bins of confidence, and the matrix as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

#: Labels of which the whole matrix fits the lines of a terminal; of more, the commonest mistakes are told.
MOST_SHOWN = 12
#: Mistakes that are told then.
MISTAKES = 8


def classification_metrics(confusion: np.ndarray, calibration: np.ndarray) -> dict[str, Any]:
    """The usual figures of a confusion matrix [C, C] (true, given) and of bins of confidence [N, 3].

    Macro-F1 is the mean over the labels that occur, be it as true or as given ones; a label's precision, recall and F1
    are 0 where they have no denominator. The calibration error is the mean over rows of the distance between
    confidence and accuracy of the row's bin (ECE; Guo et al., ICML 2017, equation 3).
    """
    right, true, given = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = (right / np.maximum(each, 1) for each in (given, true))
    f1 = 2 * right / np.maximum(true + given, 1)
    occurs = (true + given) > 0
    rows, confidence, correct = calibration.T
    total = max(confusion.sum(), 1)
    labels = [
        {"precision": float(p), "recall": float(r), "f1": float(f), "texts": int(n)}
        for p, r, f, n in zip(precision, recall, f1, true)
    ]
    return {
        "accuracy": float(right.sum() / total),
        "macro_f1": float(f1[occurs].mean()) if occurs.any() else 0.0,
        "calibration_error": float(np.abs(confidence - correct).sum() / max(rows.sum(), 1)),
        "labels": labels,
    }


def confusion_lines(confusion: np.ndarray, labels: Sequence[str]) -> list[tuple[str, str]]:
    """The matrix [C, C] (true, given) as labelled lines, columns named by the labels' numbers from 1.

    Of more than ``MOST_SHOWN`` labels the commonest mistakes instead.
    """
    if len(labels) > MOST_SHOWN:
        return [("mistakes", line) for line in mistakes(confusion, labels)[:MISTAKES]]
    width = max(len(str(int(confusion.max(initial=0)))), len(str(len(labels)))) + 2
    rows = [("is \\ taken for", "".join(f"{n:>{width}}" for n in range(1, len(labels) + 1)))]
    return rows + [
        (f"{n} {label}", "".join(f"{int(count):>{width}}" for count in row))
        for n, (label, row) in enumerate(zip(labels, confusion), 1)
    ]


def mistakes(confusion: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Which label was given in place of which other and how often, the commonest first."""
    wrong = confusion * (1 - np.eye(len(labels)))
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    pairs = (divmod(int(place), len(labels)) for place in order)
    return [f"{int(wrong[true, given]):,} of {labels[true]} taken for {labels[given]}" for true, given in pairs]


def confusion_text(confusion: np.ndarray, labels: Sequence[str]) -> str:
    """The whole matrix [C, C] (true, given) with tabs between its columns, labels in front and above."""
    clean = [" ".join(label.split()) for label in labels]
    rows = ["\t".join(["is \\ taken for", *clean])]
    rows += ["\t".join([label, *(str(int(count)) for count in row)]) for label, row in zip(clean, confusion)]
    return "\n".join(rows) + "\n"
