"""What all commands share: exit codes, messages, reading flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jaxgen.errors import JaxgenError


def guarded(command: Callable[[], None]) -> int:
    """Run ``command`` and turn every expected failure into one sentence on standard error and its exit code."""
    from jaxgen.run.trainer import Interrupted

    try:
        command()
        sys.stdout.flush()
    except JaxgenError as error:
        say(f"error: {error}")
        return error.exit_code
    except Interrupted as stop:
        say(str(stop))
        return stop.exit_code
    except KeyboardInterrupt:
        say("Stopped.")
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`): end quietly, also when Python closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        say(f"error: The system refused{where}: {error.strerror or error}.")
        return 1
    return 0


def say(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


def flag_value(args: Sequence[str], flag: str) -> str | None:
    """The value that ``args`` give ``--flag`` (the last one), read before the real parsing."""
    value = None
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(flag + "="):
            value = arg[len(flag) + 1 :]
    return value


def without_flag(args: Sequence[str], flag: str) -> list[str]:
    """``args`` without ``--flag VALUE`` and ``--flag=VALUE``."""
    kept, skip = [], False
    for arg in args:
        if skip:
            skip = False
        elif arg == flag:
            skip = True
        elif not arg.startswith(flag + "="):
            kept.append(arg)
    return kept


def parse(kind: Any, args: Sequence[str], *, prog: str, description: str, default: Any = None) -> Any:
    """Typed flags for the configuration ``kind``; exits with 2 after a sentence when they cannot be used."""
    import tyro
    from pydantic import ValidationError

    from jaxgen.errors import UsageError
    from jaxgen.store.config import describe

    options = {} if default is None else {"default": default}
    marks = (tyro.conf.FlagCreatePairsOff,)
    try:
        return tyro.cli(kind, args=list(args), prog=prog, description=description, config=marks, **options)
    except ValidationError as error:
        raise UsageError(describe(error)) from None
