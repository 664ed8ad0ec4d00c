"""A run folder without a model, and the calls by which the training loop drives a tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from builders import language_config

from jaxgen.runs.config import write_config
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog
from jaxgen.trainer.callbacks import Finished, Sampled, Started
from jaxgen.trainer.trackers import Tracker

AnyTracker = TypeVar("AnyTracker", bound=Tracker)
#: A report with what reports have: numbers, none, and objects.
REPORT = {"val_loss": 1.25, "val_bpc": None, "labels": {"a": {"f1": 0.5}}}


def make_run(folder: Path, steps: int) -> Path:
    """A run that was evaluated after each of so many steps."""
    run = folder / "run"
    run.mkdir()
    write_config(RunDirectory(run), language_config(folder / "book.txt", run), {"steps": 9, "devices": 1})
    for step in range(1, steps + 1):
        append_row(run, step)
    return run


def append_row(run: Path, step: int) -> None:
    """An evaluation."""
    row = {"step": step, "train_loss": 1 + 1 / step, "val_loss": 1 / step, "tokens_per_second": None, "seconds": 0.5}
    MetricsLog(run / "metrics.jsonl").append(row)


def rows(run: Path) -> list[tuple[int, Any]]:
    """The step and the validation loss of each evaluation."""
    return [(row.get("step"), row["val_loss"]) for row in MetricsLog(run / "metrics.jsonl").read()]


def start_tracker(tracker: AnyTracker, run: Path, step: int, told: list[Any] | None = None) -> AnyTracker:
    """Start or resume the run at ``step``; notes are added to ``told``, without which there must be none."""

    def refuse(note: Any) -> None:
        raise AssertionError(note.text)

    tracker.emit = refuse if told is None else told.append
    tracker.on_start(Started(str(run), {}, step, 9))
    return tracker


def checkpoint(tracker: Tracker, run: Path, step: int) -> None:
    """Evaluate, show a sample and save."""
    append_row(run, step)
    tracker.on_sample(Sampled(step, "temperature 0.8", f"a text of step {step}\n```"))
    tracker.on_checkpoint(step)


def end(tracker: Tracker, step: int) -> None:
    """The end of the run."""
    tracker.on_end(Finished("run", step, step, REPORT, samples=[("greedy", "the last text")]), inference=None)
    tracker.wait()
