"""A loop over a trainer, and a run with an optimizer, a schedule and a loss of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
import optax
import pytest
from builders import language_config

import jaxgen
from jaxgen.errors import UsageError
from jaxgen.inference.loading import LoadedRun
from jaxgen.trainer import trainer
from jaxgen.trainer.callbacks import Progress
from jaxgen.trainer.run import resume, start

settings = partial(language_config, steps=6, eval_every=2, sample_every=0)


@pytest.fixture(autouse=True)
def single_steps(monkeypatch):
    monkeypatch.setattr(trainer, "MAX_STEPS_PER_CALL", 1)


def same_weights(one, other):
    weights = [LoadedRun.open(run).params()[1] for run in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *weights)


@pytest.mark.runs
def test_a_loop_trains_what_train_does_and_one_that_is_left_can_be_resumed(book, tmp_path):
    start(settings(book, tmp_path / "whole")).train()
    events = list(start(settings(book, tmp_path / "loop")))
    assert {type(event) for event in events} == {Progress}
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]
    same_weights(tmp_path / "whole", tmp_path / "loop")
    left = start(settings(book, tmp_path / "left"))
    for event in left:
        if event.step == 5:
            break
    with pytest.raises(UsageError, match="resume"):
        left.train()
    assert resume(str(tmp_path / "left")).train().step == 6, "and its lock is free"
    same_weights(tmp_path / "whole", tmp_path / "left")


@pytest.mark.runs
def test_a_loop_stops_its_run_with_a_report(book, tmp_path):
    run = start(settings(book, tmp_path / "run"))
    steps = []
    for event in run:
        steps.append(event.step)
        if event.step == 3:
            run.stop("three are enough")
    assert 3 <= steps[-1] < 6
    assert (tmp_path / "run" / "report.json").exists()
    assert resume(str(tmp_path / "run")).train().step == steps[-1]


class Doubled(jaxgen.LanguageTask):
    """A loss of one's own."""

    def loss(self, *args, **kwargs):
        carry, totals = super().loss(*args, **kwargs)
        return carry, totals._replace(nll=2 * totals.nll)


@dataclass(frozen=True)
class Signs:
    """An optimizer of one's own: signSGD."""

    def transform(self, kinds):
        return optax.scale_by_sign()


@pytest.mark.runs
def test_a_run_has_an_optimizer_a_schedule_and_a_loss_of_ones_own(book, tmp_path, without_plugins):
    jaxgen.OPTIMIZERS["signs"] = Signs
    jaxgen.SCHEDULES["stairs"] = lambda step, rates: rates.peak * 0.5 ** (step // 2)
    plain = start(settings(book, tmp_path / "plain", optimizer="signs", schedule="stairs")).train()
    jaxgen.TASKS["language"] = Doubled
    config = settings(book, tmp_path / "run", optimizer="signs", schedule="stairs")
    doubled = start(config).train()
    same_weights(tmp_path / "plain", tmp_path / "run")
    assert doubled.report["val_loss"] == pytest.approx(2 * plain.report["val_loss"])
    without_plugins()
    with pytest.raises(jaxgen.UsageError, match="signs"):
        resume(str(tmp_path / "run"))
