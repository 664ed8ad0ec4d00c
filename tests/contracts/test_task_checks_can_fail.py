"""Each check of the tasks' contract fails for a classifier with the fault that it looks for."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from jaxgen.data.batches import EVERY
from jaxgen.data.bucketing import RowBatches
from jaxgen.inference.predictor import Predictor
from jaxgen.tasks.classify.data import ClassifyCodec, ClassifyData
from jaxgen.tasks.classify.objective import ClassifyTask
from jaxgen.tasks.registry import DATA, TASKS
from jaxgen.testing import tasks
from jaxgen.testing.checking import name_of
from jaxgen.testing.tasks import CHECKS, UNTRAINED, Subject

from .task_cases import CASES


class LearnsNothing(ClassifyTask):
    def loss(self, params, carry, batch, row_keys=None):
        return super().loss(jax.lax.stop_gradient(params), carry, batch, row_keys)


class ReadsPadding(ClassifyTask):
    def _logits(self, params, inputs, row_keys=None):
        return super()._logits(params, inputs._replace(valid=jnp.ones_like(inputs.valid)), row_keys)


class CountsPadding(ClassifyTask):
    def _logits(self, params, inputs, row_keys=None):
        return super()._logits(params, inputs, row_keys) * (1 + inputs.tokens.shape[1] / 1000)


class SeesAllRows(ClassifyTask):
    def predict(self, params, inputs):
        logits = self._logits(params, inputs)
        return jax.nn.softmax(logits - jnp.mean(logits, axis=0, keepdims=True), axis=-1)


class RemembersWhereItWas(ClassifyData):
    """Its batches follow from how many were asked for, which nobody saves."""

    @cached_property
    def batches(self):
        batches, asked = super().batches, iter(range(10**6))
        return mock.Mock(
            wraps=batches, steps_per_epoch=1, batch=lambda step, rows=EVERY: batches.batch(next(asked), rows)
        )


def of_the_beginning(batches, step, rows=EVERY, batch=RowBatches.batch):
    first = rows.start or 0
    return batch(batches, step, slice(0, rows.stop - first) if first else rows)


def the_least_likely(codec, text, output, answer=ClassifyCodec.answer):
    return answer(codec, text, -output)


def by_its_place(predictor, inputs, first, writing, strict):
    return [{"label": str(place), "probabilities": {str(place): 1.0}} for place, _ in enumerate(inputs)]


of_tasks = partial(mock.patch.dict, TASKS)
CAUGHT = {
    "eight_examples_are_learnt_by_heart": of_tasks(classify=LearnsNothing),
    "a_trained_model_gives_back_its_targets": mock.patch.object(ClassifyCodec, "answer", the_least_likely),
    "a_run_stopped_and_resumed_equals_one_that_was_not": mock.patch.dict(DATA, classify=RemembersWhereItWas),
    "what_stands_in_padding_changes_no_bit": of_tasks(classify=ReadsPadding),
    "how_much_padding_there_is_changes_rounding_alone": of_tasks(classify=CountsPadding),
    "the_order_of_inputs_changes_no_answer": mock.patch.object(Predictor, "_answers", by_its_place),
    "an_answer_does_not_depend_on_what_is_answered_beside_it": of_tasks(classify=SeesAllRows),
    "a_row_is_read_without_its_neighbours": of_tasks(classify=SeesAllRows),
    "the_shares_of_several_processes_are_the_batch_of_one": mock.patch.object(RowBatches, "batch", of_the_beginning),
}
#: Enough to learn the examples, where what is broken is not the learning.
FEWER = replace(CASES["classify"], settings=CASES["classify"].settings | {"cell": "elman", "lr": 0.02, "steps": 42})
LANES = [pytest.param(check, marks=() if check in UNTRAINED else pytest.mark.runs) for check in CHECKS]


@pytest.mark.slow
@pytest.mark.parametrize("check", LANES, ids=name_of)
def test_a_check_catches_what_it_is_for(check, tmp_path, quick):
    subject = Subject("classify", FEWER, tmp_path / "subject", quick)
    with quick(), CAUGHT[name_of(check)], pytest.raises(AssertionError):
        check(subject)


@pytest.mark.slow
@pytest.mark.runs
def test_what_is_caught_passes_when_it_is_whole(tmp_path, quick):
    """Otherwise the checks above could fail for another reason."""
    subject = Subject("classify", FEWER, tmp_path / "subject", quick)
    with quick():
        for check in CHECKS:
            check(subject)


def test_every_check_that_is_written_is_run():
    written = {name for name in vars(tasks) if name.startswith("check_")} - {"check_task"}
    assert written == {check.__name__ for check in CHECKS}
