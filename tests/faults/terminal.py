"""Generated text with control characters: escaped on a terminal, unchanged in a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from .fault import Fault, Unavailable
from .kills import environment

#: Sequences that clear the screen, name its window, go back and overwrite, and turn the order of letters round: those
#: of a terminal with seven bits, with eight, and of Unicode.
HOSTILE = "\x1b[2J", "\x1b]0;mine\x07", "\b\x7f\r", "\x00\x0e", "\x9b2J", "\x9d0;mine\x9c", "\u202egpj.exe\u2066\u2028"
#: An n-gram model is made at once, and writes these as they were read.
TRAIN = "--newlines keep --model ngram --order 3 --batch-size 2 --seq-len 8"
SAMPLE = [f"--prompt={HOSTILE[-1]}{HOSTILE[0]}", "--length=400", "--seed=1", "--run=run"]
#: Trains and samples on the terminal that the process was given, then samples into the pipe ``argv[1]``.
SCRIPT = """
import json, os, sys
from jaxgen.cli.sample import main as sample
from jaxgen.cli.train import main as train

assert sys.stdout.isatty() and sys.stderr.isatty()
given = json.loads(sys.argv[2])
assert train(given["train"]) == 0
print("=== sampled", flush=True)
assert sample(given["sample"]) == 0
sys.stdout.flush()
os.dup2(int(sys.argv[1]), sys.stdout.fileno())
assert sample(given["sample"]) == sample([*given["sample"], "--json"]) == 0
sys.stdout.flush()
"""


def hostile_output(folder: Path, draw: np.random.Generator) -> str:
    """A model of nothing but such sequences trains and writes on a terminal, and writes the same into a pipe."""
    try:
        import pty
    except ImportError:
        raise Unavailable("there are no pseudo-terminals here") from None
    (folder / "text.txt").write_text("".join(draw.choice(HOSTILE, 300)), encoding="utf-8", newline="")
    given = {"train": ["--data=text.txt", "--run=run", *TRAIN.split()], "sample": SAMPLE}
    (master, slave), (end, pipe) = pty.openpty(), os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(pipe), json.dumps(given)],
        cwd=folder,
        env=environment(folder) | {"TERM": "dumb", "COLUMNS": "1000"},  # a terminal with no sequences of its own
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        pass_fds=[pipe],
        start_new_session=True,
    ) as process:
        os.close(slave)
        os.close(pipe)
        terminal = b""
        try:
            while part := os.read(master, 65536):
                terminal += part
        except OSError:  # so ends a terminal that nobody has open any more
            pass
        os.close(master)
        with open(end, "rb") as file:
            piped = file.read().decode("utf-8")
    shown = terminal.decode("utf-8").replace("\r\n", "\n")  # as the terminal ends a line
    assert process.returncode == 0, shown
    assert not {c for c in shown if not c.isprintable() and c not in "\n\t"}
    trained, sampled = shown.split("=== sampled\n")
    assert any(part in trained for part in ("\\x1b", "\\x9b", "\\u202e", "\\x00")), "training showed no sample"
    text, described = piped[: piped.rindex("\n", 0, -1)], piped[piped.rindex("\n", 0, -1) :]
    assert set("".join(HOSTILE)) <= set(text), "they were not drawn"
    assert as_shown(text) in sampled, "the terminal showed another text"
    receipt = json.loads(described)
    assert text == receipt["prompt"] + receipt["text"], "the pipe got other bytes"
    return "escaped on a terminal; unchanged in a pipe"


def as_shown(text: str) -> str:
    """The characters that a terminal would obey, as a Python program would spell them."""
    lines = text.replace("\r\n", "\n")
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in lines)


FAULTS = (
    Fault("hostile output: escape sequences in generated text", "escaped on a terminal", hostile_output, times=5),
)
