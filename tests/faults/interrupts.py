"""Ctrl-C at random moments of the commands that do not train: while they load, compile, compute and exit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from .environment import arguments, check, run, surroundings
from .fault import Fault

#: A shell that starts something in the background has it ignore Ctrl-C.
COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from jaxgen.cli.main import run; run()"
)
COMMANDS = (
    "score long.txt --run run",
    "evaluate --run run --temperature 0.5 1 --num-samples 8 --length 500 --plot q.png",
    "sample --run run --beam 4 --length 20000",
    "sample --run run --length 50000 --num-samples 4",
    "train --model ngram --data long.txt",
)
#: Seconds within which most of these are done.
LONGEST = 4.0


def interrupted(folder: Path, draw: np.random.Generator) -> str:
    """Each command once."""
    check(run(folder, *arguments(folder)), 0)
    (folder / "long.txt").write_text((folder / "text.txt").read_text(encoding="utf-8") * 200, encoding="utf-8")
    for command in COMMANDS:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *command.split()],
            cwd=folder,
            env=surroundings(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        # Before that Python itself is not there yet, and has a traceback of its own.
        time.sleep(float(draw.uniform(0.2, LONGEST)))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (0, 130), (command, process.returncode, errors)
        assert "Traceback" not in errors, (command, errors)
        assert "Exception ignored" not in errors, (command, errors)
    return "exit code 130 without a traceback, or the command had finished"


FAULTS = (
    Fault(
        "Ctrl-C at random moments of commands that train nothing",
        "ends with exit code 130, without a traceback",
        interrupted,
        slow=True,
        times=6,
    ),
)
