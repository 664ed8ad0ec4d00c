"""What Orbax leaves behind when a read or a write fails: it is hushed, and nothing else is."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxgen.runs import orbax_io

CLOSED = RuntimeError("Event loop is closed")
UNMADE = AttributeError("'_UnixSelectorEventLoop' object has no attribute '_ssock'")
#: Writes and reads with more and more descriptors free, from none on.
STARVED = """
import os, resource, sys
from pathlib import Path
import numpy as np
import orbax.checkpoint
from jaxgen.runs import orbax_io

folder, arrays = Path(sys.argv[1]), {"w": np.ones(3)}
orbax_io.write_arrays(folder / "whole", arrays)
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
said = set()
for free in range(8):
    taken = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + free, limits[1]))
    try:
        orbax_io.write_arrays(folder / str(free), arrays)
    except OSError as error:
        said.add(error.strerror)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
print(*said)
"""


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
    for name in ("absl", "asyncio"):
        logging.getLogger(name).removeFilter(orbax_io._is_another)


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
    sys.unraisablehook(SimpleNamespace(exc_value=UNMADE))
    sys.unraisablehook(SimpleNamespace(exc_value=ValueError("mine")))
    log = logging.getLogger("asyncio")
    log.error("_GatheringFuture exception was never retrieved", exc_info=failing_in("/lib/orbax/checkpoint/x.py"))
    log.error("Task exception was never retrieved: <coro defined at /lib/orbax/checkpoint/y.py>")
    log.error("mine", exc_info=failing_in("/home/me/mine.py"))
    late = logging.getLogger("absl")  # what Orbax's own threads tell
    late.handle(late.makeRecord("absl", logging.ERROR, "/lib/orbax/checkpoint/z.py", 1, "thread", (), None))
    late.handle(late.makeRecord("absl", logging.ERROR, "/home/me/mine.py", 1, "mine too", (), None))
    assert failed == ["mine"]
    assert [record.message for record in caplog.records] == ["mine", "mine too"]


def test_where_all_went_well_nothing_is_hushed(told, caplog, tmp_path):
    orbax_io.write_arrays(tmp_path / "new", {"w": np.ones(3)})
    sys.unraisablehook(SimpleNamespace(exc_value=CLOSED))
    logging.getLogger("asyncio").error("about /lib/orbax/x.py")
    assert told == ["Event loop is closed"]
    assert [record.message for record in caplog.records] == ["about /lib/orbax/x.py"]


def test_where_descriptors_are_short_the_error_alone_is_told(tmp_path):
    if not Path("/proc/self/fd").exists():
        pytest.skip("only Linux tells which descriptors are open")
    command = [sys.executable, "-c", STARVED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Too many open files\n", "")


def test_coroutines_of_others_that_nobody_awaits_are_told_after_a_failed_write(failed):
    async def mine():
        """Never runs."""

    mine()
    gc.collect()
    assert len(failed) == 1  # in these tests a warning is an error
    assert failed[0].endswith("mine' was never awaited")
