"""Removing runs: only what jaxgen made, and nothing that is in use."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from builders import write

from jaxgen.errors import UsageError
from jaxgen.fsutil import temporary_name
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.config import with_digest
from jaxgen.runs.directory import CARD, CARD_TITLE, MARKER, PRETRAINED, START, RunDirectory
from jaxgen.runs.lock import RunLock
from jaxgen.runs.removal import remove_run, why_kept


@pytest.fixture
def folder(tmp_path):
    """A run with one of each kind of file."""
    run = RunDirectory(tmp_path / "runs" / "mine")
    run.path.mkdir(parents=True)
    store = CheckpointStore(run.checkpoints_path)
    for step in (0, 1):
        store.save(step, {"params": {"a": np.zeros(3)}}, {})
    os.rename(store.folder(0), run.checkpoints_path / "00000000.damaged-2")
    run.write_json("config.json", with_digest({"task": "language", "config": {}, "resolved": {}}))
    for name in ("tokenizer.json", "metrics.jsonl", "samples.txt", "loss.png", temporary_name("a")):
        write(run.path / name, "")
    write(run.path / CARD, f"{CARD_TITLE} language")
    write(run.path / "tensorboard" / "events.out.tfevents.1.host.2", "")
    return run.path


def everything(folder):
    return sorted(folder.rglob("*"))


def test_a_run_goes_with_its_folder_and_nothing_else(folder):
    beside = write(folder.parent / "notes.txt", "")
    assert why_kept(folder) is None
    remove_run(folder)
    assert everything(folder.parent) == [beside]


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "model.safetensors",
        "checkpoints/notes.txt",
        "checkpoints/00000001/notes.txt",
        "checkpoints/mine/manifest.json",
        "tensorboard/notes.txt",
        "other/config.json",
        "loss.png/a",
        ".a.1-12345678-12345678.tmp",
    ],
)
def test_a_run_with_a_file_of_someone_else_stays_as_it_is(folder, name):
    if (folder / name.partition("/")[0]).is_file():
        (folder / name.partition("/")[0]).unlink()
    write(folder / name, "")
    before = everything(folder)
    with pytest.raises(UsageError, match="did not make"):
        remove_run(folder)
    assert everything(folder) == before


def test_a_readme_of_ones_own_and_the_run_of_the_package_stay(folder):
    (folder / "README.md").write_text("my notes")
    assert "README.md" in str(why_kept(folder))
    assert why_kept(PRETRAINED / "shakespeare") is not None


@pytest.mark.parametrize("name", ["samples.txt", "checkpoints", "checkpoints/00000001"])
def test_a_link_in_a_run_is_not_followed(folder, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    os.rename(folder / name, elsewhere)
    (folder / name).symlink_to(elsewhere)
    before = everything(elsewhere)
    with pytest.raises(UsageError, match="did not make"):
        remove_run(folder)
    assert (folder / name).is_symlink()
    assert everything(elsewhere) == before


def test_a_link_to_a_run_stays(folder):
    link = folder.parent / "best"
    link.symlink_to(folder)
    with pytest.raises(UsageError, match="link"):
        remove_run(link)
    assert why_kept(folder) is None


@pytest.mark.parametrize("content", ["{}", '{"sha256": "a"}', "", '{"model_type": "gpt2"}'])
def test_a_folder_that_is_no_whole_run_stays(folder, content):
    (folder / "config.json").write_text(content)
    before = everything(folder)
    with pytest.raises(UsageError, match="not a whole run"):
        remove_run(folder)
    assert everything(folder) == before


def test_a_run_in_training_stays(folder):
    lock = RunLock.take(folder)
    assert "trained" in why_kept(folder)
    with pytest.raises(UsageError, match="trained"):
        remove_run(folder)
    lock.release()
    hold = "import sys; from jaxgen.runs.lock import RunLock; RunLock.take(sys.argv[1]); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert "trained" in why_kept(folder)
        other.kill()
    assert why_kept(folder) is None, "the lock of a killed process holds nothing"
    remove_run(folder)
    assert not folder.exists()


def test_what_a_killed_start_left_goes(tmp_path):
    folder = tmp_path / "run"
    write(folder / START, MARKER)
    CheckpointStore(folder / "checkpoints").save(0, {"params": {"a": np.zeros(3)}}, {})
    write(folder / "tokenizer.json", "{}")
    remove_run(folder)
    assert everything(tmp_path) == []


def test_what_an_interrupted_removal_left_can_be_removed(folder, monkeypatch):
    unlink = os.unlink
    left = [3]

    def stop(path, **options):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", stop)
    with pytest.raises(KeyboardInterrupt):
        remove_run(folder)
    monkeypatch.setattr(os, "unlink", unlink)
    assert why_kept(folder) is None
    remove_run(folder)
    assert not folder.exists()
