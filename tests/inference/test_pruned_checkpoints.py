"""Weights are loaded while a trainer drops the checkpoint that is being read: the newest one is used, or an error."""

import shutil

import numpy as np
import pytest

from jaxgen.errors import CheckpointError
from jaxgen.inference.loading import MAX_ATTEMPTS, LoadedRun
from jaxgen.runs import checkpoints as checkpoints_module
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.directory import RunDirectory
from jaxgen.text import STANDARD

PARAMS = {"a": np.zeros(3, np.float32)}


@pytest.fixture
def saved(tmp_path):
    run = RunDirectory(tmp_path)
    CheckpointStore(run.checkpoints_path, run_digest="a").save(1, {"params": PARAMS}, {})
    return LoadedRun(run, None, {"steps": 100, "run_digest": "a"}, STANDARD, None, None)


@pytest.mark.parametrize("name", ["read_manifest", "read_arrays"])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_checkpoint_that_is_dropped_while_it_is_read_is_replaced_by_the_newest(saved, monkeypatch, name, times):
    read, writer = getattr(checkpoints_module, name), CheckpointStore(saved.directory.checkpoints_path, run_digest="a")
    drops = list(range(times))

    def dropping(folder, *rest):
        if drops:
            drops.pop()
            with monkeypatch.context() as patch:
                patch.setattr(checkpoints_module, name, read)
                writer.save(writer.latest() + 1, {"params": PARAMS}, {})
            shutil.rmtree(folder)
        return read(folder, *rest)

    monkeypatch.setattr(checkpoints_module, name, dropping)
    step, params, digest = saved.params_and_digest(PARAMS)
    assert (step, digest) == (times + 1, writer.digest(times + 1))
    assert list(params) == ["a"]


def test_loading_gives_up_when_every_checkpoint_disappears(saved, monkeypatch):
    read, writer, reads = (
        checkpoints_module.read_arrays,
        CheckpointStore(saved.directory.checkpoints_path, run_digest="a"),
        [],
    )

    def dropping(folder, *rest):
        reads.append(folder)
        writer.save(writer.latest() + 1, {"params": PARAMS}, {})
        shutil.rmtree(folder)
        return read(folder, *rest)

    monkeypatch.setattr(checkpoints_module, "read_arrays", dropping)
    with pytest.raises(CheckpointError, match="missing"):
        saved.params_and_digest(PARAMS)
    assert len(reads) == MAX_ATTEMPTS


def test_damage_that_stays_is_reported_at_once(saved, monkeypatch):
    (saved.directory.checkpoints_path / "00000001" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        saved.params_and_digest(PARAMS)
