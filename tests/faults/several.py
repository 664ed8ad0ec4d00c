"""Jobs of several processes, one of which is killed, stopped, or given other settings."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from jaxgen.runs.checkpoints import CheckpointStore
from tests.distributed.jobs import Ended, Jobs, ended_by

from .diverging import book, traces
from .fault import Fault, Unavailable
from .kills import environment

FLAGS = (
    "--preset tiny --cell elman --hidden 8 --batch-size 4 --seq-len 8 --lr 0.02 --dropout 0.2 --steps 20 "
    "--eval-every 8 --data book.txt"
)
LOST = 6


def _jobs(folder: Path) -> Jobs:
    if not hasattr(os, "fork"):
        raise Unavailable("processes get no signals here")
    book(folder)
    return Jobs(folder, environment(folder))


def _without_a_trace(ended: list[Ended]) -> None:
    for each in ended:
        assert "Traceback" not in each.err, each.err


def _goes_on(jobs: Jobs) -> None:
    """Started again, the run comes to what one comes to that nothing happened to."""
    for run in ("run", "whole"):
        again = jobs.run(2, *FLAGS.split(), "--run", run, "--resume", "auto")
        assert [each.code for each in again] == [0, 0], again
    assert traces(jobs.folder / "run") == traces(jobs.folder / "whole")


def kill_one(folder: Path, draw: np.random.Generator) -> str:
    jobs = _jobs(folder)
    lost, step = int(draw.integers(2)), int(draw.integers(1, 20))
    who = ("itself", "launcher")[draw.integers(2)]
    ended = jobs.run(2, *FLAGS.split(), "--run", "run", meets=(lost, who, signal.SIGKILL, step))
    _without_a_trace(ended)
    assert ended[lost].code in (-signal.SIGKILL, ended_by(signal.SIGKILL)), ended
    assert ended[1 - lost].code == LOST, ended
    assert "lost" in ended[1 - lost].err
    _goes_on(jobs)
    return "the other ended within the heartbeat and named the reason; the restart gave the same result, bit for bit"


def stop_one(folder: Path, draw: np.random.Generator) -> str:
    jobs = _jobs(folder)
    number = (signal.SIGTERM, signal.SIGINT)[draw.integers(2)]
    meets = (int(draw.integers(2)), ("itself", "launcher")[draw.integers(2)], number, int(draw.integers(1, 14)))
    ended = jobs.run(2, *FLAGS.split(), "--run", "run", meets=meets)
    _without_a_trace(ended)
    assert [each.code for each in ended] == [ended_by(number)] * 2, ended
    at = CheckpointStore(folder / "run" / "checkpoints").latest()
    assert all(f"step {at}" in each.err for each in ended), ended
    _goes_on(jobs)
    return "all stopped at the same step, saved once, exit code 143 or 130; resumed bit for bit"


def start_apart(folder: Path, draw: np.random.Generator) -> str:
    jobs = _jobs(folder)
    (folder / "other.txt").write_text("Another text, which is long enough to be trained on. " * 99)
    others = [
        (2, ["--lr", "0.5"]),
        (3, ["--data", "other.txt"]),
        (3, ["--data", "nowhere.txt"]),
        (2, ["--layers", "2"]),
    ]
    code, flags = others[draw.integers(len(others))]
    ended = jobs.run(2, *FLAGS.split(), "--run", "run", others={int(draw.integers(2)): flags})
    _without_a_trace(ended)
    assert [each.code for each in ended] == [code, code], ended
    assert all(each.err.count("error: ") == 1 for each in ended), ended
    assert not (folder / "run" / "config.json").exists()
    return "all reported it and ended at once with the same exit code; nothing was written"


FAULTS = (
    Fault(
        "SIGKILL of one of several processes",
        "the others end within the heartbeat with an error message; a restart gives the same result, bit for bit",
        kill_one,
        times=2,
        slow=True,
    ),
    Fault(
        "SIGTERM or Ctrl-C to one of several processes",
        "all save and stop at the same step",
        stop_one,
        times=2,
        slow=True,
    ),
    Fault(
        "several processes with other settings or data",
        "error message and the same exit code on all; no process waits",
        start_apart,
        times=2,
        slow=True,
    ),
)
