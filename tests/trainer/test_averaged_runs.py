"""Runs with an average of the weights: the better weights are those of a checkpoint, and training goes on as it was."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from builders import language_config

from jaxgen.inference.loading import LoadedRun
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.logs import MetricsLog
from jaxgen.trainer.run import resume, start
from jaxgen.trainer.trainer import Trainer

pytestmark = pytest.mark.runs


def settings(book, run, **more):
    return language_config(book, run, **{"steps": 6, "eval_every": 3, "sample_every": 0, "warmup": 0, **more})


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def average_is_better(monkeypatch):
    """Evaluations prefer the average."""
    metrics = Trainer._metrics

    def found(self, params, final):
        is_raw = not final and params is self.state.params
        return {**(real := metrics(self, params, final)), "val_loss": real["val_loss"] + 10 * is_raw}

    monkeypatch.setattr(Trainer, "_metrics", found)


def test_a_checkpoint_has_the_average_if_that_is_better(book, tmp_path, average_is_better):
    trainer = start(settings(book, tmp_path / "run", average="ema", average_options={"decay": 0.5}))
    finished = trainer.train()
    raw, average = trainer.state.params, trainer.state.opt_state.average
    assert finished.report["weights"] == "average"
    equal(LoadedRun.open(str(tmp_path / "run")).params()[1], average)
    row = MetricsLog(tmp_path / "run" / "metrics.jsonl").read()[-1]
    assert (row["weights"], row["val_loss"]) == ("average", row["val_loss_average"])
    assert row["val_loss_raw"] > row["val_loss_average"]
    equal(resume(tmp_path / "run").state, trainer.state)
    equal(resume(tmp_path / "run").state.params, raw)


def test_before_its_begin_an_average_is_not_evaluated(book, tmp_path, average_is_better):
    run = tmp_path / "run"
    start(settings(book, run, average="tail", average_options={"start": 0.5})).train()
    rows = MetricsLog(run / "metrics.jsonl").read()
    assert [row["weights"] for row in rows] == ["raw", "average"]
    assert "val_loss_average" not in rows[0]


def test_nt_asgd_begins_in_a_run_where_evaluations_get_worse(book, tmp_path, monkeypatch):
    metrics = Trainer._metrics

    def worse_with_time(self, params, final):
        return {**metrics(self, params, final), "val_loss": float(self.state.step)}

    monkeypatch.setattr(Trainer, "_metrics", worse_with_time)
    run = tmp_path / "run"
    trainer = start(settings(book, run, eval_every=1, average="nt-asgd", average_options={"patience": 2}))
    trainer.train()
    assert int(trainer.rates.average_from) == 4  # worse than the first evaluation, two evaluations later
    assert int(resume(run).rates.average_from) == 4
    rows = MetricsLog(run / "metrics.jsonl").read()
    assert ["val_loss_average" in row for row in rows] == [False] * 4 + [True] * 2


def test_schedule_free_evaluates_and_saves_its_average(book, tmp_path):
    trainer = start(settings(book, tmp_path / "run", optimizer="schedule-free", schedule="constant"))
    trainer.train()
    equal(LoadedRun.open(str(tmp_path / "run")).params()[1], trainer.state.opt_state.average)
    saved, _ = CheckpointStore(tmp_path / "run" / "checkpoints").restore()
    assert saved
    equal(resume(tmp_path / "run").state, trainer.state)
