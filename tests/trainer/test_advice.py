"""Advice at the end of a run, from its recorded losses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxgen.tasks.base import Metric
from jaxgen.tokenizers import UNK
from jaxgen.trainer.advice import FEW_TOKENS, advise, advise_tokens, frequency_loss

UNIFORM, UNIGRAM = 3.2, 2.8


def rows(train, val):
    return [
        {"step": 10 * number, "train_loss": a, "val_loss": b} for number, (a, b) in enumerate(zip(train, val), start=1)
    ]


FALLING = [2.5, 2.2, 2.0, 1.8, 1.6, 1.4]
CASES = {
    "overfitting since step 30": (FALLING, [2.4, 2.2, 2.1, 2.2, 2.3, 2.5], "overfits since step 30"),
    "still falling": (FALLING, FALLING, "still falling"),
    "exploded, finite": ([36.0] * 5, [36.0, 30.0, 3.8e30, 36.0, 36.0], "worse than that of guessing uniformly"),
    "exploded at once, two evaluations": ([36.0] * 2, [36.0] * 2, "guessing uniformly"),
    "unstable after a good start": ([2.5, 2.0, 9.0, 12.0], [2.4, 2.0, 8.0, 12.0], "unstable after step 20"),
    "no context used": ([3.1, 2.9, 2.88, 2.87], [3.1, 2.9, 2.88, 2.875], "frequencies"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_went_wrong_gets_one_piece_of_advice(name):
    train, val, expected = CASES[name]
    (advice,) = advise(rows(train, val), UNIFORM, UNIGRAM, longer="Give --steps 120.")
    assert expected in advice
    assert ("--steps 120" in advice) == (expected == "still falling")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ([], []),
        (FALLING[:3], [2.4, 2.2, 2.5]),  # too few evaluations
        (FALLING, [2.4, 2.2, 2.1, 2.0, 2.0, 1.99]),  # converged
        (FALLING, [2.4, 2.2, 2.1, 2.0, 1.9, 2.2]),  # a single worse one
        ([2.5, 2.2, 2.0, 2.1, 2.2, 2.3], [2.4, 2.2, 2.1, 2.2, 2.3, 2.5]),  # both rose
        ([None] * 5, [2.4] * 5),  # nothing was trained, as with n-grams
        ([3.25], [3.25]),  # a new model guesses
    ],
)
def test_other_runs_get_none(train, val):
    assert advise(rows(train, val), UNIFORM, UNIGRAM) == []


def test_a_run_that_gets_everything_right_is_long_enough():
    metric = Metric("val_accuracy", higher_is_better=True, most=1.0)
    right, almost = ([{**row, "val_accuracy": best} for row in rows(FALLING, FALLING)] for best in (1.0, 0.99))
    assert advise(right, UNIFORM, UNIGRAM, metric=metric) == []
    assert "still falling" in advise(almost, UNIFORM, UNIGRAM, metric=metric)[0]


def test_a_task_without_a_number_of_targets_is_judged_by_its_own_losses_alone():
    assert advise(rows([36.0] * 5, [36.0] * 5)) == []
    assert "overfits" in advise(rows(FALLING, [2.4, 2.2, 2.1, 2.2, 2.3, 2.5]))[0]


def test_the_loss_of_frequencies_is_that_of_counts_plus_one():
    train, val = np.array([0, 0, 1]), np.array([0, 2])
    assert frequency_loss(train, val, 3) == pytest.approx(-(math.log(3 / 6) + math.log(1 / 6)) / 2)


def test_a_small_text_and_many_unknown_tokens_are_named():
    few, enough = np.full(FEW_TOKENS - 1, 5), np.full(FEW_TOKENS, 5)
    unknown = np.where(np.arange(FEW_TOKENS) % 10, 5, UNK)
    assert advise_tokens(enough, few, is_text=True) == []
    assert advise_tokens(few, enough, is_text=False) == []
    (small,) = advise_tokens(few, enough, is_text=True)
    assert "--init-from" in small
    for train, val in ((unknown, enough), (enough, unknown)):
        (unk,) = advise_tokens(train, val, is_text=True)
        assert "10.0%" in unk
        assert "--min-count" in unk
    assert len(advise_tokens(unknown[:100], np.zeros(0, int), is_text=True)) == 2


def test_advice_on_tokens_is_not_what_was_done_already():
    few = np.full(100, UNK)
    reused = advise_tokens(few, few, is_text=True, level="char", reuses_vocabulary=True)
    assert len(reused) == 1
    assert "Leave out --init-from" in reused[0]
    assert "(bpe, char)" not in "".join(advise_tokens(few, few, is_text=True, level="char"))
