"""Inject faults and count the outcomes, several at the same time in separate processes."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgen.errors import show_flags

from . import FAULTS
from .fault import Fault, Unavailable

#: Characters of a failure's message in the table.
TOLD = 200


class Outcome(NamedTuple):
    """How one attempt ended: ``survived``, ``failed`` or ``missing``, and a description."""

    how: str
    text: str


@dataclass
class Tried:
    """The outcomes of a fault: survived, failed, and what was missing to inject it."""

    fault: Fault
    survived: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    missing: str = ""

    def add(self, outcome: Outcome) -> None:
        """Count one attempt."""
        if outcome.how == "missing":
            self.missing = outcome.text
        else:
            (self.survived if outcome.how == "survived" else self.failed)[outcome.text] += 1

    def row(self) -> str:
        """A line of the table."""
        survived, failed = self.survived.total(), self.failed.total()
        happened = [*_counted(self.survived), *(f"**not survived**: {text}" for text in _counted(self.failed))]
        if self.missing:
            happened.append(f"not injected here: {self.missing}")
        cells = (self.fault.name, self.fault.required, survived + failed, survived, "; ".join(happened))
        return "| {} |".format(" | ".join(str(cell).replace("|", "\\|") for cell in cells))


def _counted(outcomes: Counter[str]) -> list[str]:
    return [text if number == 1 else f"{text} ({number})" for text, number in sorted(outcomes.items(), key=_often)]


def _often(outcome: tuple[str, int]) -> tuple[int, str]:
    return -outcome[1], outcome[0]


def attempt(fault: Fault | str, number: int) -> Outcome:
    """Inject ``fault``, or the one with that name, in an empty folder; ``number`` is the random seed."""
    fault = next(each for each in FAULTS if each.name == fault) if isinstance(fault, str) else fault
    with tempfile.TemporaryDirectory(prefix="fault-", ignore_cleanup_errors=True) as folder:
        try:
            with show_flags():  # messages as the commands show them
                return Outcome("survived", fault.inject(Path(folder), np.random.default_rng(number)))
        except Unavailable as missing:
            return Outcome("missing", str(missing))
        except Exception as error:
            return Outcome("failed", _in_short(error, folder))


def attempts(faults: Sequence[Fault], times: Sequence[int], jobs: int) -> Iterator[tuple[int, Outcome]]:
    """Inject each fault ``times`` times, ``jobs`` at once; yields its index and the outcome as each ends."""
    tries = [(place, number) for place, often in enumerate(times) for number in range(often)]
    if jobs == 1:
        for place, number in tries:
            yield place, attempt(faults[place], number)
        return
    known = set(map(id, FAULTS))  # of these another process knows the names; their functions cannot be sent to it
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {}
        for place, number in tries:
            fault = faults[place]
            waiting[pool.submit(attempt, fault.name if id(fault) in known else fault, number)] = place
        for done in as_completed(waiting):
            error = done.exception()
            yield waiting[done], done.result() if error is None else Outcome("failed", _in_short(error, ""))


def _in_short(error: BaseException, folder: str) -> str:
    """A failure's message on one line, without the folder's name, so that equal ones count as such."""
    text = str(error).replace(folder, "FOLDER") if folder else str(error)
    text = re.sub(r"\s+", " ", text).strip()
    kind = "" if isinstance(error, AssertionError) and text else f"{type(error).__name__} "
    return kind + (text if len(text) <= TOLD else text[:TOLD] + "…")
