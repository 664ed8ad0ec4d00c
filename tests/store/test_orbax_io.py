"""What Orbax leaves behind when a read or a write fails: it is hushed, and nothing else is."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from jaxgen.store import orbax_io

CLOSED = RuntimeError("Event loop is closed")


def failing_in(path: str) -> tuple:
    """What an error that was raised in the file ``path`` comes with."""
    try:
        exec(compile("1 / 0", path, "exec"))
    except ZeroDivisionError:
        return sys.exc_info()
    raise AssertionError


@pytest.fixture
def told(monkeypatch):
    """Unraisable errors that reach the hook in place before, restored afterwards."""
    heard: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: heard.append(str(unraisable.exc_value)))
    yield heard
    logging.getLogger("asyncio").removeFilter(orbax_io._is_another)


@pytest.fixture
def failed(told, tmp_path):
    """After a write that failed, twice."""
    for _ in range(2):
        (tmp_path / "taken").write_text("a file where a folder must be")
        with pytest.raises((OSError, orbax_io.OrbaxError)):
            orbax_io.write_arrays(tmp_path / "taken", {"w": np.ones(3)})
    return told


def test_what_a_failed_write_deserted_is_hushed_and_nothing_else(failed, caplog):
    sys.unraisablehook(SimpleNamespace(exc_value=CLOSED))
    sys.unraisablehook(SimpleNamespace(exc_value=ValueError("mine")))
    log = logging.getLogger("asyncio")
    log.error("_GatheringFuture exception was never retrieved", exc_info=failing_in("/lib/orbax/checkpoint/x.py"))
    log.error("Task exception was never retrieved: <coro defined at /lib/orbax/checkpoint/y.py>")
    log.error("mine", exc_info=failing_in("/home/me/mine.py"))
    assert failed == ["mine"]
    assert [record.message for record in caplog.records] == ["mine"]


def test_where_all_went_well_nothing_is_hushed(told, caplog, tmp_path):
    orbax_io.write_arrays(tmp_path / "new", {"w": np.ones(3)})
    sys.unraisablehook(SimpleNamespace(exc_value=CLOSED))
    logging.getLogger("asyncio").error("about orbax")
    assert told == ["Event loop is closed"]
    assert [record.message for record in caplog.records] == ["about orbax"]
