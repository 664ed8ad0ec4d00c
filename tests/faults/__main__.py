"""Make every fault as often as it says and write down what happened: ``python -m tests.faults``."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.machine import facts, line

from . import FAULTS
from .fault import Fault, Unavailable

BEGIN, END = "<!-- faults -->\n", "<!-- end -->\n"
#: Characters of a failure's message in the table.
TOLD = 200


@dataclass
class Tried:
    """What became of a fault: outcomes of which it was survived, failures, and what was missing to make it."""

    fault: Fault
    survived: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    missing: str = ""

    def row(self) -> str:
        """A line of the table."""
        survived, failed = self.survived.total(), self.failed.total()
        happened = [*_counted(self.survived), *(f"**not survived**: {text}" for text in _counted(self.failed))]
        if self.missing:
            happened.append(f"not tried here: {self.missing}")
        cells = (self.fault.name, self.fault.required, survived + failed, survived, "; ".join(happened))
        return "| {} |".format(" | ".join(str(cell).replace("|", "\\|") for cell in cells))


def _counted(outcomes: Counter[str]) -> list[str]:
    return [text if number == 1 else f"{text} ({number})" for text, number in outcomes.most_common()]


def attempt(fault: Fault, times: int, report: Callable[[], None] = lambda: None) -> Tried:
    """Make ``fault`` so many times, each in an empty folder and with its own draw; ``report`` is called after each."""
    tried = Tried(fault)
    for number in range(times):
        with tempfile.TemporaryDirectory(prefix="fault-", ignore_cleanup_errors=True) as folder:
            try:
                tried.survived[fault.inject(Path(folder), np.random.default_rng(number))] += 1
            except Unavailable as missing:
                tried.missing = str(missing)
                return tried
            except Exception as error:
                tried.failed[_in_short(error, folder)] += 1
        report()
    return tried


def _in_short(error: Exception, folder: str) -> str:
    """A failure's message on one line, without the folder's name, so that equal ones count as such."""
    text = re.sub(r"\s+", " ", str(error).replace(folder, "FOLDER")).strip()
    kind = "" if isinstance(error, AssertionError) and text else f"{type(error).__name__} "
    return kind + (text if len(text) <= TOLD else text[:TOLD] + "…")


def table(tried: Sequence[Tried]) -> str:
    """All of it in Markdown."""
    head = "| fault | required | times tried | survived | what happened |\n|---|---|---:|---:|---|\n"
    return head + "".join(each.row() + "\n" for each in tried)


def rewrite(page: Path, text: str) -> None:
    """Put ``text`` between the markers of ``page``."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} has no lines {BEGIN.strip()} and {END.strip()} for the table to stand between.")
    page.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")


def main(args: Sequence[str] | None = None, faults: Sequence[Fault] = FAULTS) -> int:
    """Try ``faults``; returns 1 if one of them was not survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", metavar="SUBSTRING", default="", help="faults whose name contains it")
    parser.add_argument("--times", metavar="N", type=int, help="how often each is made; default: as it says itself")
    parser.add_argument("--write", metavar="FILE", type=Path, help="a page in which the table is replaced")
    given = parser.parse_args(args)
    chosen = [fault for fault in faults if given.only in fault.name]
    if not chosen:
        parser.error(f"no fault's name contains {given.only!r}")
    if given.times is not None and given.times < 1:
        parser.error(f"--times is {given.times}: give 1 or more")

    began, machine, tried = time.perf_counter(), line(facts()), []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        times = [given.times or fault.times for fault in chosen]
        task = progress.add_task("", total=sum(times))
        for fault, number in zip(chosen, times):
            progress.update(task, description=fault.name)
            tried.append(attempt(fault, number, lambda: progress.advance(task)))
            progress.update(task, completed=sum(times[: len(tried)]))
    written = table(tried)
    print(written)
    if given.write is not None:
        minutes = (time.perf_counter() - began) / 60
        rewrite(given.write, f"\n{written}\n{minutes:.0f} minutes on {machine}\n\n")
    return int(any(each.failed for each in tried))


if __name__ == "__main__":
    sys.exit(main())
