"""Events of a training run: what ``emit`` and callbacks receive. The command line shows them on the screen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


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


class ProgressEvents:
    """Reports the reading of data as events: a ``jaxgen.data.progress.ProgressReporter``."""

    def __init__(self, emit: Callable[[Any], None]) -> None:
        self._emit = emit

    def progress(self, what: str, done: int, total: int) -> None:
        """Emit a ``Reading``."""
        self._emit(Reading(what, done, total))

    def note(self, text: str) -> None:
        """Emit a ``Note``."""
        self._emit(Note(text))
