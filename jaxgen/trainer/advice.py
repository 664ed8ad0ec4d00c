"""What the recorded metrics of a finished run, and its tokens, suggest to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen.tasks.base import Metric, TaskData
from jaxgen.tokenizers.base import UNK

#: Training warns once when its loss is this many times that of guessing uniformly.
ALARM = 2.0
#: A loss this many times that of guessing uniformly is worse than guessing; a new model has about 1.
WORSE = 1.05
#: With fewer evaluations nothing is said about how the losses develop.
MIN_EVALUATIONS = 4
#: The smallest relative change of the validation loss that counts: a rise since the best, a fall over two evaluations.
RISE, FALL = 0.02, 0.01
#: Texts with fewer tokens are small; a larger share of unknown tokens is too much.
FEW_TOKENS, MUCH_UNKNOWN = 100_000, 0.05
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
    metric: Metric | None = None,
) -> list[str]:
    """Sentences on a run that went wrong, overfitted, or was too short; none if there is nothing to say.

    Args:
        rows: the metrics of the run's evaluations, in order.
        uniform: the loss of guessing uniformly.
        unigram: the validation loss of predicting the frequencies of the training data, without any input.
        longer: how to train longer.
        metric: the metric that decides; a run that reached its largest value needs no advice.
    """
    names = Evaluation._fields
    found = [Evaluation(*(row[name] for name in names)) for row in rows if _has_numbers(row, names)]
    if not found or (metric is not None and any(map(metric.is_perfect, rows))):
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


def advise_data(data: TaskData) -> list[str]:
    """Sentences on data whose tokens say little to a model; none if there is nothing to say."""
    if data.num_targets is None or data.TARGET != "token":
        return []
    train, val = data.target_ids("train"), data.target_ids("val")
    reuses = data.config.init_from is not None
    return advise_tokens(train, val, data.UNIT == "tokens", getattr(data.config, "level", "word"), reuses)


def advise_tokens(
    train: np.ndarray, val: np.ndarray, is_text: bool, level: str = "word", reuses_vocabulary: bool = False
) -> list[str]:
    """Sentences on tokens that say little to a model; none if there is nothing to say.

    Args:
        train, val: token ids.
        is_text: whether they are texts to imitate, of which there can be too few, and not answers to inputs.
        level: that of the tokenizer.
        reuses_vocabulary: whether the model starts from a run on other text, with the vocabulary of that run.
    """
    advice = []
    if is_text and train.size < FEW_TOKENS and not reuses_vocabulary:
        advice.append(
            f"The text is small, with {train.size:,} tokens to train on: a model can learn it by heart, and writes new "
            "text only after reading about a million. Give more text, or start from a run on more text with "
            "--init-from."
        )
    shares = [float((ids == UNK).mean()) if ids.size else 0.0 for ids in (train, val)]
    if max(shares) > MUCH_UNKNOWN:
        if reuses_vocabulary:
            remedy = (
                "the run of --init-from does not know them. Leave out --init-from, or give text that is more like its"
            )
        elif level == "char":
            remedy = "give a smaller --min-count, more text, or --level byte"
        else:
            remedy = "give a smaller --min-count, a larger --vocab-size, or another --level (bpe, char)"
        advice.append(
            f"{shares[0]:.1%} of the training tokens and {shares[1]:.1%} of the validation tokens are <unk>, which the "
            f"model cannot write: {remedy}."
        )
    return advice


def _has_numbers(row: Mapping[str, Any], names: Sequence[str]) -> bool:
    return all(isinstance(row.get(name), (int, float)) and math.isfinite(row[name]) for name in names)


def frequency_loss(train: np.ndarray, val: np.ndarray, number: int) -> float:
    """The mean loss of the targets ``val`` if each of ``number`` targets is as probable as in ``train`` (plus one)."""
    counts = np.bincount(train, minlength=number) + 1
    return float(-np.log(counts / counts.sum())[val].mean())
