"""Metrics of classification from a confusion matrix and confidence bins, and the matrix as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

#: Most labels for which the whole matrix is shown; beyond, only the most common mistakes.
MAX_MATRIX_LABELS = 12
#: Number of mistakes shown.
MAX_MISTAKES = 8


def classification_metrics(confusion: np.ndarray, calibration: np.ndarray) -> dict[str, Any]:
    """Returns metrics of a confusion matrix [C, C] (true, predicted) and of confidence bins [N, 3].

    Macro-F1 is the mean over the labels that occur as true or predicted ones. Precision, recall and F1 are 0 where they
    are undefined. The calibration error is ECE (Guo et al., ICML 2017, equation 3): the distance between confidence and
    accuracy of a bin, averaged over rows.
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
    """Returns the matrix [C, C] (true, predicted) as labelled lines; columns are numbered like the labels, from 1.

    With more than ``MAX_MATRIX_LABELS`` labels, returns the most common mistakes instead.
    """
    if len(labels) > MAX_MATRIX_LABELS:
        return [("mistakes", line) for line in mistakes(confusion, labels)[:MAX_MISTAKES]]
    width = max(len(str(int(confusion.max(initial=0)))), len(str(len(labels)))) + 2
    rows = [("is \\ taken for", "".join(f"{n:>{width}}" for n in range(1, len(labels) + 1)))]
    return rows + [
        (f"{n} {label}", "".join(f"{int(count):>{width}}" for count in row))
        for n, (label, row) in enumerate(zip(labels, confusion), 1)
    ]


def mistakes(confusion: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Returns which label was mistaken for which and how often, the most common first."""
    wrong = confusion * (1 - np.eye(len(labels)))
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    pairs = (divmod(int(place), len(labels)) for place in order)
    return [f"{int(wrong[true, given]):,} of {labels[true]} taken for {labels[given]}" for true, given in pairs]


def confusion_text(confusion: np.ndarray, labels: Sequence[str]) -> str:
    """Returns the whole matrix [C, C] (true, predicted) as tab-separated text with the labels."""
    clean = [" ".join(label.split()) for label in labels]
    rows = ["\t".join(["is \\ taken for", *clean])]
    rows += ["\t".join([label, *(str(int(count)) for count in row)]) for label, row in zip(clean, confusion)]
    return "\n".join(rows) + "\n"
