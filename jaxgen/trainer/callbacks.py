"""Callbacks of the training loop: the base class, early stopping, and those that write the files of a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from jaxgen.data.files import ProgressReporter
from jaxgen.errors import CheckpointError, check_int, counted, for_caller
from jaxgen.fsutil import RESUME, replace_file
from jaxgen.plots import Best, draw_losses
from jaxgen.runs.directory import CARD, CARD_TITLE, RunDirectory
from jaxgen.runs.lock import RunLock
from jaxgen.runs.logs import MetricsLog, append_sample, truncate_samples
from jaxgen.tasks.base import Inference, TaskData
from jaxgen.tokenizers.base import text_bytes


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
    speed: float | None  # in units per second; None until it is known
    unit: str  # what ``speed`` counts
    seconds_left: float | None  # without evaluations; None until ``speed`` is known


@dataclass(frozen=True)
class Evaluated:
    """The model was evaluated; ``row`` is the line of ``metrics.jsonl``."""

    row: dict[str, Any]
    best_step: int  # the step of the best evaluation so far
    evals_since_best: int  # how many evaluations in a row brought no new best
    headline: str  # the row in a few words

    @property
    def best(self) -> bool:
        """Whether this evaluation is the best so far."""
        return bool(self.row["step"] == self.best_step)


@dataclass(frozen=True)
class Sampled:
    """An example of the output of the model at this step."""

    step: int
    title: str
    text: str


@dataclass(frozen=True)
class Note:
    """A message for the user that is not an error."""

    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", for_caller(self.text))


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
    advice: list[str] = field(default_factory=list)  # what to try next


def ignore(event: Any) -> None:
    """An ``emit`` that does nothing."""


Event = Reading | Started | Progress | Evaluated | Sampled | Note | Finished
Emit = Callable[[Event], None]


@dataclass(frozen=True)
class ProgressEvents(ProgressReporter):
    """Reports the reading of data as events."""

    emit: Emit

    def progress(self, what: str, done: int, total: int) -> None:
        """Emit a ``Reading``."""
        self.emit(Reading(what, done, total))

    def note(self, text: str) -> None:
        """Emit a ``Note``."""
        self.emit(Note(text))


class Callback:
    """Base class of callbacks. Override the methods you need and pass instances to ``jaxgen.train(callbacks=[...])``.

    The training loop calls callbacks on the main process only, in their order, and waits for them. At one step the
    order is ``on_evaluation``, ``on_sample``, ``on_checkpoint``. Logs are written before the checkpoint: a resumed run
    first drops their entries after its checkpoint (``truncate_after``). An exception in a callback ends the run.

    Attributes:
        stop_reason: Why this callback stops the run (``stop``); None if it does not.
        emit: Where notes go. The training loop sets both when it starts.

    Example:
        >>> class Losses(jaxgen.Callback):
        ...     def on_evaluation(self, event):
        ...         print("step", event.row["step"], event.row["val_loss"] > 0)
        >>> config = jaxgen.LanguageConfig(data="book.txt", cell="elman", hidden=8, steps=2, batch_size=4, seq_len=8)
        >>> _ = jaxgen.start(config, callbacks=[Losses()]).train()
        step 1 True
        step 2 True
    """

    stop_reason: str | None = None
    emit: Emit = staticmethod(ignore)

    def stop(self, reason: str = "a callback asked for it") -> None:
        """End training early, with the usual report and model card.

        The steps that are being computed are completed, and the model is evaluated and saved; with several processes,
        training continues to the next evaluation or sample. In ``on_start`` the run ends before its first step, and
        trains when it is resumed. In ``on_checkpoint`` it is too late for the checkpoint at hand: some more steps
        follow. The reason is saved with the checkpoint, and a resumed run stays stopped until it is given more steps or
        another patience.
        """
        self.stop_reason = reason

    def note(self, text: str) -> None:
        """Show a message to the user."""
        self.emit(Note(text))

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__}>"

    def on_start(self, event: Started) -> None:
        """The run starts or resumes; nothing is compiled yet."""

    def on_step(self, event: Progress) -> None:
        """A call of some training steps is done."""

    def on_evaluation(self, event: Evaluated) -> None:
        """The model was evaluated."""

    def on_sample(self, event: Sampled) -> None:
        """The model generated an example."""

    def on_checkpoint(self, step: int) -> None:
        """A checkpoint was saved, after the evaluation and the examples of its step. A new run saves step 0 at once."""

    def on_note(self, event: Note) -> None:
        """The training loop has a message for the user."""

    def on_end(self, event: Finished, inference: Inference) -> None:
        """The run is complete; ``inference`` uses the weights that the report evaluates."""

    def truncate_after(self, step: int) -> None:
        """Training resumes from ``step``: drop what was recorded after it."""

    def wait(self) -> None:
        """Wait for work in the background. Also called when training is interrupted or fails."""


class EarlyStopping(Callback):
    """Stops the run after ``patience`` evaluations in a row without a new best, as ``--patience`` does.

    The best evaluation is that of the task's own figure (loss, accuracy, BLEU); the run reports its checkpoint.

    Example:
        >>> early = jaxgen.callbacks.EarlyStopping(patience=3)
        >>> early.patience
        3
    """

    def __init__(self, patience: int) -> None:
        self.patience = check_int("The patience", patience, 1)

    def on_evaluation(self, event: Evaluated) -> None:
        if event.evals_since_best >= self.patience:
            self.stop(f"{counted(event.evals_since_best, 'evaluation')} in a row without a new best")


class LogWriter(Callback):
    """Appends evaluations to ``metrics.jsonl`` and examples to ``samples.txt``; writes ``report.json`` at the end.

    Raises ``CheckpointError`` if the run's lock was lost.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._metrics = run, MetricsLog(run.metrics_path)

    def on_evaluation(self, event: Evaluated) -> None:
        RunLock.check(self._run.path)
        self._metrics.append(event.row)

    def on_sample(self, event: Sampled) -> None:
        RunLock.check(self._run.path)
        append_sample(self._run.samples_path, event.step, event.text)

    def on_end(self, event: Finished, inference: Inference) -> None:
        RunLock.check(self._run.path)
        self._run.write_json("report.json", {"step": event.step, "best_step": event.best_step, **event.report})

    def truncate_after(self, step: int) -> None:
        self._metrics.truncate(step)
        truncate_samples(self._run.samples_path, step)


class ModelCard(Callback):
    """Writes ``README.md`` at the end: what the run is, its figures and samples, and how to use it."""

    def __init__(self, run: RunDirectory, data: TaskData) -> None:
        self._run, self._data = run, data
        self._facts: dict[str, str] = {}

    def on_start(self, event: Started) -> None:
        self._facts = event.facts

    def on_end(self, event: Finished, inference: Inference) -> None:
        RunLock.check(self._run.path)
        about = [*self._facts.items(), ("digest of the data", self._data.fingerprint()["sha256"])]
        figures = [("best step", f"{event.best_step:,} of {event.step:,}"), *event.summary]
        parts = [f"{CARD_TITLE} {self._data.config.task}"]
        parts += [_markdown_table(about), "## Figures", _markdown_table(figures)]
        if self._run.plot_path.exists():
            parts += [f"![losses]({self._run.plot_path.name})"]
        if event.samples:
            parts += ["## Samples", *(f"{title}\n\n{fenced(text)}" for title, text in event.samples)]
        command = event.next_command.replace(shlex.quote(event.run), ".").replace("python sample.py", "jaxgen sample")
        parts += ["## Use", "In this folder:", fenced(f"{command}\njaxgen info .")]
        parts += ["`config.json` has all settings, `metrics.jsonl` all evaluations."]
        replace_file(self._run.path / CARD, text_bytes("\n\n".join(parts) + "\n"), RESUME)


def _markdown_table(rows: Iterable[tuple[str, str]]) -> str:
    cells = (" | ".join(" ".join(text.split()).replace("|", "\\|") for text in row) for row in rows)
    return "\n".join(["| | |", "|---|---|", *(f"| {row} |" for row in cells)])


def fenced(text: str) -> str:
    """``text`` as it is, between fences that do not occur in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


class Emitter(Callback):
    """Passes events to ``emit``. Evaluations and examples wait until their checkpoint is saved."""

    def __init__(self, emit: Emit) -> None:
        self._show = emit
        self._unsaved: list[Event] = []

    def on_start(self, event: Started) -> None:
        self._show(event)

    def on_step(self, event: Progress) -> None:
        self._show(event)

    def on_note(self, event: Note) -> None:
        self._show(event)

    def on_evaluation(self, event: Evaluated) -> None:
        self._unsaved.append(event)

    def on_sample(self, event: Sampled) -> None:
        self._unsaved.append(event)

    def on_checkpoint(self, step: int) -> None:
        events, self._unsaved = self._unsaved, []
        for event in events:
            self._show(event)

    def on_end(self, event: Finished, inference: Inference) -> None:
        self._show(event)

    def truncate_after(self, step: int) -> None:
        self._unsaved = []


class Plots(Callback):
    """Draws the loss curve in the background, and at the end the plots of the task.

    A plot that fails is reported once as a ``Note``; training continues.
    """

    def __init__(self, run: RunDirectory, data: TaskData) -> None:
        self._run, self._data = run, data
        self._metrics = MetricsLog(run.metrics_path)
        self._evaluated: Evaluated | None = None  # to be drawn once its checkpoint is saved
        self._pool: ThreadPoolExecutor | None = None
        self._plot: Future[None] | None = None
        self._failed: list[str] = []  # of any thread; the main thread reports them
        self._reported: set[str] = set()

    def on_evaluation(self, event: Evaluated) -> None:
        self._evaluated = event

    def on_checkpoint(self, step: int) -> None:
        if self._evaluated is None:
            return
        self._report()
        if self._plot is not None:
            self._plot.cancel()  # unless it is being drawn
        self._pool = self._pool or ThreadPoolExecutor(1)
        best = self._data.METRIC.best_at(self._evaluated.best_step)
        self._plot = self._pool.submit(self._attempt, str(self._run.plot_path), self._draw_losses, best)
        self._evaluated = None

    def on_end(self, event: Finished, inference: Inference) -> None:
        self.wait()
        what = f"the plots of the report in {self._run}"
        self._attempt(what, self._data.save_plots, inference, event.report, self._run.path)
        self._report()

    def truncate_after(self, step: int) -> None:
        self._evaluated = None

    def wait(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _draw_losses(self, best: Best) -> None:
        title = f"{self._run.path.name}: {self._data.fingerprint()['name']}"
        draw_losses(self._metrics.read(), self._run.plot_path, title, self._data.TARGET, best)

    def _attempt(self, what: str, draw: Callable[..., None], *args: Any) -> None:
        """Call ``draw``; keep the message of an error for ``_report``. ``what`` names the plot."""
        try:
            draw(*args)
        except CheckpointError as error:  # a full disk
            self._failed.append(str(error))
        except Exception as error:  # fonts, texts and numbers can make Matplotlib raise anything
            first = next(iter(str(error).splitlines()), "")
            self._failed.append(f"Could not draw {what}: {type(error).__name__} {first}".rstrip(". ") + ".")

    def _report(self) -> None:
        """Emit each message that was not emitted before."""
        while self._failed:
            problem = self._failed.pop(0)
            if problem not in self._reported:
                self._reported.add(problem)
                self.note(f"WARNING: {problem} Nothing else is lost: weights and metrics are saved without it.")
