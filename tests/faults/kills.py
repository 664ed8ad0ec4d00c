"""Real processes that are killed or stopped at random moments, also inside a save and while resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import numpy as np

from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.directory import START
from jaxgen.runs.logs import MetricsLog

from .diverging import book, traces
from .fault import Fault, Unavailable

#: Trains once for every attempt, each in a process of its own that was forked before JAX started anything. A moment is
#: a step reported, a file or folder put on the disk or renamed. The process gets signals, or none, at the moment given:
#: a number from 1, or below that a share of those that the first attempt had.
SCRIPT = """
import json, os, signal, sys, threading, time
import jaxgen.trainer.run, jaxgen.trainer.trainer as trainer
from jaxgen.cli.progress import Screen
from jaxgen.cli.train import main

trainer.MAX_STEPS_PER_CALL = 2

def attempt(flags, moment, delay, numbers, log):
    count = 0

    def watched(function):
        def call(*args):
            nonlocal count
            count += 1
            if count == moment:
                send = lambda: (time.sleep(delay), [os.kill(os.getpid(), number) for number in numbers])
                threading.Thread(target=send, daemon=True).start() if delay else send()
            return function(*args)
        return call

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # which a shell ignores in what it runs behind it
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.fsync, os.rename, os.replace = map(watched, (os.fsync, os.rename, os.replace))
    Screen.show = watched(Screen.show)
    sys.stdout = sys.stderr = open(log, "w", buffering=1)
    code = main(flags)
    print("moments", count)
    sys.stdout.flush()
    os._exit(code)  # as the interpreter would, without waiting for what JAX leaves behind in a fork

codes, most = [], 0
for number, (flags, moment, *when) in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        attempt(flags, int(moment * most) + 1 if 0 < moment < 1 else int(moment), *when, f"log-{number}.txt")
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if not number:
        most = int(open("log-0.txt").read().split("moments")[1])
print(json.dumps(codes))
"""
FLAGS = (
    "--preset tiny --cell elman --hidden 8 --batch-size 4 --seq-len 8 --lr 0.02 --dropout 0.2 --steps 14 "
    "--eval-every 5 --sample-every 4 --devices 1 --data book.txt"
)
NEVER: tuple[float, float, tuple[int, ...]] = (0.0, 0.0, ())


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process that compiles quickly, and what another one compiled not at all."""
    compiled = jax.config.jax_compilation_cache_dir or str(folder / "compiled")
    return {
        **os.environ,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {older_code()}".strip(),
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }


@cache
def older_code() -> str:
    """Flags for XLA's older code generation, which takes half the time; none where XLA does not know them any more."""
    older = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    try:
        jax.jit(lambda: 0, compiler_options=older)()
    except jax.errors.JaxRuntimeError:
        return ""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in older.items())


def train(folder: Path, *attempts: tuple[str, float, float, tuple[int, ...]]) -> list[int]:
    """The exit codes of training the run named in each attempt, which is resumed where it exists.

    In front of them a run ``whole`` is trained, which nothing stops.
    """
    if not hasattr(os, "fork"):
        raise Unavailable("processes cannot be forked here")
    book(folder)
    given = [
        ([*FLAGS.split(), "--run", run, "--resume", "auto"], *when) for run, *when in [("whole", *NEVER), *attempts]
    ]
    command = [sys.executable, "-c", SCRIPT, json.dumps(given)]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    first, *codes = json.loads(done.stdout)
    assert first == 0, log(folder, 0)
    return codes


def log(folder: Path, number: int) -> str:
    """What the process of an attempt printed."""
    return (folder / f"log-{number}.txt").read_text()


def check_same(folder: Path, run: str) -> None:
    """The run equals the one that nothing stopped, and nothing unfinished lies about in it."""
    assert traces(folder / run) == traces(folder / "whole")
    left = [path for path in (folder / run).rglob(".*") if path.name.endswith(".tmp") or path.name == START]
    assert not left


def killed(folder: Path, draw: np.random.Generator) -> str:
    """Killed a few times, and then left alone."""
    delays = [float(draw.choice([0.0, draw.exponential(0.01)])) for _ in range(draw.integers(1, 3))]
    kills = [("run", float(draw.uniform()), delay, (signal.SIGKILL,)) for delay in delays]
    codes = train(folder, *kills, ("run", *NEVER))
    assert set(codes[:-1]) <= {0, -signal.SIGKILL}, codes
    assert codes[-1] == 0, log(folder, len(codes))
    check_same(folder, "run")
    return "resumed; parameters, metrics and samples equal those of the run that was not killed, bit for bit"


def killed_resuming(folder: Path, draw: np.random.Generator) -> str:
    """Killed in training, and then several times in a row while it is being resumed."""
    first = ("run", float(draw.uniform(0.5, 0.9)), 0.0, (signal.SIGKILL,))
    again = [("run", int(draw.integers(1, 12)), 0.0, (signal.SIGKILL,)) for _ in range(4)]
    codes = train(folder, first, *again, ("run", *NEVER))
    assert codes == [-signal.SIGKILL] * 5 + [0], log(folder, len(codes))
    check_same(folder, "run")
    return "resumed; same result, bit for bit"


def stopped(folder: Path, draw: np.random.Generator) -> str:
    """SIGTERM, Ctrl-C and a closed terminal, each once or twice."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    runs = []
    for number in numbers:
        # Behind what makes the folder, and with steps still to come.
        moment = float(draw.uniform(0.25, 0.5))
        runs += [(f"{number}", moment, 0.0, (number,)), (f"{number}", *NEVER)]
        runs += [(f"{number}-twice", moment, 0.0, (number, number)), (f"{number}-twice", *NEVER)]
    codes = train(folder, *runs)
    told = [log(folder, 4 * at + 1) for at in range(len(numbers))]
    assert codes == [143, 0, -15, 0, 130, 0, 130, 0, 129, 0, -1, 0], told
    assert all("saved. Continue with: python train.py --run" in each and "Traceback" not in each for each in told)
    for number in numbers:
        check_same(folder, f"{number}")
        check_same(folder, f"{number}-twice")
    return "saved and exited with 143, 130 and 129; a second signal ended the process at once; resumed bit for bit"


def determined(folder: Path, draw: np.random.Generator) -> str:
    """The same command in two processes."""
    assert train(folder, ("again", *NEVER)) == [0], log(folder, 1)
    check_same(folder, "again")
    stores = [CheckpointStore(folder / run / "checkpoints") for run in ("whole", "again")]
    assert stores[0].steps() == stores[1].steps()
    assert len({store.digest(step) for store in stores for step in store.steps()}) == len(stores[0].steps())
    assert len(MetricsLog(folder / "whole" / "metrics.jsonl").read()) == 3
    return "same checkpoints, metrics and samples"


FAULTS = (
    Fault(
        "SIGKILL at random moments, also during a save",
        "`--resume` continues from the last complete checkpoint; same result bit for bit as without the kill",
        killed,
    ),
    Fault("SIGKILL while resuming, several times in a row", "as above", killed_resuming, slow=True),
    Fault(
        "SIGTERM, Ctrl-C, a closed terminal",
        "saves and exits with 143, 130, 129; a second signal ends the process at once",
        stopped,
        times=3,
        slow=True,
    ),
    Fault("the same command run twice", "both runs are identical", determined, times=2, slow=True),
)
