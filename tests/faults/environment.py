"""Unusual environments: locales, paths, clocks, folders that cannot be written, closed standard streams.

Each fault is a training in a process of its own, whose weights must be those of one in ordinary surroundings.
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from jaxgen.runs.checkpoints import CheckpointStore

from .fault import Fault, Unavailable
from .kills import older_code

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = (
    "--preset tiny --cell elman --hidden 4 --batch-size 2 --seq-len 8 --steps 4 --eval-every 2 --sample-every 2 "
    "--devices 1"
)
STEPS = 4
TEXT = "".join(f"Zur {n}. Übung läuft ein Café ∑ über die Straße.\n" for n in range(30))
#: What a process inherits that would make surroundings of it.
INHERITED = ("COLUMNS", "LANG", "LC_ALL", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "TERM", "XDG_CACHE_HOME")
#: Put in front of the modules of a process: a clock that begins a decade off and jumps by a year at every look.
CLOCK = """
import random, time
now, now_ns, jump, year = time.time, time.time_ns, random.Random(SEED), 365 * 86400
time.time = lambda: now() + jump.choice([-10, -1, 1, 10]) * year
time.time_ns = lambda: now_ns() + jump.choice([-10, -1, 1, 10]) * year * 10**9
"""
#: A training that is asked to stop once some steps are done.
STOPPED = """
import os, signal, sys
import jaxgen.trainer.trainer as trainer
from jaxgen.cli.progress import Screen
from jaxgen.cli.train import main

trainer.MAX_STEPS_PER_CALL = 1
show = Screen.show

def watch(screen, event):
    show(screen, event)
    if type(event).__name__ == "Progress" and event.step == 1:
        os.kill(os.getpid(), signal.SIGTERM)

Screen.show = watch
sys.exit(main())
"""


def surroundings(**changes: str | None) -> dict[str, str]:
    """An ordinary environment with ``changes``, None for a variable that is not set; all compile alike and quickly."""
    ours = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
    ours["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {older_code()}".strip()
    found: dict[str, str | None] = {k: v for k, v in os.environ.items() if k not in INHERITED}
    return {name: value for name, value in (found | ours | changes).items() if value is not None}


def run(
    folder: Path,
    *args: object,
    env: Mapping[str, str] | None = None,
    redirected: str = "",
    stdout: int = subprocess.PIPE,
) -> subprocess.CompletedProcess[bytes]:
    """Python with ``args`` in ``folder``, its standard files ``redirected`` as a shell would."""
    if os.name == "nt":
        raise Unavailable("a POSIX shell is needed")
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, *map(str, args)],
        cwd=folder,
        env=surroundings() if env is None else env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=300,
    )


def arguments(folder: Path, name: str = "text.txt", run: str = "run") -> list[object]:
    """A tiny training on a text that is written into ``folder``."""
    (folder / name).write_text(TEXT, encoding="utf-8")
    return [ROOT / "train.py", f"--data=./{name}", f"--run={run}", *FLAGS.split()]


@cache
def ordinary() -> str:
    """The digest of the weights that this training ends with in ordinary surroundings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = run(folder, *arguments(folder))
        assert done.returncode == 0, done.stderr.decode()
        return CheckpointStore(folder / "run" / "checkpoints").digest()


def check(done: subprocess.CompletedProcess[bytes], code: int, told: Sequence[str] = ()) -> None:
    """Raise ``AssertionError`` unless it ended with ``code``, said each of ``told``, and if that is none, nothing."""
    errors = done.stderr.decode("utf-8", "backslashreplace")
    assert done.returncode == code, f"exit code {done.returncode}: {errors}"
    assert "Traceback" not in errors, errors
    assert all(part in errors for part in told), errors
    assert told or not errors, errors


def check_run(path: Path) -> None:
    """Raise ``AssertionError`` unless the run is complete, with the weights of one in ordinary surroundings."""
    store = CheckpointStore(path / "checkpoints")
    assert store.latest() == STEPS, f"the last checkpoint is {store.latest()}"
    assert (path / "report.json").is_file(), "there is no report"
    assert store.digest() == ordinary(), "the weights are others"


def trained(folder: Path, **changes: str | None) -> None:
    """Train with ``changes`` to the environment, check the run, and write a text with it."""
    env = surroundings(**changes)
    check(run(folder, *arguments(folder), env=env), 0)
    check_run(folder / "run")
    done = run(folder, ROOT / "sample.py", "--run", "run", "--length", 20, env=env)
    check(done, 0, ["20 tokens"])
    assert len(done.stdout.decode("utf-8")) == 21


def ascii_locale(folder: Path, draw: np.random.Generator) -> str:
    """No UTF-8 anywhere, no home, a terminal that can do nothing."""
    strict = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    trained(folder, LC_ALL="C", HOME=None, TERM="dumb", **strict)
    return "same weights, sample in UTF-8"


def odd_paths(folder: Path, draw: np.random.Generator) -> str:
    """Folders and files whose names have spaces, quotes, a dash in front, and letters of several scripts."""
    names = ["-ein Café", "日本 '語'", 'a "b" $c', "--é", "ends with\ta tab", "[b]x"]
    name = str(draw.choice(names))
    inner = folder / name
    inner.mkdir()
    args = arguments(inner, f"{name}.txt", run=name)
    check(run(inner, *args), 0)
    check_run(inner / name)
    check(run(inner, ROOT / "sample.py", f"--run={name}", "--length", 20), 0, ["20 tokens"])
    check(run(inner, ROOT / "train.py", f"--run={name}", "--resume", "must"), 0)
    return "same weights; sampling and resuming work"


def clock_jumps(folder: Path, draw: np.random.Generator) -> str:
    """Every look at the clock is another year."""
    (folder / "sitecustomize.py").write_text(CLOCK.replace("SEED", str(draw.integers(2**32))))
    trained(folder, PYTHONPATH=f"{folder}{os.pathsep}{ROOT}")
    return "same weights"


def unwritable_folders(folder: Path, draw: np.random.Generator) -> str:
    """Home, caches and temporary files have no place: a file is where each folder would be."""
    (folder / "file").write_bytes(b"")
    nowhere = str(folder / "file" / "below")
    names = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "TMPDIR", "TEMP", "TMP")
    env = surroundings(**dict.fromkeys(names, nowhere))
    done = run(folder, *arguments(folder), env=env)
    check(done, 0, ["atplotlib"] if done.stderr else [])
    check_run(folder / "run")
    return "same weights; nothing cached"


def closed_files(folder: Path, draw: np.random.Generator) -> str:
    """Some of standard input, output and errors are closed, and the next file could take their numbers."""
    closed = [sign for sign in ("<&-", ">&-", "2>&-") if draw.integers(2)] or ["<&-", ">&-", "2>&-"]
    check(run(folder, *arguments(folder), redirected=" ".join(closed)), 0)
    check_run(folder / "run")
    return "same weights"


def without_a_reader(folder: Path, draw: np.random.Generator) -> str:
    """Whoever read the output has gone before its first line (``| head -0``)."""
    read, write = os.pipe()
    os.close(read)
    try:
        check(run(folder, *arguments(folder), stdout=write), 0)
        check_run(folder / "run")
        for args in (("sample.py", "--run", "run"), ("sample.py", "--help"), ("train.py", "--help")):
            check(run(folder, ROOT / args[0], *args[1:], stdout=write), 0)
    finally:
        os.close(write)
    return "training continues; other commands end without an error"


def full_output(folder: Path, draw: np.random.Generator) -> str:
    """Standard output is a file on a full disk."""
    if not Path("/dev/full").exists():
        raise Unavailable("there is no /dev/full")
    check(run(folder, *arguments(folder), redirected=">/dev/full"), 0, ["note: Standard output cannot be written"])
    check_run(folder / "run")
    done = run(folder, ROOT / "sample.py", "--run", "run", "--length", 20, redirected=">/dev/full")
    check(done, 1, ["No space left on device"])
    check(run(folder, *arguments(folder, run="both"), redirected=">/dev/full 2>/dev/full"), 0)
    check_run(folder / "both")
    return "training continues with a warning; sampling ends with 1"


def terminal_gone(folder: Path, draw: np.random.Generator) -> str:
    """The terminal that shows the live line is closed in the middle."""
    master, slave = pty.openpty()
    command = [sys.executable, *map(str, arguments(folder))]
    env = surroundings(TERM="xterm")
    with subprocess.Popen(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, start_new_session=True
    ) as process:
        os.close(slave)
        os.read(master, int(draw.integers(1, 2000)))
        os.close(master)
        code = process.wait(timeout=300)
    assert code == 0, f"exit code {code}"
    check_run(folder / "run")
    return "training continues"


def stopped_unheard(folder: Path, draw: np.random.Generator) -> str:
    """SIGTERM to a training whose standard errors are closed, or on a full disk."""
    (folder / "stopped.py").write_text(STOPPED)
    where = "2>&-" if draw.integers(2) or not Path("/dev/full").exists() else "2>/dev/full"
    args = arguments(folder)
    check(run(folder, "stopped.py", *args[1:], redirected=where), 143)
    latest = CheckpointStore(folder / "run" / "checkpoints").latest()
    assert latest is not None, "nothing was saved"
    assert latest < STEPS, "it was not stopped"
    check(run(folder, *args, "--resume", "must"), 0)
    check_run(folder / "run")
    return "saved, exit code 143; same weights after resuming"


def _fault(name: str, required: str, inject: Callable[[Path, np.random.Generator], str], **more: int) -> Fault:
    return Fault(name, required, inject, times=more.get("times", 3), slow=not more.get("quick", 0))


FAULTS = (
    _fault("ASCII locale, HOME unset, TERM=dumb, no terminal", "works", ascii_locale, times=1),
    _fault("spaces, quotes, Unicode, a leading dash in paths", "works", odd_paths, times=6),
    _fault("the clock jumps by years", "works", clock_jumps),
    _fault("home, cache and temporary folders cannot be written", "works, keeps nothing", unwritable_folders, times=1),
    _fault("standard input, output or errors closed", "works", closed_files, quick=1, times=6),
    _fault("output that nobody reads (`| head`)", "trains on; else ends quietly", without_a_reader, times=1),
    _fault("standard output on a full disk", "trains on; else an error", full_output, times=1),
    _fault("the terminal is closed", "training continues", terminal_gone),
    _fault("SIGTERM while errors cannot be told", "saves, exit code 143", stopped_unheard, times=4),
)
