"""The command ``jaxgen``: the scripts at the top of the repository and all others, installed as one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

#: Each is a module of this package with a function ``main(args) -> exit code``.
COMMANDS = {
    "evaluate": "judge what a model writes, over several temperatures",
    "predict": "answer inputs: a label, a translation or a caption for each",
    "replay": "draw recorded samples again and say whether they are identical",
    "sample": "write text with a model      (the same as python sample.py)",
    "score": "say how likely a model finds a text",
    "train": "train a model on text        (the same as python train.py)",
}
USAGE = "usage: jaxgen COMMAND [FLAGS]\n\n{}\n\njaxgen COMMAND --help explains a command.".format(
    "\n".join(f"  {name:9s} {text}" for name, text in COMMANDS.items())
)


def run() -> NoReturn:
    """The command ``jaxgen``, from which the process never returns."""
    former = signal.getsignal(signal.SIGINT)
    if former is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # as in train.py
    command = _named()
    signal.signal(signal.SIGINT, former)
    leave(command())


def leave(code: int) -> NoReturn:
    """End the process with an exit code.

    One that was stopped ends here and now: a device may still be computing, and Python's own end would crash over it.
    """
    if code > 128:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # one that was closed
                stream.flush()
        os._exit(code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done
    sys.exit(code)


def main() -> int:
    """Run the command named by the first argument; returns the exit code."""
    return _named()()


def _named() -> Callable[[], int]:
    """The command named by the first argument, with all that it needs to begin."""
    from jaxgen.cli.common import end_output, hold_descriptors, log, run_command
    from jaxgen.errors import choose

    hold_descriptors()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        return lambda: end_output(0 if len(sys.argv) > 1 else 2, f"{USAGE}\n")
    if sys.argv[1] in ("-V", "--version"):
        from jaxgen.version import __version__

        return lambda: end_output(0, f"jaxgen {__version__}\n")
    if sys.argv[1] in COMMANDS:
        command = import_module(f"jaxgen.cli.{sys.argv[1]}").main
        return lambda: command(sys.argv[2:])

    def refuse() -> int:
        code = run_command(lambda: (choose(sys.argv[1], COMMANDS, "command"), None)[1])
        log(USAGE)
        return code

    return refuse
