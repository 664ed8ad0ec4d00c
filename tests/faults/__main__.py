"""Inject every fault and report the results: ``python -m tests.faults``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.machine import facts, line
from jaxgen.runtime import cores

from . import FAULTS
from .fault import Fault
from .trying import Tried, attempts

BEGIN, END = "<!-- faults -->\n", "<!-- end -->\n"


def table(rows: Iterable[str]) -> str:
    """The whole table in Markdown."""
    head = "| fault | required | attempts | survived | result |\n|---|---|---:|---:|---|\n"
    return head + "".join(row + "\n" for row in rows)


def rewrite(page: Path, rows: Mapping[str, str], made: str, faults: Sequence[Fault]) -> None:
    """Write ``rows`` (by fault name) between the markers of ``page``, followed by ``made``: how they were measured.

    Existing rows of other ``faults`` stay.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    there, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} has no lines {BEGIN.strip()} and {END.strip()} for the table to stand between.")
    if len(rows) < len(faults):
        lines = there.splitlines()
        named = [(line.split(" | ")[0].removeprefix("| "), line) for line in lines if line.startswith("| ")]
        former = {name.replace("\\|", "|"): line for name, line in named}
        rows = {fault.name: found for fault in faults if (found := {**former, **rows}.get(fault.name))}
        said = [line for line in lines if line and not line.startswith("|")]
        made = "\n\n".join([*said, f"Repeated later: {made}"])
    page.write_text(f"{before}{begin}\n{table(rows.values())}\n{made}\n\n{end}{after}", encoding="utf-8")


def main(args: Sequence[str] | None = None, faults: Sequence[Fault] = FAULTS) -> int:
    """Inject ``faults``; returns 1 if one of them was not survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", metavar="SUBSTRING", default="", help="only faults whose name contains it")
    parser.add_argument("--times", metavar="N", type=int, help="attempts for each fault (default: its own number)")
    parser.add_argument(
        "--write",
        metavar="FILE",
        type=Path,
        help="page whose table is replaced (with --only: only those rows)",
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        default=cores(),
        help="faults injected at the same time (default: one per core)",
    )
    given = parser.parse_args(args)
    chosen = [fault for fault in faults if given.only in fault.name]
    if not chosen:
        parser.error(f"no fault's name contains {given.only!r}")
    if given.times is not None and given.times < 1:
        parser.error(f"--times is {given.times}: give 1 or more")

    if given.jobs < 1:
        parser.error(f"--jobs is {given.jobs}: give 1 or more")

    began, machine, tried = time.perf_counter(), line(facts()), [Tried(fault) for fault in chosen]
    times = [given.times or fault.times for fault in chosen]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=sum(times))
        for place, outcome in attempts(chosen, times, given.jobs):
            tried[place].add(outcome)
            progress.update(task, advance=1, description=f"{chosen[place].name}: {outcome.how}")
    rows = {each.fault.name: each.row() for each in tried}
    print(table(rows.values()))
    if given.write is not None:
        which = f"{', '.join(rows)}; " if len(rows) < len(faults) else ""
        minutes = (time.perf_counter() - began) / 60
        rewrite(given.write, rows, f"{which}{minutes:.0f} minutes on {machine}", faults)
    return int(any(each.failed for each in tried))


if __name__ == "__main__":
    sys.exit(main())
