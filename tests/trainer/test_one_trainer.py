"""A second process that wants to train a run is refused before it reads data or compiles."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from builders import language_config

from jaxgen.errors import CheckpointError, DataError, UsageError
from jaxgen.inference.loading import LoadedRun
from jaxgen.runs import checkpoints as checkpoints_module
from jaxgen.runs.lock import LOCK, RunLock
from jaxgen.runs.logs import MetricsLog
from jaxgen.trainer.run import resume, start
from jaxgen.trainer.run import start as module

HOLDER = """
import sys
from jaxgen.runs.lock import RunLock

RunLock.take(sys.argv[1])
print(flush=True)
sys.stdin.read()
"""

settings = partial(language_config, steps=2)


@pytest.fixture
def held(tmp_path):
    """A folder whose lock another process holds, and that process."""
    folder = tmp_path / "held"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    process.stdout.readline()
    yield folder, process
    process.kill()
    process.communicate()


def test_a_run_that_another_process_trains_is_neither_begun_nor_continued_but_read(held, book, tmp_path, monkeypatch):
    folder, process = held
    start(settings(book, tmp_path / "run")).train()
    for path in (tmp_path / "run").iterdir():
        path.rename(folder / path.name)
    monkeypatch.setattr(sys.modules[module.__module__], "_load", lambda *_: pytest.fail("data were loaded"))
    with pytest.raises(UsageError, match=rf"process {process.pid}\b") as refused:
        resume(str(folder))
    assert refused.value.exit_code == 2
    with pytest.raises(UsageError, match="already holds a run"):
        start(settings(book, folder))
    assert LoadedRun.open(folder).params()[0] == 2
    monkeypatch.undo()
    process.kill()
    process.wait()
    assert resume(str(folder)).train().step == 2
    assert LOCK not in os.listdir(folder)


def test_the_lock_is_held_until_training_ends_and_a_start_that_fails_leaves_nothing(book, tmp_path):
    run = tmp_path / "a" / "run"
    with pytest.raises(DataError):
        start(settings(tmp_path / "none.txt", run))
    assert not (tmp_path / "a").exists()
    held = []
    start(settings(book, run), lambda event: held.append((run / LOCK).exists())).train()
    assert set(held) == {True}
    assert not (run / LOCK).exists()
    assert run.resolve() not in RunLock._held


def remove(run: Path) -> None:
    shutil.rmtree(run)


def replace(run: Path) -> None:
    run.rename(run.with_name("away"))
    (run / "checkpoints").mkdir(parents=True)


@pytest.mark.parametrize("moment", ["metrics", "arrays"])
@pytest.mark.parametrize("strike", [remove, replace])
def test_a_run_whose_folder_goes_while_it_trains_ends_and_is_not_made_again(
    moment, strike, book, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    trainer = start(settings(book, run))
    write, append = checkpoints_module._write_files, MetricsLog.append

    def appended(log: MetricsLog, row: dict[str, object]) -> None:
        append(log, row)
        strike(run)

    def written(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
        strike(run)
        write(path, files)

    if moment == "metrics":
        monkeypatch.setattr(MetricsLog, "append", appended)
    else:
        monkeypatch.setattr(checkpoints_module, "_write_files", written)
    with pytest.raises(CheckpointError, match=re.escape(str(run))) as told:
        trainer.train()
    assert told.value.exit_code == 4
    assert not [path for path in run.rglob("*") if path.suffix == ".json"]


@pytest.mark.parametrize("named", [True, False])
def test_a_trainer_whose_lock_was_removed_trains_unless_another_did(named, book, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainers = [start(settings(book, Path(f"run-{i}")).model_copy(update={} if named else {"run": None})) for i in "ab"]
    for trainer in trainers:
        (trainer.run.path / LOCK).unlink()
    held = RunLock._held.copy()
    RunLock._held.clear()  # as another process, which has not made these trainers
    assert resume(str(trainers[0].run.path)).train().step == 2
    RunLock._held.update(held)
    with pytest.raises(CheckpointError, match="another process trained"):
        trainers[0].train()
    assert not (trainers[0].run.path / LOCK).exists()
    assert trainers[1].train().step == 2
    assert trainers[1].train().step == 2, "it may be asked for its report again"
