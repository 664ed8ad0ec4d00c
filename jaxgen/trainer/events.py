"""What the training loop says while it runs; the command line renders it, a notebook may ignore it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reading:
    """Large data are being read, learnt from or encoded before anything is built; ``done`` of ``total`` are."""

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
    """Some steps are done; ``loss`` is the mean of the last call's, in nats a target."""

    step: int
    loss: float
    bits_per_char: float | None
    speed: float  # in units a second
    unit: str  # what speed counts
    seconds_left: float


@dataclass(frozen=True)
class Evaluated:
    """The validation loss was measured and a checkpoint saved; ``row`` is the line of ``metrics.jsonl``."""

    row: dict[str, Any]
    best: bool
    headline: str  # what the row says, in a few words


@dataclass(frozen=True)
class Sampled:
    """Something the model made at this step."""

    step: int
    title: str
    text: str


@dataclass(frozen=True)
class Note:
    """Something worth knowing that is no error."""

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
    """An ``emit`` for those who do not listen."""


Event = Reading | Started | Progress | Evaluated | Sampled | Note | Finished
Emit = Callable[[Event], None]


class ProgressEvents:
    """How data are read, as events: a ``jaxgen.data.watch.ProgressReporter``."""

    def __init__(self, emit: Callable[[Any], None]) -> None:
        self._emit = emit

    def progress(self, what: str, done: int, total: int) -> None:
        """A ``Reading``."""
        self._emit(Reading(what, done, total))

    def note(self, text: str) -> None:
        """A ``Note``."""
        self._emit(Note(text))
