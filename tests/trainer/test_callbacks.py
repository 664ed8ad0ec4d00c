"""Callbacks of the training loop: when they are called, and with what."""

from __future__ import annotations

import pytest

import jaxgen
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.tasks.registry import DATA
from jaxgen.trainer.callbacks import Evaluated, Finished, Progress, Sampled, Started
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
