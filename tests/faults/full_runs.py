"""A training process whose disk fills up, becomes read-only, or whose run folder is removed.

Unlike the faults of ``disk``, which are those of one save, they come at a random moment of `python train.py`: while a
checkpoint, metrics, samples or a picture is written, and the run is told to go on before it can, and once it can.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxgen.runs.checkpoints import CheckpointStore

from .diverging import book, traces
from .fault import Fault, Unavailable
from .kills import FLAGS, environment

#: Behind the first moments, which make a run with a checkpoint, and in front of those of the last save.
EARLIEST, LATEST = 0.2, 0.8
#: Trains undisturbed, then on a small disk of its own where there is one, with the fault; then tries to go on, puts the
#: disk right and goes on, each in a process of its own, forked before JAX started anything. A moment is a file or
#: folder that is put on the disk or renamed: at the one given it copies the run as it is and lets the disk fill up (and
#: again whenever it has room), become read-only, or lose the run.
SCRIPT = """
import json, os, shutil, subprocess, sys
import jaxgen.trainer.run, jaxgen.trainer.trainer as trainer, matplotlib.pyplot
from jaxgen.cli.train import main

trainer.MAX_STEPS_PER_CALL = 2  # so that kills and this compile the same

what, share, left, mounted, flags = json.loads(sys.argv[1])
codes = []

def shell(command):
    return subprocess.run(command, shell=True, capture_output=True).returncode

def fill():
    with open("disk/ballast", "ab") as file:
        file.write(bytes(max(0, os.statvfs("disk").f_bavail * os.statvfs("disk").f_frsize - left)))

def strike():
    shell("cp -a disk/run before")  # a picture may be drawn meanwhile
    if what == "read-only":  # the disk once more above itself: what was opened before may still be written
        assert not shell("mount --bind disk disk && mount -o remount,bind,ro disk")
    elif what == "removed":
        os.rename("disk/run", "removed")

def attempt(run, moment=0):
    child = os.fork()
    if child:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return
    count = 0

    def watched(function):
        def call(*args, **options):
            nonlocal count
            count += 1
            if count == moment:
                strike()
            if moment and what == "full" and count >= moment:
                fill()
            return function(*args, **options)
        return call

    sys.stdout, sys.stderr = open(os.devnull, "w"), open(f"log-{len(codes)}", "w", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    os.fsync, os.rename, os.replace = map(watched, (os.fsync, os.rename, os.replace))
    code = main([*flags, f"--run={run}"])
    with open("moments", "a") as file:
        print(count, file=file)
    os._exit(code)  # as the interpreter would, without waiting for what JAX leaves behind in a fork

os.mkdir("disk")
attempt("whole")
moment = int(share * int(open("moments").read()))
if mounted and shell("mount -t tmpfs -o size=3m tmpfs disk"):
    sys.exit(77)
attempt("disk/run", moment)
shell("cp -a disk/run after")
attempt("disk/run")
if what == "full":
    os.unlink("disk/ballast")
elif what == "read-only":
    assert not shell("umount disk")
else:
    shell("rm -rf disk/run; cp -a before disk/run")
attempt("disk/run")
assert not shell("cp -a disk/run run")
print(json.dumps(codes))
"""


def train(folder: Path, what: str, draw: np.random.Generator) -> list[int]:
    """Train in ``folder``, with the fault at its moment, and go on; the exit codes."""
    if not hasattr(os, "fork"):
        raise Unavailable("processes cannot be forked here")
    mounted = what != "removed"
    if mounted and (sys.platform != "linux" or os.geteuid()):
        raise Unavailable("only root can mount a small disk, and only on Linux")
    book(folder)
    given = [
        what,
        float(draw.uniform(EARLIEST, LATEST)),
        int(draw.integers(8_000)),
        mounted,
        [*FLAGS.split(), "--resume=auto"],
    ]
    command = [sys.executable, "-c", SCRIPT, json.dumps(given)]
    done = subprocess.run(
        ["unshare", "-m", *command] if mounted else command,
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        raise Unavailable("this machine lets no disk be mounted")
    assert done.returncode == 0, done.stderr
    whole, *codes = json.loads(done.stdout)
    assert whole == 0, log(folder, 0)
    return codes


def log(folder: Path, number: int) -> str:
    """What a training told, of which nothing may be a traceback."""
    told = (folder / f"log-{number}").read_text()
    assert "Traceback" not in told, told
    return told


def check_kept(before: Path, after: Path) -> None:
    """All checkpoints restore, the latest and the best too; what was there before the fault with the bits of then."""
    then, now = (CheckpointStore(run / "checkpoints") for run in (before, after))
    assert {then.latest(), then.best()} & set(now.steps()), "the previous checkpoint is gone"
    assert now.best() in (then.best(), *now.steps())  # none before the first evaluation
    assert now.best() is None or now.best() in now.steps()
    for step in now.steps():
        found = now.restore(step)
        if step in then.steps():
            jax.tree.map(np.testing.assert_array_equal, found, then.restore(step))


def struck(what: str, said: str, outcome: str) -> Callable[[Path, np.random.Generator], str]:
    """A training in which ``what`` happens; the error must match ``said``."""

    def inject(folder: Path, draw: np.random.Generator) -> str:
        codes = train(folder, what, draw)
        told = [log(folder, number) for number in range(1, 4)]
        assert codes == ([4, 0, 0] if what == "removed" else [4, 4, 0]), told
        for text in told[: 1 if what == "removed" else 2]:
            assert re.search(rf"error: Could not write \S*disk/run\S*: {said}", text), text
        if what == "removed":
            assert not (folder / "after").exists(), "it was made again"
        else:
            check_kept(folder / "before", folder / "after")
        assert traces(folder / "run") == traces(folder / "whole")
        assert not [path for path in (folder / "run").rglob(".*") if ".tmp" in path.name]
        return outcome

    return inject


REQUIRED = "clear error naming path and size; the previous checkpoints restore; `--resume` continues bit for bit"
ROOM = r"No space left on device \([\d.,]+ [kM]B needed, [\d.,]+ [kM]B free\)\. Make room"

FAULTS = (
    Fault(
        "the disk fills up during training",
        REQUIRED,
        struck("full", ROOM, "told with the bytes needed and free, with exit 4; what was saved restored, and resumed"),
        times=3,
    ),
    Fault(
        "the disk becomes read-only during training",
        REQUIRED,
        struck("read-only", "Read-only file system", "told, with exit 4; what was saved restored, and resumed"),
        times=3,
        slow=True,
    ),
    Fault(
        "the run's folder is removed during training",
        "clear error naming the path; the folder is not created again; "
        "`--resume` continues bit for bit once it is back",
        struck("removed", "No such file|the folder was removed", "told, with exit 4; brought back it was resumed"),
        times=3,
        slow=True,
    ),
)
