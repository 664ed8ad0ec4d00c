"""The installed command ``jaxgen``, which runs every other command by its name."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

#: Each is a module of this package with a function ``main(args) -> exit code``.
COMMANDS = {
    "bench": "time training and sampling, and show what bounds them",
    "compare": "show in which settings runs differ and what each reached",
    "completion": "print a script with which a shell completes commands and flags",
    "doctor": "print what a bug report needs",
    "evaluate": "measure the texts of a model over several temperatures",
    "explain": "show the probabilities of the next token after a text",
    "export": "write a model to a file for other programs",
    "import": "make a run from the weights of another program",
    "info": "show a run: data, settings, figures, arrays",
    "interpolate": "write text from states between those after two prompts",
    "neurons": "look at the hidden units of a model while it reads a text",
    "predict": "answer inputs: a label, a translation or a caption for each",
    "replay": "draw recorded samples again and check that they are identical",
    "runs": "list the runs in a folder",
    "sample": "write text with a model (the same as python sample.py)",
    "score": "compute how likely a model finds a text",
    "serve": "answer requests over HTTP with the interface of OpenAI's completions",
    "sweep": "train a model with several settings and show which is best",
    "train": "train a model (the same as python train.py)",
}
#: Commands whose module has another name, because theirs is a keyword of Python.
MODULES = {"import": "import_weights"}
#: How many objects are made before Python looks for garbage among them. Its default (700, or 2,000 from Python 3.13
#: on) costs a third of a second at the start, which makes a million objects and no garbage.
OBJECTS = 50_000


def usage() -> str:
    """The help of ``jaxgen`` itself."""
    from jaxgen.cli.help import program, terminal_width, two_columns

    rows = two_columns([*COMMANDS.items()], terminal_width(), indent=2, limit=20)
    explains = f"{program('COMMAND')} --help explains a command."
    return f"usage: {program('COMMAND')} [FLAGS]\n\n{''.join(text for _, text in rows)}\n{explains}\n"


def run(name: str | None = None, interrupt: Any = None) -> NoReturn:
    """Run a command and end the process.

    Args:
        name: The command. Default: the one that the first argument names.
        interrupt: How Ctrl-C is handled once modules are loaded. Default: as it is now.
    """
    interrupt = interrupt or signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # see train.py
    gc.set_threshold(OBJECTS)
    command = _find_command() if name is None else _command(name)
    signal.signal(signal.SIGINT, interrupt)
    leave(command())


def leave(code: int) -> NoReturn:
    """End the process with an exit code.

    After a signal it ends at once: a device may still be computing, and Python's regular shutdown would crash.
    """
    if code > 128:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # a stream may be closed
                stream.flush()
        os._exit(code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done
    gc.freeze()  # or the shutdown would look several times for garbage among a million objects
    sys.exit(code)


def main() -> int:
    """Run the command named by the first argument; returns the exit code."""
    return _find_command()()


def _command(name: str) -> Callable[..., int]:
    """Import a command: a function of its arguments, by default those of this process."""
    command: Callable[..., int] = import_module(f"jaxgen.cli.{MODULES.get(name, name)}").main
    return command


def _find_command() -> Callable[[], int]:
    """Import and return the command that the first argument names."""
    from jaxgen.cli.common import end_output, hold_descriptors, log, run_command
    from jaxgen.errors import choose

    hold_descriptors()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "--help-all", "help"):
        return lambda: end_output(0 if len(sys.argv) > 1 else 2, usage())
    if sys.argv[1] in COMMANDS:
        command = _command(sys.argv[1])
        return lambda: command(sys.argv[2:])

    def refuse() -> int:
        code = run_command(lambda args: (choose(args[0], COMMANDS, "command"), None)[1])
        if code:
            log(usage().rstrip())
        return code

    return refuse
