"""Saved checkpoints for tests that read or alter them; locks of runs are released after each test."""

import shutil

import pytest
from kept_states import make_state

from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.lock import RunLock


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A folder with the checkpoints of steps 10 and 20, to be copied by those who alter it."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    store = CheckpointStore(folder)
    store.save(10, make_state(1), {"position": 10}, metric=2.0)
    store.save(20, make_state(2), {"position": 20}, metric=3.0)
    return folder


@pytest.fixture
def store(saved, tmp_path):
    return CheckpointStore(shutil.copytree(saved, tmp_path / "checkpoints"))


@pytest.fixture(autouse=True)
def released(tmp_path):
    """Release the locks of runs in ``tmp_path`` after the test."""
    yield
    for held in list(RunLock._held.values()):
        if held.folder.is_relative_to(tmp_path):
            held.release()
