"""Saved checkpoints for tests that read or alter them."""

import shutil

import pytest
from kept_states import make_state

from jaxgen.runs.checkpoints import CheckpointStore


@pytest.fixture(scope="module")
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
