"""A whole training in a process of its own whose disk fills up, becomes read-only or loses the run's folder meanwhile.

Unlike the faults of ``disk``, which are those of one save, they come at a random moment of `python train.py`: while a
checkpoint, metrics, samples or a picture is written, and the run is told to go on before it can, and once it can.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import numpy as np

from jaxgen.store import CheckpointStore

from .diverging import book, traces
from .environment import ROOT, surroundings
from .fault import Fault, Unavailable

FLAGS = (
    "--preset tiny --cell elman --hidden 8 --batch-size 4 --seq-len 8 --lr 0.02 --dropout 0.2 --steps 14 "
    "--eval-every 3 --sample-every 4 --devices 1 --data=book.txt --resume=auto"
)
#: Behind the first moments, which make a run with a checkpoint, and in front of those of the last save.
EARLIEST, LATEST = 0.2, 0.8
#: In front of the modules of a training: counts the files and folders that it puts on the disk or renames, and at the
#: moment given copies the run as it is and lets the disk fill up (and again whenever it has room), become read-only, or
#: lose the run.
MOMENTS = """
import atexit, os, pathlib, subprocess

count, what, moment, left = 0, *os.environ["FAULT"].split()
fsync, rename, replace = os.fsync, os.rename, os.replace

def fill():
    with open("disk/ballast", "ab") as file:
        file.write(bytes(max(0, os.statvfs("disk").f_bavail * os.statvfs("disk").f_frsize - int(left))))

def strike():
    subprocess.run(["cp", "-a", "disk/run", "before"])  # a picture may be drawn meanwhile
    if what == "read-only":  # the disk once more above itself: what was opened before may still be written
        subprocess.run(["mount", "--bind", "disk", "disk"], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", "disk"], check=True)
    elif what == "removed":
        rename("disk/run", "removed")

def watched(function):
    def call(*args, **options):
        global count
        count += 1
        if count == int(moment):
            strike()
        if what == "full" and count >= int(moment):
            fill()
        return function(*args, **options)
    return call

os.fsync, os.rename, os.replace = map(watched, (fsync, rename, replace))
if what == "none":
    atexit.register(lambda: pathlib.Path("moments").write_text(str(count)))
"""
#: Trains on a small disk of its own where there is one, then tries to go on, then puts it right and goes on.
SCRIPT = """
mkdir disk
if [ "$1" = mounted ]; then mount -t tmpfs -o size=3m tmpfs disk || exit 77; fi
shift
"$@" 2> log-0; echo $? > code-0
case $FAULT in none*) mv disk/run run; exit;; esac
cp -a disk/run after 2> /dev/null
FAULT="none 0 0" "$@" 2> log-1; echo $? > code-1
case $FAULT in
    full*) rm disk/ballast;;
    read-only*) umount disk;;
    removed*) rm -rf disk/run; cp -a before disk/run;;
esac
FAULT="none 0 0" "$@" 2> log-2; echo $? > code-2
cp -a disk/run run
"""


def train(folder: Path, fault: str, mounted: bool) -> None:
    """Train in ``folder``, with the fault at its moment; what the run was and is then lies there."""
    if os.name == "nt":
        raise Unavailable("a POSIX shell is needed")
    if mounted and (sys.platform != "linux" or os.geteuid()):
        raise Unavailable("only root can mount a small disk, and only on Linux")
    book(folder)
    (folder / "sitecustomize.py").write_text(MOMENTS)
    command = ["sh", "-c", SCRIPT, "sh", "mounted" if mounted else "", sys.executable, str(ROOT / "train.py")]
    command += [*FLAGS.split(), "--run=disk/run"]
    done = subprocess.run(
        ["unshare", "-m", *command] if mounted else command,
        cwd=folder,
        env=surroundings(PYTHONPATH=f"{folder}{os.pathsep}{ROOT}", FAULT=fault),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=600,
    )
    if done.returncode == 77 or b"unshare" in done.stderr:
        raise Unavailable("this machine lets no disk be mounted")
    assert done.returncode == 0, done.stderr.decode()


@cache
def whole() -> tuple[dict[str, object], int]:
    """What a run leaves that nothing disturbs, and how many moments it has."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder, "none 0 0", mounted=False)
        assert (folder / "code-0").read_text() == "0\n", (folder / "log-0").read_text()
        return traces(folder / "run"), int((folder / "moments").read_text())


def log(folder: Path, number: int) -> str:
    """What a training told, of which nothing may be a traceback."""
    told = (folder / f"log-{number}").read_text()
    assert "Traceback" not in told, told
    return told


def check_kept(before: Path, after: Path) -> None:
    """All checkpoints restore, the latest and the best too; what was there before the fault with the bits of then."""
    then, now = (CheckpointStore(run / "checkpoints") for run in (before, after))
    assert {then.latest(), then.best()} & set(now.steps()), "the previous checkpoint is gone"
    assert now.best() in now.steps()
    for step in now.steps():
        found = now.restore(step)
        if step in then.steps():
            jax.tree.map(np.testing.assert_array_equal, found, then.restore(step))


def struck(what: str, said: str, outcome: str) -> Callable[[Path, np.random.Generator], str]:
    """A training in which ``what`` happens; the error must match ``said``."""

    def inject(folder: Path, draw: np.random.Generator) -> str:
        usual, moments = whole()
        moment = int(draw.uniform(EARLIEST, LATEST) * moments)
        train(folder, f"{what} {moment} {draw.integers(8_000)}", mounted=what != "removed")
        codes = [int((folder / f"code-{number}").read_text()) for number in range(3)]
        told = [log(folder, number) for number in range(3)]
        assert codes == ([4, 0, 0] if what == "removed" else [4, 4, 0]), told
        for text in told[: 1 if what == "removed" else 2]:
            assert re.search(rf"error: Could not write \S*disk/run\S*: {said}", text), text
        if what == "removed":
            assert not (folder / "after").exists(), "it was made again"
        else:
            check_kept(folder / "before", folder / "after")
        assert traces(folder / "run") == usual
        assert not [path for path in (folder / "run").rglob(".*") if ".tmp" in path.name]
        return outcome

    return inject


REQUIRED = "clear error naming path and size; the previous checkpoints restore; --resume goes on bit for bit"
ROOM = r"No space left on device \([\d.,]+ [kM]B needed, [\d.,]+ [kM]B free\)\. Make room"

FAULTS = (
    Fault(
        "the disk fills up during a training",
        REQUIRED,
        struck("full", ROOM, "told with the bytes needed and free, with exit 4; what was saved restored, and resumed"),
    ),
    Fault(
        "the disk becomes read-only during a training",
        REQUIRED,
        struck("read-only", "Read-only file system", "told, with exit 4; what was saved restored, and resumed"),
        slow=True,
    ),
    Fault(
        "the run's folder is removed during a training",
        "clear error naming the path; not made again in silence; --resume goes on bit for bit once it is back",
        struck("removed", "No such file|the folder was removed", "told, with exit 4; brought back it was resumed"),
        slow=True,
    ),
)
