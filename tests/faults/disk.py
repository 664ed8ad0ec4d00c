"""Disks that are full, read-only or gone while a run saves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np

from jaxgen.errors import CheckpointError
from jaxgen.runs import checkpoints as checkpoints_module
from jaxgen.runs.checkpoints import CheckpointStore

from .fault import Fault, Unavailable
from .stores import check, filled

#: In a process with its own mounts: fill the disk of ``argv[1]``, or do what else ``argv[2]`` says, and save once more.
SCRIPT = """
import os, resource, signal, shutil, subprocess, sys
from pathlib import Path
from jaxgen.errors import CheckpointError
from jaxgen.runs.checkpoints import CheckpointStore
from tests.faults.stores import check, filled, state

place, what, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", place]
if what in ("full", "read-only") and subprocess.run(mount, capture_output=True).returncode:
    sys.exit(77)
store = filled(place)
if what == "full":
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    (place / "ballast").write_bytes(bytes(max(0, free - left)))
elif what == "read-only":
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
elif what == "limited":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, left))
elif what == "removed":
    shutil.rmtree(place / "checkpoints")
try:
    store.save(40, state(40, 32768), {"step": 40}, 0.5)
except CheckpointError as error:
    print(error)
else:
    sys.exit("it was saved")
if what != "removed":
    for each in (store, CheckpointStore(place / "checkpoints")):
        assert (each.best(), each.latest()) == (10, 30), (each.best(), each.latest())
        for step in each.steps():
            check(each, step)
assert not list(place.glob("checkpoints/.*"))
if what == "full":
    (place / "ballast").unlink()
    store.save(40, state(40), {"step": 40}, 0.5)
    check(store, 40)
    assert store.best() == 40
"""


def saving(what: str, said: str, outcome: str) -> Callable[[Path, np.random.Generator], str]:
    """Save a checkpoint of half a megabyte where ``what`` happened; the error must match ``said``."""

    def inject(folder: Path, draw: np.random.Generator) -> str:
        command = [sys.executable, "-c", SCRIPT, str(folder), what, str(int(draw.integers(0, 300_000)))]
        if what in ("full", "read-only"):
            if sys.platform != "linux" or os.geteuid():
                raise Unavailable("only root can mount a small disk, and only on Linux")
            command = ["unshare", "-m", *command]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        if done.returncode == 77 or "unshare" in done.stderr:
            raise Unavailable("this machine lets no disk be mounted")
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(said, done.stdout), done.stdout
        assert str(folder / "checkpoints") in done.stdout, done.stdout
        return outcome

    return inject


def vanishing(folder: Path, draw: np.random.Generator) -> str:
    """The run's folder is removed or moved at a random moment of a save of some megabytes."""
    run, away = folder / "run", folder / "away"
    store = filled(run)
    (run / "config.json").write_text("{}")
    begun, write, remove = threading.Event(), checkpoints_module._write_files, bool(draw.integers(2))
    delay = float(draw.choice([0.0, draw.uniform(0, 0.2)]))
    big = {"params": {f"w{n}": draw.normal(size=(512, 512)).astype("float32") for n in range(8)}}

    def strike() -> None:
        begun.wait()
        time.sleep(delay)
        os.rename(run, away)  # at once: what is removed file by file is not gone until the last
        if remove:
            shutil.rmtree(away, ignore_errors=True)

    def written(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
        begun.set()
        write(path, files)

    with ThreadPoolExecutor(1) as pool, mock.patch.object(checkpoints_module, "_write_files", written):
        struck, told = pool.submit(strike), None
        try:
            store.save(40, big, {"step": 40}, 0.5)
        except CheckpointError as error:
            told = str(error)
        struck.result()
    # Without an error it was saved before.
    assert told is None or (str(run / "checkpoints") in told and "folder" in told), told
    assert not run.exists(), "it was created again"
    if not remove:
        check(CheckpointStore(away / "checkpoints"), 30)
    return "error, or saved before it was removed; never created again"


REQUIRED = "clear error naming path and size; the previous checkpoints restore, the best among them"
ROOM = r"\(524\.3 kB|0\.5 MB needed, .* free\)"

FAULTS = (
    Fault(
        "disk full in the middle of a save",
        REQUIRED,
        saving(
            "full",
            rf"No space left on device {ROOM}",
            "error with the bytes needed and free; earlier checkpoints restored; saving works again with space",
        ),
    ),
    Fault(
        "file size limited in the middle of a save",
        REQUIRED,
        saving(
            "limited",
            rf"File too large {ROOM}",
            "error with the bytes needed and free; all earlier checkpoints restored",
        ),
    ),
    Fault(
        "disk made read-only",
        REQUIRED,
        saving("read-only", "Read-only file system", "error; all earlier checkpoints restored"),
    ),
    Fault(
        "folder of checkpoints removed",
        "clear error naming the path; the folder is not created again",
        saving("removed", "the folder was removed or moved while the run went on", "error; not created again"),
    ),
    Fault(
        "the run's folder removed or moved while a checkpoint is written",
        "clear error naming the path; the folder is not created again",
        vanishing,
        times=20,
    ),
)
