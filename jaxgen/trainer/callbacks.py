"""Callbacks of the training loop: the base class, and those that write the logs, the report and the plots of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxgen.data.files import ProgressReporter
from jaxgen.errors import CheckpointError
from jaxgen.plots import Best, draw_losses
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.lock import RunLock
from jaxgen.runs.logs import MetricsLog, append_sample, truncate_samples
from jaxgen.tasks.base import Inference, TaskData


@dataclass(frozen=True)
class Reading:
    """Large data are being read or encoded, before the model is built; ``done`` of ``total`` is finished."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Started:
    """The model is built and nothing has been compiled yet."""

    run: str
    facts: dict[str, str]  # label -> text, in reading order
    first_step: int
    last_step: int


@dataclass(frozen=True)
class Progress:
    """Some steps are done; ``loss`` is the mean over the last call, in nats per target."""

    step: int
    loss: float
    bits_per_char: float | None
    speed: float  # in units per second
    unit: str  # what ``speed`` counts
    seconds_left: float


@dataclass(frozen=True)
class Evaluated:
    """The model was evaluated; ``row`` is the line of ``metrics.jsonl``."""

    row: dict[str, Any]
    best_step: int  # the step of the best evaluation so far
    headline: str  # the row in a few words

    @property
    def best(self) -> bool:
        """Whether this evaluation is the best so far."""
        return bool(self.row["step"] == self.best_step)


@dataclass(frozen=True)
class Sampled:
    """An example of what the model makes at this step."""

    step: int
    title: str
    text: str


@dataclass(frozen=True)
class Note:
    """A message that is no error."""

    text: str


@dataclass(frozen=True)
class Finished:
    """Training is over and the run is complete."""

    run: str
    step: int
    best_step: int
    report: dict[str, Any]
    summary: list[tuple[str, str]] = field(default_factory=list)  # the report as labelled lines
    next_command: str = ""
    samples: list[tuple[str, str]] = field(default_factory=list)  # (title, text)


def ignore(event: Any) -> None:
    """An ``emit`` that does nothing."""


Event = Reading | Started | Progress | Evaluated | Sampled | Note | Finished
Emit = Callable[[Event], None]


class ProgressEvents(ProgressReporter):
    """Reports the reading of data as events."""

    def __init__(self, emit: Callable[[Any], None]) -> None:
        self._emit = emit

    def progress(self, what: str, done: int, total: int) -> None:
        """Emit a ``Reading``."""
        self._emit(Reading(what, done, total))

    def note(self, text: str) -> None:
        """Emit a ``Note``."""
        self._emit(Note(text))


class Callback:
    """Base class for what watches a training run. Override the methods you need and pass it to ``jaxgen.start``.

    The training loop calls callbacks on the main process only, and waits for them. At one step the order is
    ``on_evaluation``, ``on_sample``, ``on_checkpoint``. Logs are written before the checkpoint: a resumed run first
    drops what they have after its checkpoint (``truncate_after``). What a callback raises ends the run.
    """

    def on_start(self, event: Started) -> None:
        """The run starts or resumes; nothing is compiled yet."""

    def on_step(self, event: Progress) -> None:
        """A call of some training steps is done."""

    def on_evaluation(self, event: Evaluated) -> None:
        """The model was evaluated."""

    def on_sample(self, event: Sampled) -> None:
        """The model made an example."""

    def on_checkpoint(self, step: int) -> None:
        """A checkpoint was saved, after the evaluation and the examples of its step. A new run saves step 0 at once."""

    def on_note(self, event: Note) -> None:
        """The training loop has a message for the user."""

    def on_end(self, event: Finished, inference: Inference) -> None:
        """The run is complete; ``inference`` uses the weights that the report is of."""

    def truncate_after(self, step: int) -> None:
        """Training resumes from ``step``: drop what was recorded after it."""

    def wait(self) -> None:
        """Wait for work in the background. Also called when training is interrupted or fails."""


class MetricsWriter(Callback):
    """Appends each evaluation to ``metrics.jsonl``. Raises ``CheckpointError`` if the run's lock was lost."""

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._log = run, MetricsLog(run.metrics_path)

    def on_evaluation(self, event: Evaluated) -> None:
        RunLock.check(self._run.path)
        self._log.append(event.row)

    def truncate_after(self, step: int) -> None:
        self._log.truncate(step)


class SamplesWriter(Callback):
    """Appends each example to ``samples.txt``. Raises ``CheckpointError`` if the run's lock was lost."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run

    def on_sample(self, event: Sampled) -> None:
        RunLock.check(self._run.path)
        append_sample(self._run.samples_path, event.step, event.text)

    def truncate_after(self, step: int) -> None:
        truncate_samples(self._run.samples_path, step)


class ReportWriter(Callback):
    """Writes ``report.json`` at the end."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run

    def on_end(self, event: Finished, inference: Inference) -> None:
        self._run.write_json("report.json", {"step": event.step, "best_step": event.best_step, **event.report})


class Emitter(Callback):
    """Passes events to ``emit``. Evaluations and examples wait until their checkpoint is saved."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._unsaved: list[Event] = []

    def on_start(self, event: Started) -> None:
        self._emit(event)

    def on_step(self, event: Progress) -> None:
        self._emit(event)

    def on_note(self, event: Note) -> None:
        self._emit(event)

    def on_evaluation(self, event: Evaluated) -> None:
        self._unsaved.append(event)

    def on_sample(self, event: Sampled) -> None:
        self._unsaved.append(event)

    def on_checkpoint(self, step: int) -> None:
        events, self._unsaved = self._unsaved, []
        for event in events:
            self._emit(event)

    def on_end(self, event: Finished, inference: Inference) -> None:
        self._emit(event)

    def truncate_after(self, step: int) -> None:
        self._unsaved = []


class Plots(Callback):
    """Draws the loss curve in the background, and at the end the plots of the task.

    A plot that fails is reported as a ``Note`` once and ends nothing.
    """

    def __init__(self, run: RunDirectory, data: TaskData, emit: Emit) -> None:
        self._run, self._data, self._emit = run, data, emit
        self._metrics = MetricsLog(run.metrics_path)
        self._errors = PlotErrors()
        self._evaluated: Evaluated | None = None  # to be drawn once its checkpoint is saved
        self._requested = 0
        self._pool: ThreadPoolExecutor | None = None
        self._plot: Future[None] | None = None

    def on_evaluation(self, event: Evaluated) -> None:
        self._evaluated = event

    def on_checkpoint(self, step: int) -> None:
        if self._evaluated is None:
            return
        self._errors.report(self._emit)
        self._requested += 1
        self._pool = self._pool or ThreadPoolExecutor(1)
        best = Best(self._evaluated.best_step, self._data.METRIC.name)
        self._plot = self._pool.submit(self._draw, self._requested, best)
        self._evaluated = None

    def on_end(self, event: Finished, inference: Inference) -> None:
        if self._plot is not None:
            self._plot.result()
        with self._errors.caught(f"the plots of the report in {self._run.path}"):
            self._data.save_plots(inference, event.report, self._run.path)
        self._errors.report(self._emit)

    def truncate_after(self, step: int) -> None:
        self._evaluated = None

    def wait(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _draw(self, number: int, best: Best) -> None:
        if number != self._requested:  # a newer request waits behind this one
            return
        title = f"{self._run.path.name}: {self._data.fingerprint()['name']}"
        with self._errors.caught(f"{self._run.plot_path}"):
            draw_losses(self._metrics.read(), self._run.plot_path, title, self._data.TARGET, best)


class PlotErrors:
    """Exceptions of plots, on whatever thread, kept until the main thread reports them."""

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._reported: set[str] = set()

    @contextmanager
    def caught(self, what: str) -> Iterator[None]:
        """A context that keeps every exception instead of raising it. ``what`` names the plot in a sentence."""
        try:
            yield
        except Exception as error:  # a full disk, or whatever fonts, texts and numbers make of a plotting library
            first = next(iter(str(error).splitlines()), "")
            said = getattr(error, "said", "") if isinstance(error, CheckpointError) else ""
            said = said or f"Could not draw {what}: {type(error).__name__} {first}".rstrip(". ") + "."
            self._waiting.append(f"WARNING: {said} Nothing else is lost: weights and metrics are saved without it.")

    def report(self, emit: Callable[[Note], None]) -> None:
        """Emit each message that has not been reported yet."""
        while self._waiting:
            text = self._waiting.pop(0)
            if text not in self._reported:
                self._reported.add(text)
                emit(Note(text))
