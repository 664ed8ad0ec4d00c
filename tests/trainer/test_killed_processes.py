"""Real signals to a real process: exit codes, and resuming loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from builders import overridden

from jaxgen.cli.train import main
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.logs import MetricsLog
from jaxgen.trainer import trainer

#: A training command that sends itself a signal once some steps are done: a kill at a known place.
SCRIPT = """
import os, sys
import jaxgen.trainer.trainer as trainer
from jaxgen.cli.progress import Screen
from jaxgen.cli.train import main

trainer.MAX_STEPS_PER_CALL = 3
number, step = int(sys.argv.pop(1)), int(sys.argv.pop(1))
show = Screen.show
sent = []

def watch(screen, event):
    show(screen, event)
    if type(event).__name__ == "Progress" and event.step >= step and not sent:
        sent.append(event)
        os.kill(os.getpid(), number)

Screen.show = watch
if __name__ == "__main__":
    sys.exit(main())
"""
FLAGS = (
    "--preset tiny --cell elman --hidden 8 --batch-size 4 --seq-len 8 --steps 20 --eval-every 8 --dropout 0.2 "
    "--sample-every 0 --lr 0.02"
)


def given(book: Path, run: str, *flags: str) -> list[str]:
    return overridden(["--data", book, "--run", run, *FLAGS.split(), *flags])


@pytest.fixture
def command(book: Path, tmp_path: Path, quick_environment: dict[str, str]):
    """Train in a process of its own, which a signal may end at a step; returns the finished process."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def train(run: str, number: int, step: int, *flags: str, optimised: bool = False):
        return subprocess.run(
            [sys.executable, script, str(int(number)), str(step), *given(book, run, *flags)],
            cwd=tmp_path,
            env=os.environ if optimised else quick_environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return train


def left(run: Path) -> tuple[object, ...]:
    store = CheckpointStore(run / "checkpoints")
    rows = MetricsLog(run / "metrics.jsonl").read()
    report = (run / "report.json").read_bytes()
    return store.latest(), store.digest(), store.digest(store.best()), [row["val_loss"] for row in rows], report


def check(train, stopped: subprocess.CompletedProcess[str], folder: Path, code: int) -> None:
    """Resume what was stopped and compare it with a run that was not; ``train(run, *flags)`` trains to the end."""
    assert stopped.returncode == code
    assert "Traceback" not in stopped.stderr
    if code > 0:
        assert "--run run --resume auto" in stopped.stderr
        assert CheckpointStore(folder / "run" / "checkpoints").latest() == 14
    assert "step" in train("run", "--resume", "auto")
    train("whole")
    assert left(folder / "run") == left(folder / "whole")


@pytest.fixture
def in_process(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Train to the end in this process, which computes the same as another; returns what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer, "MAX_STEPS_PER_CALL", 3)  # as above: what that process compiled serves here

    def train(run: str, *flags: str) -> str:
        assert main(given(book, run, *flags)) == 0
        return capsys.readouterr().out

    return train


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_143_and_resuming_loses_nothing(command, in_process, tmp_path):
    check(in_process, command("run", signal.SIGTERM, 11), tmp_path, 143)


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_with_130_and_resuming_loses_nothing(command, in_process, tmp_path):
    check(in_process, command("run", signal.SIGINT, 11), tmp_path, 130)


@pytest.mark.slow
def test_a_process_killed_outright_is_resumed_bit_for_bit_with_all_of_xlas_optimisations(command, tmp_path):
    def train(run: str, *flags: str) -> str:
        done = command(run, 0, 10**9, *flags, optimised=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    check(train, command("run", signal.SIGKILL, 11, optimised=True), tmp_path, -signal.SIGKILL)
