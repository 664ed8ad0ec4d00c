"""Callbacks of the training loop: when they are called, and with what."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from builders import language_config

import jaxgen
from jaxgen.inference.loading import LoadedRun
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.registry import DATA
from jaxgen.trainer import trainer
from jaxgen.trainer.callbacks import Evaluated, Finished, Note, Progress, Sampled, Started
from jaxgen.trainer.run import resume, start


class Order(jaxgen.Callback):
    """Notes every call, and whether the checkpoint of its step is saved by then."""

    def __init__(self, run):
        self.store, self.calls = CheckpointStore(run / "checkpoints"), []

    def on_start(self, event: Started) -> None:
        self.calls.append(("start", event.first_step))

    def on_step(self, event: Progress) -> None:
        self.calls.append(("step", event.step))

    def on_evaluation(self, event: Evaluated) -> None:
        self.calls.append(("evaluation", event.row["step"], self.store.latest()))

    def on_sample(self, event: Sampled) -> None:
        self.calls.append(("sample", event.step, self.store.latest()))

    def on_checkpoint(self, step: int) -> None:
        self.calls.append(("checkpoint", step, self.store.latest()))

    def on_end(self, event: Finished, inference) -> None:
        self.calls.append(("end", event.step, len(inference.generate("", 0.8, 5))))


@pytest.mark.runs
def test_callbacks_see_logs_before_the_checkpoint_of_their_step_and_the_end_once(book, tmp_path):
    run = tmp_path / "run"
    sizes = {"hidden": 8, "batch_size": 4, "seq_len": 8, "cell": "elman", "steps": 4, "eval_every": 2}
    order = Order(run)
    start(DATA["language"].Config(data=(str(book),), run=str(run), **sizes), callbacks=[order]).train()
    assert [call for call in order.calls if call[0] != "step"] == [
        ("checkpoint", 0, 0),
        ("start", 0),
        ("evaluation", 2, 0),
        ("sample", 2, 0),
        ("checkpoint", 2, 2),
        ("evaluation", 4, 2),
        ("checkpoint", 4, 4),
        ("end", 4, 5),
    ]
    assert [call[1] for call in order.calls if call[0] == "step"][-1] == 4
    again = Order(run)
    resume(str(run), callbacks=[again]).train()
    assert again.calls == [("start", 4), ("end", 4, 5)]


class StopAt(jaxgen.Callback):
    """Stops a run in one of its methods, from a step on."""

    def __init__(self, step, method="on_step"):
        self.step = step
        setattr(self, method, self.check)

    def check(self, event):
        if getattr(event, "step", None) is None or event.step >= self.step:
            self.stop("it is enough")


def evaluated(run):
    return [row["step"] for row in MetricsLog(run / "metrics.jsonl").read()]


@pytest.mark.runs
def test_a_callback_stops_a_run_with_evaluation_report_and_card_and_it_stays_stopped(book, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "MAX_STEPS_PER_CALL", 1)
    run, told = tmp_path / "run", []
    config = language_config(book, run, steps=12, eval_every=4, sample_every=0)
    finished = start(config, told.append, [StopAt(5)]).train()
    assert 5 <= finished.step < 8, "it stops between two evaluations"
    assert evaluated(run) == [4, finished.step]
    assert (run / "README.md").exists()
    assert (run / "report.json").exists()
    assert any("it is enough" in event.text for event in told if isinstance(event, Note))
    told.clear()
    assert resume(str(run), emit=told.append).train().step == finished.step, "also without the callback"
    assert any("it is enough" in event.text for event in told if isinstance(event, Note))
    longer = config.model_copy(update={"steps": 16})
    assert resume(str(run), longer).train().step == 16, "more steps continue it"
    assert evaluated(run) == [4, finished.step, 8, 12, 16]


@pytest.mark.runs
@pytest.mark.parametrize(("method", "step"), [("on_start", 0), ("on_evaluation", 2), ("on_sample", 2)])
def test_a_run_can_be_stopped_from_any_method(method, step, book, tmp_path):
    config = language_config(book, tmp_path / "run", steps=6, eval_every=2)
    stopper = StopAt(0, method)
    assert start(config, callbacks=[jaxgen.Callback(), stopper]).train().step == step
    assert stopper.stop_reason == "it is enough"


@pytest.mark.runs
def test_early_stopping_is_patience(book, tmp_path):
    """A learning rate too small for float32 leaves the weights alone: no evaluation is better than the first."""
    still = {"lr": 1e-30, "steps": 12, "eval_every": 2, "sample_every": 0}
    by_flag = start(language_config(book, tmp_path / "flag", **still, patience=2)).train()
    stopping = jaxgen.callbacks.EarlyStopping(2)
    by_callback = start(language_config(book, tmp_path / "callback", **still), callbacks=[stopping]).train()
    assert (by_flag.step, by_flag.best_step) == (by_callback.step, by_callback.best_step) == (6, 2)
    weights = [LoadedRun.open(tmp_path / name).params()[1] for name in ("flag", "callback")]
    jax.tree.map(np.testing.assert_array_equal, *weights)
    patient = language_config(book, tmp_path / "flag", **still, patience=4)
    assert resume(str(tmp_path / "flag"), patient).train().step == 10, "more patience continues it"
    again = language_config(book, tmp_path / "again", **still)
    assert start(again, callbacks=[stopping]).train().step == 6, "a callback serves several runs, one after the other"


def test_the_patience_of_early_stopping_is_a_positive_number():
    with pytest.raises(jaxgen.UsageError, match="patience is 0"):
        jaxgen.callbacks.EarlyStopping(0)
