"""The command ``jaxgen``: the scripts at the top of the repository, installed as one."""

from __future__ import annotations

import sys

USAGE = """usage: jaxgen COMMAND [FLAGS]

  train     train a model on text        (the same as python train.py)
  sample    write text with a model      (the same as python sample.py)
  evaluate  measure what a model writes, over a sweep of temperatures

jaxgen COMMAND --help explains a command."""


def main() -> int:
    """Run the command named by the first argument; returns the exit code."""
    from jaxgen.cli import evaluate, sample, train
    from jaxgen.cli.common import guarded, say
    from jaxgen.errors import choose

    commands = {"evaluate": evaluate.main, "sample": sample.main, "train": train.main}
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE)
        return 0 if len(sys.argv) > 1 else 2
    if sys.argv[1] in ("-V", "--version"):
        from jaxgen.version import __version__

        print(f"jaxgen {__version__}")
        return 0
    if sys.argv[1] not in commands:
        code = guarded(lambda: (choose(sys.argv[1], commands, "command"), None)[1])
        say(USAGE)
        return code
    return commands[sys.argv[1]](sys.argv[2:])
