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
from jaxgen.trainer.seeds import train_seeds
from jaxgen.trainer.trainer import RunTrainer

pytestmark = pytest.mark.runs


def settings(book, run, **more):
    return language_config(book, run, **{"steps": 6, "eval_every": 3, "sample_every": 0, "warmup": 0, **more})


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def average_is_better(monkeypatch):
    """Evaluations prefer the average."""
    metrics = RunTrainer._metrics

    def found(self, params, final):
        is_raw = not final and params is self.state.params
        return {**(real := metrics(self, params, final)), "val_loss": real["val_loss"] + 10 * is_raw}

    monkeypatch.setattr(RunTrainer, "_metrics", found)


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
    metrics = RunTrainer._metrics

    def worse_with_time(self, params, final):
        return {**metrics(self, params, final), "val_loss": float(self.state.step)}

    monkeypatch.setattr(RunTrainer, "_metrics", worse_with_time)
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


NOISY = {"steps": 30, "optimizer": "sgd", "lr": 0.5, "schedule": "constant", "batch_size": 4, "weight_decay": 0.0}


def waves(params):
    """A loss that now prefers the longer and now the shorter mean."""
    return 9 + float(np.mean([np.sin(30 * np.asarray(leaf, np.float64)).mean() for leaf in jax.tree.leaves(params)]))


@pytest.fixture
def evaluated(monkeypatch):
    """The weights that were evaluated during training, whose validation loss is ``waves``."""
    metrics, seen = RunTrainer._metrics, []

    def found(self, params, final):
        if not final:
            seen.append(jax.device_get(params))
        return {**metrics(self, params, final), "val_loss": waves(params)}

    monkeypatch.setattr(RunTrainer, "_metrics", found)
    return seen


def test_two_tailed_averaging_is_that_of_the_paper(book, tmp_path, evaluated):
    """Compared with two means that are computed here, in float64, of the weights of every step."""
    start(settings(book, tmp_path / "plain", **NOISY, eval_every=1)).train()
    weights = [jax.tree.map(lambda leaf: leaf.astype(np.float64), each) for each in evaluated]
    evaluated.clear()
    trainer = start(settings(book, tmp_path / "run", **NOISY, eval_every=2, average="two-tailed"))
    trainer.train()

    def mean(first, last):
        return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *weights[first:last])

    longer, shorter, dropped, losses = 0, 0, [], []
    for step in range(2, 31, 2):
        drops = waves(mean(shorter, step)) <= waves(mean(longer, step))
        longer, shorter = (shorter, step) if drops else (longer, shorter)
        dropped.append(drops)
        losses.append(waves(mean(longer, step)))
    assert 2 < sum(dropped) < len(dropped) - 2  # both happen
    state = trainer.state.opt_state
    assert [int(begin) for begin in state.begins] == [longer, shorter]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, jax.device_get(state.average), mean(longer, 30))
    rows = MetricsLog(tmp_path / "run" / "metrics.jsonl").read()
    assert [row["val_loss_average"] for row in rows] == pytest.approx(losses, rel=1e-4)
    assert [row["val_loss"] for row in rows] == [min(row["val_loss_average"], row["val_loss_raw"]) for row in rows]


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=pytest.mark.skipif("jax.local_device_count() < 2")),
    ],
)
def test_two_tails_are_the_same_when_a_run_is_stopped_and_resumed(devices, book, tmp_path, evaluated):
    more = {**NOISY, "eval_every": 4, "average": "two-tailed", "batch_size": 16, "devices": devices}
    whole = start(settings(book, tmp_path / "whole", **more))
    whole.train()
    for progress in start(settings(book, tmp_path / "parts", **more)):
        if progress.step >= 18:
            break
    parts = resume(tmp_path / "parts")
    assert int(parts.state.step) == 16
    parts.train()
    equal(parts.state, whole.state)
    equal(*(LoadedRun.open(str(tmp_path / name)).params()[1] for name in ("parts", "whole")))


def test_each_of_several_seeds_has_its_own_tails(book, tmp_path):
    more = {**NOISY, "eval_every": 4, "average": "two-tailed", "steps": 12}
    train_seeds(settings(book, tmp_path / "seeds", **more), [3, 4])
    alone = start(settings(book, tmp_path / "alone", **more, seed=4, devices=1))
    alone.train()
    together = resume(tmp_path / "seeds" / "seed-4").state
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), together, alone.state)
