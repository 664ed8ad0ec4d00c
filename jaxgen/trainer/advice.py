"""What the recorded metrics of a finished run suggest to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

#: Training warns once when its loss is this many times that of guessing uniformly.
ALARM = 2.0
#: A loss this many times that of guessing uniformly is worse than guessing; a new model has about 1.
WORSE = 1.05
#: With fewer evaluations nothing is said about how the losses develop.
MIN_EVALUATIONS = 4
#: The smallest relative change of the validation loss that counts: a rise since the best, a fall over two evaluations.
RISE, FALL = 0.02, 0.01
#: What makes training stable.
STABLER = "Try a lower --lr or a smaller --clip (0 clips nothing)."


class Evaluation(NamedTuple):
    """A row of the metrics."""

    step: int
    train_loss: float
    val_loss: float


def advise(
    rows: Sequence[Mapping[str, Any]],
    uniform: float | None = None,
    unigram: float | None = None,
    longer: str = "",
) -> list[str]:
    """Sentences on a run that went wrong, overfitted, or was too short; none if there is nothing to say.

    Args:
        rows: the metrics of the run's evaluations, in order.
        uniform: the loss of guessing uniformly.
        unigram: the validation loss of predicting the frequencies of the training data, without any input.
        longer: how to train longer.
    """
    names = Evaluation._fields
    found = [Evaluation(*(row[name] for name in names)) for row in rows if _has_numbers(row, names)]
    if not found:
        return []
    best, last = min(found, key=lambda each: each.val_loss), found[-1]
    if uniform is not None and best.val_loss > WORSE * uniform:
        return [
            f"The best validation loss, {best.val_loss:.4g}, is worse than that of guessing uniformly ({uniform:.4g}): "
            f"the model has learnt nothing. {STABLER}"
        ]
    if uniform is not None and last.train_loss > WORSE * uniform:
        return [
            f"Training became unstable after step {best.step:,}: its loss ended at {last.train_loss:.4g}, worse than "
            f"that of guessing uniformly ({uniform:.4g}). The best checkpoint is kept. {STABLER}"
        ]
    if len(found) < MIN_EVALUATIONS:
        return []
    advice = []
    if unigram is not None and best.val_loss > unigram:
        advice.append(
            f"The best validation loss, {best.val_loss:.4g}, is worse than that of the frequencies of the training "
            f"data alone ({unigram:.4g}): the model makes no use of its input yet. Train longer, or try another --lr."
        )
    overfits = last.train_loss < best.train_loss and last.val_loss > (1 + RISE) * best.val_loss
    if overfits and last.step > found[found.index(best) + 1].step:
        advice.append(
            f"The model overfits since step {best.step:,}: the validation loss rose from {best.val_loss:.4g} to "
            f"{last.val_loss:.4g} while the training loss fell. Try more data, a larger --dropout, a smaller --hidden "
            "or fewer --steps; --patience 3 stops such a run early."
        )
    elif best is last and found[-3].val_loss > (1 + FALL) * last.val_loss:
        advice.append(f"The validation loss is still falling: a longer run will be better. {longer}".strip())
    return advice


def _has_numbers(row: Mapping[str, Any], names: Sequence[str]) -> bool:
    return all(isinstance(row.get(name), (int, float)) and math.isfinite(row[name]) for name in names)


def frequency_loss(train: np.ndarray, val: np.ndarray, number: int) -> float:
    """The mean loss of the targets ``val`` if each of ``number`` targets is as probable as in ``train`` (plus one)."""
    counts = np.bincount(train, minlength=number) + 1
    return float(-np.log(counts / counts.sum())[val].mean())
